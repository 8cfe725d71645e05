//! Starts the real NATS server, and does to it what happens to servers.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::certificates::Authority;
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
    pub dir: TempDir,
    /// Its configuration, with `@PORT@` and `@DIR@` in the place of those two.
    config: String,
    child: Child,
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
        Self::launch(TempDir::new().unwrap(), config).await
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
        Self::launch(dir, edit(config)).await
    }

    async fn launch(dir: TempDir, config: String) -> Self {
        let (child, port) = launch(&dir, None, &config).await;
        Self { port, dir, config, child }
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
        (self.child, _) = launch(&self.dir, Some(self.port), &self.config).await;
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
async fn launch(dir: &TempDir, port: Option<u16>, config: &str) -> (Child, u16) {
    let port = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let file = dir.path().join("nats.conf");
    let config = config.replace("@PORT@", &port).replace("@DIR@", &dir.path().display().to_string());
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new(binary())
        .arg("--config")
        .arg(&file)
        .env("NATS_SERVER_NAME", "test")
        .envs(USERS.map(|(user, variable)| (variable, format!("{user}-secret"))))
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
