//! An HTTP/1.1 client that sends anything, however odd.

use std::time::Duration;
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::upstream::{Seen, latin1};

/// A request, in bytes.
#[derive(Clone)]
pub struct Request {
    line: Vec<u8>,
    host: String,
    headers: Vec<u8>,
    body: Vec<u8>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(latin1(&self.bytes()).trim_end())
    }
}

impl Request {
    /// A GET.
    pub fn get(target: impl AsRef<[u8]>) -> Self {
        Self::new("GET", target)
    }

    /// Any method, any target.
    pub fn new(method: &str, target: impl AsRef<[u8]>) -> Self {
        let line = [method.as_bytes(), b" ", target.as_ref(), b" HTTP/1.1\r\n"].concat();
        let headers = b"connection: close\r\n".to_vec();
        Self { line, host: "bookstore.example".to_owned(), headers, body: Vec::new() }
    }

    /// For this host, in place of `bookstore.example`.
    pub fn host(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// One more header line.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.extend([name.as_bytes(), b": ", value.as_ref(), b"\r\n"].concat());
        self
    }

    /// With this token.
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With this body, its length declared.
    pub fn body(self, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = body.len().to_string();
        Self { body: body.to_vec(), ..self.header("content-type", content_type).header("content-length", length) }
    }

    /// With this body in one chunk, its length unknown until its end.
    pub fn chunked(self, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
        Self { body: chunks, ..self.header("content-type", content_type).header("transfer-encoding", "chunked") }
    }

    /// Sends it on a connection of its own.
    pub async fn send(&self, to: impl ToSocketAddrs) -> Answer {
        self.try_send(to, PATIENCE).await.unwrap()
    }

    /// The same.
    ///
    /// # Errors
    /// If nothing listens there, or the answer takes longer.
    pub async fn try_send(&self, to: impl ToSocketAddrs, limit: Duration) -> io::Result<Answer> {
        timeout(limit, async { Ok(self.exchange(TcpStream::connect(to).await?).await) }).await?
    }

    /// Sends it on this connection, which ends with the answer.
    pub async fn send_on(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Answer {
        timeout(PATIENCE, self.exchange(stream)).await.expect("an answer in time")
    }

    async fn exchange(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Answer {
        // A server that refuses the head does not wait for the rest; what it said counts.
        let _ = stream.write_all(&self.bytes()).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        while !Answer::is_complete(&answer) && stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
        Answer::parse(&answer)
    }

    fn bytes(&self) -> Vec<u8> {
        let host = format!("host: {}\r\n", self.host);
        [&self.line[..], host.as_bytes(), &self.headers, b"\r\n", &self.body].concat()
    }
}

/// GETs `http://address/path`: status and body.
pub async fn http_get(address: &str, path: &str) -> (u16, String) {
    let answer = Request::get(path).host(address).send(address).await;
    (answer.status, answer.text())
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status; 0 if the connection was closed without one.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, each byte as the character of its number.
    pub body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = latin1(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        let mut answer = Self { status, headers: headers.collect(), body: body.to_owned() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(body);
        }
        answer
    }

    /// Whether nothing more has to come. Envoy may take a second to close a connection, so that is not waited for.
    fn is_complete(bytes: &[u8]) -> bool {
        let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
        let answer = Self::parse(&bytes[..head + 4]);
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        length.is_some_and(|length| bytes.len() >= head + 4 + length) || bytes.ends_with(b"\r\n0\r\n\r\n")
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.chars().map(|c| u8::try_from(c).expect("a byte")).collect()).expect("UTF-8")
    }

    /// What the upstream got, if the answer is the upstream's.
    pub fn echo(&self) -> Option<Seen> {
        self.header("x-upstream").map(|_| serde_json::from_str(&self.body).unwrap())
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        // Of characters, each of which stands for a byte.
        let length = usize::from_str_radix(length, 16).unwrap();
        let end = after.char_indices().nth(length).map_or(after.len(), |(at, _)| at);
        body.push_str(&after[..end]);
        rest = after[end..].trim_start_matches("\r\n");
    }
    body
}
