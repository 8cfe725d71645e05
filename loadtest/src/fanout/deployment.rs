//! A store as docs/store.md recommends it: a NATS server, and two beacons beside it.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::FanOut;
use super::bundle;
use super::nats::Nats;
use super::publisher::{Keys, Publisher, STORE};

/// A running store with a bundle in force. All its processes are killed when it is dropped.
pub(crate) struct Deployment {
    pub(crate) nats: Nats,
    pub(crate) publisher: Publisher,
    pub(crate) keys: Keys,
    _beacons: Vec<Child>,
    /// The key of the beacons.
    _directory: TempDir,
}

/// As many as docs/store.md recommends.
const BEACONS: usize = 2;

impl Deployment {
    /// Starts everything, and publishes the first bundle.
    pub(crate) async fn open(stage: &FanOut, policies: usize) -> anyhow::Result<Self> {
        let (nats, keys) = (Nats::start().await?, Keys::generate()?);
        let publisher = Publisher::open(&nats.url(), &keys).await?;
        publisher.publish(bundle::files(policies, 0)).await?;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let key = directory.path().join("beacon.key");
        write_key(&key, &keys.beacon)?;
        let beacons =
            (0..BEACONS).map(|_| beacon(&stage.stockade, &nats.url(), &key)).collect::<anyhow::Result<_>>()?;
        Ok(Self { nats, publisher, keys, _beacons: beacons, _directory: directory })
    }
}

/// The command refuses a key that others can read.
fn write_key(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).context("cannot write a key")
}

fn beacon(stockade: &Path, url: &str, key: &Path) -> anyhow::Result<Child> {
    Command::new(stockade)
        .args(["beacon", "--store", url, "--name", STORE, "--key"])
        .arg(key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a beacon")
}
