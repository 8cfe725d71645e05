//! More feeds on one stream than a server allows consumers: they are plain subscriptions, so it does not matter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use stockade::decision::freshness::LastProof;
use stockade::feed::Status;
use stockade::feed::follower::{Config, Engine, Follower};
use stockade::feed::jetstream::Jetstream;
use stockade::model::{Freshness, Overlay, Published};
use stockade::policy::Files;
use stockade::problem::Problem;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::lab::Lab;
use super::{config, prod};
use testkit::PATIENCE;

const FEEDS: usize = 1100;

/// Keeps the number of a bundle, and compiles nothing.
struct Numbers;

impl Engine for Numbers {
    type Base = String;
    type Snapshot = String;

    fn compile(&self, _: &[Files], published: Published) -> Result<String, Vec<Problem>> {
        Ok(published.number)
    }

    fn succeed(&self, _: Option<&String>, base: String, _: &[Overlay]) -> String {
        base
    }

    fn overlay(&self, previous: &String, _: &[Overlay], published: Option<Published>) -> String {
        published.map_or_else(|| previous.clone(), |published| published.number)
    }

    fn revision(&self, snapshot: &String) -> String {
        snapshot.clone()
    }
}

/// One feed of many.
struct Feed {
    snapshots: watch::Receiver<Option<Arc<String>>>,
    proof: Arc<LastProof>,
}

impl Feed {
    /// Waits until it enforces this, and knows that it is the newest.
    async fn enforces(&mut self, number: &str) {
        let is_it = |own: &Option<Arc<String>>| own.as_deref().is_some_and(|own| own == number);
        self.snapshots.wait_for(is_it).await.unwrap();
        while self.proof.freshness(Instant::now()) != Some(Freshness::Fresh) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eleven_hundred_feeds_follow_one_stream() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let mut lab = Lab::start().await;
    let text = format!(
        "name: prod\nkeys: [{{key: \"{}\", roles: [publish, overlay, beacon]}}]\nfreshness: {{stale_after: 30s}}\n",
        lab.key.public()
    );
    let source = stockade::problem::SourceFile::new("store.yaml", text);
    let follower: Config = stockade::yaml::parse(&source).unwrap();
    let mut running = JoinSet::new();
    let mut feeds = Vec::new();
    for number in 0..FEEDS {
        let source = Jetstream::follow(&config(&lab.server), prod()).await.unwrap();
        let (snapshots, status) = (watch::Sender::new(None), watch::Sender::new(Status::default()));
        let proof = Arc::new(LastProof::required(follower.freshness));
        feeds.push(Feed { snapshots: snapshots.subscribe(), proof: Arc::clone(&proof) });
        let own = Config { pod: format!("pod-{number}"), ..follower.clone() };
        running.spawn(Follower::new(own, source, Numbers, proof, snapshots, status).run());
    }
    for round in 0..2 {
        if round > 0 {
            lab.publish().await;
        }
        let (_, newest) = lab.session().newest_manifest().await.unwrap().unwrap();
        let number = newest.head.version.to_string();
        let all = async {
            for feed in &mut feeds {
                feed.enforces(&number).await;
            }
        };
        // Each verifies and compiles in a debug build, beside all other tests, on two cores.
        timeout(4 * PATIENCE, all).await.unwrap_or_else(|_| panic!("not all of them enforce {number}"));
    }
    let stream = lab.operator().await.request("STREAM.INFO.STOCKADE_prod", &Value::Null).await.unwrap();
    assert_eq!(stream["state"]["consumer_count"], 0);
}
