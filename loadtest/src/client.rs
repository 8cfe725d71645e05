//! One call: HTTP/2 as the `h2` crate gives it, and of gRPC only what an answer must be judged by.
//!
//! A tonic client would cost as much as the server it measures. Here the request is encoded once
//! for the whole run, and of an answer only the status is decoded.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::HeaderMap;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `host:port`
    Tcp(String),
    Unix(PathBuf),
}

/// An open HTTP/2 connection. Its clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    /// The head of every call.
    head: http::Request<()>,
}

/// A stream that takes one buffer at a time. A stream that took several would make `h2` write each
/// request apart from the others; so it collects them, and one system call sends many.
struct Collecting<S>(S);

/// A call that has been sent.
pub(crate) struct Call(ResponseFuture);

/// What a server decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Allow,
    Deny,
}

/// Why a call counts as an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection, or one that broke.
    Connection(String),
    /// An HTTP status other than 200.
    Http(http::StatusCode),
    /// A grpc-status other than 0, and the message with it.
    Grpc(String),
    /// A body that is not one gRPC message with a `CheckResponse`.
    Malformed,
    /// A `CheckResponse` without a status. Envoy takes it for an allow; no server should mean that.
    NoStatus,
    /// Not the expected decision.
    Wrong(Decision),
    /// No answer until long after the last call was due.
    Unanswered,
}

/// The one field of `CheckResponse` that decides; prost skips the others.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    status: Option<AnswerStatus>,
}

/// The one field of `google.rpc.Status` that decides.
#[derive(Clone, PartialEq, Message)]
struct AnswerStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

const CHECK: &str = "http://loadtest/envoy.service.auth.v3.Authorization/Check";

/// So large that the generator never holds up an answer.
const WINDOW: u32 = 1 << 30;

// === impl Address ===

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        let rest = ["http://", "tcp://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let host_port = rest.unwrap_or(text).trim_end_matches('/');
        match host_port.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(host_port.into())),
            _ => Err(format!("`{text}` is no address: give `host:port` or `unix:///path`")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn open(address: &Address) -> Result<Self, Failure> {
        match address {
            Address::Tcp(host_port) => {
                let stream = TcpStream::connect(host_port).await?;
                stream.set_nodelay(true)?;
                Self::over(stream).await
            }
            Address::Unix(path) => Self::over(UnixStream::connect(path).await?).await,
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, Failure> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(Collecting(stream))
            .await?;
        // Ends with the last clone of `send`. Should it fail, every call fails with the reason.
        tokio::spawn(connection);
        let head = http::Request::post(CHECK)
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("user-agent", "stockade-loadtest")
            .body(())
            .map_err(|error| Failure::Connection(error.to_string()))?;
        Ok(Self { send, head })
    }

    /// Sends a framed message, as soon as the server's limit on concurrent calls lets it.
    pub(crate) async fn call(&mut self, message: Bytes) -> Result<Call, Failure> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let (response, mut body) = self.send.send_request(self.head.clone(), false)?;
        body.send_data(message, true)?;
        Ok(Call(response))
    }
}

// === impl Collecting ===

impl<S: AsyncRead + Unpin> AsyncRead for Collecting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

/// Leaves `is_write_vectored` at its default, no.
impl<S: AsyncWrite + Unpin> AsyncWrite for Collecting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// === impl Call ===

impl Call {
    pub(crate) async fn decision(self) -> Result<Decision, Failure> {
        let (head, mut body) = self.0.await?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(Failure::Http(head.status));
        }
        let mut message = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            message.extend_from_slice(&chunk);
        }
        // A call that fails before it has a body sends the status in the head alone.
        let trailers = body.trailers().await?;
        grpc_status(trailers.as_ref().unwrap_or(&head.headers))?;
        decision(&message)
    }
}

fn grpc_status(trailers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match text("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        Some(status) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(Failure::Grpc(format!("{status} {message}").trim_end().into()))
        }
        None => Err(Failure::Malformed),
    }
}

/// Reads the decision out of a body of one uncompressed message.
fn decision(body: &[u8]) -> Result<Decision, Failure> {
    let Some((&[0, a, b, c, d], message)) = body.split_first_chunk() else {
        return Err(Failure::Malformed);
    };
    if usize::try_from(u32::from_be_bytes([a, b, c, d])) != Ok(message.len()) {
        return Err(Failure::Malformed);
    }
    let answer = Answer::decode(message).map_err(|_| Failure::Malformed)?;
    match answer.status {
        Some(AnswerStatus { code: 0 }) => Ok(Decision::Allow),
        Some(_) => Ok(Decision::Deny),
        None => Err(Failure::NoStatus),
    }
}

// === impl Failure ===

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "the connection failed: {error}"),
            Self::Http(status) => write!(f, "the answer has HTTP status {status}"),
            Self::Grpc(status) => write!(f, "the answer has grpc-status {status}"),
            Self::Malformed => f.write_str("the answer is not a gRPC message with a CheckResponse"),
            Self::NoStatus => f.write_str("the answer has no status, so Envoy would allow it"),
            Self::Wrong(Decision::Allow) => f.write_str("the answer is an unexpected allow"),
            Self::Wrong(Decision::Deny) => f.write_str("the answer is an unexpected deny"),
            Self::Unanswered => f.write_str("there was no answer"),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_four_spellings() {
        let tcp = Address::Tcp("127.0.0.1:9191".into());
        for text in ["127.0.0.1:9191", "http://127.0.0.1:9191/", "tcp://127.0.0.1:9191"] {
            assert_eq!(text.parse(), Ok(tcp.clone()), "{text}");
        }
        assert_eq!("unix:///run/x.sock".parse(), Ok(Address::Unix("/run/x.sock".into())));
        for text in ["", "localhost", ":80", "localhost:http"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_decision_is_the_code_of_the_status() {
        let cases: [(&[u8], _); 6] = [
            (b"\0\0\0\0\x02\x0a\0", Ok(Decision::Allow)),
            (b"\0\0\0\0\x04\x0a\x02\x08\x07", Ok(Decision::Deny)),
            (b"\0\0\0\0\0", Err(Failure::NoStatus)),
            (b"", Err(Failure::Malformed)),
            (b"\x01\0\0\0\x02\x0a\0", Err(Failure::Malformed)),
            (b"\0\0\0\0\x03\x0a\0", Err(Failure::Malformed)),
        ];
        for (body, expected) in cases {
            assert_eq!(decision(body), expected, "{body:?}");
        }
    }
}
