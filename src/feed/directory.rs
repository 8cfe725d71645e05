//! Follows bundles in directories: ConfigMap mounts, release directories behind a symlink, plain ones.
//!
//! Events of the kernel only say *when* to look, never what changed: any event means "read everything again". They get
//! lost (a full queue, NFS), and a watch dies with what it watches: on the file of a ConfigMap it sees one update and
//! none after. So there is a poll as well, and what counts in the end is the digest of the content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use deserr::{Deserr, ValuePointerRef};
use notify::event::{AccessKind, AccessMode};
use notify::{ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::compiler::{compiled, internal_fault, retire};
use super::{Limits, Status, read};
use crate::policy::Files;
use crate::problem::{Problem, one_line};
use crate::units::HumanDuration;
use crate::yaml::Faults;

/// How directories are followed.
#[derive(Debug, Clone, PartialEq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields, validate = Config::validate -> Faults)]
pub struct Config {
    /// Whether the kernel is asked to report changes. Default: true. `false` leaves it to `poll`, for file systems that
    /// never report any.
    #[deserr(default = Config::default().watch)]
    pub watch: bool,
    /// How often the directories are read without any event. Default: 10s.
    #[deserr(default = Config::default().poll)]
    pub poll: HumanDuration,
    /// How long no event must have come before the directories are read, so that a change of several files is seen as
    /// one. Default: 50ms.
    #[deserr(default = Config::default().debounce)]
    pub debounce: HumanDuration,
    /// What a bundle's files may amount to.
    #[deserr(default)]
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            watch: true,
            poll: HumanDuration::seconds(10),
            debounce: HumanDuration::millis(50),
            limits: Limits::default(),
        }
    }
}

impl Config {
    fn validate(self, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        match self.poll >= HumanDuration::millis(100) {
            true => Ok(self),
            false => Err(Faults::new(
                format!("`{}` is too short: reading would never pause", self.poll),
                Some("at least `100ms`".to_owned()),
                location.push_key("poll"),
            )),
        }
    }
}

/// A writer that never pauses is not waited for longer than this many times `debounce`.
const LONGEST_BURST: u32 = 20;

/// From the files of all bundles to a snapshot, or every reason why not.
type Compile<S> = dyn Fn(&[Files]) -> Result<S, Vec<Problem>> + Send + Sync;

/// The task that follows the directories of one or several bundles and keeps a snapshot of them.
pub struct Directories<S> {
    config: Config,
    /// Absolute, so that each has a parent, but not resolved: the last part may be a symlink that is swapped.
    directories: Arc<[PathBuf]>,
    compile: Arc<Compile<S>>,
    /// The last good snapshot, for everyone. It is only ever replaced, never taken away.
    snapshots: watch::Sender<Option<Arc<S>>>,
    /// How it goes, for the admin endpoint and the metrics. Updated after `snapshots`.
    status: watch::Sender<Status>,
    /// What was seen last, good or bad: only a difference is worth compiling or logging.
    seen: Option<Seen>,
    /// The digest of what is in force.
    enforced: Option<[u8; 32]>,
    /// Whether the operator was told that the kernel does not report changes.
    warned: bool,
}

#[derive(PartialEq, Eq)]
enum Seen {
    Content([u8; 32]),
    Unreadable(Vec<String>),
}

impl<S: Send + Sync + 'static> Directories<S> {
    /// Prepares to follow `directories`. `compile` is called off the async threads; it may panic.
    pub fn new(
        config: Config,
        directories: impl IntoIterator<Item = PathBuf>,
        compile: impl Fn(&[Files]) -> Result<S, Vec<Problem>> + Send + Sync + 'static,
        snapshots: watch::Sender<Option<Arc<S>>>,
        status: watch::Sender<Status>,
    ) -> Self {
        // Without a current directory, a relative path is as good as it gets; reading it will say so.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            config,
            directories: directories.into_iter().map(absolute).collect(),
            compile: Arc::new(compile),
            snapshots,
            status,
            seen: None,
            enforced: None,
            warned: false,
        }
    }

    /// Follows the directories until `shutdown`. Nothing that happens in them ends it.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.follow() => {}
        }
    }

    async fn follow(mut self) {
        loop {
            // The old watches may be on directories that were replaced, so each round has new ones. They are in place
            // before anything is read: what changes in between is read, what changes later wakes the next round.
            let wake = Arc::new(Notify::new());
            let watcher = self.watch(&wake).await;
            self.load().await;
            tokio::select! {
                () = self.burst(&wake) => {}
                () = sleep(self.config.poll.0) => {}
            }
            drop(watcher);
        }
    }

    /// Waits for an event, then for the end of those that follow it closely.
    async fn burst(&self, wake: &Notify) {
        wake.notified().await;
        let debounce = self.config.debounce.0;
        let calm = async { while timeout(debounce, wake.notified()).await.is_ok() {} };
        // Either it is calm now or it never will be: both are the time to read.
        let _ = timeout(debounce.saturating_mul(LONGEST_BURST), calm).await;
    }

    // === watching ===

    async fn watch(&mut self, wake: &Arc<Notify>) -> Option<RecommendedWatcher> {
        if !self.config.watch {
            return None;
        }
        let directories = Arc::clone(&self.directories);
        let wake = Arc::clone(wake);
        // notify walks the directories and waits for its own thread.
        let watched = task::spawn_blocking(move || watch(&directories, wake)).await;
        let (watcher, error) = match watched {
            Ok(Ok((watcher, error))) => (Some(watcher), error.map(|error| error.to_string())),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(error) => (None, Some(error.to_string())),
        };
        if let Some(error) = error.filter(|_| !self.warned) {
            self.warned = true;
            warn!(
                error,
                poll = %self.config.poll,
                "the kernel does not report every change; polling instead (fs.inotify limits may be too low)"
            );
        }
        watcher
    }

    // === loading ===

    async fn load(&mut self) {
        let start = Instant::now();
        let directories = Arc::clone(&self.directories);
        let limits = self.config.limits.clone();
        let bundles = match task::spawn_blocking(move || read_all(&directories, &limits)).await {
            Ok(Ok(bundles)) => bundles,
            Ok(Err(problems)) => return self.unreadable(&problems),
            Err(error) => return self.unreadable(&[internal_fault("reading", error)]),
        };
        let digest = digest(&bundles);
        let news = self.seen.replace(Seen::Content(digest)) != Some(Seen::Content(digest));
        if !news || self.enforced == Some(digest) {
            self.status.send_modify(|status| {
                status.last_read = Some(SystemTime::now());
                // Old news keep their rejection; what is in force already is back after something worse.
                if news {
                    status.rejection = None;
                    info!("the bundles are again what is in force");
                }
            });
            return;
        }
        // There are no checks to step back for before the first snapshot; and where the compiler of an older version still
        // waits for its turn, stepping back leads nowhere.
        let at_once = self.enforced.is_none() || Arc::strong_count(&self.compile) > 1;
        let compile = Arc::clone(&self.compile);
        let compiled = compiled(move || compile(&bundles), at_once).await;
        let outcome = compiled.unwrap_or_else(|problem| Err(vec![problem]));
        self.status.send_if_modified(|status| {
            status.last_read = Some(SystemTime::now());
            false
        });
        match outcome {
            Ok(snapshot) => self.enforce(snapshot, digest, start.elapsed()),
            Err(problems) => self.reject(&problems),
        }
    }

    fn enforce(&mut self, snapshot: S, digest: [u8; 32], took: Duration) {
        self.enforced = Some(digest);
        retire(self.snapshots.send_replace(Some(Arc::new(snapshot))));
        self.status.send_modify(|status| {
            status.rejection = None;
            status.loaded(took);
        });
        info!(took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "bundles loaded and put in force");
    }

    fn unreadable(&mut self, problems: &[Problem]) {
        let seen = Some(Seen::Unreadable(problems.iter().map(ToString::to_string).collect()));
        if self.seen != seen {
            self.seen = seen;
            self.reject(problems);
        }
    }

    fn reject(&self, problems: &[Problem]) {
        let consequence = match self.enforced {
            Some(_) => "the last good version stays in force",
            None => "nothing is in force yet",
        };
        error!(problems = one_line(problems), "bundles refused: {consequence}");
        self.status.send_modify(|status| status.rejected(problems, SystemTime::now()));
    }
}

/// Watches each directory with all below it, and its parent, where a replacement of the directory itself shows.
/// Returns the watcher also when it does not see everything, and why it does not.
fn watch(
    directories: &Arc<[PathBuf]>,
    wake: Arc<Notify>,
) -> notify::Result<(RecommendedWatcher, Option<notify::Error>)> {
    let roots = Arc::clone(directories);
    let mut watcher = notify::recommended_watcher(move |event| {
        if concerns(&roots, &event) {
            wake.notify_one();
        }
    })?;
    let parents = directories.iter().filter_map(|directory| directory.parent());
    let watches = parents
        .map(|parent| (parent, RecursiveMode::NonRecursive))
        .chain(directories.iter().map(|directory| (directory.as_path(), RecursiveMode::Recursive)));
    let mut failure = None;
    for (path, mode) in watches {
        match watcher.watch(path, mode) {
            Ok(()) => {}
            // Nothing is wrong with watching, and reading will say that it is missing.
            Err(error) if is_missing(&error) => {}
            Err(error) => failure = Some(error),
        }
    }
    Ok((watcher, failure))
}

/// Whether an event is a reason to read again.
fn concerns(roots: &[PathBuf], event: &notify::Result<notify::Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        // notify reports that files are opened, too: our own reading would wake us for ever.
        EventKind::Access(_) => return false,
        _ => {}
    }
    // Without a path, the queue overflowed. With one, it may be a neighbour's in the parent, which is none of ours.
    event.paths.is_empty() || event.paths.iter().any(|path| roots.iter().any(|root| path.starts_with(root)))
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn read_all(directories: &[PathBuf], limits: &Limits) -> Result<Vec<Files>, Vec<Problem>> {
    let mut bundles = Vec::new();
    let mut problems = Vec::new();
    for directory in directories {
        match read(directory as &Path, limits) {
            Ok(files) => bundles.push(files),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() { Ok(bundles) } else { Err(problems) }
}

/// One digest for all bundles, in their order. Each part is of fixed length, so nothing can move from one to the next.
fn digest(bundles: &[Files]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    bundles.iter().fold(Sha256::new(), |hash, files| hash.chain_update(files.digest())).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;

    /// Follows one bundle at `bundle` in a fresh directory. Its snapshot is the text of `a.cedar`; `bad` does not
    /// compile, `panic` makes the compiler panic.
    struct Follower {
        home: TempDir,
        snapshots: watch::Receiver<Option<Arc<String>>>,
        status: watch::Receiver<Status>,
        compiled: Arc<AtomicUsize>,
        task: JoinHandle<()>,
    }

    /// Events alone: a poll would come too late for any test.
    fn events() -> Config {
        Config { poll: HumanDuration::seconds(3600), debounce: HumanDuration::millis(10), ..Config::default() }
    }

    impl Follower {
        fn start(config: Config, prepare: impl FnOnce(&Path)) -> Self {
            let home = tempfile::tempdir().expect("a directory");
            prepare(home.path());
            let (snapshots, status) = (watch::Sender::new(None), watch::Sender::new(Status::default()));
            let (snapshots_rx, status_rx) = (snapshots.subscribe(), status.subscribe());
            let compiled = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&compiled);
            let compile = move |bundles: &[Files]| {
                count.fetch_add(1, Ordering::SeqCst);
                match bundles[0].files["a.cedar"].as_str() {
                    "bad" => Err(vec![Problem::error("does not compile"), Problem::error("at all")]),
                    "panic" => panic!("the compiler fell over"),
                    good => Ok(good.to_owned()),
                }
            };
            let feed = Directories::new(config, [home.path().join("bundle")], compile, snapshots, status);
            let task = tokio::spawn(feed.run(std::future::pending()));
            Self { home, snapshots: snapshots_rx, status: status_rx, compiled, task }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.home.path().join(path)
        }

        async fn snapshot(&mut self, expected: &str) {
            let is_it = |snapshot: &Option<Arc<String>>| snapshot.as_ref().is_some_and(|text| **text == expected);
            let waited = timeout(Duration::from_secs(20), self.snapshots.wait_for(is_it)).await;
            assert!(matches!(waited, Ok(Ok(_))), "{expected}: {:?}", self.status.borrow());
        }

        async fn status(&mut self, what: &str, is_it: impl FnMut(&Status) -> bool) -> Status {
            let waited = timeout(Duration::from_secs(20), self.status.wait_for(is_it)).await;
            waited.unwrap_or_else(|_| panic!("no {what}")).expect("the task runs").clone()
        }

        async fn rejection(&mut self, expected: &str) {
            let is_it = |status: &Status| {
                status.rejection.as_ref().is_some_and(|rejection| rejection.problems.join("; ").contains(expected))
            };
            self.status(expected, is_it).await;
        }
    }

    impl Drop for Follower {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn swap(link: PathBuf, target: &str) {
        let next = link.with_extension("next");
        symlink(target, &next).expect("a link");
        fs::rename(next, link).expect("a swap");
    }

    fn plain(text: &'static str) -> impl FnOnce(&Path) {
        move |home| write(home.join("bundle/a.cedar"), text)
    }

    #[tokio::test]
    async fn an_edit_a_save_by_rename_and_a_new_directory_are_noticed() {
        let mut follower = Follower::start(events(), plain("one"));
        follower.snapshot("one").await;
        write(follower.path("bundle/a.cedar"), "two");
        follower.snapshot("two").await;
        write(follower.path("bundle/.a.cedar.tmp"), "three");
        fs::rename(follower.path("bundle/.a.cedar.tmp"), follower.path("bundle/a.cedar")).expect("a rename");
        follower.snapshot("three").await;
        write(follower.path("bundle/policies/dir/b.cedar"), "x");
        follower.status("fourth load", |status| status.loads == 4).await;
        write(follower.path("bundle/policies/dir/b.cedar"), "y");
        follower.status("fifth load", |status| status.loads == 5).await;
    }

    /// As the kubelet's AtomicWriter does it: a new directory, a link to it under another name, renamed over `..data`,
    /// the old directory removed.
    fn publish(mount: &Path, version: &str) {
        let old = fs::read_link(mount.join("..data")).ok();
        let new = format!("..2026_01_01_{version}");
        write(mount.join(&new).join("a.cedar"), version);
        symlink(&new, mount.join("..data_tmp")).expect("a link");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("a swap");
        match old {
            Some(old) => fs::remove_dir_all(mount.join(old)).expect("removed"),
            None => symlink("..data/a.cedar", mount.join("a.cedar")).expect("a link"),
        }
    }

    #[tokio::test]
    async fn every_update_of_a_config_map_is_noticed() {
        let mut follower = Follower::start(events(), |home| publish(&home.join("bundle"), "v0"));
        follower.snapshot("v0").await;
        for version in ["v1", "v2", "v3"] {
            publish(&follower.path("bundle"), version);
            follower.snapshot(version).await;
        }
    }

    #[tokio::test]
    async fn a_directory_that_goes_and_comes_back_is_noticed_and_the_last_good_stays() {
        let mut follower = Follower::start(events(), plain("one"));
        follower.snapshot("one").await;
        fs::remove_dir_all(follower.path("bundle")).expect("removed");
        follower.rejection("there is no directory").await;
        follower.snapshot("one").await;
        write(follower.path("bundle/a.cedar"), "two");
        follower.snapshot("two").await;
        // The new directory is watched, not only found.
        write(follower.path("bundle/a.cedar"), "three");
        follower.snapshot("three").await;
    }

    #[tokio::test]
    async fn a_directory_that_is_a_swapped_symlink_is_noticed() {
        let mut follower = Follower::start(events(), |home| {
            ["v1", "v2", "v3"]
                .iter()
                .for_each(|version| write(home.join("releases").join(version).join("a.cedar"), version));
            swap(home.join("bundle"), "releases/v1");
        });
        follower.snapshot("v1").await;
        for version in ["v2", "v3"] {
            swap(follower.path("bundle"), &format!("releases/{version}"));
            follower.snapshot(version).await;
        }
        write(follower.path("releases/v3/a.cedar"), "edited in place");
        follower.snapshot("edited in place").await;
    }

    #[tokio::test]
    async fn a_bad_version_is_reported_and_the_last_good_stays() {
        let mut follower = Follower::start(events(), plain("one"));
        follower.snapshot("one").await;
        write(follower.path("bundle/a.cedar"), "bad");
        follower.rejection("does not compile; at all").await;
        follower.snapshot("one").await;
        // Back to what is in force: no need to compile it again.
        write(follower.path("bundle/a.cedar"), "one");
        follower.status("end of the rejection", |status| status.rejection.is_none()).await;
        assert_eq!(follower.compiled.load(Ordering::SeqCst), 2);
        write(follower.path("bundle/a.cedar"), "panic");
        follower.rejection("internal fault while compiling the bundles: the compiler fell over").await;
        write(follower.path("bundle/a.cedar"), "two");
        follower.snapshot("two").await;
        let status = follower.status("end of the rejection", |status| status.rejection.is_none()).await;
        assert_eq!((status.loads, status.rejections), (2, 2));
        assert!(status.last_load_duration.is_some());
    }

    #[tokio::test]
    async fn polling_alone_notices_too_and_starts_without_a_directory() {
        let config = Config { watch: false, poll: HumanDuration::millis(100), ..Config::default() };
        let mut follower = Follower::start(config, |_| {});
        follower.rejection("there is no directory").await;
        assert!(follower.snapshots.borrow().is_none());
        write(follower.path("bundle/a.cedar"), "one");
        follower.snapshot("one").await;
        write(follower.path("bundle/a.cedar"), "two");
        follower.snapshot("two").await;
        assert!(follower.status.borrow().rejection.is_none());
    }

    #[tokio::test]
    async fn a_new_age_is_not_a_new_version_and_reading_does_not_wake_itself() {
        let mut follower = Follower::start(events(), plain("one"));
        let first = follower.status("first load", |status| status.loads == 1).await;
        let file = File::options().write(true).open(follower.path("bundle/a.cedar")).expect("the file");
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("touched");
        let second = follower.status("second read", |status| status.last_read > first.last_read).await;
        assert_eq!((second.loads, follower.compiled.load(Ordering::SeqCst)), (1, 1));
        // Our own reading, and neighbours in the parent directory.
        follower.status.mark_unchanged();
        write(follower.path("neighbour/a.cedar"), "x");
        let more = timeout(Duration::from_millis(300), follower.status.changed()).await;
        assert!(more.is_err(), "{:?}", follower.status.borrow());
    }

    #[tokio::test]
    async fn the_same_rejection_is_counted_once() {
        let config = Config { watch: false, poll: HumanDuration::millis(100), ..Config::default() };
        let mut follower = Follower::start(config, plain("bad"));
        follower.rejection("does not compile").await;
        let first = follower.status.borrow_and_update().clone();
        let later = follower.status("third read", |status| status.last_read > first.last_read).await;
        assert_eq!((later.rejections, follower.compiled.load(Ordering::SeqCst)), (1, 1));
        assert!(later.rejection.is_some());
    }

    /// The first compiler steps back for ever, as on a core that is busy all the time.
    #[tokio::test(start_paused = true)]
    async fn a_compiler_that_never_gets_its_turn_is_overtaken() {
        let (calls, (release, blocked)) = (AtomicUsize::new(0), std::sync::mpsc::channel::<()>());
        let blocked = std::sync::Mutex::new(blocked);
        let compile = move || match calls.fetch_add(1, Ordering::SeqCst) {
            0 => blocked.lock().expect("a lock").recv().map(|()| "first").unwrap_or("first"),
            _ => "second",
        };
        assert_eq!(compiled(compile, false).await.expect("compiled"), "second");
        drop(release);
    }

    #[test]
    fn the_problems_of_all_bundles_are_reported() {
        let home = tempfile::tempdir().expect("a directory");
        write(home.path().join("one/a.cedar"), "x");
        write(home.path().join("two/a.cedar"), "y");
        let paths = |names: [&str; 2]| names.map(|name| home.path().join(name));
        let good = |names| read_all(&paths(names), &Limits::default()).expect("good bundles");
        assert_ne!(digest(&good(["one", "two"])), digest(&good(["two", "one"])));
        let problems = read_all(&paths(["three", "four"]), &Limits::default()).expect_err("both are missing");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_poll_without_pause_is_refused() {
        let source = crate::problem::SourceFile::new("s.yaml", "poll: 0s\nlimits:\n  max_files: 3\n");
        let problems = crate::yaml::parse::<Config>(&source).expect_err("too short");
        assert_eq!(
            one_line(&problems),
            "s.yaml:1:7: `poll`: `0s` is too short: reading would never pause (at least `100ms`)"
        );
    }
}
