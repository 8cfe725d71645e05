use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use super::assumed::ConfigArgs;
use super::store::{Session, SignArgs, StoreArgs, TrustArgs, compile, run as run_command};
use super::wait::{Ear, WaitArgs};
use super::{test, validate};
use crate::policy::{Files, PolicyDiff, Snapshot};
use crate::problem;
use crate::publish::streams::Settings;
use crate::publish::{Advance, history};
use crate::store::statement::{Blob, Kind, Manifest, Timestamp, Version};
use crate::store::{Digest, SecretKey, envelope, pack};
use crate::terminal::{Stream, clean_line, errln, out, outln};
use crate::units::Bytes;

/// Publish a bundle: put it in force on every sidecar that follows the store.
///
/// Validates the bundle, runs its tests, packs it (the same content has the same digest), uploads it, and moves the store's signed
/// manifest to it. If someone else has published in between, nothing is changed, and you are told what they did. The
/// first publish makes the store's streams.
///
/// Exit status: 0 if it was published, or is in force already; 1 if nothing was changed; 2 if it was published, but
/// `--wait` was not fulfilled or a sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle's directory, or several, which sidecars merge.
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
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
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin a new epoch, whatever the store says: after its newest manifest was forged, or all its keys were lost.
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
    sign: SignArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

fn bytes(text: &str) -> Result<Bytes, String> {
    Bytes::try_from_text(text).ok_or_else(|| "a number of bytes, such as `1GiB`".to_owned())
}

pub(super) fn run(args: &Args) -> ExitCode {
    let (files, snapshot) = match validate::read(&args.directories) {
        Ok(good) => good,
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            errln!("nothing was published: a sidecar would refuse this");
            return ExitCode::FAILURE;
        }
    };
    Stream::Err.show(&problem::render(&snapshot.warnings));
    if let Some(why) = refused(args, &snapshot, args.strict) {
        errln!("nothing was published: {why}");
        return ExitCode::FAILURE;
    }
    let tested = args.config.given().and_then(|config| test::run_tests(&files, config.as_ref()));
    match tested {
        Ok(0) => {}
        Ok(passed) => outln!("{passed} tests of the bundle passed"),
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            errln!("nothing was published: tests of the bundle fail, or cannot be run");
            return ExitCode::FAILURE;
        }
    }
    run_command(publish(args, &files, &snapshot))
}

/// Why a bundle that is good is not to be published all the same. `closed`: whether opening everything has to be meant, which it has
/// where something is in force already. Before the first bundle there is nobody who would be let in.
fn refused(args: &Args, snapshot: &Snapshot, closed: bool) -> Option<String> {
    // Each of them has one warning, which whoever allows them has read.
    let open = snapshot.open_policies();
    let meant = if args.allow_open { open.len() } else { 0 };
    match open.first() {
        Some(first) if closed && !args.allow_open => {
            Some(format!("`{first}` permits everything to everybody (give it a scope, or say `--allow-open`)"))
        }
        _ if args.strict && snapshot.warnings.iter().filter(|problem| problem.is_warning()).count() > meant => {
            Some("there are warnings, and `--strict`".to_owned())
        }
        _ => None,
    }
}

async fn publish(args: &Args, files: &[Files], snapshot: &Snapshot) -> Result<ExitCode, String> {
    let key = args.sign.key()?;
    let packed = pack::pack(files)?;
    let blob = Blob { digest: Digest::of(&packed), size: packed.len() as u64 };
    let session = args.store.connect(args.trust.keyring(Some(&key))).await?;
    let place = Place::find(&session, args.new_epoch).await?;
    if let Some(current) = place.current.as_ref().filter(|current| current.bundle == blob && !args.new_epoch) {
        outln!("nothing to publish: {} is in force as {}", blob.digest, current.version);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = refused(args, snapshot, args.strict || place.current.is_some()) {
        return Err(format!("nothing was published: {why}"));
    }
    out!("{}", changes(&session, place.current.as_ref(), files, snapshot, &blob).await);
    if args.dry_run {
        outln!("dry run: nothing was changed");
        return Ok(ExitCode::SUCCESS);
    }
    session.store.ensure(&Settings { replicas: args.replicas, max_bytes: args.max_bytes }).await?;
    let ear = args.wait.listen(&session).await?;
    let pieces = session.store.upload(&blob, &packed).await?;
    if pieces == 0 {
        outln!("the bundle was uploaded before");
    }
    let commit = args.directories.first().and_then(|dir| commit(dir));
    // Lead times count from here.
    let published_at = Timestamp::now();
    let manifest = Manifest {
        store: args.store.name().clone(),
        version: place.next,
        bundle: blob,
        min_sidecar: None,
        not_before: args.not_before.map(Timestamp),
        published_at,
        publisher: args.sign.publisher(),
        message: args.message.clone(),
        commit,
        rolls_back_to: None,
    };
    put(&session, &key, &manifest, place.after).await?;
    // Where it was uploaded before, someone may have removed it in between, as one that nobody names.
    session.store.upload(&manifest.bundle, &packed).await?;
    Ok(Ear::wait_for(ear, Kind::Manifest, manifest.version, manifest.published_at).await)
}

/// Where in the history a new manifest belongs.
pub(super) struct Place {
    /// The manifest in force.
    pub(super) current: Option<Manifest>,
    /// The sequence of the newest message, which the new one must follow.
    pub(super) after: u64,
    /// The new version.
    pub(super) next: Version,
}

impl Place {
    /// After the newest manifest; in a new epoch, that one may be anything.
    pub(super) async fn find(session: &Session, new_epoch: bool) -> Result<Self, String> {
        let first = Version::first(SystemTime::now());
        if new_epoch {
            let newest = session.store.newest(Kind::Manifest).await.map_err(|error| error.to_string())?;
            return Ok(Self { current: None, after: newest.map_or(0, |stored| stored.sequence), next: first });
        }
        Ok(match session.newest().await? {
            None => Self { current: None, after: 0, next: first },
            Some((after, newest)) => {
                let next = newest.says.version.next();
                Self { current: Some(newest.says), after, next }
            }
        })
    }
}

/// Signs a manifest and makes it the newest.
pub(super) async fn put(session: &Session, key: &SecretKey, manifest: &Manifest, after: u64) -> Result<(), String> {
    let payload = serde_json::to_vec(manifest).map_err(|error| error.to_string())?;
    let sealed = envelope::seal(Kind::Manifest, &payload, key).map_err(|refusal| format!("the manifest: {refusal}"))?;
    if session.store.advance(Kind::Manifest, &sealed, after).await? == Advance::Overtaken {
        let since = session.entries_from(after.saturating_add(1)).await.unwrap_or_default();
        return Err(format!(
            "{} in between, so nothing was changed (look at `stockade history`, and publish again)",
            history::meanwhile(&since, after)
        ));
    }
    outln!("published {} with {}", manifest.version, manifest.bundle.digest);
    Ok(())
}

/// What differs from the bundle in force, for people.
async fn changes(
    session: &Session,
    current: Option<&Manifest>,
    files: &[Files],
    snapshot: &Snapshot,
    blob: &Blob,
) -> String {
    let Some(current) = current else {
        return format!("the first bundle of the store: {} policies, {} bytes\n", snapshot.policy_count(), blob.size);
    };
    let old = match session.files(current).await {
        Ok(old) => old,
        Err(error) => return format!("{} is in force, but cannot be compared: {error}\n", current.version),
    };
    match compile(&old) {
        Ok(before) => {
            let difference = PolicyDiff::between(&before, snapshot);
            format!("changes since {}:\n{}", current.version, describe(&difference, &other_files(&old, files)))
        }
        Err(error) => {
            format!("{} is in force, but is not good here, and cannot be compared: {error}\n", current.version)
        }
    }
}

/// How many names of a kind are shown.
const SHOWN: usize = 50;

fn describe(difference: &PolicyDiff, files: &[String]) -> String {
    let PolicyDiff { added, removed, modified, schema, entities } = difference;
    let mut text =
        format!("  policies: {} added, {} removed, {} modified\n", added.len(), removed.len(), modified.len());
    for (sign, names) in [('+', added), ('-', removed), ('~', modified)] {
        for name in names.iter().take(SHOWN) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {sign} {}", clean_line(name));
        }
        let more = names.len().saturating_sub(SHOWN);
        if more > 0 {
            let _ = writeln!(text, "    {sign} and {more} more");
        }
    }
    if *schema {
        text += "  schema: changed\n";
    }
    if !entities.is_empty() {
        let _ = writeln!(text, "  entities: {} added, removed or modified", entities.len());
    }
    if !files.is_empty() {
        let _ = writeln!(text, "  other files: {}", files.join(", "));
    }
    text
}

/// The files that differ, beside policies and schemas: routes, denials, whatever else a bundle holds.
fn other_files(old: &[Files], new: &[Files]) -> Vec<String> {
    let several = old.len().max(new.len()) > 1;
    let mut differing = Vec::new();
    for at in 0..old.len().max(new.len()) {
        let text = |side: &[Files], path: &String| side.get(at).and_then(|files| files.files.get(path)).cloned();
        let paths = [old, new].into_iter().filter_map(|side| side.get(at)).flat_map(|files| files.files.keys());
        let mut paths: Vec<&String> =
            paths.filter(|path| !path.ends_with(".cedar") && !path.ends_with(".cedarschema")).collect();
        paths.sort();
        paths.dedup();
        let other = paths.into_iter().filter(|path| text(old, path) != text(new, path));
        differing.extend(other.map(|path| if several { format!("{at}/{path}") } else { path.clone() }));
    }
    differing
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

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let files = entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Files { root: "test".to_owned(), files, changed: None }
    }

    #[test]
    fn files_that_are_no_policies_are_named() {
        let old = files(&[("a.cedar", "1"), ("routes.yaml", "1"), ("same.json", "1"), ("gone.json", "1")]);
        let new = files(&[("a.cedar", "2"), ("routes.yaml", "2"), ("same.json", "1"), ("new.json", "1")]);
        assert_eq!(other_files(from_ref(&old), from_ref(&new)), ["gone.json", "new.json", "routes.yaml"]);
        assert_eq!(other_files(from_ref(&old), &[old.clone(), new])[0], "1/new.json");
        assert!(other_files(from_ref(&old), from_ref(&old)).is_empty());
    }

    #[test]
    fn changes_are_named() {
        let difference = PolicyDiff {
            added: vec!["shop/a".to_owned()],
            removed: Vec::new(),
            modified: (0..51).map(|n| format!("shop/{n}")).collect(),
            schema: true,
            entities: vec!["User::\"x\"".to_owned()],
        };
        let text = describe(&difference, &["routes.yaml".to_owned()]);
        assert!(
            text.starts_with("  policies: 1 added, 0 removed, 51 modified\n    + shop/a\n    ~ shop/0\n"),
            "{text}"
        );
        assert!(text.ends_with("    ~ and 1 more\n  schema: changed\n  entities: 1 added, removed or modified\n  other files: routes.yaml\n"), "{text}");
    }
}
