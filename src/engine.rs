//! The engine in the process of its caller: what is in force is followed, and checks are decided, without a socket.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use stockade::config::Config;
//! use stockade::engine::Engine;
//! use stockade::proto::view::CheckRequest;
//!
//! let config = Config::load("stockade.yaml".as_ref()).map_err(|problems| format!("{problems:?}"))?;
//! let (engine, feed) = Engine::build(&config).await?;
//! tokio::spawn(feed);
//! let frame = bytes::Bytes::new();
//! let outcome = engine.check(&CheckRequest::decode(&frame)?);
//! # drop(outcome);
//! # Ok(())
//! # }
//! ```

use std::pin::Pin;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tracing::warn;

use crate::config::Config;
use crate::decision::cache::Cache;
use crate::decision::freshness::LastProof;
use crate::ext_authz::check::Pipeline;
use crate::feed::cedar::Cedar;
use crate::feed::directory::Directories;
use crate::feed::{Status, account};
#[cfg(feature = "nats")]
use crate::feed::{follower::Follower, jetstream::Jetstream, source::SourceError};
use crate::model::Outcome;
use crate::observe::Metrics;
use crate::policy::{Files, Snapshot};
use crate::proto::view::CheckRequest;

/// What follows the bundles of a configuration, until it is dropped. Nothing is in force before it runs.
pub type Feed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Decides requests under what its feed has put in force.
#[derive(Debug)]
pub struct Engine {
    /// Maps, decides and answers.
    pub pipeline: Arc<Pipeline>,
    /// What is in force; `None` before the first version.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// How following goes.
    pub status: watch::Receiver<Status>,
    /// What was proved of what is in force.
    pub proof: Arc<LastProof>,
    /// What is remembered.
    pub cache: Arc<Cache>,
    /// What is counted.
    pub metrics: Metrics,
    /// Renders the metrics.
    pub rendered: PrometheusHandle,
    leave: watch::Sender<bool>,
}

/// Why an engine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The metrics are not accepted.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The connection to the store is configured wrongly.
    #[cfg(feature = "nats")]
    #[error("the store cannot be followed: {0}")]
    Store(#[from] SourceError),
}

impl Engine {
    /// Builds an engine and the feed that it needs.
    ///
    /// # Errors
    /// If metrics cannot be set up, or a file that the connection to the store needs cannot be read.
    pub async fn build(config: &Config) -> Result<(Self, Feed), BuildError> {
        let (metrics, rendered) = Metrics::new(&config.metrics)?;
        let (snapshot_sender, snapshots) = watch::channel(None::<Arc<Snapshot>>);
        let (status_sender, status) = watch::channel(Status::default());
        let proof = Arc::new(config.proof());
        let leave = watch::Sender::new(false);
        let feed = feed(config, Arc::clone(&proof), snapshot_sender, status_sender, leave.subscribe()).await?;
        let cache = Arc::new(Cache::new(config.cache.clone()));
        let pipeline = Pipeline::new(
            config.pipeline(),
            snapshots.clone(),
            Arc::clone(&proof),
            Arc::clone(&cache),
            metrics.clone(),
        );
        let pipeline = Arc::new(pipeline);
        Ok((Self { pipeline, snapshots, status, proof, cache, metrics, rendered, leave }, feed))
    }

    /// What becomes of a request. Nothing is logged or counted as an answer: that is the caller's, who answers.
    pub fn check(&self, request: &CheckRequest<'_>) -> Outcome {
        self.pipeline.check(request)
    }

    /// The metrics in Prometheus' text format, as they are now.
    pub fn render_metrics(&self) -> String {
        self.refresh_metrics();
        self.rendered.render()
    }

    /// Brings metrics up to date that only time changes. Call it before every scrape.
    pub fn refresh_metrics(&self) {
        account::following(&self.metrics, &self.status.borrow(), &self.proof, self.snapshots.borrow().as_deref());
        self.metrics.cache(&self.cache.usage());
    }

    /// Has the feed tell the store that this engine ends.
    pub fn leave(&self) {
        self.leave.send_replace(true);
    }

    /// Waits until the store knows that, for a second at most.
    pub async fn has_left(&self) {
        account::said_goodbye(self.status.clone()).await;
    }
}

/// The task that follows what the configuration names.
async fn feed(
    config: &Config,
    proof: Arc<LastProof>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    status: watch::Sender<Status>,
    leave: watch::Receiver<bool>,
) -> Result<Feed, BuildError> {
    #[cfg(feature = "nats")]
    if let (Some(store), Some(nats)) = (&config.store, &config.nats) {
        let source = Jetstream::follow(nats, store.name.clone()).await?;
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

/// Warns of attributes that should be logged and that no bundle declares, once for each change of what these are.
pub async fn warn_of_attributes(mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>, pipeline: Arc<Pipeline>) {
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
