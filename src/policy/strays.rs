//! Files of a bundle that nothing reads, and what `bundle.yaml` says of them.

use super::Files;
use super::header::{Ignored, ignore};
use super::layout::{FileKind, Stray};
use crate::problem::{Problem, SourceFile};

/// Holds files that nothing reads against `ignore` of `bundle.yaml`: paths, and folders that end with a slash. An entry
/// cannot take away what is read.
pub(super) fn ignored(entry: &str, path: &str) -> bool {
    entry == path || (entry.ends_with('/') && path.starts_with(entry))
}

/// The errors about files of a bundle that nothing reads: those among its files, and others that were found beside them.
/// None as long as the manifest cannot be read, which is an error of its own.
pub fn strays(files: &Files, others: &[String]) -> Vec<Problem> {
    let Some(ignore) = ignore(files) else { return Vec::new() };
    let all = files.files.keys().chain(others);
    let strays = all.filter_map(|path| Some((path, FileKind::of(path).err()?)));
    let mut strays: Vec<(&String, Stray)> =
        strays.filter(|(path, _)| !ignore.iter().any(|entry| ignored(&entry.0, path))).collect();
    let more = strays.len().saturating_sub(REPORTED);
    strays.truncate(REPORTED);
    let reported = strays.iter().map(|(path, stray)| stray.problem(&files.root, path));
    let more = (more > 0).then(|| Problem::error(format!("{}: nothing reads {more} more files", files.root)));
    reported.chain(more).collect()
}

/// Warnings of entries of `ignore` that no file is at. `is_there` says whether one is, by its path in the bundle.
pub fn idle_ignores(files: &Files, is_there: impl Fn(&str) -> bool) -> Vec<Problem> {
    let idle = ignore(files).unwrap_or_default().into_iter().filter(|entry| !is_there(&entry.0));
    let source = SourceFile::new(format!("{}/bundle.yaml", files.root.trim_end_matches('/')), "");
    let warning = |entry: Ignored| {
        Problem::warning(format!("`ignore` has `{}`, and there is no such file", entry.0))
            .hint("correct the path, or remove it")
            .in_file(&source)
    };
    idle.map(warning).collect()
}

/// Of so many strays each is reported: somebody has named the wrong directory.
const REPORTED: usize = 50;
