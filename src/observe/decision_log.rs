//! The decision log: one [`Record`] per decision, one line of JSON each.
//!
//! A request only moves its [`Parts`] into a bounded queue; a thread of its own makes lines of them and writes them, so a
//! slow disk never holds up an answer. Every record takes the next number before it enters the queue, and so does
//! whatever is turned away there: what was lost shows as a gap, and in `stockade_decision_log_lost_total`.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use deserr::Deserr;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::oneshot;

use super::lines::{Lines, Lost};
use super::metrics::DecisionLogMetrics;
pub use super::record::{Attribute, ErrorRecord, Parts, Record, ShadowRecord, attributes};
use crate::model::{Effect, Outcome};
use crate::terminal::clean_bytes;
use crate::units::Bytes;
use crate::yaml::{Faults, Invalid, suggest};

/// `decision_log:` where records go, which of them, and what is in them.
#[derive(Debug, Clone, PartialEq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Where to: `stdout`, `stderr`, `none`, or a file as `file:///var/log/stockade.jsonl`. Default `stdout`.
    #[deserr(default)]
    pub output: Output,
    /// The size at which a file is rotated. Default `64MiB`.
    #[deserr(default = Self::default().max_file_size, try_from(Bytes) = file_size -> Invalid)]
    pub max_file_size: Bytes,
    /// How many rotated files are kept beside the current one. Default `5`.
    #[deserr(default = Self::default().max_files)]
    pub max_files: u32,
    /// How many records may wait to be written; one takes a few kilobytes. Default `8192`.
    #[deserr(default = Self::default().queue, try_from(usize) = queue_length -> Invalid)]
    pub queue: usize,
    /// What happens to a decision whose record finds the queue full. Default `drop`.
    #[deserr(default)]
    pub when_full: WhenFull,
    /// The share of allows that are logged, from 0 to 1. Denials and the undecided always are. Default `1.0`.
    #[deserr(default = Self::default().sample_allow, try_from(f64) = share -> Invalid)]
    pub sample_allow: f64,
    /// The attributes that may be logged, such as `context.source.address` or `principal.department`. Default none.
    #[deserr(default)]
    pub attributes: Vec<Attribute>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            output: Output::Stdout,
            max_file_size: Bytes(64 << 20),
            max_files: 5,
            queue: 8192,
            when_full: WhenFull::Drop,
            sample_allow: 1.0,
            attributes: Vec::new(),
        }
    }
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserr)]
#[deserr(error = Faults, try_from(String) = Output::try_from_text -> Invalid)]
pub enum Output {
    /// The standard output.
    #[default]
    Stdout,
    /// The standard error, which the program's own log shares.
    Stderr,
    /// Nowhere.
    None,
    /// A file, rotated by size.
    File(PathBuf),
}

/// What happens to a decision whose record finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It stands; its record is lost.
    #[default]
    Drop,
    /// It is not made: nothing is decided that is not logged.
    Undecided,
}

/// Takes records. Clones feed the same log, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct DecisionLog(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Numbered>,
    /// The number of the last record.
    seq: AtomicU64,
    when_full: WhenFull,
    sample_allow: f64,
    metrics: DecisionLogMetrics,
}

type Numbered = (u64, Parts);

/// The queue is full, and the operator chose not to decide unlogged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The right to log one decision. With `when_full: undecided`, a place in the queue that nobody else gets.
#[derive(Debug)]
#[must_use = "a decision is logged by writing into its slot"]
pub struct Slot {
    log: DecisionLog,
    place: Option<OwnedPermit<Numbered>>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    /// Never sent to: closed when the thread ends.
    ended: oneshot::Receiver<()>,
}

// === impl Config ===

fn file_size(size: Bytes) -> Result<Bytes, Invalid> {
    match size.0 {
        1024.. => Ok(size),
        _ => Err(Invalid::new(format!("`{size}` is too small for a file")).hint("at least `1KiB`")),
    }
}

fn queue_length(length: usize) -> Result<usize, Invalid> {
    match length {
        1..=1_000_000 => Ok(length),
        _ => Err(Invalid::new(format!("`{length}` is not a length for the queue")).hint("from 1 to 1000000")),
    }
}

fn share(share: f64) -> Result<f64, Invalid> {
    match share {
        0.0..=1.0 => Ok(share),
        _ => Err(Invalid::new(format!("`{share}` is not a share")).hint("from 0 to 1; `0.1` logs every tenth allow")),
    }
}

impl Output {
    fn try_from_text(text: String) -> Result<Self, Invalid> {
        let hint = || suggest(&text, &["stdout", "stderr", "none", "file:///absolute/path"]);
        match (text.as_str(), text.strip_prefix("file://")) {
            ("stdout", _) => Ok(Self::Stdout),
            ("stderr", _) => Ok(Self::Stderr),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if path.starts_with('/') && !path.ends_with('/') => Ok(Self::File(path.into())),
            (_, Some(_)) => Err(Invalid::new(format!("`{text}` does not name a file by its absolute path"))
                .hint("like `file:///var/log/stockade.jsonl`, with three slashes")),
            (_, None) => Err(Invalid::new(format!("`{text}` is not an output")).hint(hint())),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl DecisionLog ===

impl DecisionLog {
    /// Opens the output and starts the thread that writes.
    ///
    /// # Errors
    /// If the file cannot be opened, or no thread can be had.
    pub fn start(config: &Config, metrics: DecisionLogMetrics) -> io::Result<(Self, Writer)> {
        let (end, ended) = oneshot::channel();
        let lines = match &config.output {
            Output::None => return Ok((Self(None), Writer { ended })),
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
        let writing = Writing {
            queue,
            lines,
            attributes: config.attributes.clone(),
            metrics: metrics.clone(),
            complaints: Complaints::default(),
            _end: end,
        };
        thread::Builder::new().name("decision-log".to_owned()).spawn(move || writing.run())?;
        let &Config { when_full, sample_allow, .. } = config;
        let shared = Shared { queue: sender, seq: AtomicU64::new(0), when_full, sample_allow, metrics };
        Ok((Self(Some(Arc::new(shared))), Writer { ended }))
    }

    /// Asks for the right to log a decision, before it is made.
    ///
    /// # Errors
    /// With `when_full: undecided`, if the queue is full. That the answer is then missing from the log is counted, and
    /// shows as a gap.
    pub fn reserve(&self) -> Result<Slot, Full> {
        let place = match &self.0 {
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
    /// Logs the decision, unless it is an allow that the sampling leaves out.
    pub fn write(self, parts: Parts) {
        let Some(shared) = self.log.0.filter(|shared| shared.wants(&parts)) else { return };
        let numbered = (shared.next(), parts);
        // Before the record is in the queue, so that the writer never takes out more than was put in.
        shared.metrics.queue_depth.increment(1.0);
        let result = match self.place {
            Some(place) => {
                place.send(numbered);
                Ok(())
            }
            None => shared.queue.try_send(numbered),
        };
        if let Err(error) = result {
            shared.metrics.queue_depth.decrement(1.0);
            match error {
                TrySendError::Full(_) => shared.metrics.lost_queue_full.increment(1),
                TrySendError::Closed(_) => shared.metrics.lost_write.increment(1),
            }
        }
    }
}

impl Shared {
    fn next(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sampling goes by the decision's id, so that whoever knows the id can tell whether there is a record.
    fn wants(&self, parts: &Parts) -> bool {
        let allow = matches!(&parts.outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
        !allow || self.sample_allow >= 1.0 || fraction(&parts.decision_id) < self.sample_allow
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
    /// Waits until everything is written and the thread has ended, which it does once the last [`DecisionLog`] and
    /// [`Slot`] are dropped. `false` if that takes longer than `timeout`; the records that still wait are then lost.
    pub async fn close(self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.ended).await.is_ok()
    }
}

// === the thread ===

struct Writing {
    queue: mpsc::Receiver<Numbered>,
    lines: Lines,
    attributes: Vec<Attribute>,
    metrics: DecisionLogMetrics,
    complaints: Complaints,
    _end: oneshot::Sender<()>,
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

    fn run(mut self) {
        let mut batch = Vec::with_capacity(Self::BATCH);
        let mut line = Vec::new();
        while self.queue.blocking_recv_many(&mut batch, Self::BATCH) > 0 {
            self.metrics.queue_depth.decrement(batch.len() as f64);
            for (seq, parts) in batch.drain(..) {
                let result = self.write(seq, &parts, &mut line);
                self.account(result);
            }
            if self.queue.is_empty() {
                let result = self.lines.flush();
                self.account(result);
                if self.queue.max_capacity() >= Self::LINGER_FROM && !self.queue.is_closed() {
                    thread::sleep(Self::LINGER);
                }
            }
        }
    }

    fn write(&mut self, seq: u64, parts: &Parts, line: &mut Vec<u8>) -> Result<(), Lost> {
        line.clear();
        let record = Record::new(seq, parts, &self.attributes);
        serde_json::to_writer(&mut *line, &record).map_err(|error| Lost { lines: 1, cause: error.into() })?;
        self.lines.push(&clean_bytes(line))
    }

    fn account(&mut self, result: Result<(), Lost>) {
        if let Err(lost) = result {
            self.metrics.lost_write.increment(lost.lines);
            self.complaints.add(&lost);
        }
    }
}

/// Says that records are lost, once in a while: a full disk must not fill the program's own log.
#[derive(Default)]
struct Complaints {
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
            log.reserve().expect("slot").write(parts(n, decided(Effect::Deny)));
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
                log.reserve().expect("slot").write(parts(n, decided(Effect::Allow)));
            }
            for outcome in [decided(Effect::Deny), Outcome::Undecided(Undecided::Overloaded)] {
                log.reserve().expect("slot").write(parts("other", outcome));
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

    /// A log whose writer never takes anything out.
    fn stuck(config: &Config, metrics: DecisionLogMetrics) -> (DecisionLog, mpsc::Receiver<Numbered>) {
        let (queue, receiver) = mpsc::channel(config.queue);
        let &Config { when_full, sample_allow, .. } = config;
        let shared = Shared { queue, seq: AtomicU64::new(0), when_full, sample_allow, metrics };
        (DecisionLog(Some(Arc::new(shared))), receiver)
    }

    #[test]
    fn what_a_full_queue_drops_is_counted_and_shows_as_a_gap() {
        let (meters, handle) = meters();
        let (log, mut queue) = stuck(&Config { queue: 2, ..Config::default() }, meters.clone());
        for n in 0..4 {
            log.reserve().expect("always").write(parts(n, decided(Effect::Deny)));
        }
        let mut taken = vec![queue.try_recv().expect("first").0];
        log.reserve().expect("always").write(parts(4, decided(Effect::Deny)));
        taken.extend(std::iter::from_fn(|| queue.try_recv().ok()).map(|(seq, _)| seq));
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
        slot.write(parts("sampled out", decided(Effect::Allow)));
        log.reserve().expect("the place is free again").write(parts("d", decided(Effect::Deny)));
        drop(log.reserve());
        assert_eq!(queue.try_recv().expect("the denial").0, 2);
        meters.queue_depth.decrement(1.0);
        assert_counts(&handle, 2, 0);
    }

    #[tokio::test]
    async fn a_full_disk_is_counted_and_survived() {
        let (meters, handle) = meters();
        let config = Config { queue: 16, ..to_file(Path::new("/dev/full")) };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        for n in 0..3 {
            log.reserve().expect("slot").write(parts(n, decided(Effect::Deny)));
            while !handle.render().contains(&format!("{{cause=\"write\"}} {}\n", n + 1)) {
                tokio::task::yield_now().await;
            }
        }
        drop(log);
        assert!(writer.close(Duration::from_secs(10)).await);
        assert_counts(&handle, 0, 3);
    }

    #[tokio::test]
    async fn none_takes_everything_and_ends_at_once() {
        let (meters, handle) = meters();
        let config = Config { output: Output::None, when_full: WhenFull::Undecided, ..Config::default() };
        let (log, writer) = DecisionLog::start(&config, meters).expect("start");
        log.reserve().expect("slot").write(parts("d", decided(Effect::Deny)));
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
