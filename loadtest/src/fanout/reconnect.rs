//! Very many feeds in this process, and a server that crashes: how long until each of them knows again that it is current.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use stockade::decision::freshness::{self, LastProof};
use stockade::feed::follower::{self, Engine, Follower};
use stockade::feed::jetstream::Jetstream;
use stockade::feed::{Limits, Status};
use stockade::model::{Overlay, Published};
use stockade::nats;
use stockade::policy::Files;
use stockade::problem::Problem;
use stockade::units::Span;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::goals::{FEEDS_RSS, RECONNECT};
use super::site::Site;
use super::{FanOut, Spread, desk, found, mebibytes};
use crate::findings::Finding;

/// Longer than the longest pause between two attempts to connect, so that the feeds come back as after any outage.
const OUTAGE: Duration = Duration::from_secs(10);

/// How often all feeds are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What takes longer is a fault, not a measurement.
const LIMIT: Duration = Duration::from_secs(60);

/// Accepts every bundle and does nothing with it: what is measured is the feed.
struct Idle;

impl Engine for Idle {
    type Base = ();
    type Snapshot = ();

    fn compile(&self, _: &[Files], _: Published) -> Result<(), Vec<Problem>> {
        Ok(())
    }

    fn succeed(&self, _: Option<&()>, (): (), _: &[Overlay]) {}

    fn overlay(&self, (): &(), _: &[Overlay], _: Option<Published>) {}

    fn revision(&self, (): &()) -> String {
        "idle".to_owned()
    }
}

pub(super) async fn run(stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
    let feeds = stage.feeds.get();
    let mut site = Site::open(stage, stage.policies.get()).await?;
    // They end with the set.
    let mut following = JoinSet::new();
    let mut proofs = Vec::new();
    for feed in 0..feeds {
        proofs.push(follow(&site, feed, &mut following).await?);
    }
    let begun = Instant::now();
    verified(&proofs, begun).await?;
    eprintln!("reconnect: {feeds} feeds are current after {:.1} s", begun.elapsed().as_secs_f64());
    site.nats.kill().await;
    sleep(OUTAGE).await;
    let still =
        proofs.iter().filter(|proof| proof.freshness(Instant::now()) == Some(stockade::model::Freshness::Fresh));
    let still = still.count();
    site.nats.start_again().await?;
    let ready = site.nats.ready();
    let before = site.nats.pid.cpu_time()?;
    let times = Spread::of(verified(&proofs, ready).await?);
    let cpu = (site.nats.pid.cpu_time()? - before).as_secs_f64();
    eprintln!("reconnect: {}", times.shown());
    let mut faults = site.nats.faults();
    if still > 0 {
        faults.push(format!("{still} feeds called themselves fresh after {} s without a server", OUTAGE.as_secs()));
    }
    let evidence = format!(
        "{feeds} feeds in this process, {}: from the log line of the server that it is ready, after SIGKILL and {} s without one, until \
         each feed has verified a beacon that was sent after that and names what it has; the server used {cpu:.1} s of CPU time and \
         logged neither an error nor a warning",
        times.shown(),
        OUTAGE.as_secs()
    );
    let rss = mebibytes(site.nats.pid.rss()?);
    following.abort_all();
    Ok(vec![
        found(&RECONNECT, times.percentile(100).map(|time| time.as_secs_f64()), evidence, faults),
        found(&FEEDS_RSS, Some(rss), format!("{feeds} feeds, after they came back"), Vec::new()),
    ])
}

/// Begins to follow the store. What is proved to it is what counts.
async fn follow(site: &Site, feed: usize, following: &mut JoinSet<()>) -> anyhow::Result<Arc<LastProof>> {
    let nats = nats::Config::of(&site.nats.url()).map_err(|invalid| anyhow!("{invalid}"))?;
    let freshness = freshness::Config::default();
    let config = follower::Config {
        name: desk::name()?,
        keys: site.keys.trusted()?,
        freshness,
        max_clock_skew: Span::seconds(1),
        refresh: Span::seconds(30),
        pod: format!("feed-{feed:04}"),
        namespace: "fanout".to_owned(),
        last_good: None,
        limits: Limits::default(),
    };
    let source = Jetstream::follow(&nats, desk::name()?).await.map_err(anyhow::Error::msg)?;
    let proof = Arc::new(LastProof::required(freshness));
    let (snapshots, status) = (watch::Sender::new(None), watch::Sender::new(Status::default()));
    following.spawn(Follower::new(config, source, Idle, Arc::clone(&proof), snapshots, status).run());
    Ok(proof)
}

/// How long after an instant each feed held a proof that was made after it: a beacon that was sent later.
async fn verified(proofs: &[Arc<LastProof>], since: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut left: Vec<_> = proofs.iter().collect();
    let mut times = Vec::new();
    while !left.is_empty() {
        let now = Instant::now();
        let passed = now.saturating_duration_since(since);
        let before = left.len();
        left.retain(|proof| proof.age(now).is_none_or(|age| age > passed));
        times.extend(std::iter::repeat_n(passed, before - left.len()));
        if passed > LIMIT {
            bail!("{} of {} feeds are not current after {} s", left.len(), proofs.len(), LIMIT.as_secs());
        }
        sleep(LOOK).await;
    }
    Ok(times)
}
