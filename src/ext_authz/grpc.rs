//! Unary gRPC over HTTP/2, as far as one method needs it: a message in, a message out
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
//!
//! tonic's codec copies a message out of its frames and back into them, behind several boxes; a check is one frame each
//! way, so its bytes can stay where hyper put them. What breaks the protocol is told as [`Unmapped`], since a gRPC error
//! is something that fails open under `failure_mode_allow`.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::model::{Unmapped, UnmappedKind};
use crate::units;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Takes the one message out of a request's body, which is read to its end.
///
/// # Errors
/// If there is none or more than one, if it is compressed, or larger than `limit`; with no more than the limit read.
pub async fn message<B>(body: B, limit: units::Bytes) -> Result<Bytes, Unmapped>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    // Nearly always the whole of it comes in one piece, and stays there.
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| malformed(format!("the message broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
        let here: &[u8] = if whole.is_empty() { &first } else { &whole };
        // By what the frame declares, before it is all here.
        let declared = prefix(here).map_or(0, |(_, length)| u64::from(length));
        if declared > limit.0 || here.len() > limit.as_usize().saturating_add(PREFIX) {
            return Err(too_large(limit));
        }
    }
    unframe(if whole.is_empty() { first } else { whole.freeze() })
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
    use http_body_util::StreamBody;

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
        let body = StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>()));
        message(body, units::Bytes(8)).await.map_err(|unmapped| unmapped.to_string())
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
