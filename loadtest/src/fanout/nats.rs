//! The real NATS server, and what happens to servers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::server::Pid;

/// Where `make nats` puts it.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/nats/nats-server");

const START_LIMIT: Duration = Duration::from_secs(30);

/// A NATS server with JetStream on a port of its own, which it keeps when it is started again. Killed when dropped.
pub(crate) struct Nats {
    program: PathBuf,
    directory: TempDir,
    port: u16,
    child: Child,
    pub(crate) pid: Pid,
    /// When it said that it is ready.
    pub(crate) ready: Instant,
    /// The lines of its log that report an error, of all its lives.
    errors: Arc<Mutex<Vec<String>>>,
}

/// A server that is ready.
struct Started {
    child: Child,
    port: u16,
    ready: Instant,
}

/// The server that `STOCKADE_NATS_SERVER` names, or the one that `make nats` installs.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let binary = std::env::var_os("STOCKADE_NATS_SERVER").map_or_else(|| PathBuf::from(INSTALLED), PathBuf::from);
    let name = binary.display();
    ensure!(binary.is_file(), "no NATS server at `{name}`: run `make nats`, or name one in STOCKADE_NATS_SERVER");
    Ok(binary)
}

impl Nats {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (program, directory) = (binary()?, tempfile::tempdir().context("cannot make a directory")?);
        let errors = Arc::default();
        let Started { child, port, ready } = launch(&program, directory.path(), None, &errors).await?;
        let pid = child.id().and_then(Pid::new).context("the NATS server ended at once")?;
        Ok(Self { program, directory, port, child, pid, ready, errors })
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Stops it without ending it: connections stay open, and nothing is answered.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        self.pid.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> anyhow::Result<()> {
        self.pid.signal(Signal::CONT)
    }

    /// Ends it as a crash does, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill the NATS server")
    }

    /// Starts it again with what it kept, once it was killed.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        let Started { child, ready, .. } =
            launch(&self.program, self.directory.path(), Some(self.port), &self.errors).await?;
        self.pid = child.id().and_then(Pid::new).context("the NATS server ended at once")?;
        (self.child, self.ready) = (child, ready);
        Ok(())
    }

    /// What it called an error, in words for a fault.
    pub(crate) fn faults(&self) -> Vec<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let first = errors.first();
        first
            .map(|first| format!("{} errors in the server's log, the first: {first}", errors.len()))
            .into_iter()
            .collect()
    }
}

async fn launch(
    program: &Path,
    directory: &Path,
    port: Option<u16>,
    errors: &Arc<Mutex<Vec<String>>>,
) -> anyhow::Result<Started> {
    let wanted = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let data = directory.join("data").display().to_string();
    let text = format!("host: 127.0.0.1\nport: {wanted}\njetstream {{ store_dir: {data:?}, sync_interval: always }}\n");
    let file = directory.join("nats.conf");
    std::fs::write(&file, text).context("cannot write the NATS server's configuration")?;
    let mut child = Command::new(program)
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let log = child.stderr.take().context("the NATS server has no stderr")?;
    let (port, ready) =
        timeout(START_LIMIT, follow(log, errors)).await.context("the NATS server did not start in time")??;
    Ok(Started { child, port, ready })
}

/// Reads the log until the server is ready; the rest is read beside, and its errors are kept.
async fn follow(log: ChildStderr, errors: &Arc<Mutex<Vec<String>>>) -> anyhow::Result<(u16, Instant)> {
    let mut lines = BufReader::new(log).lines();
    let (mut port, mut seen) = (None, String::new());
    while let Some(line) = lines.next_line().await? {
        if let Some((_, address)) = line.split_once("Listening for client connections on ") {
            port = address.rsplit(':').next().and_then(|port| port.trim().parse::<u16>().ok());
        }
        if line.contains("Server is ready") {
            let ready = Instant::now();
            let port = port.context("the NATS server is ready, but logged no port")?;
            let errors = Arc::clone(errors);
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    if is_error(&line) {
                        errors.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    }
                }
            });
            return Ok((port, ready));
        }
        seen.push('\n');
        seen.push_str(&line);
    }
    bail!("the NATS server ended before it was ready:{seen}")
}

fn is_error(line: &str) -> bool {
    ["[ERR]", "[FTL]", "[WRN]"].iter().any(|mark| line.contains(mark))
}
