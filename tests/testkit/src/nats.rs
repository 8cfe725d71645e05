//! Starts the real NATS server, and does to it what happens to servers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::certificates::Authority;
use crate::process::{self, Lines};
use crate::{PATIENCE, installed, repository};

/// The server that `make nats` installs, or the one that `STOCKADE_NATS_SERVER` names.
pub fn binary() -> PathBuf {
    try_binary().unwrap_or_else(|error| panic!("{error}"))
}

/// The same.
///
/// # Errors
/// If there is none.
pub fn try_binary() -> Result<PathBuf, String> {
    installed("NATS server", "STOCKADE_NATS_SERVER", ".tools/nats/nats-server", "make nats")
}

/// A running NATS server with JetStream, on a port of its own that it keeps when it is started again. Killed when dropped.
pub struct NatsServer {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it keeps, and its configuration.
    pub dir: TempDir,
    /// Its configuration, with `@PORT@` and `@DIR@` in the place of those two.
    config: String,
    child: Child,
    /// When it last said that it is ready.
    pub ready: Instant,
    log: Lines,
}

/// The users of the shipped configuration, and where it takes their passwords from; the last one is of a namespace that tests add.
pub const USERS: [(&str, &str); 7] = [
    ("publisher", "PUBLISHER_PASSWORD"),
    ("overlays", "OVERLAYS_PASSWORD"),
    ("beacon", "BEACON_PASSWORD"),
    ("sidecar-shop", "SIDECAR_SHOP_PASSWORD"),
    ("admin", "ADMIN_PASSWORD"),
    ("viewer", "VIEWER_PASSWORD"),
    ("sidecar-bank", "SIDECAR_BANK_PASSWORD"),
];

impl NatsServer {
    /// Without any permissions: everyone may do everything.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// With more configuration, such as users.
    pub async fn with(more: &str) -> Self {
        // By default the server takes no more than a part of the disk: what is left of it must not decide a test.
        let limits = "max_file_store: 16GB, max_memory_store: 2GB";
        let jetstream = format!("jetstream {{ store_dir: \"@DIR@/data\", {limits} }}");
        let config = format!("listen: \"127.0.0.1:@PORT@\"\n{jetstream}\n{more}\n");
        Self::launch(config).await
    }

    /// As `k8s/nats/nats.conf` has it: TLS for `localhost`, by `ca.pem` in its directory, and the [`USERS`], each with a
    /// password that is its name and `-secret`, in a file of its name. Nothing is left out but the port of its statistics.
    pub async fn shipped() -> Self {
        Self::shipped_with(|config| config).await
    }

    /// The same, edited.
    pub async fn shipped_with(edit: impl FnOnce(String) -> String) -> Self {
        let dir = TempDir::new().unwrap();
        Authority::new().write_server(dir.path());
        for (user, _) in USERS {
            std::fs::write(dir.path().join(user), format!("{user}-secret\n")).unwrap();
        }
        let mut config = std::fs::read_to_string(repository("k8s/nats/nats.conf")).unwrap();
        for (from, to) in [
            ("0.0.0.0:4222", "\"127.0.0.1:@PORT@\""),
            ("http: 127.0.0.1:8222", ""),
            ("/etc/nats/tls/tls.crt", "@DIR@/server.pem"),
            ("/etc/nats/tls/tls.key", "@DIR@/server.key"),
            ("/etc/nats/tls/ca.crt", "@DIR@/ca.pem"),
            ("/data/jetstream", "@DIR@/data"),
        ] {
            assert!(config.contains(from), "k8s/nats/nats.conf has no `{from}` any more");
            config = config.replace(from, to);
        }
        Self::try_launch(dir, edit(config)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn launch(config: String) -> Self {
        Self::try_launch(TempDir::new().unwrap(), config).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// With this configuration and nothing else, in which `@PORT@` and `@DIR@` stand for its port and this directory.
    ///
    /// # Errors
    /// With its log, if it does not start.
    pub async fn try_launch(dir: TempDir, config: String) -> Result<Self, String> {
        let Launched { child, log, port, ready } = launch(dir.path(), None, &config).await?;
        Ok(Self { port, dir, config, child, ready, log })
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
        self.try_start_again().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same.
    ///
    /// # Errors
    /// With its log, if it does not start.
    pub async fn try_start_again(&mut self) -> Result<(), String> {
        let Launched { child, log, ready, .. } = launch(self.dir.path(), Some(self.port), &self.config).await?;
        (self.child, self.log, self.ready) = (child, log, ready);
        Ok(())
    }

    /// The lines that it has logged since it was ready, or since this was last asked.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.log.try_recv().ok()).map(|line| line.text).collect()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running server")
    }

    /// Loses everything that it kept, while it is not running.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Stops it without ending it: connections stay open, and nothing is answered (SIGSTOP).
    pub fn freeze(&self) {
        process::signal(self.pid(), "STOP");
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        process::signal(self.pid(), "CONT");
    }
}

/// A process that is ready.
struct Launched {
    child: Child,
    log: Lines,
    port: u16,
    ready: Instant,
}

/// Starts it and waits until it is ready.
async fn launch(dir: &Path, port: Option<u16>, config: &str) -> Result<Launched, String> {
    let binary = try_binary()?;
    let port = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let file = dir.join("nats.conf");
    let config = config.replace("@PORT@", &port).replace("@DIR@", &dir.display().to_string());
    std::fs::write(&file, config).map_err(|error| format!("cannot write `{}`: {error}", file.display()))?;
    let mut child = Command::new(&binary)
        .arg("--config")
        .arg(&file)
        .env("NATS_SERVER_NAME", "test")
        .envs(USERS.map(|(user, variable)| (variable, format!("{user}-secret"))))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start `{}`: {error}", binary.display()))?;
    let mut log = process::lines(child.stderr.take().expect("a pipe"));
    let mut port = None;
    let ready = process::first("the NATS server", &mut log, PATIENCE, |line| {
        if let Some((_, address)) = line.text.split_once("Listening for client connections on ") {
            port = address.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        }
        line.text.contains("Server is ready").then_some(line.at)
    });
    let ready = ready.await?;
    let port = port.ok_or("the NATS server is ready, but its log has no port")?;
    Ok(Launched { child, log, port, ready })
}
