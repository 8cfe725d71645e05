//! The gRPC service: one Check in, one answer out, whatever happens.
//!
//! A frame is taken off the wire as bytes, so that what does not decode is refused with a named reason instead of a
//! gRPC error (see [`super::wire`]). Everything between the frame and the answer runs without waiting, so a call that is
//! cancelled is either not begun or finished; and a panic is answered as Undecided, since a dropped connection would
//! cost every other call on it.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf, BufMut, Bytes};
use deserr::Deserr;
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use prost::Message;
use serde::Serialize;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;

use super::judge::{Judge, Verdict};
use crate::model::{Outcome, Query, Record, Revision, Undecided, Unmapped, UnmappedKind};
use crate::observe::decision_log::{DecisionLog, Parts, Slot};
use crate::observe::metrics::Metrics;
use crate::observe::tracing::{TraceId, TraceParent};
use crate::units::{self, Span};
use crate::yaml::Faults;

/// `limits:` of the configuration.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// How many checks may be in flight at once, over all listeners; beyond it a check is Undecided at once. Default
    /// `4096`, the circuit breaker of the Envoy configurations in `envoy/`.
    #[deserr(default = Config::default().in_flight)]
    pub in_flight: NonZeroUsize,
    /// The largest CheckRequest. Envoy's headers take 60 KiB at most by default; raise it together with
    /// `max_request_bytes` of `with_request_body`. Default `1MiB`.
    #[deserr(default = Config::default().message)]
    pub message: units::Bytes,
    /// The longest that a check may take whose caller sets no deadline. Default `1s`.
    #[deserr(default = Config::default().deadline)]
    pub deadline: Span,
}

const IN_FLIGHT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

impl Default for Config {
    fn default() -> Self {
        Self { in_flight: IN_FLIGHT, message: units::Bytes(1 << 20), deadline: Span::seconds(1) }
    }
}

/// What answers checks, counts them and keeps their records. Shared by all listeners.
#[derive(Debug)]
pub struct Checker {
    judge: Judge,
    log: DecisionLog,
    metrics: Metrics,
    ids: DecisionIds,
}

/// What comes with a check beside its message.
#[derive(Debug, Clone, Copy)]
struct Call {
    arrived: Instant,
    /// When the caller stops waiting.
    deadline: Instant,
    trace: Option<TraceParent>,
}

impl Checker {
    /// Puts the parts together.
    pub fn new(judge: Judge, log: DecisionLog, metrics: Metrics) -> Self {
        Self { judge, log, metrics, ids: DecisionIds::new() }
    }

    /// Answers one check.
    fn check(&self, frame: Bytes, call: Call) -> Result<CheckResponse, Status> {
        let Ok(slot) = self.log.reserve() else {
            let verdict = self.judge.unseen(Outcome::Undecided(Undecided::LogFull), &self.ids.next());
            self.metrics.decided(&verdict.outcome, call.arrived.elapsed());
            return verdict.answer;
        };
        let account = Account::open(self, slot, call);
        let _span = tracing::debug_span!(
            "check",
            decision_id = account.decision_id,
            trace_id = call.trace.map(|trace| tracing::field::display(trace.trace_id)),
            parent_id = call.trace.map(|trace| tracing::field::display(trace.parent_id)),
        )
        .entered();
        let verdict = if Instant::now() >= call.deadline {
            self.judge.unseen(Outcome::Undecided(Undecided::Deadline), &account.decision_id)
        } else {
            self.judge.frame(frame, &account.decision_id)
        };
        let Verdict { outcome, query, logged, answer } = verdict;
        account.close(outcome, query, logged);
        answer
    }

    /// Answers what never came to a check: shed, panicked, too large. There is no message to say more about.
    fn settle(&self, outcome: Outcome, arrived: Instant) -> http::Response<Body> {
        let decision_id = self.ids.next();
        let Verdict { outcome, answer, .. } = self.judge.unseen(outcome, &decision_id);
        match self.log.reserve() {
            Ok(slot) => {
                let call = Call { arrived, deadline: arrived, trace: None };
                let mut account = Account::open(self, slot, call);
                account.decision_id = decision_id;
                account.close(outcome, None, Record::new());
            }
            Err(_) => self.metrics.decided(&outcome, arrived.elapsed()),
        }
        unary(answer)
    }
}

/// Ids that are unique without asking anyone: a random start for the process, and a count.
#[derive(Debug)]
struct DecisionIds {
    process: u64,
    count: AtomicU64,
}

impl DecisionIds {
    fn new() -> Self {
        // Seeded by the system's randomness; uniqueness is all that is asked of it.
        Self { process: RandomState::new().build_hasher().finish(), count: AtomicU64::new(1) }
    }

    fn next(&self) -> String {
        format!("{:016x}-{:x}", self.process, self.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// The account of one check: counted and logged exactly once, also if it never comes to an end.
struct Account<'a> {
    checker: &'a Checker,
    slot: Option<Slot>,
    decision_id: String,
    call: Call,
    time: SystemTime,
    _in_flight: crate::observe::metrics::InFlight,
}

impl<'a> Account<'a> {
    fn open(checker: &'a Checker, slot: Slot, call: Call) -> Self {
        Self {
            slot: Some(slot),
            decision_id: checker.ids.next(),
            call,
            time: SystemTime::now(),
            _in_flight: checker.metrics.in_flight(),
            checker,
        }
    }

    fn close(mut self, outcome: Outcome, query: Option<Query>, logged: Record) {
        self.settle(outcome, query, logged);
    }

    fn settle(&mut self, outcome: Outcome, query: Option<Query>, logged: Record) {
        let Some(slot) = self.slot.take() else { return };
        let latency = self.call.arrived.elapsed();
        self.checker.metrics.decided(&outcome, latency);
        // A decision names its own.
        let revision: Option<Arc<Revision>> = match &outcome {
            Outcome::Decided(_) => None,
            _ => self.checker.judge.authorizer.current().ok().map(|snapshot| Arc::clone(&snapshot.revision)),
        };
        slot.write(Parts {
            time: self.time,
            decision_id: std::mem::take(&mut self.decision_id),
            outcome,
            query,
            logged,
            revision,
            latency,
            trace_id: self.call.trace.map(|trace: TraceParent| -> TraceId { trace.trace_id }),
        });
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        // Only a panic leaves an account open; the caller gets Undecided from the layer that catches it.
        self.settle(Outcome::Undecided(Undecided::Internal), None, Record::new());
    }
}

// === On the wire ===

/// The service that tonic serves: limits, panics, and the one method.
#[derive(Debug, Clone)]
pub struct Authorization {
    checker: Arc<Checker>,
    limited: BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tower::BoxError>,
}

impl NamedService for Authorization {
    const NAME: &'static str = "envoy.service.auth.v3.Authorization";
}

/// What the layer that catches panics makes of a body.
type CaughtBody = tower_http::body::UnsyncBoxBody<Bytes, tower::BoxError>;

impl Authorization {
    /// Puts the limits around the checker. One semaphore serves all clones, so all listeners.
    pub fn new(checker: Arc<Checker>, config: &Config) -> Self {
        let panicked = Arc::clone(&checker);
        // More than a semaphore holds is as good as no limit.
        let in_flight = config.in_flight.get().min(Semaphore::MAX_PERMITS);
        let limited = ServiceBuilder::new()
            .layer(LoadShedLayer::new())
            .layer(GlobalConcurrencyLimitLayer::new(in_flight))
            .map_response(|response: http::Response<CaughtBody>| response.map(Body::new))
            .layer(CatchPanicLayer::custom(move |panic: Box<dyn Any + Send>| panicked.after_panic(&*panic)))
            .service(CheckService { checker: Arc::clone(&checker), config: config.clone() });
        Self { checker, limited: BoxCloneSyncService::new(limited) }
    }
}

impl Service<http::Request<Body>> for Authorization {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Shedding is always ready: where there is no room, the call says so.
        self.limited.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answering = self.limited.call(request);
        let checker = Arc::clone(&self.checker);
        Box::pin(async move {
            // Nothing below fails but the shedding.
            let shed = |_| checker.settle(Outcome::Undecided(Undecided::Overloaded), Instant::now());
            Ok(answering.await.unwrap_or_else(shed))
        })
    }
}

impl Checker {
    /// Answers for a check that panicked. Its account was closed as it unwound.
    fn after_panic(&self, panic: &(dyn Any + Send)) -> http::Response<Body> {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!(panic = message, "a check panicked and was answered as undecided; this is a bug in stockade");
        unary(self.judge.unseen(Outcome::Undecided(Undecided::Internal), &self.ids.next()).answer)
    }
}

/// A complete gRPC response of one message.
fn unary(answer: Result<CheckResponse, Status>) -> http::Response<Body> {
    let response = match answer {
        Ok(response) => response,
        Err(status) => return status.into_http(),
    };
    let mut frame = Vec::with_capacity(5 + response.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(response.encoded_len()).unwrap_or(0));
    frame.put_slice(&response.encode_to_vec());
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let body = http_body_util::Full::new(Bytes::from(frame));
    let body = http_body_util::BodyExt::with_trailers(body, std::future::ready(Some(Ok(trailers))));
    let mut response = http::Response::new(Body::new(body));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
}

#[derive(Debug, Clone)]
struct CheckService {
    checker: Arc<Checker>,
    config: Config,
}

impl Service<http::Request<Body>> for CheckService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let arrived = Instant::now();
        if request.uri().path() != "/envoy.service.auth.v3.Authorization/Check" {
            let method = request.uri().path().to_owned();
            let status = Status::unimplemented(format!("there is no method `{method}`"));
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let Self { checker, config } = self.clone();
        let header = |name| request.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let timeout = header("grpc-timeout").and_then(grpc_timeout).unwrap_or(config.deadline.0);
        let call = Call {
            arrived,
            deadline: arrived.checked_add(timeout).unwrap_or(arrived),
            trace: header("traceparent").and_then(TraceParent::parse),
        };
        Box::pin(async move {
            let method = CheckMethod { checker: Arc::clone(&checker), call };
            let mut grpc = Grpc::new(Frames).max_decoding_message_size(config.message.as_usize());
            let response = grpc.unary(method, request).await;
            // tonic refuses a message over the limit with this status. Whoever sent a body that large chose to; that
            // must not choose the fail-open path.
            let too_large =
                Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::OutOfRange);
            Ok(if too_large {
                let detail = format!("the CheckRequest is larger than {}", config.message);
                checker.settle(Outcome::Unmapped(Unmapped::new(UnmappedKind::TooLarge, detail)), arrived)
            } else {
                response
            })
        })
    }
}

struct CheckMethod {
    checker: Arc<Checker>,
    call: Call,
}

impl UnaryService<Bytes> for CheckMethod {
    type Response = CheckResponse;
    type Future = std::future::Ready<Result<Response<CheckResponse>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(self.checker.check(request.into_inner(), self.call).map(Response::new))
    }
}

/// `grpc-timeout`: up to eight digits and a unit
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = plain.then(|| digits.parse().ok()).flatten()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Requests as the bytes of their frame, responses as protobuf.
#[derive(Debug, Default, Clone, Copy)]
struct Frames;

impl Codec for Frames {
    type Encode = CheckResponse;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Frames {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(frame.copy_to_bytes(frame.remaining())))
    }
}

impl Encoder for Frames {
    type Item = CheckResponse;
    type Error = Status;

    fn encode(&mut self, response: CheckResponse, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        response.encode(frame).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        for (text, expected) in [
            ("250m", Some(Duration::from_millis(250))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("", None),
            ("m", None),
            ("1", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{text}");
        }
    }
}
