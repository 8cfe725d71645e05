//! What Stockade is tested with, in one implementation of each: the tests, the load generator and both demos use it.
//!
//! - [`Stockade`] is the binary, [`envoy`] and [`nats`] are the real Envoy and the real nats-server,
//! - [`http`] is a client that sends anything, [`upstream`] the service behind Envoy, [`check`] makes CheckRequests,
//! - [`certificates`] and [`token`] make what identities are proved with,
//! - [`process`] is what all processes have in common.
//!
//! What cannot be done fails the test that needs it, with a panic that says why. Functions whose name begins with `try_` return
//! the reason instead, for who has something to lose: the load generator has its findings.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot be set up fails"
)]
#![allow(clippy::new_without_default, reason = "each key is another one, which is no default")]
#![allow(clippy::disallowed_macros, reason = "what Envoy writes goes the way of a test's own output")]

pub mod certificates;
pub mod check;
pub mod envoy;
pub mod http;
pub mod nats;
pub mod process;
mod sidecar;
pub mod token;
pub mod upstream;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::{get, request};
pub use http::http_get;
pub use sidecar::{Stockade, config};

/// How long anything may take before a test fails: much longer than it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often [`until`] looks.
const LOOK: Duration = Duration::from_millis(5);

/// Something that a test needs is not there: an error where `CI` is set, as `.ci/run` does, and said past the harness elsewhere, which
/// keeps what passing tests print to itself.
#[expect(clippy::disallowed_methods, reason = "the harness does not show it otherwise")]
pub fn skipped(why: &str) {
    use std::io::Write as _;
    assert!(std::env::var_os("CI").is_none(), "cannot be tested: {why}");
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("this crate is two folders below the root").join(path)
}

/// The binary under test. Cargo builds it beside the folder of the tests, and beside that of the demos, which are examples.
pub fn binary() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let binary = program.parent().and_then(Path::parent).expect("a folder of programs").join("stockade");
    assert!(binary.is_file(), "there is no stockade at `{}`: run `cargo build`", binary.display());
    binary
}

/// A program that is installed beside the repository, or that a variable names.
///
/// # Errors
/// If there is none. Who lacks one does not test: a test that passes without what it tests would be worse than none.
fn installed(name: &str, variable: &str, path: &str, command: &str) -> Result<PathBuf, String> {
    let binary = std::env::var_os(variable).map_or_else(|| repository(path), PathBuf::from);
    if binary.is_file() {
        return Ok(binary);
    }
    Err(format!("there is no {name} at `{}`: run `{command}`, or name one in {variable}", binary.display()))
}

/// Looks again and again until there is something to see, for what no event tells. Fails if it takes longer than anything may.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in vain: until {what}"))
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
