//! The gRPC server around the service: HTTP/2 limits set on purpose, health, reflection, and an orderly end.

use deserr::Deserr;
use serde::Serialize;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::service::Authorization;
use crate::listener::Listener;
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
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls)?;
    }
    server
        .max_concurrent_streams(config.max_concurrent_streams)
        .http2_max_header_list_size(u32::try_from(config.header_list.0).unwrap_or(u32::MAX))
        .http2_keepalive_interval(Some(config.keep_alive_interval.0))
        .http2_keepalive_timeout(Some(config.keep_alive_timeout.0))
        .serve_with_incoming_shutdown(service, incoming, async move { drain.draining().await })
        .await
}
