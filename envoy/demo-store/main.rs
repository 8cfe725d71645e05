//! A tour of the central store: `make demo-store`.
//!
//! Starts a real nats-server, a beacon, and three sidecars, each with an Envoy before it; publishes, rolls back, denies somebody
//! everywhere, kills the store and brings it back. Every step is a command that is shown, and what it did is measured and asked of all
//! three Envoys. Fails if anything did not come out as the tour says.
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "it prints what it made itself")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "../demo/narrator.rs"]
mod narrator;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use narrator::Narrator;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::Request;
use testkit::nats::NatsServer;
use testkit::token::Issuer;
use testkit::upstream::Upstream;
use testkit::{Stockade, copy_folder};
use tokio::process::{Child, Command};

const SIDECARS: usize = 3;

/// The roles of keys, each with a key of its own.
const ROLES: [&str; 3] = ["publish", "overlay", "beacon"];

#[tokio::main]
async fn main() -> ExitCode {
    let mut tour = Tour::start().await;
    tour.opens().await;
    tour.publishes().await;
    tour.denies().await;
    tour.survives().await;
    tour.restarts_without_the_store().await;
    tour.recovers().await;
    tour.narrator.end()
}

struct Tour {
    narrator: Narrator,
    issuer: Issuer,
    home: TempDir,
    nats: NatsServer,
    /// The public keys, for the commands that read.
    trust: String,
    /// The same with their roles, as a sidecar is configured with them.
    keys: String,
    app: SocketAddr,
    pods: Vec<Pod>,
    /// It ends with the tour.
    _beacon: Child,
}

/// A sidecar with its Envoy.
struct Pod {
    name: String,
    config: String,
    /// `None` while it is not running.
    stockade: Option<Stockade>,
    envoy: Envoy,
}

impl Tour {
    async fn start() -> Self {
        let (home, issuer, app) = (TempDir::new().unwrap(), Issuer::new(), Upstream::start().await.address);
        let nats = NatsServer::start().await;
        let narrator = Narrator::new();
        let about = "Stockade: a tour of the central store, with the real nats-server and the real Envoy";
        println!("{}\n", narrator.bold(about));
        println!("  nats-server  {}", nats.url());
        let (mut keys, mut trust) = (Vec::new(), Vec::new());
        for role in ROLES {
            let file = home.path().join(format!("{role}.key"));
            let made = run(&["keygen", "--role", role, &file.display().to_string()]).await;
            let key = made.split_whitespace().find(|word| word.starts_with("ed25519:")).unwrap().to_owned();
            println!("  key          {key}, which may sign as `{role}`");
            keys.push(format!("{{key: \"{key}\", roles: [{role}]}}"));
            trust.push(key);
        }
        let beacon = command(&["beacon", "--key", &home.path().join("beacon.key").display().to_string()], &nats.url())
            .spawn()
            .unwrap();
        copy_folder(&testkit::repository("policies/bookstore"), &home.path().join("bookstore"));
        std::fs::write(home.path().join("jwks.json"), issuer.jwks()).unwrap();
        let (trust, keys) = (trust.join(","), keys.join(", "));
        Self { narrator, issuer, home, nats, trust, keys, app, pods: Vec::new(), _beacon: beacon }
    }

    async fn pod(&self, name: &str) -> Pod {
        let own = self.home.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let config = format!(
            "service: bookstore
listen: [\"unix://{home}/authz.sock\"]
admin: {{listen: 'tcp://127.0.0.1:0'}}
decision_log: {{output: 'file://{home}/decisions.jsonl'}}
log: {{format: json}}
shutdown: {{grace: 0s, drain: 1s}}
store:
  name: default
  pod: {name}
  namespace: shop
  keys: [{keys}]
  last_good: {{directory: {home}/last-good}}
nats: {{servers: [\"{url}\"]}}
",
            home = own.display(),
            keys = self.keys,
            url = self.nats.url(),
        );
        let stockade = sidecar(&config).await;
        let places = Places { app: self.app, etc: self.home.path(), stockade: &stockade.addresses[0] };
        let envoy = Envoy::start(&shipped("jwt.yaml", &places)).await;
        Pod { name: name.to_owned(), config, stockade: Some(stockade), envoy }
    }

    fn bundle(&self) -> String {
        self.home.path().join("bookstore").display().to_string()
    }

    // === the steps ===

    async fn opens(&mut self) {
        self.narrator.title("The first bundle, before there is anyone to enforce it");
        self.store(&["publish", &self.bundle(), "--message", "the bookstore opens"], "publish").await;
        self.narrator.title("Three pods: each a sidecar that follows the store, and an Envoy that asks it");
        for number in 1..=SIDECARS {
            let name = format!("bookstore-{number}");
            let pod = self.pod(&name).await;
            println!("   {name}: envoy at http://{}", pod.envoy.listener("ingress"));
            self.pods.push(pod);
        }
        self.all_are("fresh").await;
        self.store(&["status"], "").await;
    }

    async fn publishes(&mut self) {
        self.ask("alice", "GET /books", 200).await;
        self.narrator
            .title("Stocktaking: one more policy, published; the command returns when every sidecar enforces it");
        let closed = "@id(\"stocktaking\")\n@status(\"503\")\n@message(\"closed for stocktaking\")\nforbid (\n    principal,\n    \
                      action == Action::\"listBooks\",\n    resource\n);\n";
        self.narrator.quote(closed);
        std::fs::write(self.home.path().join("bookstore/policies/stocktaking.cedar"), closed).unwrap();
        let bundle = self.bundle();
        self.store(&["publish", &bundle, "--message", "stocktaking", "--wait", "100%"], "publish").await;
        self.ask("alice", "GET /books", 503).await;

        self.narrator.title("Back to the bundle before: a new version that names the old bundle");
        self.store(&["rollback", "--message", "we are done counting", "--wait", "100%"], "publish").await;
        self.ask("alice", "GET /books", 200).await;
        self.store(&["history"], "").await;
    }

    async fn denies(&mut self) {
        self.narrator
            .title("Mallory's laptop was stolen: an emergency denial, which overtakes everything and ends by itself");
        self.ask("mallory", "GET /books", 200).await;
        let deny = ["deny", "User::\"mallory\"", "--for", "2h", "--reason", "stolen laptop", "--wait", "100%"];
        self.store(&deny, "overlay").await;
        self.ask("mallory", "GET /books", 403).await;
        self.ask("alice", "GET /books", 200).await;
        self.store(&["overlays"], "").await;
    }

    async fn survives(&mut self) {
        self.narrator
            .title("The store is killed (SIGKILL): the sidecars decide as before, and know that they are stale");
        self.nats.kill().await;
        let begun = Instant::now();
        self.all_are("stale").await;
        println!("   all three say that they are stale {:.1?} after the kill", begun.elapsed());
        self.ask("alice", "GET /books", 200).await;
        self.ask("mallory", "GET /books", 403).await;
    }

    async fn restarts_without_the_store(&mut self) {
        self.narrator
            .title("A sidecar is killed and started meanwhile: it comes up from its copy on disk, and says so");
        let pod = &mut self.pods[0];
        if let Some(mut stockade) = pod.stockade.take() {
            stockade.signal("KILL");
            stockade.wait().await;
        }
        let begun = Instant::now();
        let stockade = sidecar(&pod.config).await;
        println!("   {} is ready {:.1?} after its start", pod.name, begun.elapsed());
        let said =
            stockade.seen.iter().find_map(|line| line["message"].as_str().filter(|text| text.contains("copy on disk")));
        let said = said.map(str::to_owned);
        pod.stockade = Some(stockade);
        match said {
            Some(said) => println!("   {}", self.narrator.dim(&said)),
            None => self.narrator.surprise("it to say so"),
        }
        self.ask("alice", "GET /books", 200).await;
        self.ask("mallory", "GET /books", 403).await;
    }

    async fn recovers(&mut self) {
        self.narrator.title("The store is started again");
        self.nats.start_again().await;
        let begun = Instant::now();
        self.all_are("fresh").await;
        println!("   all three are fresh again {:.1?} after it is ready", begun.elapsed());
        self.reported().await;
        self.store(&["status"], "").await;
    }

    /// Waits until the store knows again what each sidecar enforces, which it keeps in memory.
    async fn reported(&self) {
        let begun = Instant::now();
        testkit::until("all sidecars have reported", async || {
            let output = command(&["status", "--json"], &self.nats.url()).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            self.pods.iter().all(|pod| text.contains(&pod.name)).then_some(())
        })
        .await;
        println!("   the store knows again who enforces what, {:.1?} later", begun.elapsed());
    }

    /// Waits until each sidecar says that it is in this state.
    async fn all_are(&self, freshness: &str) {
        for pod in &self.pods {
            testkit::until(&format!("{} is {freshness}", pod.name), async || {
                let (_, text) = pod.stockade.as_ref().unwrap().admin("/snapshot").await;
                let snapshot: Value = serde_json::from_str(&text).unwrap();
                (snapshot["store"]["freshness"] == freshness).then_some(())
            })
            .await;
        }
    }

    // === telling ===

    /// Runs a command against the store, with the key of a role if it signs, and shows it with what it said.
    async fn store(&mut self, arguments: &[&str], role: &str) {
        let key = self.home.path().join(format!("{role}.key")).display().to_string();
        let mut all: Vec<&str> = arguments.to_vec();
        if !role.is_empty() {
            all.extend(["--key", &key, "--as", "tour"]);
        }
        let home = self.home.path().display().to_string();
        let shown: Vec<String> = all.iter().map(|word| quoted(&word.replace(&format!("{home}/"), ""))).collect();
        println!("   {}", self.narrator.bold(&format!("$ stockade {}", shown.join(" "))));
        let begun = Instant::now();
        let output = command(&all, &self.nats.url()).env("STOCKADE_TRUST", &self.trust).output().await.unwrap();
        for bytes in [&output.stderr, &output.stdout] {
            String::from_utf8_lossy(bytes).lines().for_each(|line| println!("   {line}"));
        }
        println!("   {}", self.narrator.dim(&format!("in {:.0?}", begun.elapsed())));
        if !output.status.success() {
            self.narrator.surprise("the command to succeed");
        }
    }

    /// Sends a request through every Envoy.
    async fn ask(&mut self, who: &str, line: &str, expected: u16) {
        let (method, path) = line.split_once(' ').unwrap();
        let token = self.issuer.token(who, &["readers"], json!({}));
        let mut statuses = Vec::new();
        for pod in &self.pods {
            let request = Request::new(method, path).bearer(&token);
            statuses.push(request.send(pod.envoy.listener("ingress")).await.status);
        }
        let shown = statuses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let good = statuses.iter().all(|status| *status == expected);
        let shown = if good && expected == 200 { self.narrator.green(&shown) } else { self.narrator.red(&shown) };
        println!("   {who}: {line}  ->  {shown}");
        if !good {
            self.narrator.surprise(&format!("{expected} from each"));
        }
    }
}

/// A sidecar that is ready.
async fn sidecar(config: &str) -> Stockade {
    let mut stockade = Stockade::start(config, TempDir::new().unwrap()).await;
    stockade.ready().await;
    stockade
}

/// `stockade` with these arguments, for the store at this address.
fn command(arguments: &[&str], store: &str) -> Command {
    let mut command = Command::new(testkit::binary());
    command.args(arguments).env("STOCKADE_STORE", store).kill_on_drop(true);
    command.stdin(std::process::Stdio::null());
    if arguments.first() == Some(&"beacon") {
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    }
    command
}

async fn run(arguments: &[&str]) -> String {
    let output = command(arguments, "nats://127.0.0.1:1").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// As a shell would need it.
fn quoted(word: &str) -> String {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./%:".contains(c));
    if plain { word.to_owned() } else { format!("'{word}'") }
}
