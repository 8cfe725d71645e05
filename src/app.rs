//! The one file that knows everyone: builds, binds, connects, runs, drains.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tonic_health::server::HealthReporter;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, Readiness};
use crate::config::{AdminListen, Config, ProbesListen};
use crate::decision::cache::Cache;
use crate::decision::freshness::LastProof;
use crate::descriptors;
use crate::ext_authz::account::Checker;
use crate::ext_authz::check::Pipeline;
use crate::ext_authz::server;
use crate::ext_authz::service::Authorization;
use crate::feed::Status;
use crate::feed::cedar::Cedar;
use crate::feed::directory::Directories;
#[cfg(feature = "nats")]
use crate::feed::{follower::Follower, jetstream::Jetstream, source::SourceError};
use crate::listener::{self, Listener};
use crate::observe::decision_log::Writer;
use crate::observe::store::StoreState;
use crate::observe::transport::Role;
use crate::observe::{DecisionLog, Metrics};
use crate::policy::{Files, Snapshot};
use crate::proto::json;
use crate::shutdown::{Lifecycle, Phase, Signals};

/// How often what only time changes is brought up to date: the histograms' buffers, above all.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long the decision log may take to write what is queued, after the last answer.
const LOG_FLUSH: Duration = Duration::from_secs(5);

/// How many probes may be answered at once; beyond it, the oldest is closed.
const PROBES: usize = 32;
/// How long the store may take to learn that this sidecar ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// A sidecar that is built and bound, but does not run yet: a taken port is found here, before anything moves.
pub struct App {
    pipeline: Arc<Pipeline>,
    listeners: Vec<Listener>,
    /// What is served over HTTP/1.1, and over how many connections each.
    http: Vec<(Role, Listener, axum::Router, usize)>,
    /// How many connections each listener for checks may have.
    connections: server::Places,
    service: Authorization,
    http2: server::Config,
    health: HealthReporter,
    feed: Pin<Box<dyn Future<Output = ()> + Send>>,
    proof: Arc<LastProof>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    status: watch::Receiver<Status>,
    readiness: watch::Sender<Readiness>,
    lifecycle: Lifecycle,
    /// To the feed: the process is about to end.
    leave: watch::Sender<bool>,
    metrics: Metrics,
    prometheus: PrometheusHandle,
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
    /// The metrics are not accepted.
    #[error("metrics cannot be set up: {0}")]
    Metrics(BuildError),
    /// The file of the decision log cannot be opened.
    #[error("the decision log cannot be opened: {0}")]
    DecisionLog(io::Error),
    /// The descriptors for reflection cannot be served.
    #[error("reflection cannot be set up: {0}")]
    Reflection(String),
    /// The configuration has no JSON form.
    #[error("the configuration cannot be shown: {0}")]
    Config(serde_json::Error),
    /// The connection to the store is configured wrongly.
    #[cfg(feature = "nats")]
    #[error("the store cannot be followed: {0}")]
    Store(SourceError),
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
            AdminListen::None => None,
            AdminListen::At(listen) => Some(bind_http(Role::Admin, listen).await?),
        };
        let probes_listener = match &config.probes.listen {
            ProbesListen::None => None,
            ProbesListen::At(listen) => Some(bind_http(Role::Probes, listen).await?),
        };
        let Connections { each: connections, admin: admin_connections, probes: probe_connections } =
            Connections::share(&config, listeners.len(), probes_listener.is_some());
        let (metrics, prometheus) = Metrics::new(&config.metrics).map_err(StartError::Metrics)?;
        let (log, log_writer) =
            DecisionLog::start(&config.decision_log, metrics.decision_log()).map_err(StartError::DecisionLog)?;

        let (snapshot_sender, snapshots) = watch::channel(None::<Arc<Snapshot>>);
        let (status_sender, status) = watch::channel(Status::default());
        let proof = Arc::new(config.proof());
        let leave = watch::Sender::new(false);
        let feed = feed(&config, Arc::clone(&proof), snapshot_sender, status_sender, leave.subscribe()).await?;

        let cache = Arc::new(Cache::new(config.cache.clone()));
        let pipeline =
            Arc::new(config.pipeline(snapshots.clone(), Arc::clone(&proof), Arc::clone(&cache), metrics.clone()));
        let checker = Arc::new(Checker::new(Arc::clone(&pipeline), log, metrics.clone()));
        let (others, health) = server::others(&config.http2).map_err(StartError::Reflection)?;
        let service = Authorization::new(checker, &config.limits, others, metrics.clone());
        // A health service says that all is well until it is told otherwise, and the sockets are bound already.
        server::report(&health, false).await;

        let lifecycle = Lifecycle::new(config.shutdown.clone());
        let (readiness, ready) = watch::channel(admin::readiness(Phase::Starting, false, &Status::default()));
        let effective = serde_json::to_value(&config).map_err(StartError::Config)?;
        let router = admin::router(Admin {
            summary: {
                let (snapshots, pipeline) = (snapshots.clone(), Arc::clone(&pipeline));
                Arc::new(move || {
                    let snapshot = snapshots.borrow().clone()?;
                    let mut summary = snapshot.summary();
                    summary.warnings.extend(pipeline.mapping.undeclared(&snapshot).iter().map(ToString::to_string));
                    Some(summary)
                })
            },
            status: status.clone(),
            ready: ready.clone(),
            cache: Arc::clone(&cache),
            lookup: {
                let pipeline = Arc::clone(&pipeline);
                Arc::new(move |text| {
                    let (query, cache) = pipeline.explain(&json::check_request(text)?)?;
                    Ok(serde_json::json!({"query": json::query(&query), "cache": cache}))
                })
            },
            config: Arc::new(effective),
            hosts: {
                let address = admin_listener.as_ref().and_then(Listener::ip);
                Arc::new(admin::guard::Hosts::new(address, &config.admin.hosts))
            },
            counts: metrics.clone(),
            rendered: prometheus.clone(),
            refresh: {
                let (metrics, status, proof) = (metrics.clone(), status.clone(), Arc::clone(&proof));
                let (snapshots, waiting) = (snapshots.clone(), service.waiting());
                Arc::new(move || {
                    metrics.messages(waiting.usage());
                    following(&metrics, &status.borrow(), &proof, snapshots.borrow().as_deref());
                    metrics.cache(&cache.usage());
                })
            },
        });
        let admin = admin_listener.map(|listener| (Role::Admin, listener, router, admin_connections));
        let probes = probes_listener.map(|listener| (Role::Probes, listener, admin::probes(ready), probe_connections));
        Ok(Self {
            pipeline,
            listeners,
            http: admin.into_iter().chain(probes).collect(),
            connections,
            service,
            http2: config.http2,
            health,
            feed,
            proof,
            snapshots,
            status,
            readiness,
            lifecycle,
            leave,
            metrics,
            prometheus,
            log_writer,
        })
    }

    /// Runs until a signal, then drains.
    ///
    /// # Errors
    /// If a server fails as a whole.
    pub async fn run(self, signals: Signals) -> Result<(), StartError> {
        let Self { lifecycle, snapshots, status, readiness, metrics, health, .. } = self;
        let phase = lifecycle.phase();
        // What only follows along ends with the process; what serves is waited for.
        let mut followers = JoinSet::new();
        followers.spawn(warn_of_attributes(snapshots.clone(), self.pipeline));
        let log = self.log_writer.trouble();
        followers.spawn(watch_readiness(
            phase,
            snapshots.clone(),
            status.clone(),
            log,
            readiness,
            metrics.clone(),
            health,
        ));
        followers.spawn(count_loads(snapshots, status.clone(), self.proof, metrics.clone()));
        followers.spawn(upkeep(self.prometheus));
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
        self.leave.send_replace(true);
        let drained = lifecycle.shut_down().await;
        said_goodbye(status).await;
        servers.abort_all();
        while servers.join_next().await.is_some() {}
        if !self.log_writer.close(LOG_FLUSH).await {
            error!("the decision log could not be written out in time; records were lost");
        }
        info!(drained = drained.is_ok(), "ended");
        Ok(())
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

/// Waits until the store knows that this sidecar ends, if one is followed and can be reached. What is not told is found out all the
/// same: a sidecar that says nothing any more is silent, and not gone.
async fn said_goodbye(mut status: watch::Receiver<Status>) {
    let said = status.wait_for(|status| status.store.as_ref().is_none_or(|store| store.left || !store.connected));
    // Best effort: nobody waits longer for it, and nobody can do anything about an error.
    let _ = tokio::time::timeout(GOODBYE, said).await;
}

/// Keeps `/readyz`, gRPC health and the gauge on what phase, snapshot, feed and decision log amount to.
async fn watch_readiness(
    mut phase: watch::Receiver<Phase>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut status: watch::Receiver<Status>,
    mut log: watch::Receiver<Option<String>>,
    readiness: watch::Sender<Readiness>,
    metrics: Metrics,
    health: HealthReporter,
) {
    let mut told = None;
    loop {
        let now = {
            let (phase, snapshot) = (*phase.borrow_and_update(), snapshots.borrow_and_update().is_some());
            admin::readiness(phase, snapshot, &status.borrow_and_update()).unless(log.borrow_and_update().clone())
        };
        let ready = now.ready;
        readiness.send_replace(now);
        if told != Some(ready) {
            metrics.ready(ready);
            server::report(&health, ready).await;
            info!("{}", if ready { "ready" } else { "not ready" });
            told = Some(ready);
        }
        let changed = tokio::select! {
            changed = phase.changed() => changed,
            changed = snapshots.changed() => changed,
            changed = status.changed() => changed,
            changed = log.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Warns of attributes that should be logged and that no bundle declares, once for each change of what these are.
async fn warn_of_attributes(mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>, pipeline: Arc<Pipeline>) {
    let mut last = Vec::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let warnings = snapshot.map(|snapshot| pipeline.mapping.undeclared(&snapshot)).unwrap_or_default();
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        if warnings != last {
            warnings.iter().for_each(|warning| warn!("{warning}"));
            last = warnings;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Turns what the feed reports into metrics.
async fn count_loads(
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut status: watch::Receiver<Status>,
    proof: Arc<LastProof>,
    metrics: Metrics,
) {
    let (mut counted, mut enforced, mut overlays) = (0, None, None);
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        let snapshot = snapshots.borrow().clone();
        following(&metrics, &now, &proof, snapshot.as_deref());
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.generation > counted) else { continue };
        counted = snapshot.generation;
        // What was there at the start was changed long ago, which says nothing about how fast changes arrive; and an overlay that
        // begins or ends in a snapshot does not bring its bundles anew.
        let is_new =
            enforced.replace(snapshot.timeline.enforced).is_some_and(|last| last != snapshot.timeline.enforced);
        let lead_time = snapshot.timeline.lead_time().filter(|_| is_new);
        let took = now.last_load_duration.filter(|_| is_new || counted == 1);
        metrics.snapshot(snapshot.generation, snapshot.policy_count(), took, lead_time);
        let store = now.store.unwrap_or_default();
        if store.overlays.is_some()
            && overlays.replace(store.overlays) != Some(store.overlays)
            && let Some(lead_time) = store.overlays_lead_time
        {
            metrics.overlay_lead_time(lead_time);
        }
    }
}

fn following(metrics: &Metrics, status: &Status, proof: &LastProof, snapshot: Option<&Snapshot>) {
    metrics.following(status.loads, status.rejections, status.last_read);
    if let Some(store) = &status.store {
        let now = Instant::now();
        let refusals = store.refusals.iter().map(|((kind, reason), count)| (*kind, *reason, *count));
        metrics.store(&StoreState {
            connected: store.connected,
            freshness: proof.freshness(now),
            proof_age: proof.age(now),
            refusals: refusals.collect(),
            from_disk: store.from_disk,
            withheld: store.withheld.is_some(),
            overlays: snapshot.map_or(0, |snapshot| snapshot.overlays().len()),
        });
    }
}

/// The task that follows what the configuration names.
async fn feed(
    config: &Config,
    proof: Arc<LastProof>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    status: watch::Sender<Status>,
    leave: watch::Receiver<bool>,
) -> Result<Pin<Box<dyn Future<Output = ()> + Send>>, StartError> {
    #[cfg(feature = "nats")]
    if let (Some(store), Some(nats)) = (&config.store, &config.nats) {
        let source = Jetstream::follow(nats, store.name.clone()).await.map_err(StartError::Store)?;
        let follower = Follower::new(store.clone(), source, Cedar::default(), proof, snapshots, status);
        return Ok(Box::pin(follower.leaving(leave).run()));
    }
    // Nothing has to be proved of directories, and nobody asks who follows them.
    drop((proof, leave));
    let (cedar, current) = (Cedar::default(), snapshots.subscribe());
    let compile = move |files: &[Files]| {
        let compiled = cedar.compile(files, None)?;
        let previous = current.borrow().clone();
        Ok(compiled.succeeding(previous.as_deref(), &[]))
    };
    let directories = Directories::new(config.feed.clone(), config.directories(), compile, snapshots, status);
    Ok(Box::pin(directories.run(std::future::pending())))
}

async fn upkeep(prometheus: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        prometheus.run_upkeep();
    }
}
