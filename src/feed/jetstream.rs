//! Follows the central store on NATS: one plain subscription to the statements as the server stores them, and a direct get for
//! everything else. No consumer on the server, and no KV watch, which goes deaf without a sign (docs/store.md).

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::source::{Event, Events, Source, SourceError};
use crate::nats::{self, ConnectRetry, Connection};
use crate::store::layout::Layout;
use crate::store::statement::{Blob, Kind, Status, StoreName};

/// How many events wait to be looked at: minutes of them, at a beacon each second.
const EVENTS: usize = 256;

/// How often the connection is looked at, beside what it tells by itself.
const LOOK: Duration = Duration::from_millis(500);

/// A store on NATS, from a sidecar's side.
#[derive(Debug, Clone)]
pub struct Jetstream {
    connection: Connection,
    layout: Layout,
}

impl Jetstream {
    /// Begins to follow a store. Returns at once, with or without a server: [`Event::Up`] is the sign of one.
    ///
    /// # Errors
    /// If the configuration or its files are wrong.
    pub async fn follow(config: &nats::Config, store: StoreName) -> Result<(Self, Events), SourceError> {
        let layout = Layout::new(store);
        let (connection, happenings) = nats::connect(config, "sidecar", ConnectRetry::Forever)
            .await
            .map_err(|error| SourceError(error.to_string()))?;
        let statements = connection.subscribe(layout.events()).await.map_err(failed)?;
        let (sender, events) = mpsc::channel(EVENTS);
        let listener = Listener {
            connection: connection.clone(),
            layout: layout.clone(),
            outlet: Outlet { sender, gap: None, state: None },
            sequences: Sequences::default(),
            up: false,
        };
        tokio::spawn(listener.run(statements, happenings));
        Ok((Self { connection, layout }, events))
    }
}

impl Source for Jetstream {
    async fn newest(&self, kind: Kind) -> Result<Option<Bytes>, SourceError> {
        let found = self.connection.last(&self.layout.stream(), &self.layout.head(kind)).await;
        found.map(|found| found.map(|stored| stored.payload)).map_err(failed)
    }

    async fn before(&self, kind: Kind, place: Option<u64>) -> Result<Option<(u64, Bytes)>, SourceError> {
        let (stream, head) = (self.layout.stream(), self.layout.head(kind));
        let found = match place {
            None => self.connection.last(&stream, &head).await,
            Some(place) => self.connection.last_before(&stream, &head, place).await,
        };
        found.map(|found| found.map(|stored| (stored.sequence, stored.payload))).map_err(failed)
    }

    async fn blob(&self, blob: &Blob) -> Result<Bytes, SourceError> {
        let found = self.connection.joined(&self.layout.stream(), self.layout.pieces(blob), blob.size).await;
        found.map_err(|error| SourceError(format!("blob {}: {error}", blob.digest)))
    }

    async fn report(&self, status: &Status) -> Result<(), SourceError> {
        let subject = self.layout.status(&status.namespace, &status.pod);
        let payload = serde_json::to_vec(status).map_err(|error| SourceError(error.to_string()))?;
        self.connection.store(&subject, payload.into(), None).await.map(|_| ()).map_err(failed)
    }
}

fn failed(error: nats::Error) -> SourceError {
    SourceError(error.to_string())
}

/// The task that listens, and passes on what it hears.
struct Listener {
    connection: Connection,
    layout: Layout,
    outlet: Outlet,
    sequences: Sequences,
    /// Whether the connection was there, as was told last.
    up: bool,
}

impl Listener {
    /// Until nobody listens to it any more, or the connection is closed.
    async fn run(mut self, mut statements: Subscriber, mut happenings: nats::Events) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What the connection does comes first: after `Up`, what is heard is of the new connection.
                biased;
                () = self.outlet.sender.closed() => return,
                Some(event) = happenings.recv() => self.happened(event),
                message = statements.next() => match message {
                    Some(message) => self.heard(&message),
                    None => return self.outlet.put(Event::Down("the connection was closed".to_owned())),
                },
                _ = look.tick() => self.look(),
            }
        }
    }

    fn happened(&mut self, event: nats::Event) {
        match event {
            nats::Event::Up => self.is_up(),
            nats::Event::Down(why) => self.is_down(why),
            nats::Event::Refused(what) => self.outlet.put(Event::Refused(what)),
            nats::Event::Dropped => {
                self.outlet.put(Event::Gap("more was said than could be heard".to_owned()));
            }
        }
    }

    fn is_up(&mut self) {
        self.up = true;
        self.outlet.put(Event::Up);
    }

    fn is_down(&mut self, why: String) {
        self.up = false;
        self.outlet.put(Event::Down(why));
    }

    /// Events of the connection may get lost where there are very many; the state itself does not.
    fn look(&mut self) {
        self.outlet.catch_up();
        match (self.up, self.connection.is_up()) {
            (false, true) => self.is_up(),
            (true, false) => self.is_down("the connection was lost".to_owned()),
            _ => {}
        }
    }

    fn heard(&mut self, message: &Message) {
        let Some(kind) = self.layout.kind_of_event(&message.subject) else { return };
        let header = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
        let gap = self.sequences.gap(kind, header("Nats-Sequence"), header("Nats-Last-Sequence"));
        self.outlet.put(Event::Statement(kind, message.payload.clone()));
        if let Some(gap) = gap {
            self.outlet.put(Event::Gap(gap));
        }
    }
}

/// Where in the stream the last statement of each kind stood. Each that the server repeats says which one of its kind came
/// before it, so what was missed shows with the next, and a stream that began anew at once.
#[derive(Debug, Default)]
struct Sequences(BTreeMap<Kind, u64>);

impl Sequences {
    /// Takes note of a statement at `sequence` that followed one of its kind at `before` (0: none). What may have been missed.
    fn gap(&mut self, kind: Kind, sequence: Option<u64>, before: Option<u64>) -> Option<String> {
        let word = kind.as_str();
        let (Some(sequence), Some(before)) = (sequence, before) else {
            return Some(format!("a {word} was heard that says nothing of its place: not from the store's stream"));
        };
        let seen = self.0.insert(kind, sequence)?;
        match sequence {
            _ if sequence <= seen => Some(format!("{word}: the stream went back, {seen} -> {sequence}")),
            _ if before != seen => Some(format!("{word}: {seen} -> {sequence}, which follows {before}")),
            _ => None,
        }
    }
}

/// Where events leave. It never waits: a listener that stands still would be cut off by the server. What does not fit is
/// dropped, and told when there is room again.
struct Outlet {
    sender: mpsc::Sender<Event>,
    /// Owed: that something was dropped.
    gap: Option<Event>,
    /// Owed: the newest of [`Event::Up`], [`Event::Down`] and [`Event::Refused`], if it was dropped.
    state: Option<Event>,
}

impl Outlet {
    fn put(&mut self, event: Event) {
        self.catch_up();
        if self.gap.is_none() {
            match self.sender.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => self.drop(event),
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        } else {
            self.drop(event);
        }
    }

    fn drop(&mut self, event: Event) {
        self.gap = Some(Event::Gap("events came faster than they were looked at".to_owned()));
        if matches!(event, Event::Up | Event::Down(_) | Event::Refused(_)) {
            self.state = Some(event);
        }
    }

    /// Tells what is owed, if there is room for all of it.
    fn catch_up(&mut self) {
        if self.gap.is_none() {
            return;
        }
        if let Ok(permits) = self.sender.try_reserve_many(2) {
            permits.zip([self.gap.take(), self.state.take()]).for_each(|(permit, event)| {
                if let Some(event) = event {
                    permit.send(event);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_shows() {
        let mut sequences = Sequences::default();
        let mut gap = |kind, sequence: u64, before: u64| sequences.gap(kind, Some(sequence), Some(before)).is_some();
        assert!(!gap(Kind::Manifest, 7, 3), "the first that is heard follows what was there before");
        assert!(!gap(Kind::Beacon, 8, 0));
        assert!(!gap(Kind::Manifest, 12, 7), "pieces of blobs lie between");
        assert!(!gap(Kind::Beacon, 13, 8));
        assert!(gap(Kind::Beacon, 20, 15), "13 was the last");
        assert!(!gap(Kind::Beacon, 21, 20));
        assert!(gap(Kind::Beacon, 1, 0), "the stream began anew");
        assert!(gap(Kind::Beacon, 1, 0), "twice");
        assert!(gap(Kind::Manifest, 14, 0), "what was there before is gone");
        assert!(sequences.gap(Kind::Manifest, None, None).is_some());
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_told() {
        let (sender, mut receiver) = mpsc::channel(3);
        let mut outlet = Outlet { sender, gap: None, state: None };
        let statement = |n: u8| Event::Statement(Kind::Beacon, Bytes::copy_from_slice(&[n]));
        (0..5).for_each(|n| outlet.put(statement(n)));
        outlet.put(Event::Down("x".to_owned()));
        outlet.put(Event::Up);
        let mut take = |n: usize| (0..n).map_while(|_| receiver.try_recv().ok()).collect::<Vec<_>>();
        assert_eq!(take(1), [statement(0)]);
        outlet.put(statement(9));
        assert_eq!(take(9), [statement(1), statement(2)], "no room for what is owed before something new");
        outlet.catch_up();
        let told = take(9);
        assert!(matches!(told.as_slice(), [Event::Gap(_), Event::Up]), "{told:?}");
        outlet.put(statement(10));
        assert_eq!(take(9), [statement(10)]);
    }
}
