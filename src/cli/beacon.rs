use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::store::{StoreArgs, TrustArgs, read_key, run as run_command};
use crate::nats;
use crate::observe;
use crate::publish::{Advance, Store, history, read_manifest, read_overlays};
use crate::shutdown::Signals;
use crate::store::statement::{Beacon, Kind, Timestamp};
use crate::store::{Keyring, SecretKey, envelope};
use crate::terminal::errln;

/// Say again and again what is the newest in the store, so that sidecars know that they have it.
///
/// A process that runs beside the NATS servers, with a key that may sign beacons only. Once an interval it asks the
/// leader of the store's stream for the newest statements, and signs what they are at that instant. It also makes the
/// stream in which sidecars say what they enforce, if that is gone, since a server keeps it in memory. Two of them may run
/// side by side. With `--trust`, it names only statements that these keys have signed.
///
/// Exit status: 0 after SIGTERM or SIGINT, 1 if it cannot start.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The private key, as `stockade keygen` wrote it.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: PathBuf,
    /// How often.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    if let Err(error) = observe::tracing::init(&observe::tracing::Config::default()) {
        errln!("logging cannot be set up: {error}");
        return ExitCode::FAILURE;
    }
    run_command(beacon(args))
}

async fn beacon(args: &Args) -> Result<ExitCode, String> {
    let key = read_key(&args.key)?;
    let signals = Signals::register().map_err(|error| format!("signals cannot be caught: {error}"))?;
    let keyring = (!args.trust.is_empty()).then(|| args.trust.keyring(None));
    let (store, events) = args.store.follow().await?;
    info!(store = %store.name(), key = %key.public().id(), interval = ?args.interval, "beacon begins");
    let lamp = Lamp { store, key, keyring, state: State::Dark };
    tokio::select! {
        _ = signals.first() => {}
        () = lamp.shine(args.interval, events) => {}
    }
    info!("beacon ends");
    Ok(ExitCode::SUCCESS)
}

/// How often in a row it looks again, before it waits for the next turn.
const LOOKS: u32 = 5;

/// The one that says beacons.
struct Lamp {
    store: Store,
    key: SecretKey,
    /// Whose statements it names; `None`: anyone's.
    keyring: Option<Keyring>,
    state: State,
}

/// How it went last, so that only changes are logged.
#[derive(PartialEq, Eq)]
enum State {
    Dark,
    Lit,
    Failed(String),
}

impl Lamp {
    async fn shine(mut self, every: Duration, mut events: nats::Events) {
        let mut ticks = interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = events.recv() => match event {
                    nats::Event::Up => {
                        info!("the store can be reached");
                        if let Err(error) = self.store.ensure_statuses().await {
                            warn!(error, "what sidecars say may be nowhere to be kept");
                        }
                    }
                    nats::Event::Down(why) => warn!(why, "the store cannot be reached"),
                    nats::Event::Refused(what) => warn!(what, "the store does not allow something"),
                    nats::Event::Dropped => {}
                },
                _ = ticks.tick() => {
                    let said = self.say().await;
                    self.log(said);
                }
            }
        }
    }

    /// One beacon: what is the newest, as of when it looked. If something was said in between, it looks again.
    async fn say(&self) -> Result<(), String> {
        for _ in 0..LOOKS {
            let after = self.store.newest_sequence().await.map_err(|error| error.to_string())?;
            let sent_at = Timestamp::now();
            let (manifest, overlays) = tokio::try_join!(self.newest(Kind::Manifest), self.newest(Kind::Overlays))?;
            let beacon = Beacon { store: self.store.name().clone(), manifest, overlays, sent_at };
            let payload = serde_json::to_vec(&beacon).map_err(|error| error.to_string())?;
            let sealed = envelope::seal(Kind::Beacon, &payload, &self.key).map_err(|refusal| refusal.to_string())?;
            if self.store.beacon(sealed, after).await.map_err(|error| error.to_string())? != Advance::Overtaken {
                return Ok(());
            }
        }
        Err(format!("something else was said {LOOKS} times in between"))
    }

    async fn newest(&self, kind: Kind) -> Result<Option<crate::store::Head>, String> {
        let stored = self.store.newest(kind).await.map_err(|error| error.to_string())?;
        let Some(stored) = stored else { return Ok(None) };
        let name = self.store.name();
        let head = match &self.keyring {
            Some(keyring) if kind == Kind::Manifest => read_manifest(name, keyring, &stored.payload)?.head,
            Some(keyring) => read_overlays(name, keyring, &stored.payload)?.head,
            None => {
                history::head(&stored.payload).ok_or_else(|| format!("the newest {} cannot be read", kind.as_str()))?
            }
        };
        Ok(Some(head))
    }

    fn log(&mut self, said: Result<(), String>) {
        let state = said.map_or_else(State::Failed, |()| State::Lit);
        if state != self.state {
            match &state {
                State::Failed(error) => warn!(error, "no beacon is said"),
                State::Lit | State::Dark => info!("beacons are said"),
            }
            self.state = state;
        }
    }
}
