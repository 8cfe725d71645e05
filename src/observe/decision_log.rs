//! The decision log: one [`Record`] per decision, one line of JSON each.
//!
//! A request only moves its [`Parts`] into a bounded queue; a thread of its own makes lines of them and writes them, so a
//! slow disk never holds up an answer. Every record takes the next number before it enters the queue, and so does
//! whatever is turned away there: what was lost shows as a gap, and in `stockade_decision_log_lost_total`.
//!
//! With `when_full: undecided` a decision goes out only once the kernel has taken its record ([`Unwritten`]): a full disk, a
//! closed pipe and a slow reader decide what happens to the check. What could not be written is kept, as the record of a check
//! that was Undecided, and tried again; until a write succeeds nothing is decided. That the kernel has it is not that the disk
//! has it: nothing is synced, and a machine that loses power loses what it had not written back.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{oneshot, watch};

use self::writing::{Complaints, Keeping, Writing};
use super::line_writer::Lines;
use super::metrics::DecisionLogMetrics;
pub use super::record::{Attribute, ErrorRecord, Of, Parts, Record, ShadowRecord, attributes};
use crate::model::{Effect, Outcome, Undecided};

mod config;
mod writing;

pub use config::{Config, Output, WhenFull};

/// Takes records. Clones feed the same log, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct DecisionLog(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Queued>,
    /// The number of the last record.
    seq: AtomicU64,
    when_full: WhenFull,
    sample_allow: f64,
    /// Whether records cannot be written, with `when_full: undecided`.
    failing: Arc<AtomicBool>,
    metrics: DecisionLogMetrics,
}

/// A record on its way to the disk.
#[derive(Debug)]
struct Queued {
    seq: u64,
    parts: Parts,
    /// Who waits for it to be written. Dropped unsent, if it could not be.
    waiter: Option<oneshot::Sender<()>>,
}

/// A decision that is not to go out before its record is written.
#[derive(Debug)]
#[must_use = "a decision that must not be unlogged waits for its record"]
pub struct Unwritten(oneshot::Receiver<()>);

/// The queue is full or records cannot be written, and the operator chose not to decide unlogged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The right to log one decision. With `when_full: undecided`, a place in the queue that nobody else gets.
#[derive(Debug)]
#[must_use = "a decision is logged by writing into its slot"]
pub struct Slot {
    log: DecisionLog,
    place: Option<OwnedPermit<Queued>>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    /// Never sent to: closed when the thread ends.
    ended: oneshot::Receiver<()>,
    trouble: watch::Sender<Option<String>>,
}

// === impl DecisionLog ===

impl DecisionLog {
    /// Opens the output and starts the thread that writes.
    ///
    /// # Errors
    /// If the file cannot be opened, or no thread can be had.
    pub fn start(config: &Config, metrics: DecisionLogMetrics) -> io::Result<(Self, Writer)> {
        let (end, ended) = oneshot::channel();
        let writer = Writer { ended, trouble: watch::Sender::new(None) };
        let lines = match &config.output {
            Output::None => return Ok((Self(None), writer)),
            #[expect(clippy::disallowed_methods, reason = "for their descriptors; each line is cleaned")]
            Output::Stdout => Lines::stream(&io::stdout())?,
            #[expect(clippy::disallowed_methods, reason = "for their descriptors; each line is cleaned")]
            Output::Stderr => Lines::stream(&io::stderr())?,
            Output::File(path) => Lines::rotated(path, config.max_file_size.0, config.max_files).map_err(|error| {
                let message = format!("cannot open the decision log `{}`: {error}", path.display());
                io::Error::new(error.kind(), message)
            })?,
        };
        let (sender, queue) = mpsc::channel(config.queue);
        let failing = Arc::new(AtomicBool::new(false));
        let keeping = (config.when_full == WhenFull::Undecided).then(|| Keeping {
            buffered: Vec::new(),
            failed: Vec::new(),
            failing: Arc::clone(&failing),
            trouble: writer.trouble.clone(),
        });
        let writing = Writing {
            queue,
            lines,
            attributes: config.attributes.clone(),
            metrics: metrics.clone(),
            complaints: Complaints::default(),
            keeping,
            _end: end,
        };
        thread::Builder::new().name("decision-log".to_owned()).spawn(move || writing.run())?;
        let &Config { when_full, sample_allow, .. } = config;
        let shared = Shared { queue: sender, seq: AtomicU64::new(0), when_full, sample_allow, failing, metrics };
        Ok((Self(Some(Arc::new(shared))), writer))
    }

    /// Asks for the right to log a decision, before it is made.
    ///
    /// # Errors
    /// With `when_full: undecided`, if the queue is full, or if records cannot be written. That the answer is then missing from the
    /// log is counted, and shows as a gap.
    pub fn reserve(&self) -> Result<Slot, Full> {
        let place = match &self.0 {
            Some(shared) if shared.when_full == WhenFull::Undecided && shared.failing.load(Ordering::Acquire) => {
                shared.next();
                shared.metrics.lost_write.increment(1);
                return Err(Full);
            }
            Some(shared) if shared.when_full == WhenFull::Undecided => match shared.queue.clone().try_reserve_owned() {
                Ok(place) => Some(place),
                Err(_) => {
                    shared.next();
                    shared.metrics.lost_queue_full.increment(1);
                    return Err(Full);
                }
            },
            _ => None,
        };
        Ok(Slot { log: self.clone(), place })
    }
}

impl Slot {
    /// Whether an outcome may only go out once its record is written: a decision may, with `when_full: undecided`, unless the
    /// sampling leaves it out. Nobody is let in by what is not a decision.
    pub fn holds_back(&self, outcome: &Outcome, decision_id: &str) -> bool {
        let shared = self.log.0.as_ref().filter(|_| self.place.is_some());
        matches!(outcome, Outcome::Decided(_)) && shared.is_some_and(|shared| shared.wants(outcome, decision_id))
    }

    /// Logs the decision, unless it is an allow that the sampling leaves out. What is returned is to be waited for.
    pub fn write(self, parts: Parts) -> Option<Unwritten> {
        let (waiter, unwritten) = match self.holds_back(&parts.outcome, &parts.decision_id) {
            true => {
                let (waiter, unwritten) = oneshot::channel();
                (Some(waiter), Some(Unwritten(unwritten)))
            }
            false => (None, None),
        };
        let shared = self.log.0.filter(|shared| shared.wants(&parts.outcome, &parts.decision_id))?;
        let queued = Queued { seq: shared.next(), parts, waiter };
        // Before the record is in the queue, so that the writer never takes out more than was put in.
        shared.metrics.queue_depth.increment(1.0);
        let result = match self.place {
            Some(place) => {
                place.send(queued);
                Ok(())
            }
            None => shared.queue.try_send(queued),
        };
        if let Err(error) = result {
            shared.metrics.queue_depth.decrement(1.0);
            match error {
                TrySendError::Full(_) => shared.metrics.lost_queue_full.increment(1),
                TrySendError::Closed(_) => shared.metrics.lost_write.increment(1),
            }
        }
        unwritten
    }
}

impl Unwritten {
    /// Waits for the record: whether the kernel has taken it. Who stops waiting must not let the decision out.
    pub async fn is_written(&mut self) -> bool {
        (&mut self.0).await.is_ok()
    }
}

impl Shared {
    fn next(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sampling goes by the decision's id, so that whoever knows the id can tell whether there is a record.
    fn wants(&self, outcome: &Outcome, decision_id: &str) -> bool {
        let allow = matches!(outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
        !allow || self.sample_allow >= 1.0 || fraction(decision_id) < self.sample_allow
    }
}

/// A number from 0 up to but not including 1, the same for the same id.
fn fraction(id: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    // As many bits as a double holds exactly.
    (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
}

impl Writer {
    /// Why nothing is decided, while records cannot be written and the operator chose not to decide unlogged.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Waits until everything is written and the thread has ended, which it does once the last [`DecisionLog`] and
    /// [`Slot`] are dropped. `false` if that takes longer than `timeout`; the records that still wait are then lost.
    pub async fn close(self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.ended).await.is_ok()
    }
}

impl Queued {
    /// Its decision did not go out, which is what its record is to say.
    fn was_undecided(&mut self) {
        self.waiter = None;
        if let Outcome::Decided(decision) = &self.parts.outcome {
            self.parts.revision.get_or_insert_with(|| Arc::clone(&decision.revision));
            self.parts.outcome = Outcome::Undecided(Undecided::LogFull);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use metrics_exporter_prometheus::PrometheusHandle;
    use serde_json::Value as Json;

    use super::*;
    use crate::model::Undecided;
    use crate::observe::metrics::{self, Metrics};
    use crate::observe::record::tests::{decided, parts};
    use crate::problem::SourceFile;
    use crate::units::Bytes;
    use crate::yaml;

    fn meters() -> (DecisionLogMetrics, PrometheusHandle) {
        let (metrics, handle) = Metrics::new(&metrics::Config::default()).expect("metrics");
        (metrics.decision_log(), handle)
    }

    fn to_file(path: &Path) -> Config {
        Config { output: Output::File(path.to_owned()), ..Config::default() }
    }

    fn read(path: &Path) -> Vec<Json> {
        let text = fs::read_to_string(path).expect("log");
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    #[track_caller]
    fn assert_counts(handle: &PrometheusHandle, queue_full: u64, write: u64) {
        let text = handle.render();
        for (cause, count) in [("queue_full", queue_full), ("write", write)] {
            let line = format!("stockade_decision_log_lost_total{{cause=\"{cause}\"}} {count}\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
        assert!(text.contains("stockade_decision_log_queue_depth 0\n"), "{text}");
    }

    #[test]
    fn configuration_is_read_and_refused() {
        let check = |text: &str| yaml::parse::<Config>(&SourceFile::new("c.yaml", text));
        assert_eq!(check("{}").expect("defaults"), Config::default());
        let all = "output: file:///var/log/x.jsonl\nmax_file_size: 1MiB\nmax_files: 0\nqueue: 1\nwhen_full: undecided\n\
                   sample_allow: 0\nattributes: [context.source.address]\n";
        let config = check(all).expect(all);
        assert_eq!((config.output.to_string(), config.sample_allow), ("file:///var/log/x.jsonl".into(), 0.0));
        assert_eq!((config.when_full, config.max_files), (WhenFull::Undecided, 0));
        for (text, problem) in [
            ("output: stduot", "`output`: `stduot` is not an output (did you mean `stdout`?)"),
            ("output: file://x", "`output`: `file://x` does not name a file by its absolute path (like"),
            ("output: file:///var/log/", "`output`: `file:///var/log/` does not name a file"),
            ("max_file_size: 10", "`max_file_size`: `10` is too small for a file (at least `1KiB`)"),
            ("queue: 0", "`queue`: `0` is not a length for the queue (from 1 to 1000000)"),
            ("when_full: block", "`when_full`: unknown value `block` (known here: `drop`, `undecided`)"),
            ("sample_allow: 1.5", "`sample_allow`: `1.5` is not a share (from 0 to 1;"),
            ("sample_allow: -1", "`sample_allow`: `-1` is not a share"),
            ("attributes: [context]", "`attributes[0]`: `context` is not an attribute of the principal"),
            ("attributes: [resource.owner]", "`attributes[0]`: `resource.owner` is not an attribute"),
            ("attributes: [context.sorce.port]", "a context has no `sorce` (did you mean `source`?)"),
        ] {
            let found = check(text).expect_err(text)[0].to_string();
            assert!(found.contains(problem), "{found}");
        }
    }

    #[tokio::test]
    async fn rotates_at_the_size_and_every_line_is_whole() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("decisions.jsonl");
        let config = Config { max_file_size: Bytes(2048), max_files: 100, ..to_file(&path) };
        let (meters, handle) = meters();
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        for n in 0..100 {
            put(&log, parts(n, decided(Effect::Deny)));
        }
        drop(log);
        assert!(writer.close(Duration::from_secs(10)).await);
        let mut seqs = Vec::new();
        let files = fs::read_dir(directory.path()).expect("directory").map(|entry| entry.expect("entry").path());
        for file in files {
            assert!(file.metadata().expect("metadata").len() <= 2048);
            seqs.extend(read(&file).iter().map(|record| record["seq"].as_u64().expect("seq")));
        }
        seqs.sort_unstable();
        assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
        assert!(path.with_extension("jsonl.2").exists());
        assert_counts(&handle, 0, 0);
    }

    #[tokio::test]
    async fn only_allows_are_sampled_and_leave_no_gap() {
        let directory = tempfile::tempdir().expect("directory");
        for (sample_allow, allows) in [(0.0, 0..=0), (0.25, 150..=350), (1.0, 1000..=1000)] {
            let path = directory.path().join(sample_allow.to_string());
            let (meters, handle) = meters();
            let (log, writer) = DecisionLog::start(&Config { sample_allow, ..to_file(&path) }, meters).expect("start");
            for n in 0..1000 {
                put(&log, parts(n, decided(Effect::Allow)));
            }
            for outcome in [decided(Effect::Deny), Outcome::Undecided(Undecided::Overloaded)] {
                put(&log, parts("other", outcome));
            }
            drop(log);
            assert!(writer.close(Duration::from_secs(10)).await);
            let records = read(&path);
            let count = |outcome: &str| records.iter().filter(|record| record["outcome"] == outcome).count();
            assert!(allows.contains(&count("allow")), "{} of 1000 at {sample_allow}", count("allow"));
            assert_eq!((count("deny"), count("undecided")), (1, 1));
            assert_eq!(records.last().expect("a record")["seq"], records.len());
            assert_counts(&handle, 0, 0);
        }
    }

    /// Logs something that nobody waits for.
    fn put(log: &DecisionLog, parts: Parts) {
        assert!(log.reserve().expect("slot").write(parts).is_none());
    }

    /// A log whose writer never takes anything out.
    fn stuck(config: &Config, metrics: DecisionLogMetrics) -> (DecisionLog, mpsc::Receiver<Queued>) {
        let (queue, receiver) = mpsc::channel(config.queue);
        let &Config { when_full, sample_allow, .. } = config;
        let failing = Arc::default();
        let shared = Shared { queue, seq: AtomicU64::new(0), when_full, sample_allow, failing, metrics };
        (DecisionLog(Some(Arc::new(shared))), receiver)
    }

    #[test]
    fn what_a_full_queue_drops_is_counted_and_shows_as_a_gap() {
        let (meters, handle) = meters();
        let (log, mut queue) = stuck(&Config { queue: 2, ..Config::default() }, meters.clone());
        for n in 0..4 {
            put(&log, parts(n, decided(Effect::Deny)));
        }
        let mut taken = vec![queue.try_recv().expect("first").seq];
        put(&log, parts(4, decided(Effect::Deny)));
        taken.extend(std::iter::from_fn(|| queue.try_recv().ok()).map(|queued| queued.seq));
        assert_eq!(taken, [1, 2, 5]);
        meters.queue_depth.decrement(3.0);
        assert_counts(&handle, 2, 0);
    }

    #[test]
    fn who_will_not_decide_unlogged_is_told_before() {
        let (meters, handle) = meters();
        let config = Config { queue: 1, when_full: WhenFull::Undecided, sample_allow: 0.0, ..Config::default() };
        let (log, mut queue) = stuck(&config, meters.clone());
        let slot = log.reserve().expect("room for one");
        assert_eq!(log.reserve().err(), Some(Full));
        assert!(slot.write(parts("sampled out", decided(Effect::Allow))).is_none());
        let slot = log.reserve().expect("the place is free again");
        let mut unwritten = slot.write(parts("d", decided(Effect::Deny))).expect("it waits to be written");
        drop(log.reserve());
        assert_eq!(unwritten.0.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(queue.try_recv().expect("the denial").seq, 2);
        assert!(unwritten.0.try_recv().is_err(), "it was dropped unwritten");
        meters.queue_depth.decrement(1.0);
        assert_counts(&handle, 2, 0);
    }

    #[tokio::test]
    async fn a_full_disk_is_counted_and_survived() {
        let (meters, handle) = meters();
        let config = Config { queue: 16, ..to_file(Path::new("/dev/full")) };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        for n in 0..3 {
            put(&log, parts(n, decided(Effect::Deny)));
            while !handle.render().contains(&format!("{{cause=\"write\"}} {}\n", n + 1)) {
                tokio::task::yield_now().await;
            }
        }
        drop(log);
        assert!(writer.close(Duration::from_secs(10)).await);
        assert_counts(&handle, 0, 3);
    }

    /// Each decision waits for its record, and nothing is decided once one could not be written.
    #[tokio::test]
    async fn on_a_full_disk_nothing_is_decided() {
        let (meters, handle) = meters();
        let config = Config { when_full: WhenFull::Undecided, ..to_file(Path::new("/dev/full")) };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        let mut trouble = writer.trouble();
        let slots = [log.reserve().expect("all is well"), log.reserve().expect("all is well")];
        for slot in slots {
            let mut unwritten = slot.write(parts("d", decided(Effect::Allow))).expect("it waits");
            assert!(!unwritten.is_written().await);
        }
        trouble.wait_for(Option::is_some).await.expect("trouble");
        let cause = "the decision log cannot be written: No space left on device (os error 28)";
        assert_eq!(trouble.borrow().as_deref(), Some(cause));
        assert_eq!(log.reserve().err(), Some(Full));
        drop(log);
        assert!(writer.close(Duration::from_secs(10)).await);
        assert_counts(&handle, 0, 3);
        assert!(handle.render().contains("stockade_decision_log_failing 1\n"));
    }

    #[tokio::test]
    async fn what_was_written_is_let_go_and_no_more() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("decisions.jsonl");
        let (meters, handle) = meters();
        let config = Config { when_full: WhenFull::Undecided, ..to_file(&path) };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        for n in 1..=100 {
            let slot = log.reserve().expect("all is well");
            let mut unwritten = slot.write(parts(n, decided(Effect::Allow))).expect("it waits");
            assert!(unwritten.is_written().await);
            assert_eq!(read(&path).len(), n, "it is there before the answer is");
        }
        put(&log, parts("no decision", Outcome::Undecided(Undecided::Deadline)));
        drop(log);
        assert!(writer.close(Duration::from_secs(10)).await);
        assert_eq!(read(&path).len(), 101);
        assert_counts(&handle, 0, 0);
    }

    #[tokio::test]
    async fn none_takes_everything_and_ends_at_once() {
        let (meters, handle) = meters();
        let config = Config { output: Output::None, when_full: WhenFull::Undecided, ..Config::default() };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        put(&log, parts("d", decided(Effect::Deny)));
        assert!(writer.close(Duration::from_secs(1)).await);
        assert_counts(&handle, 0, 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let config = to_file(Path::new("/nowhere/decisions.jsonl"));
        let error = DecisionLog::start(&config, meters().0).expect_err("no such directory");
        let message = error.to_string();
        assert!(
            message.starts_with("cannot open the decision log `/nowhere/decisions.jsonl`: No such file"),
            "{message}"
        );
    }
}
