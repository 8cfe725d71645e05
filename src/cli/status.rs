use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::store::{Session, StoreArgs, run as run_command};
use crate::publish::table;
use crate::store::Keyring;
use crate::store::statement::Head;
use crate::terminal::{self, Stream, out};

/// Show what every sidecar enforces.
///
/// Those that need attention come first: who refuses something, who enforces something old, who has not heard from the
/// store. A sidecar says this by itself, unsigned; it vanishes 90 seconds after it was said last.
///
/// Exit status: 0, or 1 if the store cannot be read.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
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
            let seen = look(&session, args.json).await;
            if !args.watch {
                out!("{}", seen?);
                return Ok(ExitCode::SUCCESS);
            }
            // A server that is away for a while is no reason to stop looking.
            let seen = seen.unwrap_or_else(|error| format!("{error}\n"));
            if Stream::Out.is_terminal() && !args.json {
                terminal::clear();
            }
            out!("{seen}");
            tokio::time::sleep(AGAIN).await;
        }
    })
}

async fn look(session: &Session, json: bool) -> Result<String, String> {
    let newest: Option<Head> = session.newest_head().await?;
    let mut statuses = session.store.statuses().await.map_err(|error| error.to_string())?;
    table::sort(&mut statuses, newest.as_ref());
    Ok(match json {
        true => format!("{}\n", json!({"newest": newest, "sidecars": statuses})),
        false => table::render(&statuses, newest.as_ref(), SystemTime::now()),
    })
}
