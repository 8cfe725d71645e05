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
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};

use crate::client::{Address, Connection, Decision, Failure};
use crate::report::Sample;
use crate::server::Pid;
use crate::workload::{Ask, Expect, Workload};

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
    workload: Rc<Workload>,
}

/// What became of the calls. Errors have no latency.
#[derive(Clone)]
struct Tally {
    started: Instant,
    last_settled: Instant,
    made: u64,
    errors: u64,
    first_failure: Option<Failure>,
    /// Of the right answers, in nanoseconds.
    latency: Histogram<u64>,
}

/// How long after the last call was due its answer counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the timer may be late by; the rest of the time to a call is spent polling.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Longer latencies are recorded as this one.
const LONGEST: Duration = Duration::from_secs(60);

/// Warms a target up, then measures it; and its process, if that can be seen. A workload that ends before its time ends
/// the measurement.
pub(crate) async fn measure(
    target: &Address,
    pid: Option<Pid>,
    workload: &Rc<Workload>,
    pace: Pace,
    shape: Shape,
) -> anyhow::Result<Sample> {
    let load = Load::open(target, workload, shape).await.with_context(|| format!("cannot call `{target}`"))?;
    let load = Rc::new(load);
    load.drive(pace, shape.warmup).await;

    let generator_before = Pid::own().cpu_time()?;
    let server_before = pid.map(Pid::cpu_time).transpose()?;
    let tally = load.drive(pace, shape.duration).await;
    let elapsed = tally.started.elapsed().as_secs_f64();
    let generator = Pid::own().cpu_time()?.saturating_sub(generator_before);
    let server = pid.map(Pid::cpu_time).transpose()?;
    let server = server.zip(server_before).map(|(after, before)| after.saturating_sub(before));

    let micros = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    let checks = tally.made.max(1) as f64;
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
        latency: tally.latency,
    })
}

/// No latencies yet, in nanoseconds.
#[expect(clippy::expect_used, reason = "three digits are within the limit of five")]
pub(crate) fn no_latency() -> Histogram<u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_max(longest, 3).expect("the bounds are constant")
}

// === impl Pace ===

impl Pace {
    /// When the call is due that is the `index`th of all; `None` if the closed loop makes it as
    /// soon as it can.
    fn due(self, started: Instant, index: usize) -> Option<Instant> {
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
    async fn open(target: &Address, workload: &Rc<Workload>, shape: Shape) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for _ in 0..shape.connections.get() {
            connections.push(Connection::open(target).await?);
        }
        Ok(Self {
            connections,
            in_flight: usize::try_from(shape.in_flight.get()).unwrap_or(Semaphore::MAX_PERMITS),
            workload: Rc::clone(workload),
        })
    }

    /// Makes calls for `duration` and waits for their answers, but not for ever.
    async fn drive(self: &Rc<Self>, pace: Pace, duration: Duration) -> Tally {
        let tally = Rc::new(RefCell::new(Tally::starting_now()));
        let calls = LocalSet::new();
        for (lane, connection) in (0..).zip(self.connections.iter().cloned()) {
            let load = self.clone();
            calls.spawn_local(load.drive_one(connection, lane, pace, duration, tally.clone()));
        }
        // What is still under way when patience ends is dropped, and found missing.
        let _ = tokio::time::timeout(duration + PATIENCE, calls).await;
        let mut tally = tally.borrow().clone();
        tally.close(pace.calls_due(duration));
        tally
    }

    /// Makes every n-th call of the schedule, n being the number of connections. Ends early if the
    /// connection is lost.
    async fn drive_one(
        self: Rc<Self>,
        mut connection: Connection,
        first: usize,
        pace: Pace,
        duration: Duration,
        tally: Rc<RefCell<Tally>>,
    ) {
        let started = tally.borrow().started;
        let slots = Arc::new(Semaphore::new(self.in_flight));
        for index in (first..).step_by(self.connections.len()) {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let due = pace.due(started, index).unwrap_or_else(Instant::now);
            if due >= started + duration {
                return;
            }
            wait_until(due).await;
            let Some(Ask { message, expect }) = self.workload.next() else { return };
            tally.borrow_mut().made += 1;
            match connection.call(message).await {
                Ok(call) => {
                    let tally = tally.clone();
                    spawn_local(async move {
                        let decision = call.decision().await;
                        tally.borrow_mut().settle(due, expect, decision);
                        drop(slot);
                    });
                }
                Err(failure) => {
                    tally.borrow_mut().fail(1, failure);
                    return;
                }
            }
        }
    }
}

/// The timer ticks in milliseconds and calls are microseconds apart, so most of the wait is
/// polling. The generator has its core to itself.
async fn wait_until(due: Instant) {
    if due.saturating_duration_since(Instant::now()) > TIMER_SLACK {
        tokio::time::sleep_until((due - TIMER_SLACK).into()).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}

// === impl Tally ===

impl Tally {
    fn starting_now() -> Self {
        let started = Instant::now();
        Self { started, last_settled: started, made: 0, errors: 0, first_failure: None, latency: no_latency() }
    }

    fn settle(&mut self, due: Instant, expect: Expect, decision: Result<Decision, Failure>) {
        self.last_settled = Instant::now();
        match decision {
            Ok(decision) if expect.admits(decision) => {
                let latency = self.last_settled.saturating_duration_since(due).as_nanos();
                self.latency.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
            }
            Ok(decision) => self.fail(1, Failure::Wrong(decision)),
            Err(failure) => self.fail(1, failure),
        }
    }

    fn fail(&mut self, calls: u64, failure: Failure) {
        self.errors += calls;
        self.first_failure.get_or_insert(failure);
    }

    /// Counts the calls that were made, or due by the schedule, and never settled.
    fn close(&mut self, calls_due: Option<u64>) {
        let settled = self.latency.len() + self.errors;
        let missing = calls_due.unwrap_or(self.made).saturating_sub(settled);
        if missing > 0 {
            self.fail(missing, Failure::Unanswered);
        }
    }

    /// The time the right answers took, all together: what was asked for, and more if they kept
    /// coming after it.
    fn busy(&self, duration: Duration) -> Duration {
        duration.max(self.last_settled - self.started)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
    use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
    use envoy_types::pb::google::rpc;
    use tokio::net::TcpListener;
    use tonic::{Request, Response, Status};

    use super::*;

    /// What a server answers its n-th call.
    type Script = fn(u64) -> Result<CheckResponse, Status>;

    struct Scripted {
        calls: AtomicU64,
        answer: Script,
    }

    #[tonic::async_trait]
    impl Authorization for Scripted {
        async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
            (self.answer)(self.calls.fetch_add(1, Ordering::Relaxed)).map(Response::new)
        }
    }

    /// Serves from a thread of its own, so that a handler that blocks stalls the server and not
    /// the generator.
    fn serve(answer: Script) -> Address {
        let (bound, address) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let service = Scripted { calls: AtomicU64::new(0), answer };
                crate::floor::serve(listener, service).await.unwrap();
            });
        });
        Address::Tcp(address.recv().unwrap().to_string())
    }

    fn status(code: i32) -> Result<CheckResponse, Status> {
        let status = Some(rpc::Status { code, ..rpc::Status::default() });
        Ok(CheckResponse { status, ..CheckResponse::default() })
    }

    async fn sample(server: &Address, expect: Expect, pace: Pace, millis: u64) -> Sample {
        let shape = Shape {
            connections: NonZeroU32::new(2).unwrap(),
            in_flight: NonZeroU32::new(4).unwrap(),
            warmup: Duration::ZERO,
            duration: Duration::from_millis(millis),
        };
        let workload = Rc::new(crate::one_policy::workload(expect));
        measure(server, None, &workload, pace, shape).await.unwrap()
    }

    #[tokio::test]
    async fn the_expected_decision_is_no_error() {
        let allow = sample(&serve(|_| status(0)), Expect::Allow, Pace::Closed, 50).await;
        assert_eq!((allow.errors, &allow.first_failure), (0, &None));
        assert!(allow.rps > 0.0);
        let deny = sample(&serve(|_| status(7)), Expect::Deny, Pace::Closed, 50).await;
        assert_eq!(deny.errors, 0);
        let mixed = serve(|n| status(if n % 2 == 0 { 0 } else { 7 }));
        assert_eq!(sample(&mixed, Expect::Any, Pace::Closed, 50).await.errors, 0);
    }

    #[tokio::test]
    async fn whatever_else_is_an_error() {
        let cases: [(Script, Failure); 3] = [
            (|_| status(7), Failure::Wrong(Decision::Deny)),
            (|_| Ok(CheckResponse::default()), Failure::NoStatus),
            (|_| Err(Status::unavailable("draining")), Failure::Grpc("14 draining".into())),
        ];
        for (answer, failure) in cases {
            let sample = sample(&serve(answer), Expect::Allow, Pace::Open { rate: 200.0 }, 50).await;
            assert_eq!((sample.errors, sample.first_failure), (10, Some(failure)));
            assert!(sample.rps == 0.0, "errors do not count as throughput");
        }
    }

    #[tokio::test]
    async fn one_wrong_answer_among_many_is_found() {
        let server = serve(|n| status(if n == 7 { 16 } else { 0 }));
        let sample = sample(&server, Expect::Allow, Pace::Open { rate: 500.0 }, 100).await;
        assert_eq!(sample.errors, 1);
        assert_eq!(sample.first_failure, Some(Failure::Wrong(Decision::Deny)));
    }

    #[tokio::test]
    async fn a_refused_connection_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = Address::Tcp(listener.local_addr().unwrap().to_string());
        drop(listener);
        assert!(matches!(Connection::open(&nobody).await, Err(Failure::Connection(_))));
    }

    /// Stops the whole server for 300 ms, once.
    fn stalling(n: u64) -> Result<CheckResponse, Status> {
        if n == 50 {
            thread::sleep(Duration::from_millis(300));
        }
        status(0)
    }

    #[tokio::test]
    async fn an_open_loop_shows_a_stall_that_a_closed_loop_hides() {
        let rate = 200.0;
        let open = sample(&serve(stalling), Expect::Allow, Pace::Open { rate }, 1000).await;
        assert_eq!(open.errors, 0);
        // 60 of 200 calls were due in the stall and waited 150 ms on average. At a rate that even a busy machine keeps up with.
        assert!(open.p99_us > 200_000.0, "p99 {}", open.p99_us);
        assert!(open.p999_us > 250_000.0, "p99.9 {}", open.p999_us);
        assert!(open.p50_us < 100_000.0, "p50 {}", open.p50_us);

        // Eight calls were in flight in the stall, of thousands.
        let closed = sample(&serve(stalling), Expect::Allow, Pace::Closed, 3000).await;
        assert!(closed.p99_us < 100_000.0, "p99 {}", closed.p99_us);
    }

    #[test]
    fn calls_are_due_at_a_constant_rate() {
        let started = Instant::now();
        let pace = Pace::Open { rate: 400.0 };
        assert_eq!(pace.due(started, 0), Some(started));
        assert_eq!(pace.due(started, 1000), Some(started + Duration::from_millis(2500)));
        assert_eq!(pace.calls_due(Duration::from_millis(2500)), Some(1000));
    }
}
