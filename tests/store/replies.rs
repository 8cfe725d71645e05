//! What the users of `k8s/nats/nats.conf` could do by choosing where answers go. NATS checks the subject of a message, and not the
//! subject of its reply, and the server answers with its own rights. So every role asks whatever it may ask, and has each answer
//! sent to everything that it could harm; roles and what they may ask are read from the configuration itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value as Json, json};
use stockade::nats::ConnectRetry;
use stockade::publish::Store;
use stockade::publish::streams::Settings;
use stockade::store::StoreName;
use stockade::store::statement::Kind;
use tokio::time::timeout;

use super::{blob, config, write};
use testkit::nats::NatsServer;
use testkit::{PATIENCE, repository};

/// An account of the configuration.
#[derive(Debug, Default, Clone)]
struct Account {
    name: String,
    user: Option<String>,
    /// What its user may publish.
    publish: BTreeSet<String>,
    /// What its user may hear.
    subscribe: Vec<String>,
    /// The services that it imports: from which account, and which subject.
    services: BTreeSet<(String, String)>,
    jetstream: bool,
}

/// Reads the accounts of a configuration that is laid out like the shipped one.
fn accounts(config: &str) -> Vec<Account> {
    let quoted = |line: &str| line.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>();
    let mut accounts: Vec<Account> = Vec::new();
    let mut publishes = false;
    let (_, body) = config.split_once("\naccounts {\n").expect("accounts");
    for line in body.lines() {
        let opened = line.strip_prefix("  ").filter(|rest| !rest.starts_with([' ', '#', '}']));
        if let Some((name, _)) = opened.and_then(|rest| rest.split_once(" {")) {
            accounts.push(Account { name: name.to_owned(), ..Account::default() });
            continue;
        }
        let Some(account) = accounts.last_mut() else { continue };
        let text = line.trim();
        if text.starts_with('#') {
            continue;
        }
        if let Some(user) = text.strip_prefix("user: ") {
            assert!(account.user.replace(user.to_owned()).is_none(), "one user for each account");
        } else if text.starts_with("jetstream ") {
            account.jetstream = true;
        } else if text.starts_with("{ service: { account: ") {
            let from = text.split("account: ").nth(1).and_then(|rest| rest.split(',').next()).expect("an account");
            account.services.extend(quoted(text).into_iter().map(|subject| (from.to_owned(), subject)));
        } else if text.starts_with("subscribe:") {
            account.subscribe = quoted(text);
        } else if text.starts_with("publish:") {
            publishes = true;
        } else if publishes && text.starts_with(']') {
            publishes = false;
        } else if publishes {
            account.publish.extend(quoted(text));
        }
    }
    accounts
}

fn shipped() -> String {
    std::fs::read_to_string(repository("k8s/nats/nats.conf")).unwrap()
}

/// What an account must import, whatever its user may ask, so that it does not get JetStream's API of its own.
const SHADOW: &str = "$JS.API.INFO";

#[test]
fn an_account_imports_what_its_user_may_publish_and_nothing_else() {
    let accounts = accounts(&shipped());
    let roles: Vec<&Account> = accounts.iter().filter(|account| account.user.is_some()).collect();
    assert_eq!(roles.len(), 6, "{roles:?}");
    for role in &roles {
        let imports: BTreeSet<String> = role.services.iter().map(|(_, subject)| subject.clone()).collect();
        assert!(imports.contains(SHADOW) && !role.publish.contains(SHADOW), "{}", role.name);
        let expected: BTreeSet<String> = role.publish.iter().cloned().chain([SHADOW.to_owned()]).collect();
        assert_eq!(imports, expected, "{}", role.name);
        assert!(!role.jetstream, "{} holds streams, and has a user", role.name);
    }
    let holders: Vec<&str> =
        accounts.iter().filter(|account| account.jetstream).map(|account| account.name.as_str()).collect();
    assert_eq!(holders, ["STORE", "STATUSES"]);
}

/// The shipped configuration with a second namespace, added as it says, and with users who see everything of the accounts that
/// hold the streams. `inside` is what the first sidecars may publish, for a user in the account of the store itself.
fn edited(config: &str, inside: &BTreeSet<String>) -> String {
    let (before, block) = config.split_once("  SIDECARS_SHOP {").expect("the sidecars");
    let (block, after) = block.split_once("\n  }\n").expect("the end of the sidecars");
    let bank = block.replace("SHOP", "BANK").replace("shop", "bank");
    let before = before.replace("SIDECARS_SHOP]", "SIDECARS_SHOP, SIDECARS_BANK]").replace(
        "      { stream: \"stockade.default.status.>\"",
        "      { service: \"stockade.default.status.bank.*\" }\n      { stream: \"stockade.default.status.>\"",
    );
    let allowed: Vec<String> = inside.iter().map(|subject| format!("\"{subject}\"")).collect();
    let allowed = allowed.join(", ");
    let user = |name: &str, more: &str| format!("{{ user: {name}, password: \"{name}-secret\" {more} }}\n");
    let permissions = format!(", permissions: {{ publish: {{ allow: [{allowed}] }} }}");
    let store = format!("  STORE {{\n    users: [ {} {} ]\n", user("root-store", ""), user("inside", &permissions));
    let statuses = format!("  STATUSES {{\n    users: [ {} ]\n", user("root-statuses", ""));
    let before = before.replace("  STORE {\n", &store).replace("  STATUSES {\n", &statuses);
    format!("{before}  SIDECARS_SHOP {{{block}\n  }}\n  SIDECARS_BANK {{{bank}\n  }}\n{after}")
}

async fn connect(server: &NatsServer, user: &str, inbox: &str) -> Client {
    ConnectOptions::with_user_and_password(user.to_owned(), format!("{user}-secret"))
        .add_root_certificates(server.dir.path().join("ca.pem"))
        .require_tls(true)
        .custom_inbox_prefix(inbox)
        .connect(format!("tls://localhost:{}", server.port))
        .await
        .unwrap_or_else(|error| panic!("{user}: {error}"))
}

/// A store with something of everything, and those who see all of it.
struct World {
    server: NatsServer,
    roles: Vec<Account>,
    store: Client,
    statuses: Client,
}

const VICTIMS: [&str; 2] = ["stockade.default.status.shop.victim", "stockade.default.status.bank.victim"];
const OWN_STATUS: &str = "stockade.default.status.shop.attacker";

impl World {
    async fn new() -> Self {
        let sidecars = accounts(&shipped()).into_iter().find(|account| account.name == "SIDECARS_SHOP").unwrap();
        let mut text = String::new();
        let server = NatsServer::shipped_with(|config| {
            text = edited(&config, &sidecars.publish);
            text.clone()
        })
        .await;
        let roles: Vec<Account> = accounts(&text).into_iter().filter(|account| !account.services.is_empty()).collect();
        assert_eq!(roles.len(), 7);
        let (store, statuses) =
            tokio::join!(connect(&server, "root-store", "_INBOX"), connect(&server, "root-statuses", "_INBOX"));
        let world = Self { server, roles, store, statuses };
        world.furnish().await;
        world
    }

    async fn furnish(&self) {
        for (user, kind) in [("publisher", Kind::Manifest), ("overlays", Kind::Overlays), ("beacon", Kind::Beacon)] {
            let path = |file: &str| self.server.dir.path().join(file).display().to_string();
            let tls = stockade::nats::Tls { ca: Some(path("ca.pem")), certificate: None, private_key: None };
            let config = stockade::nats::Config {
                servers: stockade::nats::Config::of(&format!("tls://localhost:{}", self.server.port)).unwrap().servers,
                user: Some(user.to_owned()),
                password_file: Some(path(user)),
                tls: Some(tls),
                ..config(&self.server)
            };
            let name = StoreName::try_from_text("default".to_owned()).unwrap();
            let kind_of_client = if user == "beacon" { "beacon" } else { "cli" };
            let (store, _events) = Store::connect(&config, name, kind_of_client, ConnectRetry::Never).await.unwrap();
            if kind == Kind::Manifest {
                store.ensure(&Settings::default()).await.unwrap();
                store.upload(&blob(b"bundle"), b"bundle").await.unwrap();
            }
            for text in ["first", "second"] {
                write(&store, kind, text).await;
            }
        }
        for victim in VICTIMS {
            self.statuses.request(victim, "victim".into()).await.unwrap();
        }
    }

    /// Everything that is to stay as it is: how the streams are set up, and what is in them.
    async fn state(&self) -> String {
        let mut state = String::new();
        for (client, stream) in [(&self.store, "STOCKADE_default"), (&self.statuses, "STOCKADE_default_STATUS")] {
            let names = api(client, "STREAM.NAMES", &Json::Null).await;
            let info = api(client, &format!("STREAM.INFO.{stream}"), &json!({"subjects_filter": ">"})).await;
            let mut subjects = info.pointer("/state/subjects").cloned().unwrap_or_default();
            subjects.as_object_mut().map(|all| all.remove(OWN_STATUS));
            let consumers = info.pointer("/state/consumer_count").cloned();
            writeln!(state, "{} {} {subjects} {consumers:?}", names["streams"], info["config"]).unwrap();
            for subject in subjects.as_object().into_iter().flatten().map(|(subject, _)| subject) {
                let last = api(client, &format!("STREAM.MSG.GET.{stream}"), &json!({"last_by_subj": subject})).await;
                writeln!(state, "{subject} {} {}", last["message"]["seq"], last["message"]["data"]).unwrap();
            }
        }
        state
    }
}

async fn api(client: &Client, endpoint: &str, body: &Json) -> Json {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = timeout(PATIENCE, client.request(format!("$JS.API.{endpoint}"), body.into())).await;
    serde_json::from_slice(&answer.expect("an answer in time").unwrap().payload).unwrap()
}

/// What a message is made of, so that publishing it changes nothing by itself: it asks, or is refused, or is the sender's own status.
struct Ask {
    subject: String,
    expects: bool,
    payload: String,
}

/// Every request that a subject allows, such as they differ in the answer: with content, without, and with an error.
fn asks(allowed: &str) -> Vec<Ask> {
    let ask = |subject: String, expects, payload: Json| Ask {
        subject,
        expects,
        payload: if payload.is_null() { String::new() } else { payload.to_string() },
    };
    let digits = blob(b"bundle").digest.hex();
    let filled = |head: &str, piece: &str| {
        let subject = allowed.replace("blob.*.*", &format!("blob.{digits}.{piece}"));
        subject
            .replace("head.*", &format!("head.{head}"))
            .replace("shop.*", "shop.attacker")
            .replace("bank.*", "bank.attacker")
    };
    let plain = filled("manifest", "0");
    let bodies: Vec<Json> = match allowed {
        _ if allowed.ends_with(".*") && allowed.contains("DIRECT.GET") => {
            return vec![ask(plain, false, Json::Null), ask(filled("nope", "99"), false, Json::Null)];
        }
        _ if allowed.contains("DIRECT.GET") => vec![
            json!({"seq": 1}),
            json!({"seq": 1_000_000}),
            json!({"seq": 1, "batch": 9, "next_by_subj": ">"}),
            json!({"multi_last": [">"]}),
            Json::Null,
        ],
        _ if allowed.contains("STREAM.MSG.GET") => vec![json!({"seq": 1}), json!({"seq": 1_000_000}), Json::Null],
        _ if allowed.contains("STREAM.PURGE") => vec![json!({"filter": "nothing"})],
        _ if allowed.contains("$JS.API") => vec![Json::Null, json!("?")],
        // Refused, since it is not the last of its subject.
        _ => return vec![ask(plain, true, json!({}))],
    };
    bodies.into_iter().map(|body| ask(plain.clone(), false, body)).collect()
}

/// Whether a subject matches one with wildcards.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(own), Some(word)) if own == "*" || own == word => {}
            _ => return false,
        }
    }
}

/// Requests to JetStream about a stream.
const OF_STREAMS: &[&str] = &[
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.INFO",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.SNAPSHOT",
    "STREAM.RESTORE",
    "STREAM.MSG.DELETE",
    "STREAM.MSG.GET",
    "STREAM.PEER.REMOVE",
    "STREAM.LEADER.STEPDOWN",
    "STREAM.TEMPLATE.CREATE",
    "STREAM.TEMPLATE.DELETE",
    "CONSUMER.CREATE",
    "CONSUMER.LIST",
    "CONSUMER.NAMES",
    "DIRECT.GET",
];

/// Requests to JetStream about a consumer.
const OF_CONSUMERS: &[&str] = &[
    "CONSUMER.CREATE",
    "CONSUMER.DURABLE.CREATE",
    "CONSUMER.DELETE",
    "CONSUMER.INFO",
    "CONSUMER.MSG.NEXT",
    "CONSUMER.PAUSE",
    "CONSUMER.LEADER.STEPDOWN",
    "CONSUMER.UNPIN",
    "DIRECT.GET",
];

/// Subjects of a store.
const OF_STORES: &[&str] = &[
    "head.manifest",
    "head.overlays",
    "head.beacon",
    "head.other",
    "event.manifest",
    "event.overlays",
    "event.beacon",
    "status.shop.victim",
    "status.bank.victim",
    "blob.x.0",
];

/// What belongs to no store.
const OF_THE_SERVER: &[&str] = &[
    "_INBOX.victim",
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.META.LEADER.STEPDOWN",
    "$JS.API.SERVER.REMOVE",
    "$JS.API.ACCOUNT.PURGE.STORE",
    "$JS.API.ACCOUNT.PURGE.STATUSES",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.ACCOUNT.STORE.INFO",
    "$SYS.REQ.USER.INFO",
    "$SYS.REQ.SERVER.test.RELOAD",
    "$SYS.REQ.SERVER.test.KICK",
    "$SYS.ACCOUNT.STORE.CONNECT",
    "$KV.other.key",
    "$O.other.C.x",
    "$O.other.M.x",
    "_R_.x.y",
];

/// Where an answer could do harm, in this store, in another, and to the server.
fn harmful() -> Vec<String> {
    let mut all: Vec<String> = OF_THE_SERVER.iter().map(ToString::to_string).collect();
    for stream in ["STOCKADE_default", "STOCKADE_default_STATUS", "STOCKADE_other", "KV_other"] {
        all.extend(OF_STREAMS.iter().map(|verb| format!("$JS.API.{verb}.{stream}")));
        all.extend(OF_CONSUMERS.iter().map(|verb| format!("$JS.API.{verb}.{stream}.trap")));
        all.push(format!("$JS.ACK.{stream}.trap.1.1.1.1.1"));
        all.push(format!("$JS.FC.{stream}.trap.x"));
    }
    for store in ["default", "other"] {
        all.extend(OF_STORES.iter().map(|what| format!("stockade.{store}.{what}")));
        all.push(format!("stockade.{store}.blob.{}.0", blob(b"bundle").digest.hex()));
    }
    all.extend(["cli", "sidecar", "beacon"].map(|kind| format!("_INBOX_stockade_{kind}.victim")));
    all
}

impl Ask {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.expects {
            headers.insert("Nats-Expected-Last-Subject-Sequence", "999999");
        }
        headers
    }

    /// Asks, and has the answer sent there.
    async fn send(&self, client: &Client, reply: &str) {
        let payload = self.payload.clone().into();
        let sent =
            client.publish_with_reply_and_headers(self.subject.clone(), reply.to_owned(), self.headers(), payload);
        sent.await.unwrap();
    }

    /// Asks, and waits for the answer: whatever was to come before it has come.
    async fn answered(&self, client: &Client) {
        let answer = client.request_with_headers(self.subject.clone(), self.headers(), self.payload.clone().into());
        let answer = timeout(PATIENCE, answer).await.expect("an answer in time");
        answer.unwrap_or_else(|error| panic!("{}: {error}", self.subject));
    }
}

/// Asks all that may be asked, with every answer sent to every one of `replies`, and waits until all of it has happened.
async fn attack(attacker: &Client, allowed: &BTreeSet<String>, replies: &[String]) -> usize {
    let mut sent = 0;
    for ask in allowed.iter().flat_map(|subject| asks(subject)) {
        for reply in replies {
            ask.send(attacker, reply).await;
            sent += 1;
        }
        ask.answered(attacker).await;
    }
    sent
}

/// What someone of each role hears.
async fn listen(world: &World) -> Vec<(Account, Client, Vec<Subscriber>)> {
    let mut all = Vec::new();
    for role in &world.roles {
        let user = role.user.clone().unwrap();
        let client = connect(&world.server, &user, role.subscribe[0].trim_end_matches(".>")).await;
        let mut heard = Vec::new();
        for subject in &role.subscribe {
            heard.push(client.subscribe(subject.clone()).await.unwrap());
        }
        client.flush().await.unwrap();
        all.push((role.clone(), client, heard));
    }
    all
}

/// What has come so far.
async fn heard(role: &Account, client: &Client, subscribers: &mut [Subscriber]) -> Vec<String> {
    let ask = role.publish.iter().flat_map(|subject| asks(subject)).next().unwrap();
    ask.answered(client).await;
    let mut subjects = Vec::new();
    for own in subscribers {
        // Thousands may have come: none are to be left for the next look.
        while let Some(Some(message)) = tokio::task::unconstrained(own.next()).now_or_never() {
            subjects.push(message.subject.to_string());
        }
    }
    // What this question itself came back as, or made others hear.
    subjects.retain(|subject| {
        !subject.ends_with(".attacker") && subject.ends_with("victim") || subject.contains(".event.")
    });
    subjects
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_harms_anything_by_where_it_has_answers_sent() {
    let world = World::new().await;
    let mut listeners = listen(&world).await;
    let before = world.state().await;
    let harmful = harmful();
    for role in &world.roles {
        let user = role.user.clone().unwrap();
        // What it may publish anyway is its own right, and tested elsewhere.
        let replies: Vec<String> =
            harmful.iter().filter(|reply| !role.publish.iter().any(|own| matches(own, reply))).cloned().collect();
        assert!(replies.len() > 100, "{user}");
        let attacker = connect(&world.server, &user, role.subscribe[0].trim_end_matches(".>")).await;
        let sent = attack(&attacker, &role.publish, &replies).await;
        assert!(sent >= role.publish.len() * replies.len());
        // And straight there.
        for subject in &replies {
            attacker.publish(subject.clone(), "".into()).await.unwrap();
            attacker.publish(subject.clone(), "x".into()).await.unwrap();
        }
        asks(role.publish.first().unwrap())[0].answered(&attacker).await;
        assert_eq!(world.state().await, before, "{user} changed something");
        for (listener, client, subscribers) in &mut listeners {
            let heard = heard(listener, client, subscribers).await;
            if listener.name == role.name {
                // This is where answers end: with those who have the same credentials.
                let own = format!("{}.victim", role.subscribe[0].trim_end_matches(".>"));
                assert!(heard.contains(&own), "{user}: {heard:?}");
            } else {
                assert_eq!(heard, [] as [&str; 0], "{user} reached {}", listener.name);
            }
        }
    }
}

/// What the test above would see, if there were something to see: the same, by a user with the same permissions in the account of the
/// store itself.
#[tokio::test(flavor = "multi_thread")]
async fn in_the_account_of_the_store_answers_do_harm() {
    let world = World::new().await;
    let sidecar = world.roles.iter().find(|role| role.name == "SIDECARS_SHOP").unwrap();
    let gets: BTreeSet<String> = sidecar.publish.iter().filter(|own| own.contains("head.*")).cloned().collect();
    let inside = connect(&world.server, "inside", "_INBOX_stockade_sidecar").await;
    for reply in [
        "stockade.default.head.overlays",
        "$JS.API.STREAM.PURGE.STOCKADE_default",
        "$JS.API.STREAM.DELETE.STOCKADE_default",
    ] {
        let before = api(&world.store, "STREAM.INFO.STOCKADE_default", &Json::Null).await;
        for ask in gets.iter().flat_map(|subject| asks(subject)) {
            ask.send(&inside, reply).await;
        }
        let changed = async {
            let keys = ["/error", "/state/last_seq", "/state/messages"];
            let seen = |info: &Json| keys.map(|key| info.pointer(key).cloned());
            while seen(&api(&world.store, "STREAM.INFO.STOCKADE_default", &Json::Null).await) == seen(&before) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, changed).await.unwrap_or_else(|_| panic!("{reply}: nothing happened"));
    }
    let gone = api(&world.store, "STREAM.INFO.STOCKADE_default", &Json::Null).await;
    assert_eq!(gone["error"]["err_code"], 10059, "{gone}");
}

/// No role can take the server from the others, or the room in a stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_has_limits_of_its_own() {
    let world = World::new().await;
    let before = world.state().await;
    for (user, inbox, subject, size) in [
        ("sidecar-shop", "_INBOX_stockade_sidecar", OWN_STATUS, 17 << 10),
        ("beacon", "_INBOX_stockade_beacon", "stockade.default.head.beacon", 17 << 10),
        ("overlays", "_INBOX_stockade_cli", "stockade.default.head.overlays", 601 << 10),
    ] {
        let client = connect(&world.server, user, inbox).await;
        client.publish(subject, vec![b'x'; size].into()).await.unwrap();
        // The server hangs up on it, and the library connects again.
        let hung_up = async {
            while client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, hung_up).await.unwrap_or_else(|_| panic!("{user} may send {size} bytes"));
        assert_eq!(world.state().await, before, "{user}");
    }
    let mut held = Vec::new();
    let full = async {
        loop {
            let options = ConnectOptions::with_user_and_password("beacon".to_owned(), "beacon-secret".to_owned())
                .add_root_certificates(world.server.dir.path().join("ca.pem"))
                .require_tls(true);
            match options.connect(format!("tls://localhost:{}", world.server.port)).await {
                Ok(client) => held.push(client),
                Err(_) => break,
            }
        }
        held.len()
    };
    let count = timeout(PATIENCE, full).await.expect("an end");
    assert!(count <= 10, "{count} connections");
    connect(&world.server, "overlays", "_INBOX_stockade_cli").await;
}
