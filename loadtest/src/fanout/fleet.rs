//! Sidecars: real processes that follow the store, what they tell it, and what they log.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use stockade::store::statement::Status;
use testkit::{Stockade, process};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::FanOut;
use super::desk::STORE;
use super::site::Site;
use crate::client::Address;
use crate::server::{self, Pid};

/// Sidecars that are ready. They are killed when it is dropped.
pub(crate) struct Fleet {
    pub(crate) sidecars: Vec<Sidecar>,
    /// What they log from now on.
    lines: mpsc::UnboundedReceiver<Line>,
}

pub(crate) struct Sidecar {
    pub(crate) address: Address,
    pub(crate) pid: Pid,
    _stockade: Stockade,
}

/// A line of a sidecar's log.
struct Line {
    sidecar: usize,
    /// When it was read here.
    at: Instant,
    message: String,
}

/// A line of a sidecar's log, as far as it matters here.
#[derive(Deserialize)]
struct LogLine {
    message: String,
}

/// What sidecars tell the store.
pub(crate) struct Ear(BoxStream<'static, Bytes>);

/// What a sidecar logs when its freshness changes.
pub(crate) const STALE: &str = "no proof that what is in force is current; it stays";
pub(crate) const FRESH: &str = "what is in force is proved to be current";

/// Longer than anything should take: what takes longer is a fault, not a measurement.
const LIMIT: Duration = Duration::from_secs(30);

impl Fleet {
    /// Starts so many sidecars and waits until all of them are ready, which they are not before they know that they are current.
    pub(crate) async fn start(stage: &FanOut, site: &Site, sidecars: usize) -> anyhow::Result<Self> {
        let config = configuration(site)?;
        // All are started before the first is waited for.
        let started = (0..sidecars).map(|sidecar| spawn(&stage.stockade, &config, sidecar));
        let started: Vec<_> = started.collect::<anyhow::Result<_>>()?;
        let (sender, lines) = mpsc::unbounded_channel();
        let mut ready = Vec::new();
        for (sidecar, stockade) in started.into_iter().enumerate() {
            let (mut stockade, address) = server::ready(stockade).await.context("a sidecar did not get ready")?;
            let pid = Pid::new(stockade.pid()).context("a sidecar has no process")?;
            tokio::spawn(forward(stockade.take_log(), sidecar, sender.clone()));
            ready.push(Sidecar { address, pid, _stockade: stockade });
        }
        Ok(Self { sidecars: ready, lines })
    }

    /// When each sidecar says this for the first time from now on.
    ///
    /// # Errors
    /// If one does not.
    pub(crate) async fn all_say(&mut self, message: &str) -> anyhow::Result<Vec<Instant>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let mut said = HashMap::new();
        while said.len() < self.sidecars.len() {
            match timeout_at(deadline, self.lines.recv()).await {
                Ok(Some(line)) if line.message == message => {
                    said.entry(line.sidecar).or_insert(line.at);
                }
                Ok(Some(_)) => {}
                Ok(None) => bail!("all sidecars ended"),
                Err(_) => bail!("{} of {} sidecars say `{message}`", said.len(), self.sidecars.len()),
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

impl Ear {
    /// Listens from now on.
    pub(crate) async fn open(site: &Site) -> anyhow::Result<Self> {
        let heard = site.desk.store.hear_statuses().await.map_err(anyhow::Error::msg)?;
        Ok(Self(heard.map(|message| message.payload).boxed()))
    }

    /// What `read` makes of the first status of each of so many sidecars that it makes something of.
    ///
    /// # Errors
    /// If one says nothing of the kind.
    pub(crate) async fn all_tell<T>(
        &mut self,
        sidecars: usize,
        read: impl Fn(&Status) -> Option<T>,
    ) -> anyhow::Result<Vec<T>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let (mut told, mut found) = (HashSet::new(), Vec::new());
        while found.len() < sidecars {
            let Ok(message) = timeout_at(deadline, self.0.next()).await else {
                bail!("{} of {sidecars} sidecars tell that they enforce it", found.len());
            };
            let message = message.context("the connection was closed")?;
            let status: Status = serde_json::from_slice(&message).context("a status cannot be read")?;
            if let Some(value) = read(&status)
                && told.insert(status.pod)
            {
                found.push(value);
            }
        }
        Ok(found)
    }
}

fn spawn(program: &Path, config: &str, sidecar: usize) -> anyhow::Result<Stockade> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let mut command = Command::new(program);
    command.env("POD_NAME", pod(sidecar)).env("POD_NAMESPACE", "fanout").stdout(Stdio::null());
    Stockade::spawn(command, config, directory).context("cannot start a sidecar")
}

/// Adds what one sidecar logs to what all of them log.
async fn forward(mut log: process::Lines, sidecar: usize, all: mpsc::UnboundedSender<Line>) {
    while let Some(line) = log.recv().await {
        if let Ok(LogLine { message }) = serde_json::from_str(&line.text) {
            // The receiver is gone once the fleet is.
            let _ = all.send(Line { sidecar, at: line.at, message });
        }
    }
}

fn pod(sidecar: usize) -> String {
    format!("sidecar-{sidecar:04}")
}

/// One for all of them, with defaults wherever what is measured could depend on it.
fn configuration(site: &Site) -> anyhow::Result<String> {
    let mut text = format!(
        "service: shop\nworkers: 1\nlisten: [\"tcp://127.0.0.1:0\"]\nadmin:\n  listen: none\nlog:\n  format: json\n\
         nats:\n  servers: [\"{}\"]\nstore:\n  name: {STORE}\n  keys:\n",
        site.nats.url()
    );
    for trusted in site.keys.trusted()? {
        let roles: Vec<_> = trusted.roles.iter().map(|role| role.as_str()).collect();
        // Writing to a String cannot fail.
        let _ = write!(text, "    - key: {}\n      roles: [{}]\n", trusted.key, roles.join(", "));
    }
    Ok(text)
}
