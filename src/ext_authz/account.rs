//! Every check is answered, counted and recorded exactly once, whatever becomes of it.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tokio::time::timeout_at;
use tonic::Status;

use super::check::{Checked, Pipeline};
use super::response::Response;
use crate::model::{Attributes, Outcome, Query, Revision, Undecided};
use crate::observe::decision_log::{DecisionLog, Parts, Slot, Unwritten};
use crate::observe::metrics::{InFlight, Metrics};
use crate::observe::tracing::TraceParent;

/// What answers checks, counts them and keeps their records. Shared by all listeners.
#[derive(Debug)]
pub struct Checker {
    pipeline: Arc<Pipeline>,
    log: DecisionLog,
    metrics: Metrics,
    ids: DecisionIds,
}

/// A response, and what holds it back.
type Decided<'a> = (Result<Response, Status>, Option<Held<'a>>);

/// What comes with a check beside its message.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// When it came.
    pub arrived: Instant,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Envoy's trace.
    pub trace: Option<TraceParent>,
}

impl Call {
    /// A call of which nothing is known but that it came just now.
    pub fn now() -> Self {
        let arrived = Instant::now();
        Self { arrived, deadline: arrived, trace: None }
    }
}

impl Checker {
    /// Puts the parts together.
    pub fn new(pipeline: Arc<Pipeline>, log: DecisionLog, metrics: Metrics) -> Self {
        Self { pipeline, log, metrics, ids: DecisionIds::new() }
    }

    /// Answers a check whose message has arrived. Nothing in here waits, so a call that is cancelled was either not begun
    /// or finished; and a panic is answered as Undecided, since it would end the connection and all other calls on it. Only where
    /// nothing may be decided unlogged, what was decided waits for its record before it goes out.
    ///
    /// # Errors
    /// Undecided as a gRPC error, where the operator chose that.
    pub async fn check(&self, message: Bytes, call: Call) -> Result<Response, Status> {
        self.caught(|| self.decide(message, call)).await
    }

    async fn caught<'a>(&'a self, decide: impl FnOnce() -> Decided<'a>) -> Result<Response, Status> {
        // What a panic leaves behind is an account, which closes itself, and caches that hold no half-written entries.
        match catch_unwind(AssertUnwindSafe(decide)) {
            Ok((response, None)) => response,
            // In a box, so that the others do not carry it about.
            Ok((response, Some(held))) => Box::pin(held.once_written(response)).await,
            Err(panic) => self.after_panic(&*panic),
        }
    }

    fn decide(&self, message: Bytes, call: Call) -> Decided<'_> {
        let Ok(slot) = self.log.reserve() else {
            let checked = self.pipeline.unseen(Outcome::Undecided(Undecided::LogFull), &self.ids.next());
            self.metrics.decided(&checked.outcome, call.arrived.elapsed());
            return (checked.response, None);
        };
        let account = Account::open(self, slot, call);
        let _span = tracing::debug_span!(
            "check",
            decision_id = account.decision_id,
            trace_id = call.trace.map(|trace| tracing::field::display(trace.trace_id)),
            parent_id = call.trace.map(|trace| tracing::field::display(trace.parent_id)),
        )
        .entered();
        let checked = if Instant::now() >= call.deadline {
            self.pipeline.unseen(Outcome::Undecided(Undecided::Deadline), &account.decision_id)
        } else {
            self.pipeline.frame(message, &account.decision_id)
        };
        let Checked { outcome, query, logged, response } = checked;
        (response, account.close(outcome, query, logged))
    }

    /// Answers what never came to a check: shed, too large, too late. There is no message to say more about.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn settle(&self, outcome: Outcome, call: Call) -> Result<Response, Status> {
        let decision_id = self.ids.next();
        let Checked { outcome, response, .. } = self.pipeline.unseen(outcome, &decision_id);
        match self.log.reserve() {
            Ok(slot) => {
                let mut account = Account::open(self, slot, call);
                account.decision_id = decision_id;
                // It lets nobody in, so it waits for nothing.
                drop(account.close(outcome, None, Attributes::new()));
            }
            Err(_) => self.metrics.decided(&outcome, call.arrived.elapsed()),
        }
        response
    }

    /// Answers for a check that panicked. Its account was closed as it unwound.
    fn after_panic(&self, panic: &(dyn Any + Send)) -> Result<Response, Status> {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!(panic = message, "a check panicked and was parts as undecided; this is a bug in stockade");
        self.pipeline.unseen(Outcome::Undecided(Undecided::Internal), &self.ids.next()).response
    }
}

/// Ids that are unique without asking anyone: a random start for the process, and a count.
#[derive(Debug)]
struct DecisionIds {
    process: String,
    count: AtomicU64,
}

impl DecisionIds {
    fn new() -> Self {
        // Seeded by the system's randomness; uniqueness is all that is asked of it.
        let process = RandomState::new().build_hasher().finish();
        Self { process: format!("{process:016x}-"), count: AtomicU64::new(1) }
    }

    /// The count is in hexadecimal digits, one by one: formatting would be a hundredth of a check.
    fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(self.process.len() + 16);
        id.push_str(&self.process);
        let digits = (0..=count.checked_ilog2().unwrap_or(0) / 4).rev();
        id.extend(digits.filter_map(|place| char::from_digit((count >> (4 * place) & 0xf) as u32, 16)));
        id
    }
}

/// The account of one check: counted and logged exactly once, also if it never comes to an end.
struct Account<'a> {
    checker: &'a Checker,
    slot: Option<Slot>,
    decision_id: String,
    call: Call,
    time: SystemTime,
    in_flight: Option<InFlight>,
}

/// A decision that waits for its record, counted once it is known what goes out.
struct Held<'a> {
    checker: &'a Checker,
    unwritten: Unwritten,
    outcome: Outcome,
    decision_id: String,
    call: Call,
    _in_flight: Option<InFlight>,
}

impl<'a> Account<'a> {
    fn open(checker: &'a Checker, slot: Slot, call: Call) -> Self {
        Self {
            slot: Some(slot),
            decision_id: checker.ids.next(),
            call,
            time: SystemTime::now(),
            in_flight: Some(checker.metrics.in_flight()),
            checker,
        }
    }

    fn close(mut self, outcome: Outcome, query: Option<Query>, logged: Attributes) -> Option<Held<'a>> {
        self.settle(outcome, query, logged)
    }

    fn settle(&mut self, outcome: Outcome, query: Option<Query>, logged: Attributes) -> Option<Held<'a>> {
        let slot = self.slot.take()?;
        let latency = self.call.arrived.elapsed();
        let held = slot.holds_back(&outcome, &self.decision_id).then(|| (outcome.clone(), self.decision_id.clone()));
        if held.is_none() {
            self.checker.metrics.decided(&outcome, latency);
        }
        // A decision names its own.
        let revision: Option<Arc<Revision>> = match &outcome {
            Outcome::Decided(_) => None,
            _ => self.checker.pipeline.authorizer.current().ok().map(|snapshot| Arc::clone(&snapshot.revision)),
        };
        let unwritten = slot.write(Parts {
            time: self.time,
            decision_id: std::mem::take(&mut self.decision_id),
            outcome,
            query,
            logged,
            revision,
            latency,
            trace_id: self.call.trace.map(|trace| trace.trace_id),
        });
        let (outcome, decision_id) = held?;
        let (checker, call) = (self.checker, self.call);
        Some(Held { checker, unwritten: unwritten?, outcome, decision_id, call, _in_flight: self.in_flight.take() })
    }
}

impl Held<'_> {
    /// Lets an answer go once its record is written. If that fails, or takes longer than the caller waits, the check is Undecided.
    async fn once_written(mut self, response: Result<Response, Status>) -> Result<Response, Status> {
        if timeout_at(self.call.deadline.into(), self.unwritten.is_written()).await == Ok(true) {
            return response;
        }
        self.outcome = Outcome::Undecided(Undecided::LogFull);
        self.checker.pipeline.unseen(self.outcome.clone(), &self.decision_id).response
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.checker.metrics.decided(&self.outcome, self.call.arrived.elapsed());
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        // Only a panic leaves an account open; the caller gets Undecided from the layer that catches it.
        drop(self.settle(Outcome::Undecided(Undecided::Internal), None, Attributes::new()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::decision::authorizer::Authorizer;
    use crate::decision::cache::Cache;
    use crate::decision::freshness::LastProof;
    use crate::ext_authz::request::{Mapping, ServiceName};
    use crate::ext_authz::response::Responder;
    use crate::observe::decision_log;

    /// A panic ends neither the connection nor the account.
    #[tokio::test]
    async fn a_check_that_panics_is_undecided_counted_and_recorded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("decisions.jsonl");
        let (metrics, prometheus) = Metrics::new(&Default::default()).expect("metrics");
        let log = decision_log::Config { output: decision_log::Output::File(path.clone()), ..Default::default() };
        let (log, writer) = DecisionLog::start(&log, metrics.decision_log()).expect("a log");
        let (_sender, snapshots) = watch::channel(None);
        let (proof, cache) = (Arc::new(LastProof::none()), Arc::new(Cache::new(Default::default())));
        let pipeline = Pipeline {
            authorizer: Authorizer::new(snapshots, proof, cache, metrics.clone()),
            mapping: Mapping::new(&ServiceName("shop".to_owned()), Default::default(), Vec::new(), &[]),
            responder: Responder {
                undecided: Default::default(),
                errors: Default::default(),
                upstream_headers: BTreeMap::new(),
                remove_headers: Vec::new(),
            },
        };
        let checker = Checker::new(Arc::new(pipeline), log, metrics);
        let panics = || -> Decided<'_> {
            let _account = Account::open(&checker, checker.log.reserve().expect("a slot"), Call::now());
            panic!("on purpose")
        };
        assert!(checker.caught(panics).await.is_ok(), "an answer");
        drop(checker);
        assert!(writer.close(Duration::from_secs(60)).await, "written");
        let series = r#"stockade_decisions_total{kind="undecided",outcome="undecided",reason="internal"} 1"#;
        assert!(prometheus.render().contains(series), "{}", prometheus.render());
        let records = std::fs::read_to_string(path).expect("records");
        assert!(records.lines().count() == 1 && records.contains(r#""reason":"internal""#), "{records}");
    }

    #[test]
    fn ids_count_in_hexadecimal() {
        for count in [0, 1, 0xf, 0x10, 0xabc, 0xfff, 0x1000, u64::MAX] {
            let ids = DecisionIds { process: "p-".to_owned(), count: AtomicU64::new(count) };
            assert_eq!(ids.next(), format!("p-{count:x}"));
        }
    }
}
