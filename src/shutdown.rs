//! How the process ends: in order at the first signal, at once at the second.
//!
//! A sidecar must not simply stop: Envoy would apply its failure mode to every request. So first it goes on answering and says
//! that it is not ready (`grace`), then it takes nothing new and finishes what is in flight (`drain`), then it exits.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::process;

use deserr::Deserr;
use serde::Serialize;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::units::HumanDuration;
use crate::yaml::Faults;

/// How long the process takes to end.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// How long to go on answering while not ready, so that Envoy stops asking. Default: 5s.
    #[deserr(default = Config::default().grace)]
    pub grace: HumanDuration,
    /// How long the answers in flight may take after that. Default: 10s.
    #[deserr(default = Config::default().drain)]
    pub drain: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self { grace: HumanDuration::seconds(5), drain: HumanDuration::seconds(10) }
    }
}

/// Where the process is in its life. It only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready, if the feed says so too.
    Running,
    /// Still answering, but not ready any more.
    Leaving,
    /// Taking nothing new, finishing what is in flight.
    Draining,
}

/// The life of the process. Its owner moves it on; the others hold receivers.
#[derive(Debug)]
pub struct Lifecycle {
    config: Config,
    phase: watch::Sender<Phase>,
    /// Never sent on: each [`Drain`] holds a clone, so it closes when the last of them is dropped.
    holders: mpsc::Sender<Infallible>,
    last_holder: mpsc::Receiver<Infallible>,
}

/// Held by whoever must be waited for: the end of the process waits until the last one is dropped, within limits.
#[derive(Debug, Clone)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    _holder: mpsc::Sender<Infallible>,
}

/// Something held its [`Drain`] longer than `drain`.
#[derive(Debug, PartialEq, Eq)]
pub struct Overdue;

// === impl Lifecycle ===

impl Lifecycle {
    /// Begins in [`Phase::Starting`].
    pub fn new(config: Config) -> Self {
        let (holders, last_holder) = mpsc::channel(1);
        Self { config, phase: watch::Sender::new(Phase::Starting), holders, last_holder }
    }

    /// The phase, for those who only look.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// A hold on the end of the process, for those who serve.
    pub fn hold(&self) -> Drain {
        Drain { phase: self.phase.subscribe(), _holder: self.holders.clone() }
    }

    /// Everything is set up: from [`Phase::Starting`] to [`Phase::Running`].
    pub fn running(&self) {
        self.move_on(Phase::Running);
    }

    /// Leaves, drains, and returns when the last [`Drain`] is dropped.
    ///
    /// # Errors
    /// If that takes longer than `drain`.
    pub async fn shut_down(self) -> Result<(), Overdue> {
        self.move_on(Phase::Leaving);
        sleep(self.config.grace.0).await;
        self.move_on(Phase::Draining);
        let Self { config, holders, mut last_holder, .. } = self;
        drop(holders);
        timeout(config.drain.0, last_holder.recv()).await.map(|_| ()).map_err(|_| {
            warn!(drain = %config.drain, "answers were still in flight at the end of the drain");
            Overdue
        })
    }

    fn move_on(&self, next: Phase) {
        let moved = self.phase.send_if_modified(|phase| {
            let later = next > *phase;
            *phase = next.max(*phase);
            later
        });
        if moved {
            info!(phase = ?next, "new phase");
        }
    }
}

// === impl Drain ===

impl Drain {
    /// Resolves when nothing new is to be taken; at once if the owner of the [`Lifecycle`] is gone.
    pub async fn draining(&self) {
        // An error means that nobody is left to say so, which says it.
        let _ = self.phase.clone().wait_for(|phase| *phase == Phase::Draining).await;
    }
}

// === signals ===

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `SIGINT`, from a terminal.
    Interrupt,
    /// `SIGTERM`, from the kubelet.
    Terminate,
}

impl Signal {
    /// What a shell reports for a process that it killed: 128 and the number of the signal.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// The signals that end the process, caught from construction on: none is lost, none kills it before it is ready.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    /// Catches SIGINT and SIGTERM, and SIGXFSZ, which a file at its limit (`ulimit -f`) sends: by itself it would end the process,
    /// while a decision log that cannot grow is an error like a full disk.
    ///
    /// # Errors
    /// If the kernel does not let us.
    pub fn register() -> io::Result<Self> {
        // Once caught, it stays caught, whether anybody listens or not.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the first signal. From then on, the next one exits at once: whoever asks twice does not want to wait.
    pub async fn first(mut self) -> Signal {
        let first = self.next().await;
        info!(signal = %first, "shutting down; another signal exits at once");
        tokio::spawn(async move {
            let second = self.next().await;
            warn!(signal = %second, "exiting at once");
            process::exit(second.exit_code());
        });
        first
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Signal as Raw, getpid, kill_process};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn leaves_then_drains_then_waits_for_the_last_holder() {
        let lifecycle = Lifecycle::new(Config::default());
        let mut phase = lifecycle.phase();
        lifecycle.running();
        assert_eq!(*phase.borrow_and_update(), Phase::Running);
        let drain = lifecycle.hold();
        let start = Instant::now();
        let server = tokio::spawn(async move {
            drain.draining().await;
            assert_eq!(start.elapsed().as_secs(), 5);
            sleep(Duration::from_secs(3)).await;
            drop(drain);
        });
        let end = tokio::spawn(lifecycle.shut_down());
        phase.changed().await.expect("a phase");
        assert_eq!((*phase.borrow(), start.elapsed().as_secs()), (Phase::Leaving, 0));
        server.await.expect("in time");
        assert_eq!(end.await.expect("no panic"), Ok(()));
        assert_eq!(start.elapsed().as_secs(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_has_an_end() {
        let lifecycle = Lifecycle::new(Config::default());
        let drain = lifecycle.hold();
        let start = Instant::now();
        assert_eq!(lifecycle.shut_down().await, Err(Overdue));
        assert_eq!(start.elapsed().as_secs(), 15);
        drain.draining().await;
    }

    #[tokio::test]
    async fn the_life_never_goes_back() {
        let config = Config { grace: HumanDuration::millis(0), drain: HumanDuration::millis(0) };
        let lifecycle = Lifecycle::new(config);
        lifecycle.move_on(Phase::Leaving);
        lifecycle.running();
        assert_eq!(*lifecycle.phase().borrow(), Phase::Leaving);
        let drain = lifecycle.hold();
        drop(lifecycle);
        drain.draining().await;
    }

    /// Runs in a process of its own, started by the test below.
    #[tokio::test]
    #[ignore = "ends its process"]
    async fn two_signals() {
        let signals = Signals::register().expect("registered");
        kill_process(getpid(), Raw::TERM).expect("sent");
        assert_eq!(signals.first().await, Signal::Terminate);
        kill_process(getpid(), Raw::INT).expect("sent");
        sleep(Duration::from_secs(60)).await;
    }

    #[test]
    fn the_first_signal_is_caught_and_the_second_exits() {
        let status = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "shutdown::tests::two_signals", "--ignored"])
            .status()
            .expect("run");
        assert_eq!(status.code(), Some(130));
    }
}
