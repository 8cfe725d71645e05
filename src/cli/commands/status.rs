use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value as Json, json};

use crate::cli::args::store::StoreArgs;
use crate::cli::args::wait::NOT_ENFORCED;
use crate::cli::output::{Error, run as run_command, sidecars};
use crate::publish::Session;
use crate::publish::presence::{self, Sidecar};
use crate::store::Keyring;
use crate::store::statement::{Head, Timestamp};
use crate::terminal::{self, Stream, out};

/// Show what every sidecar enforces.
///
/// Those that need attention come first: sidecars that refuse something, that are silent, that enforce something old, that have not
/// heard from the store. A sidecar reports this by itself, unsigned, every 30 seconds and when something changes. One that has missed
/// two reports is `silent`; it stays in sight for a day. One that was ended in order has said so, and is only counted.
///
/// Exit status: 0; 1 if the store cannot be read; 2 if fewer sidecars than `--expect` enforce what is newest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// How many sidecars there are: shows how many are missing, and exits with 2 unless so many enforce what is newest.
    #[arg(long, value_name = "N")]
    expect: Option<usize>,
    /// Look again every second, until interrupted.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    store: StoreArgs,
}

const AGAIN: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(async {
        let session = args.store.connect(Keyring::default()).await?;
        loop {
            let seen = look(&session, args).await;
            if !args.watch {
                let (seen, enforced) = seen?;
                out!("{seen}");
                let enough = args.expect.is_none_or(|expect| enforced >= expect);
                return Ok(if enough { ExitCode::SUCCESS } else { ExitCode::from(NOT_ENFORCED) });
            }
            // A server that is away for a while is no reason to stop looking.
            let seen = seen.map_or_else(|error| format!("{error}\n"), |(seen, _)| seen);
            if Stream::Out.is_terminal() && !args.json {
                terminal::clear();
            }
            out!("{seen}");
            tokio::time::sleep(AGAIN).await;
        }
    })
}

/// What there is to see, and how many sidecars enforce what is newest.
async fn look(session: &Session, args: &Args) -> Result<(String, usize), Error> {
    let newest: Option<Head> = session.newest_head().await?;
    let mut found = session.store.sidecars().await?;
    let now = SystemTime::now();
    presence::sort(&mut found, newest.as_ref(), now);
    let enforced = found.iter().filter(|own| own.enforces(newest.as_ref(), now)).count();
    let seen = match args.json {
        true => {
            let sidecars: Vec<Json> = found.iter().map(|own| shown(own, now)).collect();
            format!("{}\n", json!({"newest": newest, "expected": args.expect, "sidecars": sidecars}))
        }
        false => sidecars::render(&found, newest.as_ref(), args.expect, now),
    };
    Ok((seen, enforced))
}

/// What a sidecar reported, with when the server heard it and whether it keeps reporting.
fn shown(sidecar: &Sidecar, now: SystemTime) -> Json {
    let mut shown = json!(sidecar.status);
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("heard_at".to_owned(), json!(Timestamp(sidecar.heard)));
        fields.insert("presence".to_owned(), json!(sidecar.presence(now)));
    }
    shown
}
