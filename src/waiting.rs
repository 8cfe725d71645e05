//! A bounded set of those who keep us waiting: connections in their handshake, calls whose message is still on its way.
//!
//! When there are too many, or they hold too much, the one that has waited longest is shed. Whoever means it is done within
//! milliseconds, so those are never the oldest; and whoever opens things and leaves them open displaces only its own.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The set, and its bounds.
#[derive(Debug)]
pub struct Waiting {
    entries: usize,
    weight: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By age: the first has waited longest.
    entries: BTreeMap<u64, (usize, oneshot::Sender<()>)>,
    weight: usize,
}

/// What is in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// How many wait.
    pub entries: usize,
    /// What they hold.
    pub weight: usize,
}

impl Waiting {
    /// For so many, which hold so much together.
    pub fn new(entries: usize, weight: usize) -> Arc<Self> {
        Arc::new(Self { entries, weight, state: Mutex::default() })
    }

    /// One more that waits, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let (sender, shed) = oneshot::channel();
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.entries.insert(id, (0, sender));
        state.shed_beyond(self.entries, self.weight);
        drop(state);
        Entry { set: Arc::clone(self), id, shed }
    }

    /// What is in it now.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { entries: state.entries.len(), weight: state.weight }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn shed_beyond(&mut self, entries: usize, weight: usize) {
        while self.entries.len() > entries || self.weight > weight {
            let Some((_, (held, shed))) = self.entries.pop_first() else { return };
            self.weight -= held;
            // Who is gone need not be told.
            let _ = shed.send(());
        }
    }
}

/// One that waits; it leaves the set when it is dropped.
pub struct Entry {
    set: Arc<Waiting>,
    id: u64,
    shed: oneshot::Receiver<()>,
}

impl Entry {
    /// Says what it holds by now.
    pub fn weigh(&self, weight: usize) {
        let mut state = self.set.lock();
        let State { entries, weight: total, .. } = &mut *state;
        // Whoever was shed holds nothing any more as far as the others are concerned.
        let Some((held, _)) = entries.get_mut(&self.id) else { return };
        *total = *total - *held + weight;
        *held = weight;
        state.shed_beyond(self.set.entries, self.set.weight);
    }

    /// Ready when it was shed and has to give up.
    pub fn poll_shed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.shed).poll(cx).map(|_| ())
    }

    /// Waits until it is shed.
    pub async fn shed(&mut self) {
        std::future::poll_fn(|cx| self.poll_shed(cx)).await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.set.lock();
        if let Some((held, _)) = state.entries.remove(&self.id) {
            state.weight -= held;
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shed(entry: &mut Entry) -> bool {
        entry.shed.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn the_one_that_has_waited_longest_is_shed() {
        let set = Waiting::new(2, 100);
        let (mut first, mut second) = (set.enter(), set.enter());
        assert!(!is_shed(&mut first));
        let mut third = set.enter();
        assert!(is_shed(&mut first) && !is_shed(&mut second) && !is_shed(&mut third));
        drop(second);
        let mut fourth = set.enter();
        assert!(!is_shed(&mut third) && !is_shed(&mut fourth));
        assert_eq!(set.usage(), Usage { entries: 2, weight: 0 });
    }

    #[test]
    fn what_they_hold_together_is_bounded() {
        let set = Waiting::new(10, 100);
        let (mut old, mut new) = (set.enter(), set.enter());
        old.weigh(60);
        new.weigh(40);
        assert!(!is_shed(&mut old));
        new.weigh(41);
        assert!(is_shed(&mut old) && !is_shed(&mut new));
        assert_eq!(set.usage(), Usage { entries: 1, weight: 41 });
        // What was shed counts no more, whatever it says.
        old.weigh(100);
        drop(old);
        assert_eq!(set.usage(), Usage { entries: 1, weight: 41 });
        drop(new);
        assert_eq!(set.usage(), Usage { entries: 0, weight: 0 });
        // Alone and too heavy.
        let mut heavy = set.enter();
        heavy.weigh(101);
        assert!(is_shed(&mut heavy));
        assert_eq!(set.usage(), Usage { entries: 0, weight: 0 });
    }
}
