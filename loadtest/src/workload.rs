//! What is asked, in which order, and which answer is right.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::ValueEnum;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use prost::Message;

use crate::client::Decision;

/// The files Stockade is started with: a path below the configuration's directory, and the contents.
pub(crate) type Files = Vec<(String, String)>;

/// The configuration's file name in every [`Files`].
pub(crate) const CONFIG: &str = "stockade.yaml";

/// A stream of requests. Each target has its own, so that all of them are asked the same.
pub(crate) struct Workload {
    asks: Rc<[Ask]>,
    order: Order,
    /// How many were taken. It goes on from one measurement to the next.
    taken: Cell<usize>,
    /// What every answer must be, whatever each call expects.
    every: Option<Expect>,
}

/// One call: a whole gRPC message, encoded once, and the answer that is right.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) message: Bytes,
    pub(crate) expect: Expect,
}

/// The order in which requests are taken.
#[derive(Clone)]
enum Order {
    /// From first to last, and again.
    Rounds,
    /// From first to last.
    Once,
    /// In the order of these indices, and again.
    Drawn(Rc<[u32]>),
    /// In rounds, each with a number of its own at these places, so that no two are the same.
    Fresh(Rc<[Vec<usize>]>),
}

/// The decision that counts as right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Expect {
    Allow,
    Deny,
    /// Either, but a decision it must be.
    Any,
}

/// Where a fresh request has its number.
pub(crate) const STAMP: &str = "0000000stamp";

// === impl Workload ===

impl Workload {
    fn new(asks: Rc<[Ask]>, order: Order) -> Self {
        Self { asks, order, taken: Cell::new(0), every: None }
    }

    /// From first to last, and again.
    pub(crate) fn in_turn(asks: Rc<[Ask]>) -> Self {
        Self::new(asks, Order::Rounds)
    }

    /// Reads encoded `CheckRequest`s, one a file, as a recording of Envoy's calls has them.
    pub(crate) fn from_files(paths: &[PathBuf], expect: Expect) -> anyhow::Result<Self> {
        let asks = paths.iter().map(|path| read(path, expect)).collect::<anyhow::Result<Rc<[_]>>>()?;
        Ok(Self::in_turn(asks))
    }

    /// Each of them once.
    pub(crate) fn once(asks: &Rc<[Ask]>) -> Self {
        Self::new(Rc::clone(asks), Order::Once)
    }

    /// In the order of these indices, again and again.
    pub(crate) fn drawn(asks: &Rc<[Ask]>, indices: &Rc<[u32]>) -> Self {
        Self::new(Rc::clone(asks), Order::Drawn(Rc::clone(indices)))
    }

    /// In turn, with another number in place of each [`STAMP`] in every call.
    ///
    /// # Errors
    /// A request without a [`STAMP`].
    pub(crate) fn fresh(asks: &Rc<[Ask]>) -> anyhow::Result<Self> {
        let places: Rc<[Vec<usize>]> = asks.iter().map(|ask| places(&ask.message)).collect();
        ensure!(places.iter().all(|places| !places.is_empty()), "a request has no place for a number");
        Ok(Self::new(Rc::clone(asks), Order::Fresh(places)))
    }

    /// The same from its beginning, for a target that answers all of it in one way.
    pub(crate) fn answered(&self, every: Expect) -> Self {
        Self { every: Some(every), ..Self::new(Rc::clone(&self.asks), self.order.clone()) }
    }

    /// The next call; `None` after the last.
    pub(crate) fn next(&self) -> Option<Ask> {
        let taken = self.taken.replace(self.taken.get() + 1);
        let count = self.asks.len().max(1);
        let Ask { message, expect } = match &self.order {
            Order::Rounds => self.asks.get(taken % count)?.clone(),
            Order::Once => self.asks.get(taken)?.clone(),
            Order::Drawn(indices) => {
                let index = indices.get(taken % indices.len().max(1))?;
                self.asks.get(usize::try_from(*index).ok()?)?.clone()
            }
            Order::Fresh(places) => self.asks.get(taken % count)?.stamped(places.get(taken % count)?, taken),
        };
        Some(Ask { message, expect: self.every.unwrap_or(expect) })
    }
}

/// Where a message has the [`STAMP`].
fn places(message: &[u8]) -> Vec<usize> {
    let windows = message.windows(STAMP.len()).enumerate();
    windows.filter_map(|(at, window)| (window == STAMP.as_bytes()).then_some(at)).collect()
}

fn read(path: &Path, expect: Expect) -> anyhow::Result<Ask> {
    let name = path.display();
    let message = std::fs::read(path).with_context(|| format!("cannot read `{name}`"))?;
    CheckRequest::decode(message.as_slice()).with_context(|| format!("`{name}` is no encoded CheckRequest"))?;
    Ok(Ask { message: framed(&message), expect })
}

/// A message as gRPC puts it into the body: not compressed, its length, its bytes.
fn framed(message: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    // No request comes near the 4 GiB at which this would saturate.
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(message);
    body.freeze()
}

// === impl Ask ===

impl Ask {
    pub(crate) fn new(request: &CheckRequest, expect: Expect) -> Self {
        Self { message: framed(&request.encode_to_vec()), expect }
    }

    /// With a number at these places, as many digits as a [`STAMP`] has.
    fn stamped(&self, places: &[usize], number: usize) -> Self {
        let mut digits = String::with_capacity(STAMP.len());
        // Writing to a String cannot fail.
        let _ = write!(digits, "{number:0width$}", width = STAMP.len());
        let mut message = BytesMut::from(self.message.as_ref());
        for at in places {
            if let Some(place) = message.get_mut(*at..at + STAMP.len()) {
                place.copy_from_slice(digits.as_bytes());
            }
        }
        Self { message: message.freeze(), expect: self.expect }
    }
}

// === impl Expect ===

impl Expect {
    pub(crate) fn admits(self, decision: Decision) -> bool {
        match self {
            Self::Allow => decision == Decision::Allow,
            Self::Deny => decision == Decision::Deny,
            Self::Any => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ask(text: &str) -> Ask {
        Ask { message: framed(text.as_bytes()), expect: Expect::Allow }
    }

    fn texts(workload: &Workload, count: usize) -> Vec<String> {
        let asks = std::iter::from_fn(|| workload.next()).take(count);
        asks.map(|ask| String::from_utf8(ask.message[5..].to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_frame_tells_its_length() {
        assert_eq!(framed(b"abc").as_ref(), b"\0\0\0\0\x03abc");
    }

    #[test]
    fn requests_come_in_the_order_that_was_asked_for() {
        let asks: Rc<[Ask]> = [ask("a"), ask("b"), ask("c")].into();
        assert_eq!(texts(&Workload::in_turn(Rc::clone(&asks)), 4), ["a", "b", "c", "a"]);
        assert_eq!(texts(&Workload::once(&asks), 4), ["a", "b", "c"]);
        let drawn = Workload::drawn(&asks, &[2, 0].into());
        assert_eq!(texts(&drawn, 3), ["c", "a", "c"]);
        assert_eq!(texts(&drawn, 1), ["a"], "it goes on where it was");
        let floor = drawn.answered(Expect::Deny);
        assert_eq!(floor.next().map(|ask| ask.expect), Some(Expect::Deny));
    }

    #[test]
    fn fresh_requests_are_never_the_same() {
        let asks: Rc<[Ask]> = [ask(&format!("a={STAMP}&b={STAMP}")), ask(&format!("c={STAMP}"))].into();
        let texts = texts(&Workload::fresh(&asks).unwrap(), 100);
        assert_eq!(texts[..2], ["a=000000000000&b=000000000000", "c=000000000001"]);
        assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 100);
        assert!(Workload::fresh(&[ask("none")].into()).is_err());
    }
}
