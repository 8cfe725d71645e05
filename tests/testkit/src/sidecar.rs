//! Starts the real binary on port 0 and talks to it.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::process::{self, Line, Lines};
use crate::{PATIENCE, binary, http_get};

/// A running sidecar. Killed when dropped.
pub struct Stockade {
    /// `tcp://127.0.0.1:PORT` or `unix:///path`, in the order of the configuration.
    pub addresses: Vec<String>,
    admin: Option<String>,
    /// `127.0.0.1:PORT` of the listener for probes.
    pub probes: Option<String>,
    /// A directory of its own, which holds `stockade.yaml`.
    pub dir: TempDir,
    child: Child,
    log: Lines,
    /// What was read from the log so far.
    pub seen: Vec<Value>,
}

impl Stockade {
    // === starting ===

    /// Starts with this bundle; `more` is appended to the configuration. Waits until it is ready.
    pub async fn with_bundle(bundle: &Path, more: &str) -> Self {
        let mut stockade = Self::start(&config(bundle, more), TempDir::new().unwrap()).await;
        stockade.ready().await;
        stockade
    }

    /// Starts with this configuration, in this directory. Waits until it listens.
    pub async fn start(config: &str, dir: TempDir) -> Self {
        Self::start_by(Command::new(binary()), config, dir).await
    }

    /// The same, with so many file descriptors at most.
    pub async fn start_with_open_files(limit: usize, config: &str, dir: TempDir) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(binary());
        Self::start_by(shell, config, dir).await
    }

    /// The same, by a command that ends in running the binary with the arguments that are added to it.
    pub async fn start_by(mut command: Command, config: &str, dir: TempDir) -> Self {
        command.stdout(Stdio::piped());
        let mut stockade = Self::spawn(command, config, dir).unwrap();
        stockade.try_listening(PATIENCE).await.unwrap_or_else(|error| panic!("{error}"));
        stockade
    }

    /// Starts it by such a command, and waits for nothing. The command says where its standard output goes.
    ///
    /// # Errors
    /// If its configuration cannot be written, or the command not be run.
    pub fn spawn(mut command: Command, config: &str, dir: TempDir) -> io::Result<Self> {
        let file = dir.path().join("stockade.yaml");
        std::fs::write(&file, config)?;
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let log = process::lines(child.stderr.take().expect("a pipe"));
        Ok(Self { addresses: Vec::new(), admin: None, probes: None, dir, child, log, seen: Vec::new() })
    }

    /// Waits until it listens, after which its addresses are known.
    ///
    /// # Errors
    /// With its log, if it ends or takes longer.
    pub async fn try_listening(&mut self, limit: Duration) -> Result<(), String> {
        self.try_log_line(limit, |line| line["message"] == "new phase").await?;
        for line in self.seen.iter().filter(|line| line["message"] == "listening") {
            let address = line["address"].as_str().expect("an address").to_owned();
            match line["listener"].as_str() {
                Some("admin") => self.admin = Some(address),
                Some("probes") => self.probes = address.strip_prefix("tcp://").map(str::to_owned),
                _ => self.addresses.push(address),
            }
        }
        Ok(())
    }

    /// Waits until it is ready, once it listens.
    pub async fn ready(&mut self) {
        self.try_ready(PATIENCE).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same.
    ///
    /// # Errors
    /// With its log, if it refuses its bundles, ends or takes longer.
    pub async fn try_ready(&mut self, limit: Duration) -> Result<(), String> {
        let refused = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("bundles refused"));
        let line = self.try_log_line(limit, |line| line["message"] == "ready" || refused(line)).await?;
        if refused(&line) { Err(format!("not a good bundle: {line:#}")) } else { Ok(()) }
    }

    // === its log ===

    /// Waits for a line of the log; lines before it are kept in `seen`. Fails if the process ends first.
    pub async fn log_line(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.try_log_line(PATIENCE, wanted).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// With the log, if the process ends first or the time is over.
    pub async fn try_log_line(&mut self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value, String> {
        let (seen, log) = (&mut self.seen, &mut self.log);
        let found = process::first("stockade", log, limit, |line| {
            let line = parsed(line);
            seen.push(line.clone());
            wanted(&line).then_some(line)
        });
        found.await
    }

    /// The next line of the log, kept in `seen` as well; `None` once the process has ended and all was read.
    pub async fn next_line(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.log.recv()).await.expect("a line in time")?;
        let line = parsed(&line);
        self.seen.push(line.clone());
        Some(line)
    }

    /// The lines of the log from now on, for who reads them while they do something else.
    pub fn take_log(&mut self) -> Lines {
        std::mem::replace(&mut self.log, mpsc::unbounded_channel().1)
    }

    // === what it is asked ===

    /// `127.0.0.1:PORT` of the first TCP listener.
    pub fn tcp(&self) -> &str {
        self.addresses.iter().find_map(|address| address.strip_prefix("tcp://")).expect("a TCP listener")
    }

    /// A client of the first TCP listener.
    pub async fn client(&self) -> AuthorizationClient<Channel> {
        AuthorizationClient::connect(format!("http://{}", self.tcp())).await.unwrap()
    }

    /// One check.
    pub async fn check(&self, request: CheckRequest) -> Result<CheckResponse, tonic::Status> {
        let call = async { self.client().await.check(request).await };
        timeout(PATIENCE, call).await.expect("an answer in time").map(tonic::Response::into_inner)
    }

    /// GETs a path of the admin endpoint: status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        http_get(self.admin_address(), path).await
    }

    /// `127.0.0.1:PORT` of the admin endpoint.
    pub fn admin_address(&self) -> &str {
        self.try_admin_address().expect("an admin listener on TCP")
    }

    /// The same, if it has one.
    pub fn try_admin_address(&self) -> Option<&str> {
        self.admin.as_ref()?.strip_prefix("tcp://")
    }

    // === its process ===

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running process")
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        process::signal(self.pid(), signal);
    }

    /// Waits for the end.
    pub async fn wait(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.try_wait()).await.expect("an end in time").unwrap()
    }

    /// The same, however long it takes.
    ///
    /// # Errors
    /// As the system says.
    pub async fn try_wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait().await
    }

    /// Its standard output, for who reads it while it runs.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Everything that it wrote to standard output, once it has ended.
    pub async fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.take_stdout().read_to_string(&mut text).await.unwrap();
        text
    }
}

/// A line of the log; what is not JSON, such as an error at the start, as a string.
fn parsed(line: &Line) -> Value {
    serde_json::from_str(&line.text).unwrap_or_else(|_| Value::String(line.text.clone()))
}

/// A configuration on port 0 for this bundle. Its drain is short: no test waits for Envoy to notice.
pub fn config(bundle: &Path, more: &str) -> String {
    let has = |key: &str| more.lines().any(|line| line.starts_with(key));
    let listen = if has("listen:") { "" } else { "listen: [\"tcp://127.0.0.1:0\"]\n" };
    let service = if more.contains("service:") { "" } else { "service: bookstore\n" };
    let log = if more.contains("decision_log:") { "" } else { "decision_log: {output: none}\n" };
    let shutdown = if more.contains("shutdown:") { "" } else { "shutdown: {grace: 0s, drain: 5s}\n" };
    let admin = if has("admin:") { "" } else { "admin: {listen: \"tcp://127.0.0.1:0\"}\n" };
    format!(
        "{service}{listen}{log}{shutdown}{admin}workers: 2\nbundles: [{{directory: {}}}]\nlog: {{format: json}}\n{more}\n",
        bundle.display()
    )
}
