use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::SystemTime;

use super::test;
use crate::cli::args::bundle::BundleArgs;
use crate::cli::args::config::ConfigArgs;
use crate::cli::args::session::WriterArgs;
use crate::cli::args::wait::StatusWatch;
use crate::cli::output::{Error, changes, count, ended, run as run_command, show};
use crate::policy::{Files, Snapshot};
use crate::publish::streams::Settings;
use crate::publish::{Draft, PackedBundle, Session};
use crate::store::statement::{Kind, Manifest};
use crate::terminal::{out, outln};
use crate::units::Bytes;

/// Publish a bundle: put it in force on every sidecar that follows the store.
///
/// Validates the bundle, runs its tests, packs it (the same content has the same digest), uploads it, and moves the store's signed
/// manifest to it. If someone else has published in between, nothing is changed, and what they did is shown. The
/// first publish makes the store's streams.
///
/// Exit status: 0 if it was published, or is in force already; 1 if nothing was changed; 2 if it was published, but
/// `--wait` was not fulfilled or a sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Why, for those who read the history.
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// When it comes into force, if not at once: RFC 3339, such as `2030-01-31T12:00:00Z`.
    #[arg(long, conflicts_with = "percent", value_name = "TIME", value_parser = humantime::parse_rfc3339)]
    not_before: Option<SystemTime>,
    /// Treat warnings as errors.
    #[arg(long)]
    strict: bool,
    /// Publish although a policy permits everything to everybody: a `permit` without a scope and without a condition. The first
    /// bundle of a store does not need it, unless with `--strict`.
    #[arg(long)]
    allow_open: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin a new epoch, whatever is in the store: after its newest manifest was forged, or all its keys were lost.
    #[arg(long)]
    new_epoch: bool,
    /// On how many servers the store's streams lie, if they are made now: 1, 3 or 5.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: u8,
    /// How large the store may become, if it is made now.
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    max_bytes: Bytes,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    writer: WriterArgs,
}

fn bytes(text: &str) -> Result<Bytes, String> {
    Bytes::try_from_text(text).ok_or_else(|| "a number of bytes, such as `1GiB`".to_owned())
}

pub(super) fn run(args: &Args) -> ExitCode {
    match checked(args) {
        Ok((files, snapshot)) => run_command(publish(args, &files, &snapshot)),
        Err(error) => ended(Err(error)),
    }
}

/// The bundle, compiled once and tested: what a sidecar would refuse is not published.
fn checked(args: &Args) -> Result<(Vec<Files>, Arc<Snapshot>), Error> {
    let unpublished = |why: &str| Error::NotPublished(why.to_owned());
    let (files, snapshot) = args.bundle.read().map_err(|problems| {
        show(&problems);
        unpublished("a sidecar would refuse this")
    })?;
    show(&snapshot.warnings);
    if let Some(why) = refused(args, &snapshot, args.strict) {
        return Err(Error::NotPublished(why));
    }
    let snapshot = Arc::new(snapshot);
    let tested = args.config.given().and_then(|config| test::run_tests(&files, &snapshot, config.as_ref()));
    match tested {
        Ok(0) => {}
        Ok(passed) => outln!("{} of the bundle passed", count(passed, "test")),
        Err(problems) => {
            show(&problems);
            return Err(unpublished("tests of the bundle fail, or cannot be run"));
        }
    }
    Ok((files, snapshot))
}

/// Why a valid bundle is not to be published all the same. `closed`: whether opening everything must be confirmed, as it must where
/// something is in force already. Before the first bundle nothing is protected yet.
fn refused(args: &Args, snapshot: &Snapshot, closed: bool) -> Option<String> {
    // Each of them has one warning, which `--allow-open` answers.
    let open = snapshot.open_policies();
    let meant = if args.allow_open { open.len() } else { 0 };
    match open.first() {
        Some(first) if closed && !args.allow_open => Some(format!(
            "`{first}` permits everything to everybody (give it a scope, or publish it with `--allow-open`)"
        )),
        _ if args.strict && snapshot.warnings.iter().filter(|problem| problem.is_warning()).count() > meant => {
            Some("there are warnings, and `--strict`".to_owned())
        }
        _ => None,
    }
}

async fn publish(args: &Args, files: &[Files], snapshot: &Snapshot) -> Result<ExitCode, Error> {
    let packed = PackedBundle::of(files)?;
    let (key, session) = args.writer.connect().await?;
    let position = session.position(args.new_epoch).await?;
    let unchanged = |current: &&Manifest| current.bundle == packed.blob && !args.new_epoch;
    if let Some(current) = position.current.as_ref().filter(unchanged) {
        outln!("nothing to publish: {} is in force as {}", packed.blob.digest, current.version);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = refused(args, snapshot, args.strict || position.current.is_some()) {
        return Err(Error::NotPublished(why));
    }
    out!("{}", changes::since(&session, position.current.as_ref(), files, snapshot, packed.blob.size).await);
    if args.dry_run {
        outln!("dry run: nothing was changed");
        return Ok(ExitCode::SUCCESS);
    }
    session.store.ensure(&Settings { replicas: args.replicas, max_bytes: args.max_bytes }).await?;
    let watch = args.writer.watch(&session).await?;
    upload(&session, &packed).await?;
    let draft = Draft {
        not_before: args.not_before,
        message: args.message.clone(),
        commit: args.bundle.directories.first().and_then(|dir| commit(dir)),
        ..Draft::new(packed.blob, args.writer.publisher())
    };
    let manifest = session.publish_manifest(&key, &position, draft).await?;
    outln!("published {} with {}", manifest.version, manifest.bundle.digest);
    // Where it was uploaded before, someone may have removed it in between, as one that no version names.
    session.store.upload(&packed.blob, &packed.bytes).await?;
    Ok(StatusWatch::wait_for(watch, Kind::Manifest, manifest.version, manifest.published_at).await)
}

async fn upload(session: &Session, packed: &PackedBundle) -> Result<(), Error> {
    if session.store.upload(&packed.blob, &packed.bytes).await? == 0 {
        outln!("the bundle was uploaded before");
    }
    Ok(())
}

/// The Git commit that a directory is at, if it is at one; with `-dirty`, if something in it was changed since.
fn commit(directory: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(directory).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"]).filter(|commit| !commit.is_empty())?;
    let clean = git(&["status", "--porcelain", "--", "."])?.is_empty();
    Some(if clean { commit } else { format!("{commit}-dirty") })
}
