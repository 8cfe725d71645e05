//! Sidecars: real processes that follow the store, what they report to it, and what they log.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use stockade::store::statement::Status;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use super::FanOut;
use super::deployment::Deployment;
use super::publisher::STORE;
use crate::client::Address;
use crate::server::{LogLine, Pid, START_LIMIT, stockade_listens};

/// Sidecars that are ready. They are killed when it is dropped.
pub(crate) struct Fleet {
    pub(crate) sidecars: Vec<Sidecar>,
    /// What they log from now on.
    lines: mpsc::UnboundedReceiver<Line>,
    /// Their configuration.
    _directory: TempDir,
}

pub(crate) struct Sidecar {
    pub(crate) address: Address,
    pub(crate) pid: Pid,
    _child: Child,
}

/// A line of a sidecar's log.
struct Line {
    sidecar: usize,
    /// When it was read here.
    at: Instant,
    message: String,
}

/// Watches what sidecars report to the store.
pub(crate) struct StatusWatch(BoxStream<'static, Bytes>);

/// What a sidecar logs when its freshness changes.
pub(crate) const STALE: &str = "no proof that what is in force is current; it stays";
pub(crate) const FRESH: &str = "what is in force is proved to be current";

/// Longer than anything should take: what takes longer is a fault, not a measurement.
const LIMIT: Duration = Duration::from_secs(30);

impl Fleet {
    /// Starts so many sidecars and waits until all of them are ready, which they are not before they know that they are current.
    pub(crate) async fn start(stage: &FanOut, deployment: &Deployment, sidecars: usize) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let config = directory.path().join("stockade.yaml");
        std::fs::write(&config, configuration(deployment)?).context("cannot write the sidecars' configuration")?;
        let mut started = Vec::new();
        for sidecar in 0..sidecars {
            let child = Command::new(&stage.stockade)
                .arg("serve")
                .arg("--config")
                .arg(&config)
                .env("POD_NAME", pod(sidecar))
                .env("POD_NAMESPACE", "fanout")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("cannot start a sidecar")?;
            started.push(child);
        }
        let (sender, lines) = mpsc::unbounded_channel();
        let mut ready = Vec::new();
        for (sidecar, mut child) in started.into_iter().enumerate() {
            let mut log = BufReader::new(child.stderr.take().context("a sidecar has no stderr")?).lines();
            let listening = timeout(START_LIMIT, stockade_listens(&mut log)).await;
            let address = listening.context("a sidecar did not get ready in time")??.ext_authz;
            let pid = child.id().and_then(Pid::new).context("a sidecar ended at once")?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(Some(line)) = log.next_line().await {
                    let at = Instant::now();
                    if let Ok(LogLine { message, .. }) = serde_json::from_str(&line) {
                        // The receiver is gone.
                        let _ = sender.send(Line { sidecar, at, message });
                    }
                }
            });
            ready.push(Sidecar { address, pid, _child: child });
        }
        Ok(Self { sidecars: ready, lines, _directory: directory })
    }

    /// When each sidecar logs this for the first time from now on.
    ///
    /// # Errors
    /// If one does not.
    pub(crate) async fn all_log(&mut self, message: &str) -> anyhow::Result<Vec<Instant>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let mut said = HashMap::new();
        while said.len() < self.sidecars.len() {
            match timeout_at(deadline, self.lines.recv()).await {
                Ok(Some(line)) if line.message == message => {
                    said.entry(line.sidecar).or_insert(line.at);
                }
                Ok(Some(_)) => {}
                Ok(None) => bail!("all sidecars ended"),
                Err(_) => bail!("{} of {} sidecars logged `{message}`", said.len(), self.sidecars.len()),
            }
        }
        Ok(said.into_values().collect())
    }

    /// Forgets what was logged before.
    pub(crate) fn forget(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// CPU time of all sidecars together.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.sidecars.iter().map(|sidecar| sidecar.pid.cpu_time()).sum()
    }
}

impl StatusWatch {
    /// Watches from now on.
    pub(crate) async fn open(deployment: &Deployment) -> anyhow::Result<Self> {
        let heard = deployment.publisher.session.store.hear_statuses().await?;
        Ok(Self(heard.map(|message| message.payload).boxed()))
    }

    /// What `read` makes of the first status of each of so many sidecars that it makes something of.
    ///
    /// # Errors
    /// If one reports nothing of the kind.
    pub(crate) async fn all_report<T>(
        &mut self,
        sidecars: usize,
        read: impl Fn(&Status) -> Option<T>,
    ) -> anyhow::Result<Vec<T>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        while found.len() < sidecars {
            let Ok(message) = timeout_at(deadline, self.0.next()).await else {
                bail!("{} of {sidecars} sidecars report that they enforce it", found.len());
            };
            let message = message.context("the connection was closed")?;
            let status: Status = serde_json::from_slice(&message).context("a status cannot be read")?;
            if let Some(value) = read(&status)
                && seen.insert(status.pod)
            {
                found.push(value);
            }
        }
        Ok(found)
    }
}

fn pod(sidecar: usize) -> String {
    format!("sidecar-{sidecar:04}")
}

/// One for all of them, with defaults wherever what is measured could depend on it.
fn configuration(deployment: &Deployment) -> anyhow::Result<String> {
    let mut text = format!(
        "service: shop\nworkers: 1\nlisten: [\"tcp://127.0.0.1:0\"]\nadmin:\n  listen: none\nlog:\n  format: json\n\
         nats:\n  servers: [\"{}\"]\nstore:\n  name: {STORE}\n  keys:\n",
        deployment.nats.url()
    );
    for trusted in deployment.keys.trusted()? {
        let roles: Vec<_> = trusted.roles.iter().map(|role| role.as_str()).collect();
        // Writing to a String cannot fail.
        let _ = write!(text, "    - key: {}\n      roles: [{}]\n", trusted.key, roles.join(", "));
    }
    Ok(text)
}
