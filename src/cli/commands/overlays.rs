use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::json;

use crate::cli::args::overlay::IssueArgs;
use crate::cli::args::session::ReaderArgs;
use crate::cli::output::{Error, run as run_command};
use crate::publish::overlays::{Edit, describe};
use crate::terminal::{clean_excerpt, errln, outln};

/// List the emergency denials and exceptions in force, or end one.
///
/// Only what a trusted key has signed is listed.
///
/// Exit status: 0; 1 if the store cannot be read or nothing was changed; 2 if one was ended, but `--wait` was not
/// fulfilled or a sidecar refuses it.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// End one before its time.
    End {
        /// Its id.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        issue: Box<IssueArgs>,
    },
}

pub(super) fn run(args: &Args) -> ExitCode {
    match &args.command {
        Some(Command::End { id, issue }) => {
            run_command(async { issue.edit(&Edit::End(id.clone()), &format!("ended {id}")).await })
        }
        None => run_command(list(args)),
    }
}

async fn list(args: &Args) -> Result<ExitCode, Error> {
    let session = args.reader.connect().await?;
    let now = SystemTime::now();
    let current = session.newest_overlays().await?;
    if let Some(doubt) = current.as_ref().and_then(|current| current.doubt.as_ref()) {
        errln!("warning: {doubt}");
    }
    let mut entries = current.map(|current| current.overlays.overlays).unwrap_or_default();
    entries.retain(|entry| entry.until.0 > now);
    if args.json {
        outln!("{:#}", json!(entries));
    } else if entries.is_empty() {
        outln!("no overlays are in force");
    }
    for entry in entries.iter().filter(|_| !args.json) {
        outln!("{}", clean_excerpt(&describe(entry, now)));
    }
    Ok(ExitCode::SUCCESS)
}
