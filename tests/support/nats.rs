//! Starts the real NATS server, and does to it what happens to servers.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PATIENCE, repository};

/// The server that `make nats` installs, or the one that `STOCKADE_NATS_SERVER` names.
pub fn binary() -> PathBuf {
    let named = std::env::var_os("STOCKADE_NATS_SERVER");
    let binary = named.map_or_else(|| repository(".tools/nats/nats-server"), PathBuf::from);
    assert!(
        binary.is_file(),
        "there is no NATS server at `{}`: run `make nats`, or name one in STOCKADE_NATS_SERVER",
        binary.display()
    );
    binary
}

/// A running NATS server with JetStream, on a port of its own that it keeps when it is started again. Killed when dropped.
pub struct NatsServer {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it keeps, and its configuration.
    dir: TempDir,
    /// Appended to its configuration.
    more: String,
    child: Child,
}

impl NatsServer {
    /// Without any permissions: everyone may do everything.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// With more configuration, such as users. Its own `port`, `host` and `jetstream` are taken care of.
    pub async fn with(more: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (child, port) = launch(&dir, None, more).await;
        Self { port, dir, more: more.to_owned(), child }
    }

    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it as a crash does, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        timeout(PATIENCE, self.child.wait()).await.expect("an end in time").unwrap();
    }

    /// Starts it again, on the same port with what it kept, once it was killed.
    pub async fn start_again(&mut self) {
        (self.child, _) = launch(&self.dir, Some(self.port), &self.more).await;
    }

    /// Loses everything that it kept, while it is not running.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Stops it without ending it: connections stay open, and nothing is answered (SIGSTOP).
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("a running server").to_string();
        let status = std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(status.unwrap().success());
    }
}

/// Starts it and waits until it is ready: the process and its port.
async fn launch(dir: &TempDir, port: Option<u16>, more: &str) -> (Child, u16) {
    let port = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let data = dir.path().join("data");
    let config =
        format!("host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: {:?} }}\n{more}\n", data.display().to_string());
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new(binary())
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    let started = async {
        let mut port = None;
        while let Some(line) = log.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                port = address.trim().rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
            }
            let ready = line.contains("Server is ready");
            seen.push(line);
            if ready {
                return port;
            }
        }
        None
    };
    let Some(port) = timeout(PATIENCE, started).await.unwrap_or(None) else {
        panic!("the NATS server did not start; its log:\n{}", seen.join("\n"));
    };
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    (child, port)
}
