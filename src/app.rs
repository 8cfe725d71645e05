//! The one file that knows everyone: builds, binds, connects, runs, drains.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tonic_health::server::HealthReporter;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, Readiness};
use crate::config::Config;
use crate::descriptors;
use crate::engine::{self, Engine, Feed};
use crate::ext_authz::account::Checker;
use crate::ext_authz::server;
use crate::ext_authz::service::Authorization;
use crate::feed::{Status, account};
use crate::listener::{self, Listener};
use crate::observe::DecisionLog;
use crate::observe::decision_log::Writer;
use crate::observe::transport::Role;
use crate::proto::json;
use crate::shutdown::{Lifecycle, Phase, Signals};

/// How often what only time changes is brought up to date: the histograms' buffers, above all.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long the decision log may take to write what is queued, after the last answer.
const LOG_FLUSH: Duration = Duration::from_secs(5);

/// How many probes may be answered at once; beyond it, the oldest is closed.
const PROBES: usize = 32;

/// A sidecar that is built and bound, but does not run yet: a taken port is found here, before anything moves.
pub struct App {
    engine: Arc<Engine>,
    listeners: Vec<Listener>,
    /// What is served over HTTP/1.1, and over how many connections each.
    http: Vec<(Role, Listener, axum::Router, usize)>,
    /// How many connections each listener for checks may have.
    connections: server::Places,
    service: Authorization,
    http2: server::Config,
    health: HealthReporter,
    feed: Feed,
    readiness: watch::Sender<Readiness>,
    lifecycle: Lifecycle,
    log_writer: Writer,
}

/// Why a sidecar cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket for Envoy cannot be bound.
    #[error("{0}")]
    Bind(listener::BindError),
    /// The socket of another listener cannot be bound.
    #[error("{role}: {error}")]
    BindHttp {
        /// What it is for.
        role: &'static str,
        /// Why not.
        error: listener::BindError,
    },
    /// The engine cannot be built.
    #[error(transparent)]
    Engine(#[from] engine::BuildError),
    /// The file of the decision log cannot be opened.
    #[error("the decision log cannot be opened: {0}")]
    DecisionLog(io::Error),
    /// The descriptors for reflection cannot be served.
    #[error("reflection cannot be set up: {0}")]
    Reflection(String),
    /// The configuration has no JSON form.
    #[error("the configuration cannot be shown: {0}")]
    Config(serde_json::Error),
    /// A server ended by itself.
    #[error("a server ended: {0}")]
    Ended(JoinError),
}

impl App {
    /// Builds everything and binds every socket.
    ///
    /// # Errors
    /// If a socket is taken, a file cannot be opened, or metrics cannot be set up.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for listen in &config.listen.0 {
            listeners.push(listener::bind(listen).await.map_err(StartError::Bind)?);
        }
        let admin_listener = match &config.admin.listen {
            admin::Listen::None => None,
            admin::Listen::At(listen) => Some(bind_http(Role::Admin, listen).await?),
        };
        let probes_listener = match &config.probes.listen {
            admin::ProbesListen::None => None,
            admin::ProbesListen::At(listen) => Some(bind_http(Role::Probes, listen).await?),
        };
        let Connections { each: connections, admin: admin_connections, probes: probe_connections } =
            Connections::share(&config, listeners.len(), probes_listener.is_some());
        let (engine, feed) = Engine::build(&config).await?;
        let engine = Arc::new(engine);
        let (log, log_writer) =
            DecisionLog::start(&config.decision_log, engine.metrics.decision_log()).map_err(StartError::DecisionLog)?;
        let checker = Arc::new(Checker::new(Arc::clone(&engine.pipeline), log, engine.metrics.clone()));
        let (others, health) = server::health_and_reflection(&config.http2).map_err(StartError::Reflection)?;
        let service = Authorization::new(checker, &config.limits, others, engine.metrics.clone());
        // A health service says that all is well until it is told otherwise, and the sockets are bound already.
        server::report(&health, false).await;

        let lifecycle = Lifecycle::new(config.shutdown.clone());
        let (readiness, ready) = watch::channel(admin::readiness(Phase::Starting, false, &Status::default()));
        let effective = serde_json::to_value(&config).map_err(StartError::Config)?;
        let address = admin_listener.as_ref().and_then(Listener::ip);
        let hosts = admin::guard::Hosts::new(address, &config.admin.hosts);
        let router = admin::router(shown(&engine, &service, ready.clone(), effective, hosts));
        let admin = admin_listener.map(|listener| (Role::Admin, listener, router, admin_connections));
        let probes = probes_listener.map(|listener| (Role::Probes, listener, admin::probes(ready), probe_connections));
        Ok(Self {
            engine,
            listeners,
            http: admin.into_iter().chain(probes).collect(),
            connections,
            service,
            http2: config.http2,
            health,
            feed,
            readiness,
            lifecycle,
            log_writer,
        })
    }

    /// Runs until a signal, then drains.
    ///
    /// # Errors
    /// If a server fails as a whole.
    pub async fn run(self, signals: Signals) -> Result<(), StartError> {
        let Self { lifecycle, readiness, health, engine, .. } = self;
        let Engine { snapshots, status, metrics, .. } = &*engine;
        // What only follows along ends with the process; what serves is waited for.
        let mut followers = JoinSet::new();
        followers.spawn(engine::warn_of_attributes(snapshots.clone(), Arc::clone(&engine.pipeline)));
        followers.spawn(admin::watch_readiness(
            lifecycle.phase(),
            snapshots.clone(),
            status.clone(),
            self.log_writer.trouble(),
            readiness,
            metrics.clone(),
            async move |ready| server::report(&health, ready).await,
        ));
        let proof = Arc::clone(&engine.proof);
        followers.spawn(account::count_loads(snapshots.clone(), status.clone(), proof, metrics.clone()));
        followers.spawn(upkeep(engine.rendered.clone()));
        followers.spawn(self.feed);

        let mut servers = JoinSet::new();
        for listener in self.listeners {
            info!(listener = Role::ExtAuthz.as_str(), address = listener.local_address(), "listening");
            let (service, http2, drain) = (self.service.clone(), self.http2.clone(), lifecycle.hold());
            let (connections, metrics) = (self.connections, metrics.connections(Role::ExtAuthz));
            servers.spawn(async move { server::serve(listener, service, &http2, connections, metrics, drain).await });
        }
        // The service holds the decision log; it ends, and flushes, when the last clone is gone.
        drop(self.service);
        for (role, listener, router, connections) in self.http {
            info!(listener = role.as_str(), address = listener.local_address(), "listening");
            servers.spawn(admin::serve(listener, router, connections, metrics.connections(role), lifecycle.hold()));
        }
        lifecycle.running();

        let failed = tokio::select! {
            _ = signals.first() => None,
            ended = servers.join_next() => ended,
        };
        if let Some(ended) = failed {
            // A server goes on until it is asked to end.
            return ended.map_err(StartError::Ended);
        }
        engine.leave();
        let drained = lifecycle.shut_down().await;
        engine.has_left().await;
        servers.abort_all();
        while servers.join_next().await.is_some() {}
        if !self.log_writer.close(LOG_FLUSH).await {
            error!("the decision log could not be written out in time; records were lost");
        }
        info!(drained = drained.is_ok(), "ended");
        Ok(())
    }
}

/// What the operator's endpoint shows.
fn shown(
    engine: &Arc<Engine>,
    service: &Authorization,
    ready: watch::Receiver<Readiness>,
    config: serde_json::Value,
    hosts: admin::guard::Hosts,
) -> Admin {
    let (summarized, asked, refreshed) = (Arc::clone(engine), Arc::clone(engine), Arc::clone(engine));
    let waiting = service.waiting();
    Admin {
        summary: Arc::new(move || {
            let snapshot = summarized.snapshots.borrow().clone()?;
            let mut summary = snapshot.summary();
            let undeclared = summarized.pipeline.mapping.undeclared(&snapshot);
            summary.warnings.extend(undeclared.iter().map(ToString::to_string));
            Some(summary)
        }),
        status: engine.status.clone(),
        ready,
        cache: Arc::clone(&engine.cache),
        lookup: Arc::new(move |text| {
            let (query, cache) = asked.pipeline.explain(&json::check_request(text)?)?;
            Ok(serde_json::json!({"query": json::query(&query), "cache": cache}))
        }),
        config: Arc::new(config),
        hosts: Arc::new(hosts),
        counts: engine.metrics.clone(),
        rendered: engine.rendered.clone(),
        refresh: Arc::new(move || {
            refreshed.metrics.messages(waiting.usage());
            refreshed.refresh_metrics();
        }),
    }
}

async fn bind_http(role: Role, listen: &listener::Config) -> Result<Listener, StartError> {
    listener::bind(listen).await.map_err(|error| StartError::BindHttp { role: role.as_str(), error })
}

/// How many connections there may be, by listener.
struct Connections {
    each: server::Places,
    admin: usize,
    probes: usize,
}

impl Connections {
    /// As configured, if there are file descriptors for it; so that no listener takes those of another.
    fn share(config: &Config, listeners: usize, has_probes: bool) -> Self {
        let limit = descriptors::raise();
        let configured = config.limits.connections.get();
        let probes = if has_probes { PROBES } else { 0 };
        let checks = configured.saturating_add(server::HANDSHAKES).saturating_mul(listeners);
        let wanted = [checks, config.admin.connections.get(), probes];
        let shared = descriptors::share(limit, wanted);
        if wanted != shared {
            let ([ext_authz, admin, probes], hint) =
                (shared, "raise the limit of open files, or lower `limits.connections`");
            warn!(open_files = limit, ext_authz, admin, probes, hint, "too few file descriptors: fewer connections");
        }
        let [checks, admin, probes] = shared;
        let one = checks / listeners.max(1);
        // Where there is less than that, most of it is for those that ask.
        let handshakes = one.saturating_sub(configured).max(one / 4).clamp(1, server::HANDSHAKES);
        let each = server::Places { connections: one.saturating_sub(handshakes).clamp(1, configured), handshakes };
        Self { each, admin, probes }
    }
}

async fn upkeep(prometheus: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        prometheus.run_upkeep();
    }
}
