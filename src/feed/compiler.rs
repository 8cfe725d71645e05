//! The threads on which bundles are compiled and freed: they step back for those that answer checks.

use std::any::Any;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
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

/// Runs on a thread of its own, and catches its panics.
async fn on_thread<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let (done, outcome) = oneshot::channel();
    let task: Task = Box::new(move || {
        // If nobody waits any more, another was faster or the process ends.
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    });
    hand_over(turn, task).map_err(|error| fault("compiling", &error))?;
    match outcome.await {
        Ok(compiled) => compiled.map_err(|panic| fault("compiling", &panic_message(panic.as_ref()))),
        Err(error) => Err(fault("compiling", &error)),
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// A thread that steps back and has nothing to do. To begin and end a thread, with the allocator's part of it, takes a third of what
/// a small change of a bundle takes to compile.
static IDLE: Mutex<Option<mpsc::Sender<Task>>> = Mutex::new(None);

fn hand_over(turn: Turn, task: Task) -> io::Result<()> {
    let thread = thread::Builder::new().name("compiler".to_owned());
    if let Turn::Fair = turn {
        return thread.spawn(task).map(drop);
    }
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let left = match idle {
        Some(idle) => idle.send(task).err().map(|unsent| unsent.0),
        None => Some(task),
    };
    left.map_or(Ok(()), |task| thread.spawn(move || step_back(task)).map(drop))
}

/// The thread that steps back: it does this, and then whatever it is given, one at a time. If another one is idle by then, it ends.
fn step_back(first: Task) {
    // On Linux each thread has its own nice value (setpriority(2), notes). Allowed or not, the work is to be done. SCHED_IDLE is no
    // better: docs/decisions/0005-hot-path.md.
    let _ = rustix::process::nice(19);
    first();
    loop {
        let (sender, tasks) = mpsc::channel::<Task>();
        {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.is_some() {
                return;
            }
            *idle = Some(sender);
        }
        let Ok(task) = tasks.recv() else { return };
        task();
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
