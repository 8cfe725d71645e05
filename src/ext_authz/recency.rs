//! The connections of a listener that have been called on, up to a bound. At the bound, the one whose last call is longest ago makes
//! room for the next: a newcomer is never refused, and a connection that is in use never loses to one that is merely held open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// The set, and its bound.
#[derive(Debug)]
pub struct Recent {
    limit: usize,
    /// What the times of calls are counted from.
    epoch: Instant,
    /// Looked through only when a connection comes or goes; a call touches its own [`Activity`] alone.
    members: Mutex<Vec<Arc<Activity>>>,
}

/// What is known of one connection. Its service marks the calls, its task waits for what follows from them.
#[derive(Debug)]
pub struct Activity {
    epoch: Instant,
    /// Nanoseconds from `epoch` to the last call; 0 before the first.
    last_call: AtomicU64,
    first_call: Notify,
    displaced: Notify,
}

/// A connection's place in the set, until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is in the set until this is dropped"]
pub struct Member {
    set: Arc<Recent>,
    activity: Arc<Activity>,
}

// === impl Recent ===

impl Recent {
    /// For so many connections, at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), epoch: Instant::now(), members: Mutex::default() })
    }

    /// For a new connection, which is not in the set yet.
    pub fn activity(&self) -> Arc<Activity> {
        let (first_call, displaced) = (Notify::new(), Notify::new());
        Arc::new(Activity { epoch: self.epoch, last_call: AtomicU64::new(0), first_call, displaced })
    }

    /// Takes a connection in. Beyond the bound, the one that was called on longest ago leaves, and learns it by
    /// [`Activity::displaced`].
    pub fn enter(self: &Arc<Self>, activity: &Arc<Activity>) -> Member {
        let mut members = self.lock();
        if members.len() >= self.limit {
            let calls = members.iter().map(|member| member.last_call.load(Ordering::Relaxed));
            if let Some((oldest, _)) = calls.enumerate().min_by_key(|(_, last_call)| *last_call) {
                members.swap_remove(oldest).displaced.notify_one();
            }
        }
        members.push(Arc::clone(activity));
        drop(members);
        Member { set: Arc::clone(self), activity: Arc::clone(activity) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Activity>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Whoever was displaced is not in there any more.
        self.set.lock().retain(|member| !Arc::ptr_eq(member, &self.activity));
    }
}

// === impl Activity ===

impl Activity {
    /// Marks a call that came at this time. It takes no lock, except for the first one.
    pub fn called(&self, at: Instant) {
        let at = at.saturating_duration_since(self.epoch).as_nanos();
        let at = u64::try_from(at).unwrap_or(u64::MAX).max(1);
        // The calls of one connection come one after the other, so nothing happens in between.
        let is_first = self.last_call.load(Ordering::Relaxed) == 0;
        self.last_call.store(at, Ordering::Relaxed);
        if is_first {
            self.first_call.notify_one();
        }
    }

    /// Waits for the first call.
    pub async fn first_call(&self) {
        self.first_call.notified().await;
    }

    /// Waits until another connection took the place of this one.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;

    fn connect(set: &Arc<Recent>, at: u64) -> (Arc<Activity>, Member) {
        let activity = set.activity();
        activity.called(set.epoch + Duration::from_secs(at));
        let member = set.enter(&activity);
        (activity, member)
    }

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn is_displaced(activity: &Activity) -> bool {
        is_ready(activity.displaced())
    }

    #[test]
    fn the_one_that_was_called_on_longest_ago_makes_room() {
        let set = Recent::new(2);
        let (first, _a) = connect(&set, 1);
        let (second, b) = connect(&set, 2);
        first.called(set.epoch + Duration::from_secs(3));
        let (third, _c) = connect(&set, 4);
        assert!(!is_displaced(&first) && is_displaced(&second) && !is_displaced(&third));
        // It is out of the set already, so that its end makes no room.
        drop(b);
        let (_fourth, d) = connect(&set, 5);
        assert!(is_displaced(&first) && !is_displaced(&third));
        drop(d);
        let (_fifth, _e) = connect(&set, 6);
        assert!(!is_displaced(&third), "there was room");
    }

    #[tokio::test]
    async fn the_first_call_is_noticed_whenever_it_comes() {
        let set = Recent::new(1);
        let (early, late) = (set.activity(), set.activity());
        early.called(set.epoch);
        assert!(is_ready(early.first_call()), "before anybody waited");
        assert!(!is_ready(late.first_call()));
        tokio::join!(late.first_call(), async { late.called(Instant::now()) });
    }
}
