use std::process::ExitCode;

use super::publish::{Place, put};
use super::store::{SignArgs, StoreArgs, TrustArgs, believed, compile, run as run_command};
use super::wait::{Ear, WaitArgs};
use crate::publish::history;
use crate::store::statement::{Kind, Manifest, Timestamp};

/// Go back to a bundle that was in force before.
///
/// Publishes a new version that names an old bundle, so it takes effect everywhere like any publish. Without `--to`, the
/// last bundle before the one in force.
///
/// Exit status: 0 if it was published, 1 if nothing was changed, 2 if it was published, but `--wait` was not fulfilled or
/// a sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The version to go back to, as `stockade history` shows it; its last number will do.
    #[arg(long, value_name = "REV")]
    to: Option<String>,
    /// Why, for those who read the history.
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    sign: SignArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(rollback(args))
}

async fn rollback(args: &Args) -> Result<ExitCode, String> {
    let key = args.sign.key()?;
    let session = args.store.connect(args.trust.keyring(Some(&key))).await?;
    let place = Place::find(&session, false).await?;
    let entries = session.entries().await?;
    let target = match &args.to {
        Some(text) => history::find(&entries, text)?,
        None => history::previous(&entries)?,
    };
    let target = believed(target).map_err(|doubt| format!("{}: {doubt}", target.head.version))?;
    let current = place.current.as_ref().ok_or("nothing was ever published")?;
    if current.bundle == target.bundle {
        return Err(format!("{} is in force already, as {}", target.bundle.digest, current.version));
    }
    // A sidecar would refuse what is not good, and keep what it has.
    compile(&session.files(target).await?)
        .map_err(|error| format!("{} is not good any more: {error}", target.version))?;
    let ear = args.wait.listen(&session).await?;
    let manifest = Manifest {
        version: place.next,
        not_before: None,
        published_at: Timestamp::now(),
        publisher: args.sign.publisher(),
        message: args.message.clone(),
        rolls_back_to: Some(target.version),
        ..target.clone()
    };
    put(&session, &key, &manifest, place.after).await?;
    Ok(Ear::wait_for(ear, Kind::Manifest, manifest.version, manifest.published_at).await)
}
