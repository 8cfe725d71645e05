//! A store with whoever writes to it, sidecars that follow it, and traffic that holds every answer against what was published.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use stockade::feed::source::Event;
use stockade::nats::{self, ConnectRetry, Connection};
use stockade::policy::Files;
use stockade::publish::overlays::Edit;
use stockade::publish::{Draft, Error, PackedBundle, Position, Session, Store};
use stockade::store::keys::Trusted;
use stockade::store::statement::{Manifest, OverlayEntry, Timestamp, Version};
use stockade::store::{Keyring, Kind, Role, SecretKey, envelope};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use testkit::nats::NatsServer;
use testkit::{PATIENCE, Stockade};

use super::{config, prod, store};

/// How often a beacon is said.
pub const BEAT: Duration = Duration::from_millis(500);

/// `stale_after`, as it is by default.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// A store in use.
pub struct Lab {
    pub server: NatsServer,
    pub store: Store,
    pub key: Arc<SecretKey>,
    /// What was published, each once the store had it: the number in the name of its one policy.
    published: Arc<Mutex<Vec<(Instant, u64)>>>,
    /// The process that says beacons, and its key.
    _beacon: (Child, TempDir),
}

/// One answer of a sidecar.
#[derive(Debug, Clone)]
pub struct Answer {
    sent: Instant,
    /// The number of the policy that allowed it.
    pub version: Option<u64>,
    pub freshness: String,
    code: i32,
}

/// A sidecar that is asked all the time.
pub struct Pod {
    pub sidecar: Stockade,
    answers: Arc<Mutex<Vec<Answer>>>,
    /// Changes with each answer.
    answered: watch::Sender<()>,
    traffic: JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.traffic.abort();
    }
}

impl Lab {
    /// With a first bundle.
    pub async fn start() -> Self {
        let server = NatsServer::start().await;
        let store = store(&server).await;
        let text = SecretKey::generate().unwrap();
        let key = Arc::new(SecretKey::parse(&text).unwrap());
        let file = TempDir::new().unwrap();
        let path = file.path().join("key");
        std::fs::write(&path, &text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let beacon = Command::new(testkit::binary())
            .args(["beacon", "--interval", "500ms", "--name", "prod", "--key"])
            .arg(&path)
            .args(["--store", &server.url(), "--trust", &key.public().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lab = Self { server, store, key, published: Arc::default(), _beacon: (beacon, file) };
        lab.publish().await;
        lab
    }

    /// Starts the server again, and waits until the publisher has found it.
    pub async fn start_server_again(&mut self) {
        self.server.start_again().await;
        self.server_is_back().await;
    }

    /// Waits until the publisher has found the server again.
    pub async fn server_is_back(&self) {
        eventually("the server is back", async || self.store.newest(Kind::Manifest).await.is_ok()).await;
    }

    /// Waits for the first beacon that is stored so long from now or later.
    pub async fn beacon_after(&self, time: Duration) {
        let begun = Instant::now();
        let (_source, mut events) = super::follow(&self.server).await;
        let is_beacon = |event: &Event| matches!(event, Event::Statement(Kind::Beacon, _));
        super::until(&mut events, |event| is_beacon(event) && begun.elapsed() >= time).await;
    }

    /// All that a key of this lab may say.
    pub fn keyring(&self) -> Keyring {
        keyring(&self.key)
    }

    /// The number of the newest bundle.
    pub fn newest(&self) -> u64 {
        self.published.lock().unwrap().last().map_or(0, |(_, number)| *number)
    }

    /// The store, with what this lab's key signs.
    pub fn session(&self) -> Session {
        Session { store: self.store.clone(), keyring: self.keyring() }
    }

    /// Publishes the next bundle, which shows its number in each answer.
    pub async fn publish(&mut self) -> u64 {
        let position = match self.session().position(false).await {
            Ok(position) => position,
            // What is not believed was put there by a test, and counts for nothing but its place.
            Err(Error::Unbelieved { .. } | Error::UnknownKey { .. }) => self.session().position(true).await.unwrap(),
            Err(error) => panic!("{error}"),
        };
        self.publish_at(position).await
    }

    /// The same, as this version.
    pub async fn publish_as(&mut self, version: Version, after: u64) -> u64 {
        self.publish_at(Position { current: None, after, version }).await
    }

    async fn publish_at(&mut self, position: Position) -> u64 {
        let number = self.newest() + 1;
        let packed = bundle(number);
        self.store.upload(&packed.blob, &packed.bytes).await.unwrap();
        let draft = Draft::new(packed.blob, "test");
        self.session().publish_manifest(&self.key, &position, draft).await.unwrap();
        self.published.lock().unwrap().push((Instant::now(), number));
        number
    }

    /// A manifest of a bundle with this number, and the bundle: for what no publisher would do with them.
    pub fn manifest(&self, version: Version, number: u64) -> (Manifest, Vec<u8>) {
        let packed = bundle(number);
        let manifest = Manifest {
            store: prod(),
            version,
            bundle: packed.blob,
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp::now(),
            publisher: "test".to_owned(),
            message: None,
            commit: None,
            rolls_back_to: None,
        };
        (manifest, packed.bytes)
    }

    /// Signs anything.
    pub fn seal(&self, kind: Kind, says: &impl serde::Serialize) -> Vec<u8> {
        envelope::seal(kind, &serde_json::to_vec(says).unwrap(), &self.key).unwrap()
    }

    /// Issues these overlays, one after the other.
    pub async fn issue(&self, overlays: Vec<OverlayEntry>) {
        for entry in overlays {
            self.session().edit_overlays(&self.key, "test", &Edit::Add(entry), false).await.unwrap();
        }
    }

    /// A connection that may do anything to the server.
    pub async fn operator(&self) -> Connection {
        nats::connect(&config(&self.server), "operator", ConnectRetry::Never).await.unwrap().0
    }

    /// A sidecar that follows the store, at this address of the server, and is asked all the time once it is ready.
    pub async fn pod(&self, url: &str, dir: TempDir, more: &str) -> Pod {
        let text = self.sidecar_config(url, more);
        let mut sidecar = Stockade::start(&text, dir).await;
        sidecar.log_line(|line| line["message"] == "ready").await;
        let answers = Arc::<Mutex<Vec<Answer>>>::default();
        let answered = watch::Sender::new(());
        let traffic = tokio::spawn(ask(sidecar.tcp().to_owned(), Arc::clone(&answers), answered.clone()));
        Pod { sidecar, answers, answered, traffic }
    }

    /// What a sidecar is told; `more` stands under `store`.
    pub fn sidecar_config(&self, url: &str, more: &str) -> String {
        format!(
            "listen: [\"tcp://127.0.0.1:0\"]\nadmin: {{listen: \"tcp://127.0.0.1:0\"}}\ndecision_log: {{output: none}}\n\
             shutdown: {{grace: 0s, drain: 5s}}\nlog: {{format: json}}\nworkers: 1\n\
             store:\n  name: prod\n  pod: pod\n  keys: [{{key: \"{}\", roles: [publish, overlay, beacon]}}]\n{more}\
             nats: {{servers: [\"{url}\"], timeout: 2s}}\n",
            self.key.public()
        )
    }

    /// What was in force at an instant.
    fn in_force(&self, at: Instant) -> u64 {
        let published = self.published.lock().unwrap();
        published.iter().rev().find(|(since, _)| *since <= at).map_or(0, |(_, number)| *number)
    }

    /// Holds all answers of a pod against what was published: each was allowed, by a policy that was published, and who says that it
    /// is fresh enforced what was in force no longer ago than `stale_after`.
    pub fn check(&self, pod: &Pod) -> Vec<Answer> {
        let answers = pod.answers.lock().unwrap().clone();
        assert!(!answers.is_empty(), "there was traffic");
        for answer in &answers {
            assert_eq!(answer.code, 0, "{answer:?}");
            let version = answer.version.unwrap();
            assert!(version <= self.newest(), "{answer:?}");
            let bound = answer.sent.checked_sub(STALE_AFTER).unwrap();
            assert!(
                answer.freshness != "fresh" || version >= self.in_force(bound),
                "it says that it is fresh, and is not: {answer:?}; {} was in force three seconds before",
                self.in_force(bound)
            );
        }
        let order = answers.windows(2).find(|pair| pair[0].version > pair[1].version);
        assert!(order.is_none(), "it went back: {order:?}");
        for line in &pod.sidecar.seen {
            let text = line.to_string();
            assert!(!text.contains("panicked") && !text.contains("bug in stockade"), "{text}");
        }
        answers
    }
}

impl Pod {
    /// Waits until it enforces what is newest, and knows it.
    pub async fn catches_up(&self, lab: &Lab) {
        let newest = lab.newest();
        self.answers_with(&format!("{newest}, fresh"), |answer| {
            answer.version == Some(newest) && answer.freshness == "fresh"
        })
        .await;
    }

    /// Waits for an answer to a check that is sent from now on.
    pub async fn answers_with(&self, what: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        let begun = Instant::now();
        let mut answered = self.answered.subscribe();
        let find = async {
            loop {
                let found =
                    self.answers.lock().unwrap().iter().rev().find(|own| own.sent >= begun && wanted(own)).cloned();
                if let Some(found) = found {
                    return found;
                }
                answered.changed().await.expect("the traffic goes on");
            }
        };
        match timeout(PATIENCE, find).await {
            Ok(found) => found,
            Err(_) => panic!("never answered {what}; last: {:?}", self.answers.lock().unwrap().last()),
        }
    }

    /// Forgets what was answered so far.
    pub fn forget(&self) {
        self.answers.lock().unwrap().clear();
    }

    /// The value of a series.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.sidecar.admin("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// Waits until a statement was refused for this reason.
    pub async fn refuses(&self, kind: Kind, reason: &str) {
        let series = format!("stockade_store_refusals_total{{statement=\"{}\",reason=\"{reason}\"}}", kind.as_str());
        eventually(&format!("a refusal for {reason}"), async || self.metric(&series).await > 0.0).await;
    }
}

/// A bundle whose one policy has this number in its name.
fn bundle(number: u64) -> PackedBundle {
    let policy = format!("@id(\"v{number}\") permit(principal, action == Action::\"GET\", resource);");
    let texts = [("bundle.yaml", "name: shop".to_owned()), ("a.cedar", policy)];
    let files = texts.map(|(path, text)| (path.to_owned(), text)).into();
    PackedBundle::of(&[Files { root: String::new(), files, changed: None }]).unwrap()
}

/// Waits for what another process shows only to those who ask.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let asks = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asks).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn keyring(key: &SecretKey) -> Keyring {
    let roles = vec![Role::Publish, Role::Overlay, Role::Beacon];
    Keyring::new([Trusted { key: key.public(), roles }])
}

/// Asks a sidecar one check after the other.
async fn ask(address: String, answers: Arc<Mutex<Vec<Answer>>>, answered: watch::Sender<()>) {
    use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
    let address: SocketAddr = address.parse().unwrap();
    let mut client = AuthorizationClient::connect(format!("http://{address}")).await.unwrap();
    loop {
        let sent = Instant::now();
        let answer = match client.check(testkit::get("/books")).await {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                println!("a check failed: {error}");
                return;
            }
        };
        let text = |name: &str| metadata(&answer, name).and_then(|value| value.as_str().map(str::to_owned));
        let policy = metadata(&answer, "determining_policies").and_then(|list| list[0].as_str().map(str::to_owned));
        let version = policy.and_then(|id| id.strip_prefix("shop/v").and_then(|number| number.parse().ok()));
        answers.lock().unwrap().push(Answer {
            sent,
            version,
            freshness: text("freshness").unwrap_or_default(),
            code: answer.status.as_ref().map_or(-1, |status| status.code),
        });
        answered.send_replace(());
        sleep(Duration::from_millis(4)).await;
    }
}

/// A field of the dynamic metadata.
pub fn metadata(answer: &envoy_types::pb::envoy::service::auth::v3::CheckResponse, name: &str) -> Option<Value> {
    use envoy_types::pb::google::protobuf::value::Kind;
    let value = answer.dynamic_metadata.as_ref()?.fields.get(name)?;
    Some(match value.kind.as_ref()? {
        Kind::StringValue(text) => Value::String(text.clone()),
        Kind::ListValue(list) => Value::Array(
            list.values
                .iter()
                .filter_map(|value| match value.kind.as_ref()? {
                    Kind::StringValue(text) => Some(Value::String(text.clone())),
                    _ => None,
                })
                .collect(),
        ),
        _ => return None,
    })
}

/// Stands between a sidecar and the server, and does to what passes whatever a network does.
pub struct Proxy {
    pub url: String,
    state: tokio::sync::watch::Sender<Weather>,
    task: JoinHandle<()>,
}

/// What a proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It passes everything on.
    Fine,
    /// It takes everything, and passes nothing on. Connections stay open.
    Stalled,
    /// It passes everything on, so much later.
    Slow(Duration),
    /// It closes every connection.
    Cut,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub async fn start(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let state = tokio::sync::watch::Sender::new(Weather::Fine);
        let weather = state.subscribe();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *weather.borrow() == Weather::Cut {
                    continue;
                }
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, weather.clone()));
                tokio::spawn(pass(from_server, to_client, weather.clone()));
            }
        });
        Self { url, state, task }
    }

    pub fn set(&self, weather: Weather) {
        self.state.send_replace(weather);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut weather: tokio::sync::watch::Receiver<Weather>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = *weather.borrow_and_update();
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            read = from.read(&mut buffer), if !matches!(now, Weather::Stalled | Weather::Cut) => {
                let Ok(count @ 1..) = read else { return };
                if let Weather::Slow(delay) = now {
                    sleep(delay).await;
                }
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            () = std::future::ready(()), if now == Weather::Cut => return,
        }
    }
}
