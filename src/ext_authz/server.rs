//! The gRPC server around the service: HTTP/2 limits set on purpose, health, reflection, and an orderly end.

use std::pin::pin;

use axum::serve::Listener as _;
use deserr::Deserr;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::service::Authorization;
use crate::listener::{Incoming, Listener};
use crate::shutdown::Drain;
use crate::units::{Bytes, Span};
use crate::yaml::Faults;

/// `http2:` of the configuration. Envoy opens one connection per worker thread and multiplexes checks on it.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// How many checks one connection may have in flight. Default `1024`; without a limit of ours there is none.
    #[deserr(default = Config::default().max_concurrent_streams)]
    pub max_concurrent_streams: u32,
    /// The size of all headers of one call, decoded. Envoy sends well under 1 KiB. Default `16KiB`.
    #[deserr(default = Config::default().header_list)]
    pub header_list: Bytes,
    /// How often an idle connection is probed, so that one that is dead but not closed is noticed. Default `30s`.
    #[deserr(default = Config::default().keep_alive_interval)]
    pub keep_alive_interval: Span,
    /// How long such a probe may go unanswered. Default `10s`.
    #[deserr(default = Config::default().keep_alive_timeout)]
    pub keep_alive_timeout: Span,
    /// Whether the server describes itself by gRPC reflection. Default `false`: it is of use to people with grpcurl only.
    #[deserr(default)]
    pub reflection: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            header_list: Bytes(16 << 10),
            keep_alive_interval: Span::seconds(30),
            keep_alive_timeout: Span::seconds(10),
            reflection: false,
        }
    }
}

/// The descriptors of `envoy.service.auth.v3` and what it imports, for reflection; made as CONTRIBUTING.md says.
const DESCRIPTORS: &[u8] = include_bytes!("descriptors.binpb");

/// The name under which Envoy's gRPC health check asks; the empty one stands for the process.
const SERVICES: [&str; 2] = ["", "envoy.service.auth.v3.Authorization"];

/// What every listener serves beside checks: health, and reflection if it is asked for.
///
/// # Errors
/// If the built-in descriptors cannot be read.
pub fn others(config: &Config) -> Result<(Routes, HealthReporter), String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health);
    if config.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| error.to_string())?;
        routes = routes.add_service(reflection);
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

/// Serves one listener until the drain, then finishes what is in flight.
///
/// # Errors
/// If TLS cannot be set up, or the server fails as a whole.
pub async fn serve(
    listener: Listener,
    service: Authorization,
    config: Config,
    drain: Drain,
) -> Result<(), tonic::transport::Error> {
    let (incoming, tls) = listener.into_incoming();
    let max_header_list = u32::try_from(config.header_list.0).unwrap_or(u32::MAX);
    let Some(tls) = tls else {
        plain(incoming, service, &config, max_header_list, &drain).await;
        return Ok(());
    };
    Server::builder()
        .tls_config(tls)?
        .max_concurrent_streams(config.max_concurrent_streams)
        .http2_max_header_list_size(max_header_list)
        .http2_keepalive_interval(Some(config.keep_alive_interval.0))
        .http2_keepalive_timeout(Some(config.keep_alive_timeout.0))
        .serve_with_incoming_shutdown(service, incoming, async move { drain.draining().await })
        .await
}

/// Without TLS, which is how a sidecar is asked, on hyper itself: tonic's transport puts each call through five boxes and
/// a copy of the service, for layers that are not used here (docs/decisions/0005-hot-path.md).
async fn plain(mut incoming: Incoming, service: Authorization, config: &Config, max_header_list: u32, drain: &Drain) {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(max_header_list)
        .keep_alive_interval(Some(config.keep_alive_interval.0))
        .keep_alive_timeout(config.keep_alive_timeout.0);
    let connections = GracefulShutdown::new();
    let mut draining = pin!(drain.draining());
    loop {
        let connection = tokio::select! {
            (connection, _) = incoming.accept() => connection,
            () = &mut draining => break,
        };
        let served = connections.watch(http2.serve_connection(TokioIo::new(connection), service.clone()));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection broke off");
            }
        });
    }
    // The socket is closed before what is in flight is waited for: nobody is to queue up at it.
    drop(incoming);
    connections.shutdown().await;
}
