//! Starts the real binary on port 0 and talks to it.

pub mod certificates;
pub mod envoy;
pub mod http;
pub mod nats;
pub mod token;
pub mod upstream;

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;

/// How long anything may take before a test fails: much longer than it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Something that a test needs is not there: an error where `CI` is set, as `.ci/run` does, and said past the harness elsewhere, which
/// keeps what passing tests print to itself.
#[allow(dead_code, reason = "the demo skips nothing")]
#[allow(clippy::disallowed_methods, reason = "the harness does not show it otherwise")]
pub fn skipped(why: &str) {
    use std::io::Write as _;
    assert!(std::env::var_os("CI").is_none(), "cannot be tested: {why}");
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The binary under test. Cargo tells tests where it is; the demo, an example, finds it beside its own directory.
pub fn binary() -> PathBuf {
    option_env!("CARGO_BIN_EXE_stockade").map_or_else(
        || {
            let demo = std::env::current_exe().unwrap();
            demo.parent().and_then(Path::parent).unwrap().join("stockade")
        },
        PathBuf::from,
    )
}

/// A running sidecar. Killed when dropped.
pub struct Stockade {
    /// `tcp://127.0.0.1:PORT` or `unix:///path`, in the order of the configuration.
    pub addresses: Vec<String>,
    admin: Option<String>,
    /// `127.0.0.1:PORT` of the listener for probes.
    #[allow(dead_code, reason = "the demo has none")]
    pub probes: Option<String>,
    /// A directory of its own, which holds `stockade.yaml`.
    #[allow(dead_code, reason = "the demo looks into it")]
    pub dir: TempDir,
    child: Child,
    log: mpsc::UnboundedReceiver<Value>,
    /// What was read from the log so far.
    pub seen: Vec<Value>,
}

impl Stockade {
    /// Starts with this bundle; `more` is appended to the configuration. Waits until it is ready.
    pub async fn with_bundle(bundle: &Path, more: &str) -> Self {
        let mut stockade = Self::start(&config(bundle, more), TempDir::new().unwrap()).await;
        let refused = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("bundles refused"));
        let line = stockade.log_line(|line| line["message"] == "ready" || refused(line)).await;
        assert!(!refused(&line), "not a good bundle: {line:#}");
        stockade
    }

    /// Starts with this configuration, in this directory. Waits until it listens.
    pub async fn start(config: &str, dir: TempDir) -> Self {
        Self::start_by(Command::new(binary()), config, dir).await
    }

    /// The same, with so many file descriptors at most.
    #[allow(dead_code, reason = "the demo has enough")]
    pub async fn start_with_open_files(limit: usize, config: &str, dir: TempDir) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(binary());
        Self::start_by(shell, config, dir).await
    }

    /// The same, by a command that ends in running the binary with the arguments that are added to it.
    pub async fn start_by(mut command: Command, config: &str, dir: TempDir) -> Self {
        let file = dir.path().join("stockade.yaml");
        std::fs::write(&file, config).unwrap();
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (sender, log) = mpsc::unbounded_channel();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut stockade = Self { addresses: Vec::new(), admin: None, probes: None, dir, child, log, seen: Vec::new() };
        stockade.log_line(|line| line["message"] == "new phase").await;
        for line in stockade.seen.iter().filter(|line| line["message"] == "listening") {
            let address = line["address"].as_str().unwrap().to_owned();
            match line["listener"].as_str() {
                Some("admin") => stockade.admin = Some(address),
                Some("probes") => stockade.probes = address.strip_prefix("tcp://").map(str::to_owned),
                _ => stockade.addresses.push(address),
            }
        }
        stockade
    }

    /// Waits for a line of the log; lines before it are kept in `seen`. Fails if the process ends first.
    pub async fn log_line(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let find = async {
            loop {
                match self.log.recv().await {
                    Some(line) => {
                        self.seen.push(line.clone());
                        if wanted(&line) {
                            return line;
                        }
                    }
                    None => panic!("stockade ended; its log: {:#?}", self.seen),
                }
            }
        };
        match timeout(PATIENCE, find).await {
            Ok(line) => line,
            Err(_) => panic!("the line did not come; the log: {:#?}", self.seen),
        }
    }

    /// The next line of the log, kept in `seen` as well; `None` once the process has ended and all was read.
    pub async fn next_line(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.log.recv()).await.expect("a line in time")?;
        self.seen.push(line.clone());
        Some(line)
    }

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
        self.admin.as_ref().expect("an admin listener").strip_prefix("tcp://").unwrap()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running process")
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill").args([format!("-{signal}"), self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end.
    pub async fn wait(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("an end in time").unwrap()
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
        self.child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }
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

/// GETs `http://address/path`: status and body.
pub async fn http_get(address: &str, path: &str) -> (u16, String) {
    let get = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.split(' ').nth(1).expect("a status").parse().unwrap(), body.to_owned())
    };
    timeout(PATIENCE, get).await.expect("an answer in time")
}

/// A GET of a path, as Envoy sends it, without an identity.
pub fn get(path: &str) -> CheckRequest {
    request("GET", path, &[])
}

/// A request with these headers, as Envoy sends it.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let pseudo = [(":method", method), (":path", path), (":authority", "bookstore.example"), (":scheme", "http")];
    let headers = pseudo.iter().chain(headers).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer { address: Some(socket("192.0.2.7", 40_000)), ..Peer::default() }),
            destination: Some(Peer { address: Some(socket("192.0.2.1", 8080)), ..Peer::default() }),
            request: Some(Request {
                time: None,
                http: Some(HttpRequest {
                    method: method.to_owned(),
                    path: path.to_owned(),
                    host: "bookstore.example".to_owned(),
                    scheme: "http".to_owned(),
                    protocol: "HTTP/1.1".to_owned(),
                    headers: headers.collect(),
                    ..HttpRequest::default()
                }),
            }),
            ..AttributeContext::default()
        }),
    }
}

fn socket(address: &str, port: u32) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}
