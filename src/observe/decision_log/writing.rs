//! The thread that writes records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Attribute, Queued, Record};
use crate::observe::line_writer::{Lines, Lost};
use crate::observe::metrics::DecisionLogMetrics;
use crate::terminal::clean_bytes;

/// Takes records out of the queue and writes them, until the last log is dropped.
pub(super) struct Writing {
    pub(super) queue: mpsc::Receiver<Queued>,
    pub(super) lines: Lines,
    pub(super) attributes: Vec<Attribute>,
    pub(super) metrics: DecisionLogMetrics,
    pub(super) complaints: Complaints,
    /// With `when_full: undecided`.
    pub(super) keeping: Option<Keeping>,
    pub(super) _end: oneshot::Sender<()>,
}

/// What the thread holds on to where nothing may be decided unlogged. Both lists are bounded by the queue and a buffer of
/// lines: while writing fails, nothing new is let in.
pub(super) struct Keeping {
    /// The records whose lines are in the buffer, in that order.
    pub(super) buffered: Vec<Queued>,
    /// Those that could not be written, to be tried again. Nobody waits for them any more.
    pub(super) failed: Vec<Queued>,
    pub(super) failing: Arc<AtomicBool>,
    pub(super) trouble: watch::Sender<Option<String>>,
}

impl Writing {
    /// How many records are taken out of the queue at once.
    const BATCH: usize = 256;
    /// How long to leave the queue alone once it is empty. Whoever puts a record into a queue that somebody waits for
    /// pays for waking them, 5 us where putting it in takes 0.1 (measured, one core, 100,000 records per second). This
    /// way that is one record per millisecond at most.
    const LINGER: Duration = Duration::from_millis(1);
    /// A queue that is shorter could fill up in that time.
    const LINGER_FROM: usize = 1024;
    /// How long to wait before what could not be written is tried again.
    const RETRY: Duration = Duration::from_millis(100);

    pub(super) fn run(mut self) {
        let mut batch = Vec::with_capacity(Self::BATCH);
        let mut line = Vec::new();
        while self.next(&mut batch) {
            for queued in batch.drain(..) {
                self.write(queued, &mut line);
            }
            if self.queue.is_empty() {
                let before = self.lines.written();
                let result = self.lines.flush();
                self.account(before, result);
                let linger = self.keeping.is_none() && self.queue.max_capacity() >= Self::LINGER_FROM;
                if linger && !self.queue.is_closed() {
                    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which nobody waits for")]
                    thread::sleep(Self::LINGER);
                }
            }
        }
        if let Some(keeping) = &self.keeping {
            self.metrics.lost_write.increment(keeping.failed.len() as u64);
        }
    }

    /// Takes out what is to be written next: what comes, and between that what could not be written before; `false` at the end.
    fn next(&mut self, batch: &mut Vec<Queued>) -> bool {
        let Some(keeping) = self.keeping.as_mut().filter(|keeping| !keeping.failed.is_empty()) else {
            let taken = self.queue.blocking_recv_many(batch, Self::BATCH);
            self.metrics.queue_depth.decrement(taken as f64);
            return taken > 0;
        };
        // Somebody waits for these: they learn at once that it is no use.
        while batch.len() < Self::BATCH
            && let Ok(queued) = self.queue.try_recv()
        {
            batch.push(queued);
        }
        self.metrics.queue_depth.decrement(batch.len() as f64);
        if batch.is_empty() {
            if self.queue.is_closed() {
                return false;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own; no event says that a disk has room again"
            )]
            thread::sleep(Self::RETRY);
            batch.append(&mut keeping.failed);
        }
        true
    }

    fn write(&mut self, mut queued: Queued, line: &mut Vec<u8>) {
        // Nobody waits any more, so the check was not answered with what was decided.
        if queued.waiter.as_ref().is_some_and(oneshot::Sender::is_closed) {
            queued.was_undecided();
        }
        line.clear();
        let record = Record::new(queued.seq, &queued.parts, &self.attributes);
        let before = self.lines.written();
        let result = match serde_json::to_writer(&mut *line, &record) {
            Ok(()) => {
                if let Some(keeping) = &mut self.keeping {
                    keeping.buffered.push(queued);
                }
                self.lines.push(&clean_bytes(line))
            }
            Err(error) => {
                // The lines before it are still in the buffer.
                self.metrics.lost_write.increment(1);
                return self.complaints.add(&Lost { lines: 1, cause: error.into() });
            }
        };
        self.account(before, result);
    }

    /// Says what came of writing: to those who wait, in the metrics, and in the program's own log. `before` is how many lines were
    /// written before.
    fn account(&mut self, before: u64, result: Result<(), Lost>) {
        let written = usize::try_from(self.lines.written() - before).unwrap_or(usize::MAX);
        match &result {
            Err(_) => self.metrics.failing.set(1.0),
            Ok(()) if written > 0 => self.metrics.failing.set(0.0),
            Ok(()) => {}
        }
        match (&mut self.keeping, result) {
            (Some(keeping), result) => keeping.account(written, result),
            (None, Err(lost)) => {
                self.metrics.lost_write.increment(lost.lines);
                self.complaints.add(&lost);
            }
            (None, Ok(())) => {}
        }
    }
}

impl Keeping {
    fn account(&mut self, written: usize, result: Result<(), Lost>) {
        let written = written.min(self.buffered.len());
        for Queued { waiter, .. } in self.buffered.drain(..written) {
            // Whoever has stopped waiting has said that it was Undecided, and the record says more than was answered.
            waiter.map(|waiter| waiter.send(()));
        }
        match result {
            Ok(()) if written > 0 && self.failed.is_empty() && self.failing.swap(false, Ordering::AcqRel) => {
                self.trouble.send_replace(None);
                tracing::info!("decision records can be written again");
            }
            Ok(()) => {}
            Err(Lost { cause, .. }) => {
                // Before anybody learns of it, so that what comes after is not decided.
                let was_failing = self.failing.swap(true, Ordering::AcqRel);
                self.failed.extend(self.buffered.drain(..).map(|mut queued| {
                    queued.was_undecided();
                    queued
                }));
                if !was_failing {
                    tracing::error!(%cause, "decision records cannot be written; nothing is decided until they can");
                    self.trouble.send_replace(Some(format!("the decision log cannot be written: {cause}")));
                }
            }
        }
    }
}

/// Says that records are lost, once in a while: a full disk must not fill the program's own log.
#[derive(Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
    lost: u64,
}

impl Complaints {
    const PAUSE: Duration = Duration::from_secs(10);

    fn add(&mut self, lost: &Lost) {
        self.lost += lost.lines;
        if self.last.is_none_or(|last| last.elapsed() >= Self::PAUSE) {
            tracing::warn!(lost = self.lost, cause = %lost.cause, "decision records cannot be written");
            *self = Self { last: Some(Instant::now()), lost: 0 };
        }
    }
}
