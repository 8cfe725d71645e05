//! The HTTP server of the admin endpoint and of the probes: few connections, each for one request that is over soon.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;

use crate::listener::{self, Connection, Draining, Listener};
use crate::observe::transport::{Closed, ConnectionMetrics};
use crate::shutdown::Drain;
use crate::waiting::Waiting;

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);

/// How long a request and its answer may take together.
const WHOLE: Duration = Duration::from_secs(30);

/// Serves one listener until the drain. When so many connections are open, the oldest makes room for the next: whoever asks is
/// done soon, whoever holds a connection open is not.
pub async fn serve(listener: Listener, router: Router, connections: usize, metrics: ConnectionMetrics, drain: Drain) {
    let (incoming, _) = listener.into_incoming();
    let mut http1 = http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
    let open = Waiting::new(connections, 0);
    let each = |connection: Connection, mut draining: Draining| {
        let service = TowerToHyperService::new(router.clone());
        let (http1, metrics, open) = (http1.clone(), metrics.clone(), open.clone());
        async move {
            let _open = metrics.open();
            let mut entry = open.enter();
            let mut connection = pin!(http1.serve_connection(TokioIo::new(connection), service));
            let served = async {
                tokio::select! {
                    served = &mut connection => return served,
                    () = draining.begun() => {}
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            };
            let why = tokio::select! {
                served = timeout(WHOLE, served) => match served {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) if !error.is_timeout() => return,
                    _ => Closed::RequestTimeout,
                },
                () = entry.shed() => Closed::Shed,
            };
            metrics.closed(why);
        }
    };
    listener::serve(incoming, drain.draining(), each).await;
}
