//! The central store, on a real NATS server.

mod commands;
mod feed;
mod hostile;
mod lab;
mod many;
mod outages;
mod paused;
mod permissions;
mod presence;
mod refused;
mod replies;

use std::time::Duration;

use stockade::feed::jetstream::Jetstream;
use stockade::feed::source::{Event, Events};
use stockade::nats::{self, ConnectRetry};
use stockade::publish::streams::Settings;
use stockade::publish::{Advance, Store};
use stockade::store::statement::{Blob, Kind};
use stockade::store::{Digest, StoreName};
use tokio::time::timeout;

use testkit::PATIENCE;
use testkit::nats::NatsServer;

/// The store of the tests.
pub fn prod() -> StoreName {
    StoreName::try_from_text("prod".to_owned()).unwrap()
}

/// How this server is reached. Answers may take their time on a loaded machine.
pub fn config(server: &NatsServer) -> nats::Config {
    let config = nats::Config::of(&server.url()).unwrap();
    nats::Config { timeout: stockade::units::HumanDuration::seconds(10), ..config }
}

/// The store on this server, from the publisher's side. Its streams are there.
pub async fn store(server: &NatsServer) -> Store {
    let (store, _events) = Store::connect(&config(server), prod(), "cli", ConnectRetry::Never).await.unwrap();
    store.ensure(&Settings::default()).await.unwrap();
    store
}

/// Follows the store on this server, and waits until it is there.
pub async fn follow(server: &NatsServer) -> (Jetstream, Events) {
    let (source, mut events) = Jetstream::follow(&config(server), prod()).await.unwrap();
    until(&mut events, |event| *event == Event::Up).await;
    (source, events)
}

/// Waits for an event; those before it are let go.
pub async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    let mut seen = Vec::new();
    let find = async {
        loop {
            match events.recv().await {
                Some(event) if wanted(&event) => return event,
                Some(event) => seen.push(event),
                None => panic!("the events ended"),
            }
        }
    };
    match timeout(PATIENCE, find).await {
        Ok(event) => event,
        Err(_) => panic!("the event did not come; what came: {seen:?}"),
    }
}

/// Writes something as the newest of its kind. What it says does not matter to what carries it.
pub async fn write(store: &Store, kind: Kind, text: &str) {
    let after = store.newest(kind).await.unwrap().map_or(0, |stored| stored.sequence);
    let advanced = store.advance(kind, text.as_bytes(), after).await.unwrap();
    assert!(matches!(advanced, Advance::Stored(_)), "{advanced:?}");
}

/// The blob of these bytes.
pub fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

/// How soon a server that does not answer must be noticed, without any beacon: the third ping that goes unanswered.
pub const NOTICED: Duration = Duration::from_secs(8);
