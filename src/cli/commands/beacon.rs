use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::cli::args::keys::{TrustArgs, read_key};
use crate::cli::args::store::StoreArgs;
use crate::cli::output::{Error, run as run_command};
use crate::nats;
use crate::observe;
use crate::publish::{self, BeaconSender};
use crate::shutdown::Signals;
use crate::terminal::errln;

/// Periodically sign and publish the newest versions in the store, so that sidecars know whether they have them.
///
/// A process that runs beside the NATS servers, with a key that may sign beacons only. Once an interval it asks the
/// leader of the store's stream for the newest statements, and signs what they are at that instant. It also makes the
/// stream in which sidecars report what they enforce, if that is gone, since a server keeps it in memory. Two of them may run
/// side by side. With `--trust`, it names only statements that these keys have signed.
///
/// Exit status: 0 after SIGTERM or SIGINT, 1 if it cannot start.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The private key, as `stockade keygen` wrote it.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: PathBuf,
    /// How often a beacon is sent.
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

async fn beacon(args: &Args) -> Result<ExitCode, Error> {
    let key = read_key(&args.key)?;
    let signals = Signals::register().map_err(Error::Signals)?;
    let keyring = (!args.trust.is_empty()).then(|| args.trust.keyring(None));
    let (store, events) = args.store.follow().await?;
    info!(store = %store.name(), key = %key.public().id(), interval = ?args.interval, "beacon begins");
    let sender = BeaconSender { store, key, keyring };
    tokio::select! {
        _ = signals.first() => {}
        () = send(&sender, args.interval, events) => {}
    }
    info!("beacon ends");
    Ok(ExitCode::SUCCESS)
}

/// How it went last, so that only changes are logged.
#[derive(PartialEq, Eq)]
enum State {
    Unknown,
    Sending,
    Failed(String),
}

/// Sends a beacon at each tick, for ever.
async fn send(sender: &BeaconSender, every: Duration, mut events: nats::Events) {
    let mut state = State::Unknown;
    let mut ticks = interval(every.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(event) = events.recv() => connection(sender, event).await,
            _ = ticks.tick() => state = log(state, sender.send_beacon().await),
        }
    }
}

/// Logs what happened to the connection, and sees to the stream of statuses when it is back.
async fn connection(sender: &BeaconSender, event: nats::Event) {
    match event {
        nats::Event::Up => {
            info!("the store can be reached");
            if let Err(error) = sender.store.ensure_statuses().await {
                warn!(%error, "the stream of what sidecars report may be missing");
            }
        }
        nats::Event::Down(why) => warn!(why, "the store cannot be reached"),
        nats::Event::Refused(what) => {
            warn!(what, "the store denied an operation; check the NATS permissions of the beacon")
        }
        nats::Event::Dropped => {}
    }
}

fn log(before: State, sent: Result<(), publish::Error>) -> State {
    let state = sent.map_or_else(|error| State::Failed(error.to_string()), |()| State::Sending);
    if state != before {
        match &state {
            State::Failed(error) => warn!(error, "no beacon is sent"),
            State::Sending | State::Unknown => info!("beacons are sent"),
        }
    }
    state
}
