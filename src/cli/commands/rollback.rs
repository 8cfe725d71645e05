use std::process::ExitCode;

use crate::cli::args::session::WriterArgs;
use crate::cli::args::wait::StatusWatch;
use crate::cli::output::{Error, run as run_command};
use crate::policy::Snapshot;
use crate::problem;
use crate::publish::{Draft, history};
use crate::store::statement::Kind;
use crate::terminal::outln;

/// Go back to a bundle that was in force before.
///
/// Publishes a new version that names an old bundle, so it takes effect everywhere like any publish. Without `--to`, the
/// last bundle before the one in force.
///
/// Exit status: 0 if it was published, 1 if nothing was changed, 2 if it was published, but `--wait` was not fulfilled or
/// a sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The version to go back to, as `stockade history` shows it; its last number will do.
    #[arg(long, value_name = "REV")]
    to: Option<String>,
    /// Why, for those who read the history.
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    writer: WriterArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(rollback(args))
}

async fn rollback(args: &Args) -> Result<ExitCode, Error> {
    let (key, session) = args.writer.connect().await?;
    let position = session.position(false).await?;
    let entries = session.entries().await?;
    let target = match &args.to {
        Some(text) => history::find(&entries, text)?,
        None => history::previous(&entries)?,
    };
    let target = target.believed().map_err(|doubt| Error::Doubted { version: target.head.version, doubt })?;
    let current = position.current.as_ref().ok_or(crate::publish::Error::NothingPublished)?;
    if current.bundle == target.bundle {
        let (digest, version) = (target.bundle.digest, current.version);
        return Err(Error::Unchanged(format!("{digest} is in force already, as {version}")));
    }
    // A sidecar would refuse what is not valid, and keep what it has.
    Snapshot::compile(&session.files(target).await?, None, &mut Default::default())
        .map_err(|found| Error::NotValid { version: target.version, problems: problem::one_line(&found) })?;
    let watch = args.writer.watch(&session).await?;
    let draft = Draft {
        message: args.message.clone(),
        commit: target.commit.clone(),
        min_sidecar: target.min_sidecar.clone(),
        rolls_back_to: Some(target.version),
        ..Draft::new(target.bundle, args.writer.publisher())
    };
    let manifest = session.publish_manifest(&key, &position, draft).await?;
    outln!("published {} with {}", manifest.version, manifest.bundle.digest);
    Ok(StatusWatch::wait_for(watch, Kind::Manifest, manifest.version, manifest.published_at).await)
}
