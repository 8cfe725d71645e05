//! What carries statements and bundles to a sidecar, when the server misbehaves.

use std::time::{Duration, Instant};

use bytes::Bytes;
use stockade::feed::jetstream::Jetstream;
use stockade::feed::source::{Event, Source};
use stockade::nats;
use stockade::publish::Advance;
use stockade::publish::streams::Settings;
use stockade::store::layout::PIECE;
use stockade::store::statement::{Blob, Kind, Status, Timestamp};

use super::{NOTICED, blob, config, follow, prod, store, until, write};
use testkit::nats::NatsServer;

fn statement(kind: Kind, text: &str) -> Event {
    Event::Statement(kind, Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test]
async fn statements_are_heard_as_they_are_written_and_the_newest_can_be_asked_for() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let (source, mut events) = follow(&server).await;
    assert_eq!(source.newest(Kind::Manifest).await, Ok(None));
    write(&store, Kind::Manifest, "one").await;
    write(&store, Kind::Beacon, "ping").await;
    write(&store, Kind::Manifest, "two").await;
    write(&store, Kind::Overlays, "deny").await;
    for (kind, text) in
        [(Kind::Manifest, "one"), (Kind::Beacon, "ping"), (Kind::Manifest, "two"), (Kind::Overlays, "deny")]
    {
        assert_eq!(events.recv().await, Some(statement(kind, text)), "without a gap");
    }
    assert_eq!(source.newest(Kind::Manifest).await, Ok(Some(Bytes::from_static(b"two"))));
    assert_eq!(source.newest(Kind::Overlays).await, Ok(Some(Bytes::from_static(b"deny"))));
}

#[tokio::test]
async fn a_crash_shows_and_nothing_is_lost_after_it() {
    let mut server = NatsServer::start().await;
    let store = store(&server).await;
    let (source, mut events) = follow(&server).await;
    write(&store, Kind::Manifest, "one").await;
    until(&mut events, |event| *event == statement(Kind::Manifest, "one")).await;
    server.kill().await;
    until(&mut events, |event| matches!(event, Event::Down(_))).await;
    let error = source.newest(Kind::Manifest).await.expect_err("nobody is there");
    assert!(error.0.contains("no connection"), "{error}");
    server.start_again().await;
    until(&mut events, |event| *event == Event::Up).await;
    assert_eq!(source.newest(Kind::Manifest).await, Ok(Some(Bytes::from_static(b"one"))));
    let (store, _) =
        stockade::publish::Store::connect(&config(&server), prod(), "cli", nats::ConnectRetry::Never).await.unwrap();
    write(&store, Kind::Manifest, "two").await;
    until(&mut events, |event| *event == statement(Kind::Manifest, "two")).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let (_source, mut events) = follow(&server).await;
    write(&store, Kind::Manifest, "one").await;
    until(&mut events, |event| *event == statement(Kind::Manifest, "one")).await;
    server.freeze();
    let frozen = Instant::now();
    until(&mut events, |event| matches!(event, Event::Down(_))).await;
    assert!(frozen.elapsed() < NOTICED, "{:?}", frozen.elapsed());
    server.thaw();
    until(&mut events, |event| *event == Event::Up).await;
}

#[tokio::test]
async fn a_store_that_begins_anew_shows_as_a_gap() {
    let mut server = NatsServer::start().await;
    let first = store(&server).await;
    let (source, mut events) = follow(&server).await;
    for n in 0..3 {
        write(&first, Kind::Beacon, &n.to_string()).await;
    }
    until(&mut events, |event| *event == statement(Kind::Beacon, "2")).await;
    server.kill().await;
    server.wipe();
    server.start_again().await;
    until(&mut events, |event| *event == Event::Up).await;
    let error = source.newest(Kind::Beacon).await.expect_err("there is no stream");
    assert!(error.0.contains("the store is not there"), "{error}");
    let again = store(&server).await;
    write(&again, Kind::Beacon, "new").await;
    let gap = until(&mut events, |event| matches!(event, Event::Gap(_))).await;
    let Event::Gap(why) = gap else { unreachable!() };
    assert!(why.contains("3 -> 1"), "{why}");
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_again_while_connected_shows_as_a_gap() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let (_source, mut events) = follow(&server).await;
    write(&store, Kind::Beacon, "1").await;
    write(&store, Kind::Beacon, "2").await;
    let (connection, _) = nats::connect(&config(&server), "cli", nats::ConnectRetry::Never).await.unwrap();
    connection.request("STREAM.DELETE.STOCKADE_prod", &serde_json::Value::Null).await.unwrap();
    store.ensure(&Settings::default()).await.unwrap();
    write(&store, Kind::Beacon, "new").await;
    until(&mut events, |event| *event == statement(Kind::Beacon, "new")).await;
    assert!(matches!(events.recv().await, Some(Event::Gap(_))));
}

/// On NATS, a subscription to a forbidden subject succeeds and stays silent.
#[tokio::test]
async fn a_refusal_shows() {
    let server = NatsServer::with(
        r#"authorization: { users: [{
            user: deaf, password: x
            permissions: { subscribe: ["_INBOX_stockade_sidecar.>"], publish: ["$JS.API.DIRECT.GET.>"] }
        }] }"#,
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password").display().to_string();
    std::fs::write(&password, "x\n").unwrap();
    let config =
        nats::Config { user: Some("deaf".to_owned()), password_file: Some(password.clone()), ..config(&server) };
    let (source, mut events) = Jetstream::follow(&config, prod()).await.unwrap();
    let refusal = until(&mut events, |event| matches!(event, Event::Refused(_))).await;
    let Event::Refused(what) = refusal else { unreachable!() };
    assert!(what.contains("stockade.prod.event.>"), "{what}");
    let asked = Instant::now();
    let error = source.report(&status()).await.expect_err("it may not");
    assert!(error.0.contains("does not allow") && asked.elapsed() < Duration::from_secs(9), "{error}");

    std::fs::write(&password, "wrong").unwrap();
    let (_source, mut events) = Jetstream::follow(&config, prod()).await.unwrap();
    let refusal = until(&mut events, |event| matches!(event, Event::Refused(_))).await;
    assert!(matches!(&refusal, Event::Refused(what) if what.contains("authorization violation")), "{refusal:?}");
    // Files are read at each attempt.
    std::fs::write(&password, "x").unwrap();
    until(&mut events, |event| *event == Event::Up).await;
}

#[tokio::test]
async fn an_nkey_lets_us_in() {
    let pair = nkeys::KeyPair::new_user();
    let users = format!("authorization: {{ users: [{{ nkey: {} }}] }}", pair.public_key());
    let server = NatsServer::with(&users).await;
    let dir = tempfile::tempdir().unwrap();
    let seed = dir.path().join("seed").display().to_string();
    std::fs::write(&seed, format!("{}\n", pair.seed().unwrap())).unwrap();
    let with = |nkey| nats::Config { nkey, ..config(&server) };
    let (connection, _events) = nats::connect(&with(Some(seed)), "cli", nats::ConnectRetry::Never).await.unwrap();
    connection.flush().await.unwrap();
    let error = nats::connect(&with(None), "cli", nats::ConnectRetry::Never).await.expect_err("nobody").to_string();
    assert!(error.contains("authorization violation"), "{error}");
}

#[tokio::test]
async fn a_bundle_of_several_pieces_comes_whole_or_not_at_all() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let bytes: Vec<u8> = (0..2 * PIECE + 5).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let (own, (source, _events)) = (blob(&bytes), follow(&server).await);
    assert_eq!(store.upload(&own, &bytes).await.unwrap(), 3);
    assert_eq!(store.upload(&own, &bytes).await.unwrap(), 0, "what is there is not sent again");
    assert_eq!(source.blob(&own).await.unwrap(), bytes);
    assert_eq!(store.blobs().await.unwrap(), [own.digest.hex()]);

    let longer = Blob { size: own.size + PIECE as u64, ..own };
    let error = source.blob(&longer).await.expect_err("one more piece");
    assert!(error.0.starts_with("blob sha256:") && error.0.ends_with(": piece 3 is missing"), "{error}");
    let shorter = Blob { size: own.size - 1, ..own };
    let error = source.blob(&shorter).await.expect_err("one byte less");
    assert!(error.0.contains("is larger than"), "{error}");
    store.remove_blob(&own.digest.hex()).await.unwrap();
    assert!(source.blob(&own).await.is_err());
}

/// Wherever a beacon stands in the stream, what it names is the newest before it.
#[tokio::test]
async fn a_beacon_that_was_overtaken_is_not_said() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let beacon = |after| store.beacon(b"beacon".to_vec(), after);
    assert!(matches!(beacon(store.newest_sequence().await.unwrap()).await, Ok(Advance::Stored(_))));
    let after = store.newest_sequence().await.unwrap();
    store.upload(&blob(b"x"), b"x").await.unwrap();
    assert!(matches!(beacon(after).await, Ok(Advance::Stored(_))), "blobs change nothing");
    let after = store.newest_sequence().await.unwrap();
    write(&store, Kind::Overlays, "deny").await;
    assert_eq!(beacon(after).await.unwrap(), Advance::Overtaken);
    assert!(matches!(beacon(after + 1).await, Ok(Advance::Stored(_))));
}

/// A full stream refuses everything, so bundles leave room for denials and beacons.
#[tokio::test]
async fn a_store_that_is_full_of_bundles_still_takes_statements() {
    let server = NatsServer::start().await;
    let (store, _events) =
        stockade::publish::Store::connect(&config(&server), prod(), "cli", nats::ConnectRetry::Never).await.unwrap();
    let settings = Settings { max_bytes: stockade::units::Bytes(2 << 20), ..Settings::default() };
    store.ensure(&settings).await.unwrap();
    store.ensure(&settings).await.expect("there already, as it should be");
    let mut uploaded = 0;
    let refused = loop {
        let bytes = vec![uploaded; PIECE];
        match store.upload(&blob(&bytes), &bytes).await {
            Ok(_) => uploaded += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(uploaded == 7 && refused.starts_with("the store is full"), "{uploaded} {refused}");
    write(&store, Kind::Overlays, "deny").await;
    write(&store, Kind::Beacon, "ping").await;
}

#[tokio::test]
async fn what_sidecars_tell_is_kept_once_for_each() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let (source, _events) = follow(&server).await;
    for pod in ["a", "b.c", "a"] {
        source.report(&Status { pod: pod.to_owned(), ..status() }).await.unwrap();
    }
    let pods: Vec<String> = store.sidecars().await.unwrap().into_iter().map(|own| own.status.pod).collect();
    assert_eq!(pods, ["b.c", "a"]);
}

/// More than one batch of what the server gives at a time.
#[tokio::test]
async fn a_long_history_is_read_whole() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let mut after = 0;
    for n in 0..600 {
        match store.advance(Kind::Manifest, n.to_string().as_bytes(), after).await.unwrap() {
            Advance::Stored(sequence) => after = sequence,
            other => panic!("{other:?}"),
        }
    }
    let history = store.history(Kind::Manifest, 1).await.unwrap();
    let texts: Vec<String> = history.iter().map(|own| String::from_utf8(own.payload.to_vec()).unwrap()).collect();
    assert_eq!(texts, (0..600).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(store.history(Kind::Manifest, 590).await.unwrap().len(), 11);
}

fn status() -> Status {
    Status {
        pod: "pod".to_owned(),
        namespace: "shop".to_owned(),
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
    }
}
