//! The service that the listeners share: limits around the one method, and everything else passed on.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use deserr::Deserr;
use http::HeaderMap;
use http_body_util::Either;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::checker::{Call, Checker};
use super::grpc::{self, Reply};
use super::response::Answer;
use crate::model::{Outcome, Undecided};
use crate::observe::tracing::TraceParent;
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

/// The path of the one method.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

type Response = http::Response<Either<Reply, Body>>;

/// What is served: checks, and whatever else the routes have.
#[derive(Debug, Clone)]
pub struct Authorization(Arc<Shared>);

/// All listeners share it, and so does each call.
#[derive(Debug)]
struct Shared {
    checker: Arc<Checker>,
    config: Config,
    /// A place for each check that may be in flight.
    places: Semaphore,
    others: Routes,
}

impl Authorization {
    /// Puts the limits around the checker. `others` answers what is no check.
    pub fn new(checker: Arc<Checker>, config: &Config, others: Routes) -> Self {
        // More than a semaphore holds is as good as no limit.
        let places = Semaphore::new(config.in_flight.get().min(Semaphore::MAX_PERMITS));
        Self(Arc::new(Shared { checker, config: config.clone(), places, others: others.prepare() }))
    }

    async fn answer<B>(self, request: http::Request<B>) -> Result<Response, Infallible>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Into<tower::BoxError>,
    {
        if request.uri().path() != CHECK {
            let mut others = self.0.others.clone();
            return Ok(others.call(request.map(Body::new)).await?.map(Either::Right));
        }
        Ok(respond(self.0.check(request).await))
    }
}

impl Shared {
    /// The method.
    async fn check<B>(&self, request: http::Request<B>) -> Result<Answer, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: fmt::Display,
    {
        let Ok(_place) = self.places.try_acquire() else {
            return self.checker.settle(Outcome::Undecided(Undecided::Overloaded), Call::now());
        };
        let call = self.call(request.headers());
        // A message may be long in coming; its place is for others then.
        let message = grpc::message(request.into_body(), self.config.message);
        match timeout_at(call.deadline.into(), message).await {
            Ok(Ok(message)) => self.checker.check(message, call).await,
            // Whoever sent a body that is no message, or too large, chose to; that must not choose the fail-open path.
            Ok(Err(unmapped)) => self.checker.settle(Outcome::Unmapped(unmapped), call),
            Err(_) => self.checker.settle(Outcome::Undecided(Undecided::Deadline), call),
        }
    }

    /// What the headers of a call say that came just now.
    fn call(&self, headers: &HeaderMap) -> Call {
        let arrived = Instant::now();
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let timeout = header("grpc-timeout").and_then(grpc::timeout).unwrap_or(self.config.deadline.0);
        Call {
            arrived,
            deadline: arrived.checked_add(timeout).unwrap_or(arrived),
            trace: header("traceparent").and_then(TraceParent::parse),
        }
    }
}

/// On hyper's own transport.
impl hyper::service::Service<http::Request<Incoming>> for Authorization {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// On tonic's transport.
impl Service<http::Request<Body>> for Authorization {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

fn respond(answer: Result<Answer, Status>) -> Response {
    match answer {
        Ok(answer) => grpc::reply(answer.into_frame()).map(Either::Left),
        Err(status) => status.into_http::<Body>().map(Either::Right),
    }
}
