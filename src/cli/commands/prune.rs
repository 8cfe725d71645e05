use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::args::store::StoreArgs;
use crate::cli::output::{Error, count, run as run_command};
use crate::publish::Session;
use crate::publish::history::Entry;
use crate::store::Keyring;
use crate::terminal::outln;

/// Remove bundles that no recent version names.
///
/// Versions stay in the history, but those whose bundle is removed cannot be shown, pulled or gone back to any more. What
/// was uploaded within the last hour stays: someone may be about to publish it.
///
/// Exit status: 0, or 1 if something could not be removed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many versions, from the newest, keep their bundles.
    #[arg(long, value_name = "N", default_value_t = 100)]
    keep: usize,
    /// Show what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// How old a bundle must be that no version names.
const AGE: Duration = Duration::from_secs(3600);

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(prune(args))
}

async fn prune(args: &Args) -> Result<ExitCode, Error> {
    // A version keeps its bundle, no matter who signed it.
    let session = args.store.connect(Keyring::default()).await?;
    let kept = kept(&session, args.keep).await?;
    let blobs = session.store.blobs().await?;
    let mut removed = 0;
    for digits in blobs.iter().filter(|digits| !kept.contains(*digits)) {
        if session.store.blob_age(digits).await? < AGE {
            outln!("kept    sha256:{digits}: it is new");
            continue;
        }
        // Someone may have gone back to it since.
        if !args.dry_run && !self::kept(&session, args.keep).await?.contains(digits) {
            session.store.remove_blob(digits).await?;
        }
        removed += 1;
        outln!("{} sha256:{digits}", if args.dry_run { "would remove" } else { "removed" });
    }
    outln!(
        "{removed} of {}{}",
        count(blobs.len(), "bundle"),
        if args.dry_run { "; dry run: nothing was changed" } else { "" }
    );
    Ok(ExitCode::SUCCESS)
}

/// The digests that the newest versions name, at least the one in force.
async fn kept(session: &Session, keep: usize) -> Result<BTreeSet<String>, Error> {
    let entries = session.entries().await?;
    let digits = |entry: &Entry| entry.manifest.bundle.digest.hex();
    Ok(entries.iter().rev().take(keep.max(1)).map(digits).collect())
}
