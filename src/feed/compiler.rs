//! The threads on which bundles are compiled and freed: they step back for those that answer checks.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task;
use tokio::time::{sleep, timeout};

use crate::problem::Problem;

/// How long a compiler may step back before another one starts that does not. A server that is busy all the time has no
/// time to spare, and nobody may keep a permission by keeping it busy.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long what is no longer in force is kept for the checks that are being decided under it.
const RETIREMENT: Duration = Duration::from_secs(1);

/// When a thread gets its turn.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// As all others.
    Fair,
    /// Little more than what the others leave over.
    Spare,
}

/// Compiles on a thread that steps back for those that answer checks, as long as that leads anywhere: a bundle of a
/// thousand policies takes a core for more than a tenth of a second, and a sidecar may have no more than one.
pub(super) async fn compiled<T: Send + 'static>(
    compile: impl Fn() -> T + Send + Sync + 'static,
    at_once: bool,
) -> Result<T, Problem> {
    let compile = Arc::new(compile);
    let run = |turn| {
        let compile = Arc::clone(&compile);
        on_thread(turn, move || compile())
    };
    if at_once {
        return run(Turn::Fair).await;
    }
    let mut patient = pin!(run(Turn::Spare));
    match timeout(PATIENCE, &mut patient).await {
        Ok(outcome) => outcome,
        Err(_) => tokio::select! {
            outcome = patient => outcome,
            outcome = run(Turn::Fair) => outcome,
        },
    }
}

/// Runs on a thread of its own. On Linux each thread has its own nice value (setpriority(2), notes).
async fn on_thread<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let (done, outcome) = oneshot::channel();
    let run = move || {
        if let Turn::Spare = turn {
            // Allowed or not, the work is to be done. SCHED_IDLE is no better: docs/decisions/0005-hot-path.md.
            let _ = rustix::process::nice(19);
        }
        // If nobody waits any more, another was faster or the process ends.
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    };
    thread::Builder::new().name("compiler".to_owned()).spawn(run).map_err(|error| fault("compiling", &error))?;
    match outcome.await {
        Ok(compiled) => compiled.map_err(|panic| fault("compiling", &panic_message(panic.as_ref()))),
        Err(error) => Err(fault("compiling", &error)),
    }
}

pub(super) fn internal_fault(doing: &str, error: task::JoinError) -> Problem {
    match error.try_into_panic() {
        Ok(panic) => fault(doing, &panic_message(panic.as_ref())),
        Err(error) => fault(doing, &error),
    }
}

fn fault(doing: &str, cause: &dyn Display) -> Problem {
    Problem::error(format!("internal fault while {doing} the bundles: {cause}"))
        .hint("a bug in stockade: please report it, with the bundles if you can")
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Frees what is no longer in force. A check that still holds it would otherwise be the one to free a hundred thousand
/// entities.
pub(super) fn retire<S: Send + Sync + 'static>(old: Option<Arc<S>>) {
    let Some(old) = old else { return };
    task::spawn(async move {
        sleep(RETIREMENT).await;
        on_thread(Turn::Spare, move || drop(old)).await
    });
}
