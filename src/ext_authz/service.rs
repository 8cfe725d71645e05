//! The service that the listeners share: limits around the one method, and everything else passed on.
//!
//! Whoever sends decides what comes, and when; not what that costs us, and not how we fail. A call waits for its message
//! beside those that are in flight, within bounds of its own, until its deadline; and what is answered before its message is
//! all there is read to its end, since a reset would count against the connection, and with it against all other checks on it.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use deserr::Deserr;
use http::HeaderMap;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::account::{Call, Checker};
use super::grpc::{self, Message, Reply};
use super::response::Response;
use crate::model::{Outcome, Undecided};
use crate::observe::Metrics;
use crate::observe::tracing::TraceParent;
use crate::units::{self, HumanDuration};
use crate::waiting::Waiting;
use crate::yaml::{Faults, Invalid};

/// `limits:` of the configuration.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields, validate = Config::checked -> Invalid)]
pub struct Config {
    /// How many checks may be in flight at once, over all listeners; beyond it a check is Undecided at once. Default
    /// `4096`, the circuit breaker of the Envoy configurations in `envoy/`. As many again may wait for their message.
    #[deserr(default = Config::default().in_flight)]
    pub in_flight: NonZeroUsize,
    /// The largest CheckRequest; a larger one is denied with 400. It holds the path twice and the headers once, so: twice
    /// `max_request_headers_kb` of Envoy (60 KiB by default), `max_request_bytes` of `with_request_body`, and what metadata
    /// and certificates take. Default `1MiB`.
    #[deserr(default = Config::default().message)]
    pub message: units::Bytes,
    /// What may be held of messages that are not all there yet, over all listeners. Beyond it, the call whose message has
    /// been on its way for longest is Undecided. At least `message`. Default `64MiB`.
    #[deserr(default = Config::default().waiting_bytes)]
    pub waiting_bytes: units::Bytes,
    /// The longest that a check may take, its message included; a caller's own deadline counts if it is shorter. It should
    /// be longer than the `timeout` of the `grpc_service` in Envoy. Default `15s`.
    #[deserr(default = Config::default().deadline)]
    pub deadline: HumanDuration,
    /// How many connections each listener serves; at the limit, the one whose last call is longest ago makes room for the next. Envoy
    /// opens one for each of its worker threads. Default `256`.
    #[deserr(default = Config::default().connections)]
    pub connections: NonZeroUsize,
}

const IN_FLIGHT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight: IN_FLIGHT,
            message: units::Bytes(1 << 20),
            waiting_bytes: units::Bytes(64 << 20),
            deadline: HumanDuration::seconds(15),
            connections: CONNECTIONS,
        }
    }
}

impl Config {
    /// A message that the budget does not hold could never come.
    fn checked(self, _: deserr::ValuePointerRef<'_>) -> Result<Self, Invalid> {
        if self.waiting_bytes < self.message {
            let message = format!("`waiting_bytes` is {}, and one message may be {}", self.waiting_bytes, self.message);
            return Err(Invalid::new(message).hint("several times `message`"));
        }
        Ok(self)
    }
}

/// The path of the one method.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The health check that Envoy makes. It is answered at once, so there is no need to bound how many there are.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// Reflection talks to and fro.
const REFLECTION: &str = "/grpc.reflection.";

/// The largest message of the other methods: the name of a service or of a symbol.
pub(super) const SMALL_MESSAGE: usize = 4096;

/// How many calls of the other methods may be open: those that watch our health, and people with grpcurl.
const OTHER_CALLS: usize = 1024;

/// An answer: to a check, or of another method.
pub(super) type HttpResponse = http::Response<Either<Reply, Body>>;

/// An answer that is being made.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

/// What is served: checks, and whatever else the routes have.
#[derive(Debug, Clone)]
pub struct Authorization(Arc<Shared>);

/// All listeners share it, and so does each call.
#[derive(Debug)]
struct Shared {
    checker: Arc<Checker>,
    config: Config,
    /// Checks that have come and are not answered, without those that wait for their message.
    in_flight: AtomicUsize,
    waiting: Arc<Waiting>,
    others: Routes,
    other_calls: Arc<Semaphore>,
    metrics: Metrics,
}

impl Authorization {
    /// Puts the limits around the checker. `others` answers what is no check.
    pub fn new(checker: Arc<Checker>, config: &Config, others: Routes, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            checker,
            config: config.clone(),
            in_flight: AtomicUsize::new(0),
            waiting: Waiting::new(config.in_flight.get(), config.waiting_bytes.as_usize()),
            others: others.prepare(),
            other_calls: Arc::new(Semaphore::new(OTHER_CALLS)),
            metrics,
        }))
    }

    /// Answers a call that came at this time: when its headers were there, and not when a thread gets to it.
    pub(super) fn answer(&self, request: http::Request<Incoming>, arrived: Instant) -> Answering {
        let shared = Arc::clone(&self.0);
        let request = request.map(|body| Whole::new(body, shared.config.deadline.0));
        if request.uri().path() == CHECK {
            let place = Place::try_take(shared);
            return Box::pin(async move { Ok(respond(place.check(request, arrived).await)) });
        }
        Box::pin(async move {
            Ok(shared.other(request, arrived).await.unwrap_or_else(|status| status.into_http()).map(Either::Right))
        })
    }

    /// The calls that wait for their message.
    pub fn waiting(&self) -> Arc<Waiting> {
        Arc::clone(&self.0.waiting)
    }
}

fn respond(response: Result<Response, Status>) -> HttpResponse {
    match response {
        Ok(response) => grpc::reply(response.into_frame()).map(Either::Left),
        Err(status) => status.into_http::<Body>().map(Either::Right),
    }
}

/// A check's place among those in flight, if there was one.
struct Place {
    shared: Arc<Shared>,
    taken: bool,
}

impl Place {
    fn try_take(shared: Arc<Shared>) -> Self {
        let mut place = Self { shared, taken: false };
        place.retake();
        place
    }

    fn retake(&mut self) -> bool {
        let before = self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        self.taken = true;
        if before >= self.shared.config.in_flight.get() {
            self.give_up();
        }
        self.taken
    }

    fn give_up(&mut self) {
        if std::mem::take(&mut self.taken) {
            self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The method.
    async fn check(mut self, request: http::Request<Whole>, arrived: Instant) -> Result<Response, Status> {
        let call = self.shared.call(request.headers(), arrived);
        let mut body = request.into_body();
        match self.message(&mut body, call.deadline).await {
            Ok(message) => self.shared.checker.check(message, call).await,
            Err(outcome) => self.shared.checker.settle(outcome, call),
        }
    }

    /// The message, which is nearly always there already; or what becomes of a check without one.
    async fn message(&mut self, body: &mut Whole, deadline: Instant) -> Result<Bytes, Outcome> {
        const OVERLOADED: Outcome = Outcome::Undecided(Undecided::Overloaded);
        if !self.taken {
            return Err(OVERLOADED);
        }
        let mut message = Message::new(self.shared.config.message);
        let read = poll_fn(|cx| Poll::Ready(message.poll(cx, Pin::new(&mut *body)))).await;
        if let Poll::Ready(read) = read {
            // Whoever sent a body that is no message, or too large, chose to; that must not choose the fail-open path.
            return read.map_err(Outcome::Unmapped);
        }
        // It may be long in coming, and whoever does not send must not keep out those who do.
        self.give_up();
        // In a box, so that the checks whose message is there do not carry a timer about.
        let message = Box::pin(self.shared.wait(message, body, deadline)).await?;
        if self.retake() { Ok(message) } else { Err(OVERLOADED) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Shared {
    /// Waits for the rest of a message, until the deadline or until there is no room for it any more.
    async fn wait(&self, mut message: Message, body: &mut Whole, deadline: Instant) -> Result<Bytes, Outcome> {
        let mut entry = self.waiting.enter();
        let read = poll_fn(|cx| {
            let read = message.poll(cx, Pin::new(&mut *body));
            if read.is_ready() {
                return read.map_err(Outcome::Unmapped);
            }
            message.detach();
            entry.weigh(message.held());
            entry.poll_shed(cx).map(|()| {
                self.metrics.message_shed();
                Err(Outcome::Undecided(Undecided::Overloaded))
            })
        });
        timeout_at(deadline.into(), read).await.unwrap_or(Err(Outcome::Undecided(Undecided::Deadline)))
    }

    /// What the headers of a call say.
    fn call(&self, headers: &HeaderMap, arrived: Instant) -> Call {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let longest = self.config.deadline.0;
        let timeout = header("grpc-timeout").and_then(grpc::timeout).map_or(longest, |timeout| timeout.min(longest));
        Call {
            arrived,
            deadline: arrived.checked_add(timeout).unwrap_or(arrived),
            trace: header("traceparent").and_then(TraceParent::parse),
        }
    }

    /// The other methods: health, and reflection.
    async fn other(&self, request: http::Request<Whole>, arrived: Instant) -> Result<http::Response<Body>, Status> {
        let mut others = self.others.clone();
        let path = request.uri().path();
        let place = match path {
            HEALTH_CHECK => None,
            _ => match Arc::clone(&self.other_calls).try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => return Err(Status::resource_exhausted("too many calls are open")),
            },
        };
        let request = if path.starts_with(REFLECTION) {
            request.map(Body::new)
        } else {
            let deadline = self.call(request.headers(), arrived).deadline;
            let (parts, mut body) = request.into_parts();
            let message = Message::new(units::Bytes(SMALL_MESSAGE as u64));
            let body = match self.wait(message, &mut body, deadline).await {
                Ok(message) => Body::new(Full::new(grpc::frame(&message))),
                // The method says what is wrong with it.
                Err(Outcome::Unmapped(_)) => Body::empty(),
                Err(_) => return Err(Status::deadline_exceeded("the message did not come in time")),
            };
            http::Request::from_parts(parts, body)
        };
        let Ok(response) = others.call(request).await;
        // The call is open for as long as somebody reads what it sends.
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _ = &place;
                frame
            }))
        }))
    }
}

/// The body of a call, which is read to its end whatever becomes of the call: what is left when it is dropped is read and forgotten,
/// without anybody waiting for it.
struct Whole {
    /// `None` once its rest is read elsewhere.
    body: Option<Incoming>,
    /// That it was seen to be at its end. To ask again would take a lock of the connection.
    ended: Cell<bool>,
    /// How long its rest may take.
    patience: Duration,
}

impl Whole {
    fn new(body: Incoming, patience: Duration) -> Self {
        Self { body: Some(body), ended: Cell::new(false), patience }
    }
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.ended.get() || self.body.as_ref().is_none_or(http_body::Body::is_end_stream);
        self.ended.set(ended);
        ended
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|_| !self.ended.get()) else { return };
        let mut rest = Box::pin(async move { while let Some(Ok(_)) = body.frame().await {} });
        // A call that was given up is at its end here.
        let is_here = rest.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if !is_here && let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(self.patience, rest));
        }
    }
}
