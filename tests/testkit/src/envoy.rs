//! Starts the real Envoy, and reads what it logs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::http::Request;
use crate::{PATIENCE, installed, process, repository};

/// The Envoy that `make envoy` installs, or the one that `STOCKADE_ENVOY` names.
pub fn binary() -> PathBuf {
    installed("Envoy", "STOCKADE_ENVOY", ".tools/envoy/envoy", "make envoy").unwrap_or_else(|error| panic!("{error}"))
}

/// Where the parts of a configuration in `envoy/` are in a test.
pub struct Places<'a> {
    /// The upstream.
    pub app: SocketAddr,
    /// The directory in the place of `/etc/envoy`.
    pub etc: &'a Path,
    /// The socket in the place of `/run/stockade/authz.sock`, or the address in the place of `127.0.0.1:9191`.
    pub stockade: &'a str,
}

/// A configuration of `envoy/`: valid as it stands, with real addresses and paths, so they are replaced by those of the
/// test. Everything else is tested as it is shipped, but the timeouts: a test machine may be slower than any.
pub fn shipped(name: &str, places: &Places<'_>) -> String {
    let mut text = std::fs::read_to_string(repository("envoy").join(name)).unwrap();
    let mut swap = |from: &str, to: &str| text = text.replace(from, to);
    swap("address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 0");
    swap("address: 0.0.0.0, port_value: 10000", "address: 127.0.0.1, port_value: 0");
    swap("port_value: 8080", &format!("port_value: {}", places.app.port()));
    swap("timeout: 0.25s", "timeout: 60s");
    swap("/etc/envoy", &places.etc.display().to_string());
    match places.stockade.strip_prefix("unix://") {
        Some(path) => swap("/run/stockade/authz.sock", path),
        None => swap("port_value: 9191", &format!("port_value: {}", places.stockade.rsplit(':').next().unwrap())),
    }
    for left in ["9901", "10000", "8080", "9191", "0.25s", "/run/", "/etc/"] {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let line = lines.iter().find(|line| line.contains(left) && !line.contains(places.stockade));
        assert!(line.is_none(), "envoy/{name} still has `{left}`: {}", line.unwrap());
    }
    text
}

/// A running Envoy. Killed when dropped.
pub struct Envoy {
    /// Its admin endpoint.
    pub admin: SocketAddr,
    /// The addresses of its listeners, by name.
    pub listeners: BTreeMap<String, SocketAddr>,
    access_log: mpsc::UnboundedReceiver<Value>,
    _dir: TempDir,
    _child: Child,
}

impl Envoy {
    /// Starts with this configuration, in YAML or JSON, and waits until every listener listens.
    pub async fn start(config: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (file, admin_file) = (dir.path().join("envoy.yaml"), dir.path().join("admin"));
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new(binary())
            .arg("--config-path")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            // No shared memory, so that any number of them can run side by side.
            .args(["--disable-hot-restart", "--concurrency", "1"])
            // Nothing of the access log is held back for long.
            .args(["--file-flush-interval-msec", "10"])
            .args(["--log-level", "warning", "--component-log-level", "config:info"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut access_lines = process::lines(child.stdout.take().unwrap());
        let (sender, access_log) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(line) = access_lines.recv().await {
                // What Envoy writes beside its access log goes the way of a test's own output.
                match serde_json::from_str(&line.text) {
                    Ok(line) => _ = sender.send(line),
                    Err(_) => println!("{}", line.text),
                }
            }
        });
        let mut log = process::lines(child.stderr.take().unwrap());
        let started =
            process::first("envoy", &mut log, PATIENCE, |line| line.text.contains("starting workers").then_some(()));
        started.await.unwrap_or_else(|error| panic!("{error}"));
        let admin = std::fs::read_to_string(&admin_file).unwrap();
        let admin = admin.parse().unwrap();
        let listeners = Request::get("/listeners?format=json").send(admin).await.body;
        let listeners: Value = serde_json::from_str(&listeners).unwrap();
        let listeners = listeners["listener_statuses"].as_array().unwrap().iter().map(|status| {
            let address = &status["local_address"]["socket_address"];
            let ip = address["address"].as_str().unwrap().parse().unwrap();
            let port = u16::try_from(address["port_value"].as_u64().unwrap()).unwrap();
            (status["name"].as_str().unwrap().to_owned(), SocketAddr::new(ip, port))
        });
        Self { admin, listeners: listeners.collect(), access_log, _dir: dir, _child: child }
    }

    /// The address of a listener.
    pub fn listener(&self, name: &str) -> SocketAddr {
        *self.listeners.get(name).unwrap_or_else(|| panic!("no listener `{name}`: {:?}", self.listeners))
    }

    /// The next line of the access log.
    pub async fn logged(&mut self) -> Value {
        timeout(PATIENCE, self.follow()).await.expect("a line of the access log").expect("a running envoy")
    }

    /// The next line of the access log, however long it takes; `None` if Envoy ends.
    pub async fn follow(&mut self) -> Option<Value> {
        self.access_log.recv().await
    }

    /// A counter or gauge; 0 if it does not exist yet.
    pub async fn stat(&self, name: &str) -> u64 {
        let text = Request::get(format!("/stats?filter=^{name}$")).send(self.admin).await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

/// Whether Envoy takes a configuration, and what it says if not.
pub async fn validate(config: &Path) -> Result<(), String> {
    let command = Command::new(binary())
        .args(["--mode", "validate", "--log-level", "warning", "--config-path"])
        .arg(config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, command).await.expect("an end in time").unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
