//! The one file that knows everyone: builds, binds, connects, runs, drains.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic_health::server::HealthReporter;
use tracing::{error, info};

use crate::admin::{self, Admin, Readiness};
use crate::config::{AdminListen, Config};
use crate::decision::cache::Cache;
use crate::decision::freshness::LastProof;
use crate::ext_authz::checker::Checker;
use crate::ext_authz::service::Authorization;
use crate::ext_authz::{json, server};
use crate::feed::Status;
use crate::feed::cedar::Cedar;
use crate::feed::directory::Directories;
#[cfg(feature = "nats")]
use crate::feed::{follower::Follower, jetstream::Jetstream};
use crate::listener::{self, Listener};
use crate::observe::decision_log::Writer;
use crate::observe::store::StoreState;
use crate::observe::{DecisionLog, Metrics};
use crate::policy::{Files, Snapshot};
use crate::shutdown::{Drain, Lifecycle, Phase, Signals};

/// How often what only time changes is brought up to date: the histograms' buffers, above all.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long the decision log may take to write what is queued, after the last answer.
const LOG_FLUSH: Duration = Duration::from_secs(5);

/// A sidecar that is built and bound, but does not run yet: a taken port is found here, before anything moves.
pub struct App {
    listeners: Vec<Listener>,
    admin: Option<(Listener, axum::Router)>,
    service: Authorization,
    http2: server::Config,
    health: HealthReporter,
    feed: Pin<Box<dyn Future<Output = ()> + Send>>,
    proof: Arc<LastProof>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    status: watch::Receiver<Status>,
    readiness: watch::Sender<Readiness>,
    lifecycle: Lifecycle,
    metrics: Metrics,
    prometheus: PrometheusHandle,
    log_writer: Writer,
}

/// Why a sidecar cannot start.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl StartError {
    fn new(what: &str, error: impl fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

impl App {
    /// Builds everything and binds every socket.
    ///
    /// # Errors
    /// If a socket is taken, a file cannot be opened, or metrics cannot be set up.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for listen in &config.listen.0 {
            listeners.push(listener::bind(listen).await.map_err(|error| StartError(error.to_string()))?);
        }
        let admin_listener = match &config.admin.listen {
            AdminListen::None => None,
            AdminListen::At(listen) => {
                Some(listener::bind(listen).await.map_err(|error| StartError(format!("admin: {error}")))?)
            }
        };
        let (metrics, prometheus) =
            Metrics::new(&config.metrics).map_err(|error| StartError::new("metrics cannot be set up", error))?;
        let (log, log_writer) = DecisionLog::start(&config.decision_log, metrics.decision_log())
            .map_err(|error| StartError::new("the decision log cannot be opened", error))?;

        let (snapshot_sender, snapshots) = watch::channel(None::<Arc<Snapshot>>);
        let (status_sender, status) = watch::channel(Status::default());
        let proof = Arc::new(config.proof());
        let feed = feed(&config, Arc::clone(&proof), snapshot_sender, status_sender).await?;

        let cache = Arc::new(Cache::new(config.cache.clone()));
        let judge = Arc::new(config.judge(snapshots.clone(), Arc::clone(&proof), Arc::clone(&cache), metrics.clone()));
        let checker = Arc::new(Checker::new(Arc::clone(&judge), log, metrics.clone()));
        let (others, health) =
            server::others(&config.http2).map_err(|error| StartError::new("reflection cannot be set up", error))?;
        let service = Authorization::new(checker, &config.limits, others);
        // A health service says that all is well until it is told otherwise, and the sockets are bound already.
        server::report(&health, false).await;

        let lifecycle = Lifecycle::new(config.shutdown.clone());
        let (readiness, ready) = watch::channel(admin::readiness(Phase::Starting, false, &Status::default()));
        let effective = serde_json::to_value(&config)
            .map_err(|error| StartError::new("the configuration cannot be shown", error))?;
        let router = admin::router(Admin {
            summary: {
                let snapshots = snapshots.clone();
                Arc::new(move || snapshots.borrow().as_ref().map(|snapshot| snapshot.summary()))
            },
            status: status.clone(),
            ready,
            cache: Arc::clone(&cache),
            lookup: {
                let judge = Arc::clone(&judge);
                Arc::new(move |text| {
                    let (query, cache) = judge.explain(&json::check_request(text)?)?;
                    Ok(serde_json::json!({"query": json::query(&query), "cache": cache}))
                })
            },
            config: Arc::new(effective),
            metrics: prometheus.clone(),
            refresh: {
                let (metrics, status, proof) = (metrics.clone(), status.clone(), Arc::clone(&proof));
                let snapshots = snapshots.clone();
                Arc::new(move || {
                    following(&metrics, &status.borrow(), &proof, snapshots.borrow().as_deref());
                    metrics.cache(&cache.usage());
                })
            },
        });
        Ok(Self {
            listeners,
            admin: admin_listener.map(|listener| (listener, router)),
            service,
            http2: config.http2,
            health,
            feed,
            proof,
            snapshots,
            status,
            readiness,
            lifecycle,
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
        followers.spawn(watch_readiness(phase, snapshots.clone(), status.clone(), readiness, metrics.clone(), health));
        followers.spawn(count_loads(snapshots, status, self.proof, metrics));
        followers.spawn(upkeep(self.prometheus));
        followers.spawn(self.feed);

        let mut servers: JoinSet<Result<(), StartError>> = JoinSet::new();
        for listener in self.listeners {
            info!(listener = "ext_authz", address = listener.local_address(), "listening");
            let (service, http2, drain) = (self.service.clone(), self.http2.clone(), lifecycle.hold());
            servers.spawn(async move {
                let held = drain.clone();
                let served = server::serve(listener, service, http2, drain).await;
                drop(held);
                served.map_err(|error| StartError::new("the ext_authz server failed", error))
            });
        }
        // The service holds the decision log; it ends, and flushes, when the last clone is gone.
        drop(self.service);
        if let Some((listener, router)) = self.admin {
            info!(listener = "admin", address = listener.local_address(), "listening");
            servers.spawn(serve_admin(listener, router, lifecycle.hold()));
        }
        lifecycle.running();

        let failed = tokio::select! {
            _ = signals.first() => None,
            ended = servers.join_next() => ended,
        };
        if let Some(ended) = failed {
            return ended.unwrap_or_else(|error| Err(StartError::new("a server ended", error)));
        }
        let drained = lifecycle.shut_down().await;
        servers.abort_all();
        while servers.join_next().await.is_some() {}
        if !self.log_writer.close(LOG_FLUSH).await {
            error!("the decision log could not be written out in time; records were lost");
        }
        info!(drained = drained.is_ok(), "ended");
        Ok(())
    }
}

async fn serve_admin(listener: Listener, router: axum::Router, drain: Drain) -> Result<(), StartError> {
    let (incoming, _) = listener.into_incoming();
    let draining = drain.clone();
    axum::serve(incoming, router)
        .with_graceful_shutdown(async move { draining.draining().await })
        .await
        .map_err(|error| StartError::new("the admin server failed", error))
}

/// Keeps `/readyz`, gRPC health and the gauge on what phase, snapshot and feed amount to.
async fn watch_readiness(
    mut phase: watch::Receiver<Phase>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut status: watch::Receiver<Status>,
    readiness: watch::Sender<Readiness>,
    metrics: Metrics,
    health: HealthReporter,
) {
    let mut told = None;
    loop {
        let now = {
            let (phase, snapshot) = (*phase.borrow_and_update(), snapshots.borrow_and_update().is_some());
            admin::readiness(phase, snapshot, &status.borrow_and_update())
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
        };
        if changed.is_err() {
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
) -> Result<Pin<Box<dyn Future<Output = ()> + Send>>, StartError> {
    #[cfg(feature = "nats")]
    if let (Some(store), Some(nats)) = (&config.store, &config.nats) {
        let source = Jetstream::follow(nats, store.name.clone())
            .await
            .map_err(|error| StartError::new("the store cannot be followed", error))?;
        return Ok(Box::pin(Follower::new(store.clone(), source, Cedar::default(), proof, snapshots, status).run()));
    }
    // Nothing has to be proved of directories.
    drop(proof);
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
