//! Unary gRPC over HTTP/2, as far as one method needs it: a message in, a message out
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
//!
//! tonic's codec copies a message out of its frames and back into them, behind several boxes; a check is one frame each
//! way, so its bytes can stay where hyper put them. What breaks the protocol is told as [`Unmapped`], since a gRPC error
//! is something that fails open under `failure_mode_allow`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::model::{Unmapped, UnmappedKind};
use crate::units;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The one message of a request's body, as far as it is here.
#[derive(Debug)]
pub struct Message {
    limit: units::Bytes,
    /// Nearly always the whole of it comes in one piece, and stays where it is.
    first: Bytes,
    whole: BytesMut,
}

impl Message {
    /// A message of which nothing is here yet, and that may be so large.
    pub fn new(limit: units::Bytes) -> Self {
        Self { limit, first: Bytes::new(), whole: BytesMut::new() }
    }

    /// Reads what is there, and returns the message when the body is at its end.
    ///
    /// # Errors
    /// If there is none or more than one, if it is compressed, or larger than the limit; with no more than the limit read.
    pub fn poll<B>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>) -> Poll<Result<Bytes, Unmapped>>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        while !body.is_end_stream() {
            let Some(frame) = ready!(body.as_mut().poll_frame(cx)) else { break };
            let frame = frame.map_err(|error| malformed(format!("the message broke off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                self.push(data)?;
            }
        }
        let first = std::mem::take(&mut self.first);
        let whole = std::mem::take(&mut self.whole);
        Poll::Ready(unframe(if whole.is_empty() { first } else { whole.freeze() }))
    }

    fn push(&mut self, data: Bytes) -> Result<(), Unmapped> {
        if self.first.is_empty() && self.whole.is_empty() {
            self.first = data;
        } else {
            self.detach();
            self.whole.extend_from_slice(&data);
        }
        let here: &[u8] = if self.whole.is_empty() { &self.first } else { &self.whole };
        // By what the frame declares, before it is all here.
        let declared = prefix(here).map_or(0, |(_, length)| u64::from(length));
        if declared > self.limit.0 || here.len() > self.limit.as_usize().saturating_add(PREFIX) {
            return Err(too_large(self.limit));
        }
        Ok(())
    }

    /// Copies what is here out of the connection's buffer, which would be kept alive as a whole.
    pub fn detach(&mut self) {
        if self.whole.is_empty() {
            self.whole.extend_from_slice(&std::mem::take(&mut self.first));
        }
    }

    /// The memory that it holds, once it is detached.
    pub fn held(&self) -> usize {
        self.whole.capacity()
    }
}

/// Whether a message is compressed, and its length; `None` if not all of that is here.
fn prefix(mut body: &[u8]) -> Option<(bool, u32)> {
    Some((body.try_get_u8().ok()? != 0, body.try_get_u32().ok()?))
}

fn unframe(mut body: Bytes) -> Result<Bytes, Unmapped> {
    let Some((compressed, length)) = prefix(&body) else { return Err(malformed("there is no message")) };
    body.advance(PREFIX);
    if compressed {
        return Err(malformed("the message is compressed"));
    }
    if u32::try_from(body.len()) != Ok(length) {
        return Err(malformed("the message is not as long as its frame says"));
    }
    Ok(body)
}

/// A message in its frame.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

fn malformed(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Malformed, detail)
}

fn too_large(limit: units::Bytes) -> Unmapped {
    Unmapped::new(UnmappedKind::TooLarge, format!("the CheckRequest is larger than {limit}"))
}

/// The body of a response: one message in its frame, and the trailers that say that all went well.
#[derive(Debug)]
pub struct Reply {
    frame: Option<Bytes>,
    done: bool,
}

/// A response of one message, given in its frame.
pub fn reply(frame: Bytes) -> http::Response<Reply> {
    let mut response = http::Response::new(Reply { frame: Some(frame), done: false });
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        const STATUS: HeaderName = HeaderName::from_static("grpc-status");
        if let Some(frame) = self.frame.take() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if self.done {
            return Poll::Ready(None);
        }
        self.done = true;
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.frame.as_ref().map_or(0, |frame| frame.len() as u64))
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
pub fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = plain.then(|| digits.parse().ok()).flatten()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        for (text, expected) in [
            ("250m", Some(Duration::from_millis(250))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("", None),
            ("m", None),
            ("1", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }

    /// A body whose DATA frames are these.
    async fn read(pieces: &[&'static [u8]]) -> Result<Bytes, String> {
        let frames = pieces.iter().map(|piece| Ok::<_, String>(Frame::data(Bytes::from_static(piece))));
        let mut body = pin!(StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>())));
        let mut message = Message::new(units::Bytes(8));
        let read = std::future::poll_fn(|cx| message.poll(cx, body.as_mut())).await;
        read.map_err(|unmapped| unmapped.to_string())
    }

    #[tokio::test]
    async fn a_message_is_whole_however_it_is_cut() {
        for pieces in [
            [b"\0\0\0\0\x03abc".as_slice(), b""],
            [b"", b"\0\0\0\0\x03abc"],
            [b"\0\0\0", b"\0\x03abc"],
            [b"\0\0\0\0\x03a", b"bc"],
        ] {
            assert_eq!(read(&pieces).await.as_deref(), Ok(b"abc".as_slice()), "{pieces:?}");
        }
        assert_eq!(read(&[b"\0\0\0\0\0"]).await.as_deref(), Ok(b"".as_slice()));
    }

    #[tokio::test]
    async fn what_is_not_one_message_is_refused() {
        for (pieces, why) in [
            ([b"".as_slice(), b""], "there is no message"),
            ([b"\0\0\0", b""], "there is no message"),
            ([b"\x01\0\0\0\x03abc", b""], "compressed"),
            ([b"\0\0\0\0\x03ab", b""], "not as long as its frame says"),
            ([b"\0\0\0\0\x03abc", b"d"], "not as long as its frame says"),
            ([b"\0\0\0\0\x09", b""], "larger than"),
            ([b"\0\xff\xff\xff\xff", b""], "larger than"),
            ([b"\0\0\0\0\x03abc", b"\0\0\0\0\x03abc"], "larger than"),
        ] {
            let refused = read(&pieces).await.expect_err(why);
            assert!(refused.contains(why), "{pieces:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_reply_is_a_frame_and_a_status() {
        let collected = reply(Bytes::from_static(b"frame")).into_body().collect().await.expect("a body");
        assert_eq!(collected.trailers().expect("trailers").get("grpc-status").expect("a status"), "0");
        assert_eq!(collected.to_bytes(), "frame");
    }
}
