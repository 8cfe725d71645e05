//! The gRPC server around the service: HTTP/2 limits set on purpose, health, reflection, and an orderly end.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use deserr::Deserr;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::recency::{Activity, Recent};
use super::service::{Answering, Authorization, HttpResponse, SMALL_MESSAGE};
use crate::listener::{self, Connection, Draining, Listener};
use crate::observe::log_throttle::LogThrottle;
use crate::observe::transport::{Closed, ConnectionMetrics};
use crate::proto;
use crate::shutdown::Drain;
use crate::units::{Bytes, HumanDuration};
use crate::waiting::{Entry, Waiting};
use crate::yaml::Faults;

/// `http2:` of the configuration. Envoy opens one connection per worker thread and multiplexes checks on it.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// How many checks one connection may have in flight. Default `1024`, which is Envoy's own default too: whoever sends more
    /// than was agreed on has them reset.
    #[deserr(default = Config::default().max_concurrent_streams)]
    pub max_concurrent_streams: u32,
    /// The size of all headers of one call, decoded. Envoy's tracers forward the client's `tracestate` and `baggage`, and
    /// headers beyond this limit fail the check: keep it well above `max_request_headers_kb` of Envoy (60 KiB by default).
    /// Default `256KiB`.
    #[deserr(default = Config::default().header_list)]
    pub header_list: Bytes,
    /// How long a new connection may take until its first call, TLS included. Default `5s`.
    #[deserr(default = Config::default().handshake_timeout)]
    pub handshake_timeout: HumanDuration,
    /// How often an idle connection is probed, so that one that is dead but not closed is noticed. Default `30s`.
    #[deserr(default = Config::default().keep_alive_interval)]
    pub keep_alive_interval: HumanDuration,
    /// How long such a probe may go unanswered. Default `10s`.
    #[deserr(default = Config::default().keep_alive_timeout)]
    pub keep_alive_timeout: HumanDuration,
    /// Whether the server describes itself by gRPC reflection. Default `false`: it is of use to people with grpcurl only.
    #[deserr(default)]
    pub reflection: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            header_list: Bytes(256 << 10),
            handshake_timeout: HumanDuration::seconds(5),
            keep_alive_interval: HumanDuration::seconds(30),
            keep_alive_timeout: HumanDuration::seconds(10),
            reflection: false,
        }
    }
}

/// The name under which Envoy's gRPC health check asks; the empty one stands for the process.
const SERVICES: [&str; 2] = ["", "envoy.service.auth.v3.Authorization"];

/// What every listener serves beside checks: health, and reflection if it is asked for.
///
/// # Errors
/// If the built-in descriptors cannot be read.
pub fn health_and_reflection(config: &Config) -> Result<(Routes, HealthReporter), String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    // What a caller declares is allocated before it is there.
    let mut routes = Routes::new(health.max_decoding_message_size(SMALL_MESSAGE));
    if config.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| error.to_string())?;
        routes = routes.add_service(reflection.max_decoding_message_size(SMALL_MESSAGE));
    }
    Ok((routes, reporter))
}

/// Tells health checkers whether checks should come here.
pub async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// How many connections of a listener may be without a call at once, in their handshake or after it; beyond it, the oldest of them is
/// closed.
pub const HANDSHAKES: usize = 64;

/// How many connections a listener may have.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// That have been called on.
    pub connections: usize,
    /// That have not, or are about to close.
    pub handshakes: usize,
}

/// How many checks may be given up before we have got to them, for each one that a connection may have in flight. Envoy gives up
/// what takes longer than its timeout and asks anew, so while we stand still there are as many rounds as timeouts fit into it; and
/// the answer to too many would be the end of the connection, and of all the checks on it that are in time.
const GIVEN_UP: usize = 16;

/// How long a connection may take to close in good order: until the peer has heard that it should call elsewhere, and the answers in
/// flight are out.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves one listener until the drain, then finishes what is in flight.
pub async fn serve(
    listener: Listener,
    service: Authorization,
    config: &Config,
    places: Places,
    metrics: ConnectionMetrics,
    drain: Drain,
) {
    let local_address = listener.local_address().to_owned();
    let (incoming, tls) = listener.into_incoming();
    let server = Arc::new(Server {
        http2: builder(config),
        tls,
        service,
        handshake_timeout: config.handshake_timeout.0,
        handshakes: Waiting::new(places.handshakes, 0),
        recent: Recent::new(places.connections),
        metrics,
        local_address,
        told: LogThrottle::new(Duration::from_secs(60), 16),
    });
    let each = |connection, draining| Arc::clone(&server).connection(connection, draining);
    listener::serve(incoming, drain.draining(), each).await;
}

/// On hyper itself: tonic's transport puts each call through five boxes and a copy of the service, for layers that are not used
/// here (docs/decisions/0005-hot-path.md).
fn builder(config: &Config) -> http2::Builder<TokioExecutor> {
    let streams = config.max_concurrent_streams;
    let given_up = usize::try_from(streams).unwrap_or(usize::MAX).saturating_mul(GIVEN_UP);
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_header_list_size(u32::try_from(config.header_list.0).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(given_up)
        // Counted over the whole life of a connection. Nothing that Envoy sends leads there; what is broken must end some time.
        .max_local_error_reset_streams(given_up)
        .keep_alive_interval(Some(config.keep_alive_interval.0))
        .keep_alive_timeout(config.keep_alive_timeout.0);
    http2
}

/// What the connections of a listener share.
struct Server {
    http2: http2::Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    service: Authorization,
    handshake_timeout: Duration,
    handshakes: Arc<Waiting>,
    recent: Arc<Recent>,
    metrics: ConnectionMetrics,
    local_address: String,
    told: LogThrottle,
}

/// How a connection came to its end: `Some` if we closed it, `None` if the peer did, or in good order.
type End = Option<Ending>;

/// Why we closed a connection, and what the library says of it.
struct Ending {
    why: Closed,
    cause: Option<String>,
}

impl From<Closed> for Ending {
    fn from(why: Closed) -> Self {
        Self { why, cause: None }
    }
}

impl Server {
    async fn connection(self: Arc<Self>, connection: Connection, draining: Draining) {
        let _open = self.metrics.open();
        let peer = connection.peer();
        let entry = self.handshakes.enter();
        let deadline = Instant::now() + self.handshake_timeout;
        let end = match &self.tls {
            None => self.http2(connection, entry, deadline, draining).await,
            Some(tls) => self.tls(tls, connection, entry, deadline, draining).await,
        };
        let Err(Some(Ending { why, cause })) = end else { return };
        self.metrics.closed(why);
        if self.told.lets_pass(&why) {
            let listener = self.metrics.role().as_str();
            let hint = match why {
                Closed::NotHttp2 => "give its cluster in Envoy `http2_protocol_options`",
                Closed::Displaced => "raise `limits.connections`, or see who connects",
                _ => "see `stockade_connections_closed_total` for how often",
            };
            let (address, reason) = (&self.local_address, why.as_str());
            tracing::warn!(listener, address, peer, reason, cause, hint, "connections are closed; said once a minute");
        }
    }

    async fn tls(
        &self,
        tls: &TlsAcceptor,
        connection: Connection,
        mut entry: Entry,
        deadline: Instant,
        draining: Draining,
    ) -> Result<(), End> {
        let failed = |error: io::Error| Some(Ending { why: Closed::Tls, cause: Some(error.to_string()) });
        let handshake = async { tls.accept(connection).await.map_err(failed) };
        let stream = in_time(&mut entry, deadline, handshake).await?;
        self.http2(stream, entry, deadline, draining).await
    }

    /// A connection in three stages: until its first call it is one of those in their handshake, then one of those that are served,
    /// and at last one that closes in good order, so that no check is lost that was on its way.
    async fn http2<T>(&self, stream: T, mut entry: Entry, deadline: Instant, mut draining: Draining) -> Result<(), End>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = in_time(&mut entry, deadline, begin(stream)).await?;
        let activity = self.recent.activity();
        let calls = Calls { service: self.service.clone(), activity: Arc::clone(&activity) };
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(stream), calls));
        let why = tokio::select! {
            biased;
            served = &mut connection => return ended(served),
            () = activity.first_call() => None,
            () = draining.begun() => Some(None),
            () = entry.shed() => return Err(Some(Closed::Shed.into())),
            () = sleep_until(deadline) => Some(Some(Closed::HandshakeTimeout.into())),
        };
        if let Some(end) = why {
            connection.as_mut().graceful_shutdown();
            return closing(connection, entry, end).await;
        }
        let member = self.recent.enter(&activity);
        drop(entry);
        let why = tokio::select! {
            biased;
            served = &mut connection => return ended(served),
            () = draining.begun() => None,
            () = activity.displaced() => Some(Closed::Displaced.into()),
        };
        connection.as_mut().graceful_shutdown();
        if why.is_none() {
            return ended(connection.await);
        }
        let entry = self.handshakes.enter();
        drop(member);
        closing(connection, entry, why).await
    }
}

/// Waits for a connection to close in good order, for as long as there is time and room for that.
async fn closing(connection: impl Future<Output = hyper::Result<()>>, mut entry: Entry, end: End) -> Result<(), End> {
    tokio::select! {
        _ = connection => {}
        () = entry.shed() => {}
        () = sleep(CLOSING) => {}
    }
    Err(end)
}

fn ended(served: hyper::Result<()>) -> Result<(), End> {
    served.map_err(|error| {
        tracing::debug!(%error, "a connection broke off");
        error.is_timeout().then_some(Closed::KeepAliveTimeout.into())
    })
}

/// The service as one connection has it.
struct Calls {
    service: Authorization,
    activity: Arc<Activity>,
}

impl hyper::service::Service<http::Request<Incoming>> for Calls {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Incoming>) -> Answering {
        let arrived = std::time::Instant::now();
        self.activity.called(arrived);
        self.service.answer(request, arrived)
    }
}

/// A step of a handshake, unless it takes too long or its place is needed.
async fn in_time<T>(
    entry: &mut Entry,
    deadline: Instant,
    step: impl Future<Output = Result<T, End>>,
) -> Result<T, End> {
    tokio::select! {
        biased;
        done = timeout_at(deadline, step) => done.unwrap_or_else(|_| Err(Some(Closed::HandshakeTimeout.into()))),
        () = entry.shed() => Err(Some(Closed::Shed.into())),
    }
}

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits for the preface. hyper would wait for ever.
async fn begin<T: AsyncRead + Unpin>(mut stream: T) -> Result<Begun<T>, End> {
    let mut here = Vec::with_capacity(PREFACE.len());
    while here.len() < PREFACE.len() {
        let missing = (PREFACE.len() - here.len()) as u64;
        match (&mut stream).take(missing).read_buf(&mut here).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(_) if !PREFACE.starts_with(&here) => return Err(Some(Closed::NotHttp2.into())),
            Ok(_) => {}
        }
    }
    Ok(Begun { preface: PREFACE, stream })
}

/// A stream whose first bytes were read, and are there to be read again.
struct Begun<T> {
    /// What of them is to be read.
    preface: &'static [u8],
    stream: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Begun<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.preface.is_empty() {
            let (now, later) = self.preface.split_at(self.preface.len().min(buf.remaining()));
            buf.put_slice(now);
            self.preface = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Begun<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
