//! The service behind Envoy: answers every request with what it got, byte for byte.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as the upstream got it. Bytes are the characters U+0000 to U+00FF, so that none is lost or changed, as a
/// library might do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The request target, query and all.
    pub target: String,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Seen {
    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// A running upstream. It stops with the runtime of its test.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    /// Starts one.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that ends in the middle of a request is Envoy's way of hanging up.
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self { address, seen }
    }

    /// What it got since the last time.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn serve(stream: TcpStream, all: Arc<Mutex<Vec<Seen>>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read(&mut stream).await? {
        let body = serde_json::to_string(&seen)?;
        all.lock().unwrap().push(seen);
        let head = format!("HTTP/1.1 200 OK\r\nx-upstream: here\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
    }
    Ok(())
}

/// One request, as Envoy writes it; `None` at the end of the connection.
async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Seen>> {
    let start = line(stream).await?;
    if start.is_empty() {
        return Ok(None);
    }
    let mut parts = start.splitn(3, ' ').map(str::to_owned);
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let line = line(stream).await?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut seen = Seen { method, target, headers, body: String::new() };
    if let [length] = seen.header("content-length")[..] {
        let mut body = vec![0; length.parse().map_err(io::Error::other)?];
        stream.read_exact(&mut body).await?;
        seen.body = latin1(&body);
    } else if !seen.header("transfer-encoding").is_empty() {
        loop {
            let length = usize::from_str_radix(&line(stream).await?, 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; length];
            stream.read_exact(&mut chunk).await?;
            line(stream).await?;
            seen.body.push_str(&latin1(&chunk));
            if length == 0 {
                break;
            }
        }
    }
    Ok(Some(seen))
}

/// A line without its end; empty at the end of the connection, too.
async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    Ok(latin1(line.strip_suffix(b"\r\n").unwrap_or(&line)))
}

/// Each byte as the character of its number.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}
