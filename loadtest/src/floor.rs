//! The yardstick: an always-allow `Check` server.
//!
//! It is what tonic and envoy-types make of the service when nobody tunes anything: the request is
//! decoded completely, the answer is a status OK. What another server costs beyond this is the
//! price of its decision; what it costs less, it saved on decoding.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What the floor prints, with the address, once it can be called.
pub(crate) const LISTENING: &str = "listening ";

/// Binds, prints the address and serves until the process is ended.
pub(crate) async fn run(listen: SocketAddr) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on `{listen}`"))?;
    println!("{LISTENING}{}", listener.local_addr()?);
    serve(listener, Floor).await?;
    Ok(ExitCode::SUCCESS)
}

/// Serves any `Authorization`, so that tests can have servers that misbehave.
pub(crate) async fn serve(listener: TcpListener, service: impl Authorization) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder().serve_with_incoming(AuthorizationServer::new(service), incoming).await
}

struct Floor;

#[tonic::async_trait]
impl Authorization for Floor {
    async fn check(&self, _request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        // The default status has code 0, which is OK.
        let status = Some(rpc::Status::default());
        Ok(Response::new(CheckResponse { status, ..CheckResponse::default() }))
    }
}
