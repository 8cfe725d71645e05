//! The permissions of `k8s/nats/nats.conf`, on a real server: each user can do its work, and the server refuses the rest.

use serde_json::{Value as Json, json};
use stockade::feed::jetstream::Jetstream;
use stockade::feed::source::{Event, Source};
use stockade::nats::{self, ConnectRetry, Connection, Error, Events, InboxPrefix};
use stockade::publish::streams::Settings;
use stockade::publish::{Advance, Store};
use stockade::store::StoreName;
use stockade::store::layout::Layout;
use stockade::store::statement::{Kind, Status, Timestamp};

use super::{blob, config, until};
use testkit::nats::NatsServer;

fn name() -> StoreName {
    StoreName::try_from_text("default".to_owned()).unwrap()
}

fn of(server: &NatsServer, user: &str) -> nats::Config {
    let path = |file: &str| server.dir.path().join(file).display().to_string();
    let tls = nats::Tls { ca: Some(path("ca.pem")), certificate: None, private_key: None };
    nats::Config {
        servers: nats::Config::of(&format!("tls://localhost:{}", server.port)).unwrap().servers,
        user: Some(user.to_owned()),
        password_file: Some(path(user)),
        tls: Some(tls),
        ..config(server)
    }
}

async fn cli(server: &NatsServer, user: &str) -> Store {
    Store::connect(&of(server, user), name(), "cli", ConnectRetry::Never).await.unwrap().0
}

async fn raw(server: &NatsServer, user: &str, kind: &str) -> (Connection, Events) {
    nats::connect(&of(server, user), kind, ConnectRetry::Never).await.unwrap()
}

fn is_forbidden<T: std::fmt::Debug>(answer: Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Forbidden(_))), "{answer:?}");
}

async fn advance(store: &Store, kind: Kind) {
    assert!(matches!(store.advance(kind, b"x", 0).await, Ok(Advance::Stored(_))));
}

/// A store with something in it.
async fn furnished() -> NatsServer {
    let server = NatsServer::shipped().await;
    let publisher = cli(&server, "publisher").await;
    publisher.ensure(&Settings::default()).await.unwrap();
    publisher.upload(&blob(b"bundle"), b"bundle").await.unwrap();
    advance(&publisher, Kind::Manifest).await;
    server
}

const ALL_STREAMS: [&str; 2] = ["STOCKADE_default", "STOCKADE_default_STATUS"];

/// What nobody but the server's owner may do.
async fn cannot_break_anything(connection: &Connection) {
    for stream in ALL_STREAMS {
        is_forbidden(connection.request(&format!("STREAM.DELETE.{stream}"), &Json::Null).await);
        is_forbidden(connection.request(&format!("STREAM.PURGE.{stream}"), &Json::Null).await);
        is_forbidden(connection.request(&format!("STREAM.UPDATE.{stream}"), &json!({"name": stream})).await);
        is_forbidden(connection.request(&format!("STREAM.MSG.DELETE.{stream}"), &json!({"seq": 1})).await);
        is_forbidden(connection.request(&format!("CONSUMER.CREATE.{stream}"), &json!({})).await);
    }
    // What sidecars hear comes from the server alone.
    is_forbidden(connection.store("stockade.default.event.manifest", "x".into(), None).await);
}

#[tokio::test]
async fn a_sidecar_reads_hears_and_says_what_it_enforces_and_nothing_else() {
    let server = furnished().await;
    let (source, mut events) = Jetstream::follow(&of(&server, "sidecar-shop"), name()).await.unwrap();
    until(&mut events, |event| *event == Event::Up).await;
    assert_eq!(source.newest(Kind::Manifest).await.unwrap().unwrap().as_ref(), b"x");
    assert_eq!(source.newest(Kind::Overlays).await, Ok(None));
    let (place, _) = source.before(Kind::Manifest, None).await.unwrap().unwrap();
    assert_eq!(source.before(Kind::Manifest, Some(place + 1)).await.unwrap().unwrap().1.as_ref(), b"x");
    assert_eq!(source.before(Kind::Manifest, Some(place)).await, Ok(None));
    assert_eq!(source.blob(&blob(b"bundle")).await.unwrap().as_ref(), b"bundle");
    let status = |namespace: &str| Status {
        pod: "a".to_owned(),
        namespace: namespace.to_owned(),
        sidecar: "0.1.0".to_owned(),
        manifest: None,
        overlays: None,
        revision: None,
        enforced_at: None,
        lead_time_ms: None,
        overlays_lead_time_ms: None,
        freshness: "fresh".to_owned(),
        rejection: None,
        leaving: false,
        at: Timestamp::now(),
    };
    source.report(&status("shop")).await.unwrap();
    assert_eq!(cli(&server, "viewer").await.sidecars().await.unwrap().len(), 1);
    let overlays = cli(&server, "overlays").await;
    advance(&overlays, Kind::Overlays).await;
    let heard = until(&mut events, |event| matches!(event, Event::Statement(..) | Event::Refused(_))).await;
    assert!(matches!(heard, Event::Statement(Kind::Overlays, _)), "{heard:?}");

    let error = source.report(&status("bank")).await.expect_err("another namespace");
    assert!(error.0.contains("does not allow"), "{error}");
    until(&mut events, |event| matches!(event, Event::Refused(_))).await;
    let (connection, _events) = raw(&server, "sidecar-shop", "sidecar").await;
    let layout = Layout::new(name());
    for kind in Kind::ALL {
        is_forbidden(connection.store(&layout.head(kind), "x".into(), None).await);
    }
    is_forbidden(connection.store(&layout.piece(&blob(b"bundle").digest, 0), "x".into(), None).await);
    is_forbidden(connection.leaders_last("STOCKADE_default", &layout.head(Kind::Manifest)).await);
    is_forbidden(connection.last("STOCKADE_default_STATUS", &layout.status("shop", "a")).await);
    is_forbidden(connection.walk("STOCKADE_default_STATUS", &layout.statuses(), 1).await);
    is_forbidden(connection.request("STREAM.INFO.STOCKADE_default", &Json::Null).await);
    is_forbidden(connection.request("INFO", &Json::Null).await);
    cannot_break_anything(&connection).await;
}

/// The whole way, by the commands, with the least that each of them needs.
#[tokio::test(flavor = "multi_thread")]
async fn each_user_can_do_its_work() {
    let server = NatsServer::shipped().await;
    let dir = server.dir.path().to_owned();
    let url = format!("tls://localhost:{}", server.port);
    let as_user = |user: &'static str, args: &'static str| {
        let (dir, url) = (dir.clone(), url.clone());
        let ran = tokio::task::spawn_blocking(move || {
            let login = ["--store", &url, "--tls-ca", "ca.pem", "--user", user, "--password-file", user];
            let args: Vec<&str> = args.split(' ').chain(login).collect();
            crate::cli::run(&dir, &args, "")
        });
        async move {
            let ran = ran.await.unwrap();
            assert_eq!(ran.code, 0, "{user}: {args}: {ran:?}");
            ran.stdout
        }
    };
    let keygen = crate::cli::run(&dir, &["keygen", "key"], "");
    let public = keygen.stdout.split_whitespace().nth(2).unwrap().to_owned();
    std::fs::create_dir(dir.join("bundle")).unwrap();
    std::fs::write(dir.join("bundle/bundle.yaml"), "name: shop").unwrap();
    std::fs::write(dir.join("bundle/a.cedar"), "permit (principal, action, resource);").unwrap();
    let (source, _events) = Jetstream::follow(&of(&server, "sidecar-shop"), name()).await.unwrap();
    as_user("publisher", "publish bundle --allow-open --key key --wait 0% --expect 1").await;
    assert!(source.newest(Kind::Manifest).await.unwrap().is_some());
    as_user("overlays", "deny --everyone --for 1h --reason x --key key --wait 0% --expect 1").await;
    assert!(source.newest(Kind::Overlays).await.unwrap().is_some());
    for args in ["history", "show 1", "status", "status --json"] {
        as_user("viewer", args).await;
        as_user("publisher", args).await;
    }
    for user in ["viewer", "overlays"] {
        let (dir, url, public) = (dir.clone(), url.clone(), public.clone());
        let args = ["overlays", "--trust", &public, "--store", &url, "--tls-ca", "ca.pem", "--user", user];
        let listed = crate::cli::run(&dir, &[&args[..], &["--password-file", user]].concat(), "");
        assert!(listed.stdout.starts_with("deny-"), "{listed:?}");
    }
    assert_eq!(as_user("admin", "prune").await, "0 of 1 bundle\n");
}

#[tokio::test]
async fn nobody_hears_what_is_not_for_them() {
    let server = furnished().await;
    for (user, kind, subject) in [
        ("sidecar-shop", "sidecar", "stockade.default.status.>"),
        ("sidecar-shop", "sidecar", "_INBOX_stockade_cli.>"),
        ("sidecar-shop", "sidecar", ">"),
        ("beacon", "beacon", "stockade.default.status.>"),
        ("viewer", "cli", "_INBOX_stockade_sidecar.>"),
    ] {
        let (connection, mut events) = raw(&server, user, kind).await;
        let _silent = connection.subscribe(subject.to_owned()).await.unwrap();
        loop {
            match events.recv().await.expect("an event") {
                nats::Event::Refused(what) if what.contains(subject) => break,
                nats::Event::Up => {}
                other => panic!("{user} {subject}: {other:?}"),
            }
        }
    }
    // The inbox of another kind of client is as deaf.
    let prefix = Some(InboxPrefix::try_from_text("_INBOX_other".to_owned()).unwrap());
    let config = nats::Config { inbox_prefix: prefix, ..of(&server, "viewer") };
    let (connection, mut events) = nats::connect(&config, "cli", ConnectRetry::Never).await.unwrap();
    let asked = connection.leaders_last("STOCKADE_default", "stockade.default.head.manifest");
    let refused = async {
        loop {
            if let Some(nats::Event::Refused(what)) = events.recv().await {
                return what;
            }
        }
    };
    tokio::select! {
        answer = asked => panic!("{answer:?}"),
        what = refused => assert!(what.contains("_INBOX_other"), "{what}"),
    }
}

#[tokio::test]
async fn those_who_write_write_their_own_kind_of_statement() {
    let server = furnished().await;
    let layout = Layout::new(name());
    for (user, kind, own) in
        [("publisher", "cli", Kind::Manifest), ("overlays", "cli", Kind::Overlays), ("beacon", "beacon", Kind::Beacon)]
    {
        let (connection, _events) = raw(&server, user, kind).await;
        for other in Kind::ALL {
            let stored = connection.store(&layout.head(other), "x".into(), None).await;
            if other == own {
                stored.unwrap();
            } else {
                is_forbidden(stored);
            }
        }
        if user != "publisher" {
            is_forbidden(connection.store(&layout.piece(&blob(b"x").digest, 0), "x".into(), None).await);
            is_forbidden(connection.request("STREAM.CREATE.STOCKADE_default", &json!({})).await);
        }
        is_forbidden(connection.store(&layout.status("shop", "a"), "x".into(), None).await);
        cannot_break_anything(&connection).await;
    }
    let (viewer, _events) = raw(&server, "viewer", "cli").await;
    for kind in Kind::ALL {
        is_forbidden(viewer.store(&layout.head(kind), "x".into(), None).await);
    }
    assert_eq!(cli(&server, "viewer").await.history(Kind::Manifest, 1).await.unwrap().len(), 2);
    cannot_break_anything(&viewer).await;
}

#[tokio::test]
async fn the_one_who_tidies_up_writes_no_statements() {
    let server = furnished().await;
    let admin = cli(&server, "admin").await;
    let [own] = <[String; 1]>::try_from(admin.blobs().await.unwrap()).unwrap();
    assert_eq!(own, blob(b"bundle").digest.hex());
    assert!(admin.blob_age(&own).await.unwrap() < testkit::PATIENCE);
    admin.remove_blob(&own).await.unwrap();
    assert!(admin.blobs().await.unwrap().is_empty());
    assert_eq!(admin.history(Kind::Manifest, 1).await.unwrap().len(), 1);
    let (admin, _events) = raw(&server, "admin", "cli").await;
    for kind in Kind::ALL {
        is_forbidden(admin.store(&Layout::new(name()).head(kind), "x".into(), None).await);
    }
}

#[tokio::test]
async fn whoever_is_nobody_does_not_get_in() {
    let server = furnished().await;
    let nobody = nats::Config { user: None, password_file: None, ..of(&server, "viewer") };
    let error = nats::connect(&nobody, "cli", ConnectRetry::Never).await.expect_err("no user").to_string();
    assert!(error.contains("authorization violation"), "{error}");
    let plain = nats::Config { tls: None, servers: config(&server).servers, ..of(&server, "viewer") };
    assert!(nats::connect(&plain, "cli", ConnectRetry::Never).await.is_err(), "the server's authority is unknown");
}
