//! Many calls: at a pace, over several connections, each one judged and timed.
//!
//! A *closed* loop calls again when it is answered, so it finds the highest rate, and its latency
//! is that of a server with a full queue. An *open* loop calls when a call is due, and takes the
//! time from then, not from when it got to send: a server that stalls for 300 ms has made every
//! call of those 300 ms late, also those that were not sent because it stalled. (This is how wrk2
//! measures; a generator that times from the sending hides the stall in a single sample.)

use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{LocalSet, spawn_local};

use crate::client::{Address, Call, Connection, Decision, Failure};
use crate::report::Sample;
use crate::server::Pid;
use crate::workload::{Expect, Workload};

/// When calls are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Whenever a call may be in flight.
    Closed,
    /// At this many calls per second.
    Open { rate: f64 },
}

/// How wide and how long a load is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: NonZeroU32,
    /// Calls at one time on each connection. An open loop that has reached it makes its calls
    /// late, which their latency shows.
    pub(crate) in_flight: NonZeroU32,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

/// Open connections to one target, to be driven.
struct Load {
    connections: Vec<Connection>,
    in_flight: usize,
    requests: Rc<[Bytes]>,
    expect: Expect,
}

/// What became of the calls. Errors have no latency.
struct Tally {
    started: Instant,
    last_settled: Instant,
    sent: u64,
    errors: u64,
    first_failure: Option<Failure>,
    /// In nanoseconds.
    latency: Histogram<u64>,
}

/// How long after the last call was due its answer counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the timer may be late by; the rest of the time to a call is spent polling.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Longer latencies are recorded as this one.
const LONGEST: Duration = Duration::from_secs(60);

/// Warms a target up, then measures it; and its process, if that can be seen.
pub(crate) async fn measure(
    target: &Address,
    pid: Option<Pid>,
    workload: &Workload,
    pace: Pace,
    shape: Shape,
) -> anyhow::Result<Sample> {
    let load = Load::open(target, workload, shape)
        .await
        .with_context(|| format!("cannot call `{target}`"))?;
    load.drive(pace, shape.warmup).await;

    let generator_before = Pid::own().cpu_time()?;
    let server_before = pid.map(Pid::cpu_time).transpose()?;
    let tally = load.drive(pace, shape.duration).await;
    let elapsed = tally.started.elapsed().as_secs_f64();
    let generator = Pid::own().cpu_time()?.saturating_sub(generator_before);
    let server = pid.map(Pid::cpu_time).transpose()?;
    let server = server.zip(server_before).map(|(after, before)| after.saturating_sub(before));

    let micros = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    let checks = tally.sent.max(1) as f64;
    Ok(Sample {
        rps: tally.latency.len() as f64 / tally.busy(shape.duration).as_secs_f64(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        cpu_us_per_check: server.map(|cpu| cpu.as_secs_f64() * 1e6 / checks),
        server_core: server.map(|cpu| cpu.as_secs_f64() / elapsed),
        generator_core: generator.as_secs_f64() / elapsed,
        rss_bytes: pid.map(Pid::rss).transpose()?,
        errors: tally.errors,
        first_failure: tally.first_failure,
    })
}

// === impl Pace ===

impl Pace {
    /// When the call is due that is the `index`th of all; `None` if the closed loop makes it as
    /// soon as it can.
    fn due(self, started: Instant, index: u64) -> Option<Instant> {
        match self {
            Self::Closed => None,
            Self::Open { rate } => Some(started + Duration::from_secs_f64(index as f64 / rate)),
        }
    }

    /// How many calls are due in this time, if the schedule says so.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    fn calls_due(self, duration: Duration) -> Option<u64> {
        match self {
            Self::Closed => None,
            Self::Open { rate } => Some((duration.as_secs_f64() * rate).ceil() as u64),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
        })
    }
}

// === impl Load ===

impl Load {
    async fn open(target: &Address, workload: &Workload, shape: Shape) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for _ in 0..shape.connections.get() {
            connections.push(Connection::open(target).await?);
        }
        Ok(Self {
            connections,
            in_flight: usize::try_from(shape.in_flight.get()).unwrap_or(Semaphore::MAX_PERMITS),
            requests: workload.requests.as_slice().into(),
            expect: workload.expect,
        })
    }

    /// Makes calls for `duration` and waits for their answers, but not for ever.
    async fn drive(&self, pace: Pace, duration: Duration) -> Tally {
        let tally = Rc::new(RefCell::new(Tally::new()));
        let started = tally.borrow().started;
        let calls = LocalSet::new();
        let lanes = self.connections.len() as u64;
        for (lane, connection) in (0..).zip(self.connections.iter().cloned()) {
            // The lanes take turns in the schedule.
            let schedule = (lane..).step_by(self.connections.len());
            calls.spawn_local(Lane {
                connection, pace,
                requests: self.requests.clone(),
                expect: self.expect,
                tally: tally.clone(),
            }.drive());
        }
        todo!()
    }
}
