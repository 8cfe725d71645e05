//! What people and machines do with the store, by the commands that they do it with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use serde_json::Value as Json;
use stockade::feed::source::{Event, Source};
use stockade::policy::Files;
use stockade::store::keys::Trusted;
use stockade::store::statement::{Kind, Status, Timestamp, Version};
use stockade::store::{Keyring, PublicKey, Role, SecretKey, TrustedStatements, pack};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::{blob, follow, prod, store, until};
use crate::cli::{Ran, run};
use testkit::nats::NatsServer;
use testkit::{PATIENCE, binary};

/// A server, a key, and bundles to publish.
struct Desk {
    server: NatsServer,
    dir: TempDir,
    public: PublicKey,
}

impl Desk {
    async fn new() -> Self {
        let (server, dir) = (NatsServer::start().await, TempDir::new().unwrap());
        let text = SecretKey::generate().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, &text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self { server, dir, public: SecretKey::parse(&text).unwrap().public() }
    }

    /// Runs a command on this store. Those that sign sign with the key.
    async fn run(&self, args: &[&str]) -> Ran {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        if args[0] == "publish" {
            // Most bundles of these tests are.
            args.push("--allow-open".to_owned());
        }
        args.extend(["--store".to_owned(), self.server.url(), "--name".to_owned(), "prod".to_owned()]);
        let signs = ["publish", "rollback", "deny", "grant"].contains(&args[0].as_str()) || args[1] == "end";
        if signs {
            args.extend(["--key", "key", "--as", "alice"].map(ToOwned::to_owned));
        }
        let dir = self.dir.path().to_owned();
        let ran = spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            run(&dir, &args, "")
        });
        timeout(PATIENCE, ran).await.expect("an end in time").unwrap()
    }

    async fn good(&self, args: &[&str]) -> Ran {
        let ran = self.run(args).await;
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran
    }

    /// Makes a bundle with these policies, in a directory of this name.
    fn bundle(&self, name: &str, policies: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("bundle.yaml"), "name: shop\n").unwrap();
        fs::write(dir.join("shop.cedar"), policies).unwrap();
        dir
    }

    fn trust(&self) -> String {
        self.public.to_string()
    }

    async fn history(&self) -> Vec<Json> {
        let trust = self.trust();
        let ran = self.good(&["history", "--json", "--trust", &trust]).await;
        ran.json().as_array().unwrap().clone()
    }

    /// A sidecar that enforces whatever is published, or refuses it with these words.
    async fn sidecar(&self, pod: &str, refuses: Option<&str>) -> JoinHandle<()> {
        let (source, mut events) = follow(&self.server).await;
        let keyring = Keyring::new([Trusted { key: self.public, roles: vec![Role::Publish, Role::Overlay] }]);
        let mut trusted = TrustedStatements::new(prod(), keyring, std::time::Duration::ZERO);
        let (pod, refuses) = (pod.to_owned(), refuses.map(ToOwned::to_owned));
        let tell = move |trusted: &TrustedStatements, kind: Option<Kind>| Status {
            pod: pod.clone(),
            namespace: "shop".to_owned(),
            sidecar: "0.1.0".to_owned(),
            manifest: trusted.manifest.as_ref().filter(|_| refuses.is_none()).map(|own| own.head),
            overlays: trusted.overlays.as_ref().map(|own| own.head),
            revision: None,
            enforced_at: Some(Timestamp::now()),
            lead_time_ms: Some(7),
            overlays_lead_time_ms: Some(3),
            freshness: "fresh".to_owned(),
            rejection: refuses.clone().filter(|_| kind == Some(Kind::Manifest)),
            leaving: false,
            at: Timestamp::now(),
        };
        source.report(&tell(&trusted, None)).await.unwrap();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Event::Statement(kind, bytes) = event else { continue };
                let news = match kind {
                    Kind::Manifest => trusted.manifest(&bytes),
                    Kind::Overlays => trusted.overlays(&bytes),
                    Kind::Beacon => continue,
                };
                assert_eq!(news, Ok(true));
                source.report(&tell(&trusted, Some(kind))).await.unwrap();
            }
        })
    }
}

const ONE: &str = "@id(\"one\") permit (principal, action, resource);\n";
const TWO: &str = "@id(\"two\") forbid (principal, action, resource);\n";

#[test]
fn a_key_is_written_once_and_for_its_owner_alone() {
    let dir = TempDir::new().unwrap();
    let ran = run(dir.path(), &["keygen", "key", "--role", "overlay", "--role", "beacon"], "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let path = dir.path().join("key");
    let text = fs::read_to_string(&path).unwrap();
    let public = SecretKey::parse(&text).unwrap().public();
    assert!(ran.stdout.contains(&format!("- key: {public}\n      roles: [overlay, beacon]\n")), "{}", ran.stdout);
    assert!(!ran.stdout.contains(text.lines().nth(1).unwrap()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = run(dir.path(), &["keygen", "key"], "");
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    assert!(again.stderr.contains("`key` cannot be written: File exists"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_can_be_looked_at_fetched_and_gone_back_to() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.bundle("v2", &format!("{ONE}{TWO}"));
    assert!(desk.run(&["rollback"]).await.stderr.contains("nothing was ever published"));
    assert_eq!(desk.good(&["history"]).await.stdout, "nothing was ever published\n");

    let dry = desk.good(&["publish", "v1", "--dry-run"]).await;
    assert!(dry.stdout.ends_with("dry run: nothing was changed\n"), "{}", dry.stdout);
    assert_eq!(desk.good(&["history"]).await.stdout, "nothing was ever published\n");

    let first = desk.good(&["publish", "v1", "--message", "begin"]).await;
    assert!(first.stdout.starts_with("the first bundle of the store: 1 policy,"), "{}", first.stdout);
    let again = desk.good(&["publish", "v1"]).await;
    assert!(again.stdout.starts_with("nothing to publish: sha256:"), "{}", again.stdout);
    let dry = desk.good(&["publish", "v2", "--dry-run"]).await;
    assert!(dry.stdout.contains("  policies: 1 added, 0 removed, 0 modified\n    + shop/two\n"), "{}", dry.stdout);
    desk.good(&["publish", "v2", "--message", "no more", "--not-before", "2001-01-01T00:00:00Z"]).await;

    let history = desk.history().await;
    let messages: Vec<&str> = history.iter().map(|own| own["manifest"]["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["no more", "begin"]);
    assert!(history.iter().all(|own| own["believed"] == true && own["manifest"]["publisher"] == "alice"));
    let epoch: u64 = history[0]["version"].as_str().unwrap().split_once('.').unwrap().0.parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 600..=now).contains(&epoch), "{epoch}");
    assert_eq!(history[0]["version"], format!("{epoch}.2"));

    let trust = desk.trust();
    let shown = desk.good(&["show", "1", "--trust", &trust]).await.stdout;
    assert!(
        shown.contains("signature     good\n") && shown.contains("policy        shop/one (permit, enforce)"),
        "{shown}"
    );
    let shown = desk.good(&["show", "newest", "--json"]).await.json();
    assert_eq!((&shown["believed"], shown["policies"].as_array().unwrap().len()), (&Json::Null, 2));
    assert!(desk.run(&["show", "9"]).await.stderr.contains("there is no version"));

    desk.good(&["pull", "1", "out/deep", "--trust", &trust]).await;
    assert_eq!(read(&desk.dir.path().join("out/deep")), read(&desk.dir.path().join("v1")));
    let full = desk.run(&["pull", "1", "v2", "--trust", &trust]).await;
    assert!(full.code == 1 && full.stderr.contains("`v2` is not empty"), "{full:?}");
    let trusting_nobody = desk.run(&["pull", "1", "other"]).await;
    assert!(trusting_nobody.code == 1 && trusting_nobody.stderr.contains("--trust"), "{trusting_nobody:?}");
    let stranger = SecretKey::parse(&SecretKey::generate().unwrap()).unwrap().public().to_string();
    let stranger = desk.run(&["pull", "1", "other", "--trust", &stranger]).await;
    assert!(stranger.code == 1 && stranger.stderr.contains("which you do not trust"), "{stranger:?}");
    assert!(!desk.dir.path().join("other").exists());

    let back = desk.good(&["rollback", "--message", "too much"]).await;
    assert!(back.stdout.starts_with(&format!("published {epoch}.3 with ")), "{}", back.stdout);
    let history = desk.history().await;
    assert_eq!(history[0]["manifest"]["bundle"], history[2]["manifest"]["bundle"]);
    assert_eq!(history[0]["manifest"]["rolls_back_to"]["generation"], 1);
    let there = desk.run(&["rollback", "--to", "1"]).await;
    assert!(there.code == 1 && there.stderr.contains("is in force already"), "{there:?}");
    desk.good(&["rollback", "--to", &format!("{epoch}.2")]).await;
    let text = desk.good(&["history", "--trust", &trust]).await.stdout;
    assert!(text.contains("VERSION") && text.contains(&format!("(back to {epoch}.2)")), "{text}");
}

fn read(dir: &Path) -> Files {
    let files = stockade::feed::read(dir, &stockade::feed::Limits::default()).unwrap();
    Files { root: String::new(), changed: None, ..files }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_would_refuse_is_not_published() {
    let desk = Desk::new().await;
    desk.bundle("bad", "permit (principal, action");
    let ran = desk.run(&["publish", "bad"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("nothing was published"), "{ran:?}");
    let bundle = desk.bundle("untrue", ONE);
    fs::create_dir(bundle.join("tests")).unwrap();
    fs::write(bundle.join("tests/a.yaml"), "tests: [{name: gone, request: gone.json, expect: allow}]").unwrap();
    let ran = desk.run(&["publish", "untrue"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("nothing was published: tests of the bundle fail"), "{ran:?}");
    // The tests are those of a sidecar with this configuration, which must be one.
    fs::write(desk.dir.path().join("bad.yaml"), "servce: shop").unwrap();
    let ran = desk.run(&["publish", "untrue", "--config", "bad.yaml"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("unknown key `servce`"), "{ran:?}");
    assert_eq!(desk.good(&["history"]).await.stdout, "nothing was ever published\n");
    let mut server = desk.server;
    server.kill().await;
    let desk = Desk { server, ..desk };
    desk.bundle("good", ONE);
    let ran = desk.run(&["publish", "good"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("cannot connect to nats://127.0.0.1:"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn someone_elses_newest_manifest_is_not_built_upon_unless_one_says_so() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.bundle("v2", TWO);
    desk.good(&["publish", "v1"]).await;
    let other = SecretKey::generate().unwrap();
    let own = fs::read_to_string(desk.dir.path().join("key")).unwrap();
    fs::write(desk.dir.path().join("key"), &other).unwrap();
    let ran = desk.run(&["publish", "v2"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("which you do not trust"), "{ran:?}");
    // The other half of a rotation: the old key's public half.
    let trust = desk.trust();
    desk.good(&["publish", "v2", "--trust", &trust]).await;
    // All keys were lost.
    fs::write(desk.dir.path().join("key"), &own).unwrap();
    assert_eq!(desk.run(&["publish", "v1"]).await.code, 1);
    desk.good(&["publish", "v1", "--new-epoch"]).await;
    let history = desk.history().await;
    let believed: Vec<bool> = history.iter().map(|own| own["believed"].as_bool().unwrap()).collect();
    assert_eq!(believed, [true, false, true]);
    assert_eq!(history[0]["manifest"]["version"]["generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_publish_at_once_one_wins_and_the_others_are_told() {
    let desk = Desk::new().await;
    let mut published = 0;
    // They meet on any machine, but not in every round.
    for round in 0..20 {
        let names: Vec<String> = (0..4).map(|n| format!("b{round}-{n}")).collect();
        for name in &names {
            desk.bundle(name, &format!("@id(\"{name}\") permit (principal, action, resource);\n"));
        }
        let args: Vec<[&str; 2]> = names.iter().map(|name| ["publish", name.as_str()]).collect();
        let (a, b, c, d) = tokio::join!(desk.run(&args[0]), desk.run(&args[1]), desk.run(&args[2]), desk.run(&args[3]));
        let ran = [a, b, c, d];
        let won = ran.iter().filter(|ran| ran.code == 0).count();
        assert!(won >= 1, "{ran:?}");
        published += won;
        for lost in ran.iter().filter(|ran| ran.code != 0) {
            assert_eq!(lost.code, 1);
            assert!(
                lost.stderr.contains("`alice` published ") && lost.stderr.contains("nothing was changed"),
                "{lost:?}"
            );
        }
        let generations: Vec<u64> =
            desk.history().await.iter().map(|own| own["manifest"]["version"]["generation"].as_u64().unwrap()).collect();
        assert_eq!(generations, (1..=published as u64).rev().collect::<Vec<_>>(), "each that won is there, once");
        if won < 4 {
            return;
        }
    }
    panic!("they never met");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_dies_on_the_way_has_published_nothing() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    let dir = desk.bundle("v2", TWO);
    desk.good(&["publish", "v1"]).await;
    let before = desk.history().await;
    // As far as it came: its blob.
    let packed = pack::pack(&[read(&dir)]).unwrap();
    store(&desk.server).await.upload(&blob(&packed), &packed).await.unwrap();
    assert_eq!(desk.history().await, before);
    let again = desk.good(&["publish", "v2"]).await;
    assert!(again.stdout.contains("the bundle was uploaded before\n"), "{}", again.stdout);
}

/// What a recent version names stays, and so does what is new: someone may be about to publish it.
#[tokio::test(flavor = "multi_thread")]
async fn pruning_leaves_what_is_named_and_what_is_new() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.bundle("v2", TWO);
    desk.good(&["publish", "v1"]).await;
    desk.good(&["publish", "v2"]).await;
    let none = desk.good(&["prune"]).await;
    assert_eq!(none.stdout, "0 of 2 bundles\n");
    let new = desk.good(&["prune", "--keep", "1", "--dry-run"]).await;
    assert!(new.stdout.starts_with("kept    sha256:") && new.stdout.contains("0 of 2 bundles; dry run"), "{new:?}");
    desk.good(&["rollback"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_waits_for_those_who_are_there() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    let nobody = desk.run(&["publish", "v1", "--wait", "99%"]).await;
    assert!(nobody.code == 2 && nobody.stderr.contains("published, but no sidecar is in sight"), "{nobody:?}");
    assert_eq!(desk.run(&["status", "--expect", "1"]).await.code, 2);

    let _sidecars = (desk.sidecar("a", None).await, desk.sidecar("b", None).await);
    desk.bundle("v2", TWO);
    let all = desk.good(&["publish", "v2", "--wait", "100%", "--timeout", "60s"]).await;
    assert!(all.stdout.contains("enforced by 2 of 2 sidecars; lead time p50 7ms, p99 7ms\n"), "{}", all.stdout);
    let denied =
        desk.good(&["deny", "--everyone", "--for", "1h", "--reason", "x", "--wait", "100", "--timeout", "60s"]).await;
    assert!(denied.stdout.contains("enforced by 2 of 2 sidecars; lead time p50 3ms"), "{}", denied.stdout);

    let expected = desk.run(&["publish", "v1", "--wait", "100%", "--expect", "3", "--timeout", "1s"]).await;
    assert!(expected.code == 2 && expected.stdout.contains("enforced by 2 of 3 sidecars"), "{expected:?}");
    desk.good(&["publish", "v2", "--wait", "100%", "--expect", "2", "--timeout", "60s"]).await;
    assert_eq!(desk.run(&["status", "--expect", "3"]).await.code, 2);
    desk.good(&["status", "--expect", "2"]).await;

    let _refuses = desk.sidecar("c", Some("no such type")).await;
    let some = desk.run(&["publish", "v1", "--wait", "60%", "--timeout", "60s"]).await;
    assert!(some.stdout.contains("enforced by 2 of 3 sidecars"), "{some:?}");
    let not_all = desk.run(&["publish", "v2", "--wait", "100%", "--timeout", "60s"]).await;
    assert_eq!(not_all.code, 2, "{not_all:?}");
    assert!(not_all.stdout.contains("rejected by shop/c: no such type\n"), "{}", not_all.stdout);
    assert!(not_all.stderr.contains("published, but not enforced by 100 % of the sidecars"), "{}", not_all.stderr);

    let table = desk.good(&["status"]).await.stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("2 of 3 sidecars enforce it, 3 are fresh, 1 refuses something"), "{table}");
    assert!(lines[2].starts_with("c ") && lines[3].starts_with("a ") && lines[4].starts_with("b "), "{table}");
    let json = desk.good(&["status", "--json"]).await.json();
    assert_eq!((json["sidecars"].as_array().unwrap().len(), &json["sidecars"][0]["pod"]), (3, &Json::from("c")));
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_are_issued_listed_and_ended() {
    let desk = Desk::new().await;
    let trust = desk.trust();
    let mallory = ["deny", "User::\"mallory\"", "--for", "2h", "--reason", "stolen laptop"];
    let early = desk.run(&mallory).await;
    assert!(early.code == 1 && early.stderr.contains("the store is not there"), "{early:?}");
    desk.bundle("v1", ONE);
    desk.good(&["publish", "v1"]).await;
    let none = desk.good(&["overlays", "--trust", &trust]).await.stdout;
    assert_eq!(none, "no overlays are in force\n");

    let issued = desk.good(&mallory).await.stdout;
    assert!(issued.starts_with("deny-") && issued.contains("deny principal User::\"mallory\", action any"), "{issued}");
    let grant =
        ["grant", "Group::\"oncall\"", "--action", "Action::\"restart\"", "--for", "1h", "--reason", "incident"];
    let unapproved = desk.run(&grant).await;
    assert!(unapproved.code == 64 && unapproved.stderr.contains("--approved-by"), "{unapproved:?}");
    desk.good(&[&grant[..], &["--approved-by", "carol"]].concat()).await;
    desk.good(&["deny", "--everyone", "--for", "1ms", "--reason", "short"]).await;

    let listed = desk.good(&["overlays", "--json", "--trust", &trust]).await.json();
    let effects: Vec<&str> = listed.as_array().unwrap().iter().map(|own| own["effect"].as_str().unwrap()).collect();
    assert_eq!(effects, ["deny", "grant"], "the third is over");
    assert_eq!((&listed[1]["approved_by"], &listed[1]["issuer"]), (&Json::from("carol"), &Json::from("alice")));
    let untrusted = desk.run(&["overlays"]).await;
    assert!(untrusted.code == 1 && untrusted.stderr.contains("which you do not trust"), "{untrusted:?}");

    let id = listed[0]["id"].as_str().unwrap();
    desk.good(&["overlays", "end", id]).await;
    let left = desk.good(&["overlays", "--trust", &trust]).await.stdout;
    assert!(left.starts_with("grant-") && left.lines().count() == 1, "{left}");
    let gone = desk.run(&["overlays", "end", id]).await;
    assert!(gone.code == 1 && gone.stderr.contains("no overlay `deny-"), "{gone:?}");

    for bad in [&["deny", "--for", "1h", "--reason", "x"][..], &["deny", "mallory", "--for", "1h", "--reason", "x"]] {
        let ran = desk.run(bad).await;
        assert_eq!(ran.code, 64, "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_of_several_issuers_do_not_get_lost() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.good(&["publish", "v1"]).await;
    let users: Vec<String> = (0..6).map(|n| format!("User::\"u{n}\"")).collect();
    let deny = |n: usize| {
        let (desk, user) = (&desk, users[n].as_str());
        async move { desk.good(&["deny", user, "--for", "1h", "--reason", "x"]).await }
    };
    tokio::join!(deny(0), deny(1), deny(2), deny(3), deny(4), deny(5));
    let trust = desk.trust();
    let listed = desk.good(&["overlays", "--json", "--trust", &trust]).await.json();
    let mut denied: Vec<&str> =
        listed.as_array().unwrap().iter().map(|own| own["principal"].as_str().unwrap()).collect();
    denied.sort_unstable();
    assert_eq!(denied, users);
}

#[tokio::test(flavor = "multi_thread")]
async fn beacons_name_the_newest_and_go_on_after_a_crash() {
    let mut desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.good(&["publish", "v1"]).await;
    let (_source, mut events) = follow(&desk.server).await;
    let trust = desk.trust();
    let url = desk.server.url();
    let mut child = Command::new(binary())
        .args(["beacon", "--key", "key", "--interval", "50ms", "--store", &url, "--name", "prod", "--trust", &trust])
        .current_dir(desk.dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let log = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Ok(Some(line)) = log.next_line().await {
            seen.push(line);
        }
        seen.join("\n")
    });
    let keyring = Keyring::new([Trusted { key: desk.public, roles: vec![Role::Publish, Role::Beacon] }]);
    let mut trusted = TrustedStatements::new(prod(), keyring, PATIENCE);
    let newest = store(&desk.server).await.newest(Kind::Manifest).await.unwrap().unwrap();
    assert_eq!(trusted.manifest(&newest.payload), Ok(true));
    let is_beacon = |event: &Event| matches!(event, Event::Statement(Kind::Beacon, _));
    let Event::Statement(_, bytes) = until(&mut events, is_beacon).await else { unreachable!() };
    let beacon = trusted.beacon(&bytes, SystemTime::now()).unwrap();
    assert_eq!(trusted.holds(&beacon), Ok(true));

    desk.server.kill().await;
    until(&mut events, |event| matches!(event, Event::Down(_))).await;
    desk.server.start_again().await;
    until(&mut events, |event| *event == Event::Up).await;
    until(&mut events, is_beacon).await;

    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(timeout(PATIENCE, child.wait()).await.expect("an end in time").unwrap().code(), Some(0));
    let log = log.await.unwrap();
    assert!(log.contains("beacons are sent") && log.contains("beacon ends"), "{log}");
}

/// A stream of someone else's making that would break a promise is not used.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_refused() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    let (connection, _) =
        stockade::nats::connect(&super::config(&desk.server), "cli", stockade::nats::ConnectRetry::Never)
            .await
            .unwrap();
    let config = serde_json::json!({
        "name": "STOCKADE_prod", "subjects": ["stockade.prod.head.>", "stockade.prod.blob.>"], "storage": "memory",
        "allow_direct": true, "max_bytes": 1 << 20
    });
    connection.request("STREAM.CREATE.STOCKADE_prod", &config).await.unwrap();
    let ran = desk.run(&["publish", "v1"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    for expected in ["`storage` is \"memory\", not \"file\"", "`discard` is \"old\"", "`republish` is nothing"] {
        assert!(ran.stderr.contains(expected), "{ran:?}");
    }
}

/// The server promises each stream its room, or does not make it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_says_so() {
    let desk = Desk::new().await;
    desk.bundle("v1", ONE);
    let ran = desk.run(&["publish", "v1", "--max-bytes", "1000GiB"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("see --max-bytes"), "{ran:?}");
    desk.good(&["publish", "v1", "--max-bytes", "16MiB"]).await;
}

/// What is needed to begin with: versions only grow, also when the store has lost everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_everything_begins_a_higher_epoch() {
    let mut desk = Desk::new().await;
    desk.bundle("v1", ONE);
    desk.good(&["publish", "v1"]).await;
    let version = |history: &[Json]| history[0]["version"].as_str().unwrap().parse::<Version>().unwrap();
    let first = version(&desk.history().await);
    desk.server.kill().await;
    desk.server.wipe();
    // Epochs are seconds.
    while Version::first(SystemTime::now()).epoch <= first.epoch {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    desk.server.start_again().await;
    desk.good(&["publish", "v1"]).await;
    let second = version(&desk.history().await);
    assert!(second > first && second.generation == 1, "{first} {second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_is_not_opened_by_mistake() {
    let desk = Desk::new().await;
    let url = desk.server.url();
    let publish = |policies: &'static str, flags: &'static [&'static str]| {
        desk.bundle("shop", policies);
        let (dir, url) = (desk.dir.path().to_owned(), url.clone());
        spawn_blocking(move || {
            let command = ["publish", "shop", "--store", &url, "--name", "prod", "--key", "key"];
            run(&dir, &[&command[..], flags].concat(), "")
        })
    };
    let first = publish(ONE, &[]).await.unwrap();
    assert!(first.code == 0 && first.stderr.contains("permits everything to everybody"), "{first:?}");
    assert_eq!(publish(TWO, &[]).await.unwrap().code, 0);
    let open = publish(ONE, &[]).await.unwrap();
    assert!(open.code == 1 && open.stderr.contains("nothing was published: `shop/one` permits everything"), "{open:?}");
    assert_eq!(publish(ONE, &["--allow-open"]).await.unwrap().code, 0);
}

/// Before a server is asked for anything: there is none.
#[test]
fn what_should_be_meant_has_to_be_said() {
    let dir = TempDir::new().unwrap();
    let bundle = dir.path().join("shop");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("bundle.yaml"), "name: shop\n").unwrap();
    let scoped = "permit (principal, action == Action::\"GET\", resource)";
    let all = "permit (principal, action, resource)";
    for (policies, flags, refused) in [
        (
            format!("{all};"),
            &["--strict"][..],
            Some("`shop/p` permits everything to everybody (give it a scope, or publish it with"),
        ),
        (format!("{all} when {{ true }};"), &["--strict"], Some("`shop/p` permits everything")),
        (format!("{all} when {{ true }} unless {{ false }};"), &["--strict"], Some("`shop/p` permits everything")),
        (format!("{all};"), &["--allow-open"], None),
        (format!("{all};"), &["--allow-open", "--strict"], None),
        (format!("@mode(\"shadow\") {all};"), &[], None),
        (format!("{scoped};"), &[], None),
        (format!("{scoped};"), &["--strict"], None),
        (format!("{all} when {{ context.path == \"/\" }};"), &[], None),
        (format!("{all} when {{ context.path == \"/\" }};"), &["--strict"], Some("there are warnings, and `--strict`")),
        ("forbid (principal, action, resource);".to_owned(), &[], None),
    ] {
        fs::write(bundle.join("p.cedar"), &policies).unwrap();
        let command = ["publish", "shop", "--store", "nats://127.0.0.1:1", "--key", "none"];
        let ran = run(dir.path(), &[&command[..], flags].concat(), "");
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{policies}");
        let last = ran.stderr.lines().last().unwrap();
        match refused {
            Some(why) => assert!(last.starts_with(&format!("nothing was published: {why}")), "{policies}: {last}"),
            None => assert!(last.starts_with("`none` cannot be read"), "{policies}: {last}"),
        }
    }
    fs::write(bundle.join("p.cedar"), format!("{all};")).unwrap();
    let ran = run(dir.path(), &["validate", "shop"], "");
    assert!(ran.stderr.contains("`shop/p` permits everything to everybody: it has no scope"), "{ran:?}");
    assert_eq!((ran.code, run(dir.path(), &["validate", "--strict", "shop"], "").code), (0, 1));
}
