//! Reads a bundle from a directory: one version of it, within limits, or every reason why not.
//!
//! Three kinds of directories are told apart by nothing but where they lead. A ConfigMap mount keeps its files in a
//! hidden directory that `..data` points to; a release directory is itself a symlink; a plain one is neither. Whatever
//! the way, it is followed once and everything is read from its end, so that no swap on the way mixes two versions;
//! then it is followed again, and if it leads elsewhere, what was read is out of date or half deleted: once more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use deserr::Deserr;
use serde::Serialize;
use walkdir::{DirEntry, WalkDir};

use crate::policy::{FILES_READ, FileKind, Files, strays};
use crate::problem::{Problem, SourceFile};
use crate::units::Bytes;
use crate::yaml::Faults;

/// What a bundle's files may amount to. A bundle beyond them is refused, whole.
#[derive(Debug, Clone, PartialEq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Limits {
    /// How many files. Default: 10000.
    #[deserr(default = Limits::default().max_files)]
    pub max_files: usize,
    /// The size of one file. Default: 4MiB.
    #[deserr(default = Limits::default().max_file_size)]
    pub max_file_size: Bytes,
    /// The size of all files together. Default: 64MiB.
    #[deserr(default = Limits::default().max_total_size)]
    pub max_total_size: Bytes,
    /// How many directories deep a file may lie, counting the bundle's own. Default: 16.
    #[deserr(default = Limits::default().max_depth)]
    pub max_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_files: 10_000, max_file_size: Bytes(4 << 20), max_total_size: Bytes(64 << 20), max_depth: 16 }
    }
}

impl Limits {
    /// Holds bundles against the limits that came packed, and whose size in all is known.
    ///
    /// # Errors
    /// Every file, and every bundle, that is too much.
    pub fn check(&self, bundles: &[Files]) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for bundle in bundles {
            if bundle.files.len() > self.max_files {
                let message =
                    format!("it has {} files, more than `max_files` ({})", bundle.files.len(), self.max_files);
                problems.push(Problem::error(message).in_file(&SourceFile::new(bundle.root.clone(), "")));
            }
            for (path, _) in bundle.files.iter().filter(|(_, text)| text.len() as u64 > self.max_file_size.0) {
                let message = format!("is larger than `max_file_size` ({})", self.max_file_size);
                let name = format!("{}/{path}", bundle.root);
                problems.push(Problem::error(message).in_file(&SourceFile::new(name, "")));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// How often a directory that changes underfoot is tried again, and after how long. The kubelet swaps in microseconds;
/// whoever takes longer gets the next event or poll.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// Reads the bundle in `directory`. Blocks.
///
/// # Errors
/// Every problem of the directory and its files, not only the first.
pub fn read(directory: &Path, limits: &Limits) -> Result<Files, Vec<Problem>> {
    let mut torn = String::new();
    for _ in 0..ATTEMPTS {
        match read_once(directory, limits) {
            Ok(files) => return Ok(files),
            Err(Failure::Problems(problems)) => return Err(problems),
            Err(Failure::Torn(how)) => torn = how,
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "on a thread for blocking; a directory has no event that says that it is whole"
        )]
        thread::sleep(PAUSE);
    }
    let problem = Problem::error(format!("`{}` kept changing while it was read: {torn}", directory.display()));
    Err(vec![problem.hint("it will be read again; publish by swapping a symlink to make a change atomic")])
}

enum Failure {
    /// The directory changed while it was read: try again.
    Torn(String),
    Problems(Vec<Problem>),
}

fn read_once(directory: &Path, limits: &Limits) -> Result<Files, Failure> {
    let root = resolve(directory).map_err(|error| unresolved(directory, &error))?;
    let mut reader = Reader {
        name: directory.display().to_string(),
        root: &root,
        limits,
        files: BTreeMap::new(),
        others: Vec::new(),
        total_size: 0,
        changed: None,
        problems: Vec::new(),
    };
    let read = reader.walk();
    match resolve(directory) {
        Ok(now) if now == root => read.map_err(Failure::Torn)?,
        Ok(now) => return Err(Failure::Torn(format!("it led to `{}`, then to `{}`", root.display(), now.display()))),
        Err(error) => return Err(unresolved(directory, &error)),
    }
    let Reader { name, files, changed, others, mut problems, .. } = reader;
    let files = Files { root: name, files, changed };
    problems.extend(strays(&files, &others));
    if files.files.is_empty() && problems.is_empty() {
        // Putting nothing in force would drop every guardrail; far more often the files are on their way.
        let problem = Problem::error(format!("`{}` holds no files of a bundle", files.root));
        problems.push(problem.hint(format!("what is read: {FILES_READ}")));
    }
    if problems.is_empty() { Ok(files) } else { Err(Failure::Problems(problems)) }
}

/// Where the files of a directory really are: behind `..data` in a ConfigMap mount, behind the path otherwise.
fn resolve(directory: &Path) -> io::Result<PathBuf> {
    let data = directory.join("..data");
    match fs::symlink_metadata(&data) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(data),
        _ => fs::canonicalize(directory),
    }
}

fn unresolved(directory: &Path, error: &io::Error) -> Failure {
    let name = directory.display();
    match error.kind() {
        // The directory is there, so `..data` is what leads nowhere: the kubelet is at work.
        ErrorKind::NotFound if directory.is_dir() => Failure::Torn("`..data` leads nowhere".to_owned()),
        ErrorKind::NotFound => Failure::Problems(vec![
            Problem::error(format!("there is no directory `{name}`")).hint("create it, mount it, or correct the path"),
        ]),
        _ => Failure::Problems(vec![Problem::error(format!("cannot read directory `{name}`: {error}"))]),
    }
}

/// One walk through one version of a bundle.
struct Reader<'a> {
    /// The directory as it was configured.
    name: String,
    /// The directory as it was resolved.
    root: &'a Path,
    limits: &'a Limits,
    files: BTreeMap<String, String>,
    /// Files that nothing reads, by path: whether they are errors, the bundle's manifest says.
    others: Vec<String>,
    total_size: u64,
    changed: Option<SystemTime>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// Reads everything; `Err` says what vanished on the way.
    fn walk(&mut self) -> Result<(), String> {
        // One level further than allowed, so that what lies too deep is refused instead of overlooked.
        let entries = WalkDir::new(self.root)
            .follow_links(true)
            .sort_by_file_name()
            .max_depth(self.limits.max_depth.saturating_add(1))
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.path()) || !entry.file_type().is_dir());
        for entry in entries {
            match entry {
                Ok(entry) if entry.depth() == 0 && !entry.file_type().is_dir() => {
                    let problem = Problem::error(format!("`{}` is not a directory", self.name));
                    self.problems.push(problem.hint("name the directory that the file is in"));
                }
                Ok(entry) if self.is_to_be_read(&entry) => {
                    if self.entry(&entry)? == Stop::Yes {
                        break;
                    }
                }
                Ok(_) => {}
                Err(error) => self.unreadable(&error)?,
            }
        }
        Ok(())
    }

    /// Whether this is a directory to go through, or a file of the bundle; what may be neither is noted.
    fn is_to_be_read(&mut self, entry: &DirEntry) -> bool {
        if entry.file_type().is_dir() {
            return true;
        }
        let path = entry.path();
        let Some(relative) = self.relative(path) else {
            self.problem(path, Problem::error("has a name that is not UTF-8").hint("rename it"));
            return false;
        };
        if is_hidden(path) {
            if FileKind::is_hidden_one(&relative) {
                let hint = "rename it, or remove it; a rule that is not to count has no place in a bundle";
                self.problem(path, Problem::error("nothing reads hidden files").hint(hint));
            }
            return false;
        }
        match FileKind::of(&relative) {
            Ok(FileKind::Foreign) => false,
            // A pipe would hold the reader forever.
            Ok(_) if !entry.file_type().is_file() => {
                self.problem(path, Problem::error("is no regular file").hint("remove it"));
                false
            }
            Ok(_) => true,
            Err(_) => {
                self.others.push(relative);
                false
            }
        }
    }

    fn entry(&mut self, entry: &DirEntry) -> Result<Stop, String> {
        let path = entry.path();
        if entry.depth() > self.limits.max_depth {
            let limit = format!("is deeper than `max_depth` ({}) allows", self.limits.max_depth);
            self.problem(path, Problem::error(limit));
            return Ok(Stop::No);
        }
        if entry.file_type().is_dir() {
            // A file that was removed shows in the age of its directory only.
            self.changed = self.changed.max(entry.metadata().ok().and_then(|metadata| metadata.modified().ok()));
            return Ok(Stop::No);
        }
        if self.files.len() >= self.limits.max_files {
            self.problem(
                path,
                Problem::error(format!("is one file more than `max_files` ({})", self.limits.max_files)),
            );
            return Ok(Stop::Yes);
        }
        match self.content(path) {
            Ok(bytes) => Ok(self.keep(path, bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(vanished(path)),
            Err(error) => {
                self.problem(path, Problem::error(format!("cannot be read: {error}")));
                Ok(Stop::No)
            }
        }
    }

    /// A file's content, but no more than one byte beyond the limit, however fast it grows.
    fn content(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        self.changed = self.changed.max(metadata.modified().ok());
        let mut bytes = Vec::new();
        file.take(self.limits.max_file_size.0.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn keep(&mut self, path: &Path, bytes: Vec<u8>) -> Stop {
        let size = bytes.len() as u64;
        if size > self.limits.max_file_size.0 {
            let limit = format!("is larger than `max_file_size` ({})", self.limits.max_file_size);
            self.problem(path, Problem::error(limit));
            return Stop::No;
        }
        self.total_size = self.total_size.saturating_add(size);
        if self.total_size > self.limits.max_total_size.0 {
            let limit = format!("brings the bundle above `max_total_size` ({})", self.limits.max_total_size);
            self.problem(path, Problem::error(limit));
            return Stop::Yes;
        }
        match (self.relative(path), String::from_utf8(bytes)) {
            (Some(relative), Ok(text)) => {
                self.files.insert(relative, text);
            }
            (None, _) => self.problem(path, Problem::error("has a name that is not UTF-8").hint("rename it")),
            (_, Err(error)) => {
                let at = error.utf8_error().valid_up_to();
                self.problem(path, Problem::error(format!("is not UTF-8 at byte {at}")).hint("save it as UTF-8"));
            }
        }
        Stop::No
    }

    fn unreadable(&mut self, error: &walkdir::Error) -> Result<(), String> {
        let path = error.path().unwrap_or(self.root);
        if path != self.root && is_hidden(path) {
            return Ok(());
        }
        if let Some(ancestor) = error.loop_ancestor() {
            let message = format!("leads back to `{}`, a loop", ancestor.display());
            self.problem(path, Problem::error(message).hint("remove the symlink"));
            return Ok(());
        }
        let kind = error.io_error().map(io::Error::kind);
        match (kind, fs::symlink_metadata(path)) {
            // What is missing behind it may have been a `forbid`: no reason to go on without.
            (Some(ErrorKind::NotFound), Ok(link)) if link.is_symlink() => {
                self.problem(path, Problem::error("is a symlink that leads nowhere").hint("remove it or mend it"));
            }
            (Some(ErrorKind::NotFound), _) => return Err(vanished(path)),
            _ => {
                let cause = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                self.problem(path, Problem::error(format!("cannot be read: {cause}")));
            }
        }
        Ok(())
    }

    /// Files a problem under the name that the operator knows the file by.
    fn problem(&mut self, path: &Path, problem: Problem) {
        let shown = Path::new(&self.name).join(path.strip_prefix(self.root).unwrap_or(path));
        self.problems.push(problem.in_file(&SourceFile::new(shown.display().to_string(), "")));
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let parts = path.strip_prefix(self.root).ok()?.iter().map(|part| part.to_str());
        Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
    }
}

#[derive(PartialEq, Eq)]
enum Stop {
    Yes,
    No,
}

/// Editors keep `.foo.swp` and `.#foo` beside a file, Git its `.git`, the kubelet its `..data`.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn vanished(path: &Path) -> String {
    format!("`{}` vanished", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    fn names(files: &Files) -> Vec<&str> {
        files.files.keys().map(String::as_str).collect()
    }

    /// The problems of `dir`, without its own name in front.
    fn problems(dir: &Path, limits: &Limits) -> Vec<String> {
        let problems = read(dir, limits).expect_err("problems");
        let prefix = format!("{}/", dir.display());
        problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }

    #[test]
    fn reads_what_belongs_to_a_bundle_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = ["bundle.yaml", "entities/users.json", "policies/deep/er/a.cedar", "schema.cedarschema"];
        let ignored = [".git/config.yaml", ".a.cedar.swp", "README.md", "sub/.c.swp", "docs/big.bin", "ci/x.yml"];
        for path in good.iter().chain(&ignored) {
            write(dir.path(), path, path);
        }
        let manifest = "name: x\nignore: [docs/, ci/x.yml]";
        write(dir.path(), "bundle.yaml", manifest);
        write(dir.path(), "docs/big.bin", [0xff; 99]);
        symlink("nowhere", dir.path().join(".#lock.cedar")).expect("a link");
        let files = read(dir.path(), &Limits::default()).expect("good files");
        assert_eq!(names(&files), good);
        assert!(files.files.iter().all(|(path, text)| path == text || text == manifest));
        assert!(files.changed.is_some());

        write(dir.path(), "ci/y.yml", "");
        write(dir.path(), "policies/deny.CEDAR", "forbid (principal, action, resource);");
        write(dir.path(), "policies/deny.cedar~", "");
        write(dir.path(), "policies/.deny.cedar", "");
        let problems = problems(dir.path(), &Limits::default());
        let starts = [
            "policies/.deny.cedar: nothing reads hidden files (rename it",
            "ci/y.yml: nothing reads this file (what is read: `bundle.yaml`",
            "policies/deny.CEDAR: nothing reads this file (`policies/deny.cedar` would be read",
            "policies/deny.cedar~: nothing reads what editors and tools leave behind (remove it",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }

    #[test]
    fn follows_symlinks_and_names_loops_and_dead_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let shared = tempfile::tempdir().expect("a directory");
        write(shared.path(), "guard.cedar", "forbid(principal, action, resource);");
        symlink(shared.path(), dir.path().join("policies")).expect("a link");
        assert_eq!(names(&read(dir.path(), &Limits::default()).expect("good files")), ["policies/guard.cedar"]);

        symlink(".", shared.path().join("again")).expect("a link");
        symlink("nowhere.cedar", dir.path().join("dead.cedar")).expect("a link");
        let problems = problems(dir.path(), &Limits::default());
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(problems[0], "dead.cedar: is a symlink that leads nowhere (remove it or mend it)");
        assert!(problems[1].starts_with("policies/again: leads back to `"), "{problems:?}");
    }

    #[test]
    fn every_problem_is_reported_with_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), "a.cedar", b"permit\xff");
        write(dir.path(), "b.cedar", "12345678901");
        write(dir.path(), "policies/d/e.cedar", "x");
        let limits = Limits { max_file_size: Bytes(10), max_depth: 2, ..Limits::default() };
        assert_eq!(
            problems(dir.path(), &limits),
            [
                "a.cedar: is not UTF-8 at byte 6 (save it as UTF-8)",
                "b.cedar: is larger than `max_file_size` (10)",
                "policies/d/e.cedar: is deeper than `max_depth` (2) allows",
            ]
        );
    }

    #[test]
    fn too_much_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for path in ["a.cedar", "b.cedar", "c.cedar"] {
            write(dir.path(), path, "123456");
        }
        let limits = Limits { max_files: 2, ..Limits::default() };
        assert_eq!(problems(dir.path(), &limits), ["c.cedar: is one file more than `max_files` (2)"]);
        let limits = Limits { max_total_size: Bytes(17), ..Limits::default() };
        assert_eq!(problems(dir.path(), &limits), ["c.cedar: brings the bundle above `max_total_size` (17)"]);
    }

    #[test]
    fn directories_that_are_none_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), "file", "");
        fs::create_dir(dir.path().join("empty")).expect("a directory");
        fs::create_dir(dir.path().join("mount")).expect("a directory");
        symlink("..gone", dir.path().join("mount/..data")).expect("a link");
        for (path, expected) in [
            ("missing", "there is no directory `missing` (create it, mount it, or correct the path)"),
            ("file", "`file` is not a directory (name the directory that the file is in)"),
            (
                "empty",
                "`empty` holds no files of a bundle (what is read: `bundle.yaml`, `routes.yaml`, `policies/*.cedar`, \
                 `schema.cedarschema`, `entities/*.json`, `tests/*.yaml`; policies/README.md has the whole list)",
            ),
            (
                "mount",
                "`mount` kept changing while it was read: `..data` leads nowhere (it will be read again; publish by \
                 swapping a symlink to make a change atomic)",
            ),
        ] {
            let problems = read(&dir.path().join(path), &Limits::default()).expect_err(path);
            let shown = problems[0].to_string().replace(&format!("{}/", dir.path().display()), "");
            assert_eq!((problems.len(), shown.as_str()), (1, expected));
        }
    }

    /// A writer swaps versions as fast as it can; whatever a reader gets is one version, never a mix.
    #[test]
    fn a_swap_while_reading_never_shows_a_mix() {
        let dir = tempfile::tempdir().expect("a directory");
        for version in ["v1", "v2"] {
            (0..50).for_each(|n| write(dir.path(), &format!("{version}/{n}.cedar"), version));
        }
        let swap = |version: &str| {
            symlink(version, dir.path().join("next")).expect("a link");
            fs::rename(dir.path().join("next"), dir.path().join("current")).expect("a swap");
        };
        swap("v1");
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for _ in 0..100 {
                    // Being told that it kept changing is fine.
                    let Ok(files) = read(&dir.path().join("current"), &Limits::default()) else { continue };
                    let mut versions: Vec<_> = files.files.values().collect();
                    versions.dedup();
                    assert_eq!((files.files.len(), versions.len()), (50, 1));
                }
            });
            while !reader.is_finished() {
                swap("v2");
                swap("v1");
                #[expect(clippy::disallowed_methods, reason = "the pace of one who swaps the directory")]
                thread::sleep(Duration::from_micros(200));
            }
        });
    }
}
