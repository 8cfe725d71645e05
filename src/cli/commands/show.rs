use std::process::ExitCode;

use serde_json::json;

use super::history;
use crate::cli::args::session::ReaderArgs;
use crate::cli::output::{Error, run as run_command};
use crate::policy::Snapshot;
use crate::problem;
use crate::publish::history::{Entry, find};
use crate::terminal::{clean_excerpt, clean_line, out, outln};

/// Show one version: its manifest, and the policies of its bundle.
///
/// Exit status: 0, or 1 if there is no such version or it cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The version, as `stockade history` shows it; its last number or `newest` will do.
    #[arg(value_name = "REV")]
    revision: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(show(args))
}

async fn show(args: &Args) -> Result<ExitCode, Error> {
    let session = args.reader.connect().await?;
    let entries = session.entries().await?;
    let entry = find(&entries, &args.revision)?;
    let checked = args.reader.has_keys();
    let files = session.files(&entry.manifest).await?;
    let snapshot = Snapshot::compile(&files, None, &mut Default::default())
        .map_err(|found| Error::NotValid { version: entry.head.version, problems: problem::one_line(&found) })?;
    let summary = snapshot.summary();
    let paths: Vec<String> = files.iter().flat_map(|own| own.files.keys().cloned()).collect();
    if args.json {
        let mut shown = history::json(entry, checked);
        shown.insert("revision".to_owned(), json!(summary.revision.id));
        shown.insert("policies".to_owned(), json!(summary.policies));
        shown.insert("files".to_owned(), json!(paths));
        outln!("{:#}", json!(shown));
        return Ok(ExitCode::SUCCESS);
    }
    out!("{}", head(entry, checked));
    outln!("{:<14}{}", "revision", summary.revision.id);
    outln!("{:<14}{}", "files", clean_line(&paths.join(", ")));
    for policy in &summary.policies {
        let line = format!("{} ({}, {}) in {}", policy.id, policy.effect, policy.mode, policy.file);
        outln!("{:<14}{}", "policy", clean_line(&line));
    }
    Ok(ExitCode::SUCCESS)
}

fn head(entry: &Entry, checked: bool) -> String {
    let own = &entry.manifest;
    let mut lines = vec![
        ("version", own.version.to_string()),
        ("signature", history::signature(entry, checked).to_owned()),
        ("published at", own.published_at.to_string()),
        ("by", clean_excerpt(&own.publisher)),
        ("bundle", format!("{}, {} bytes", own.bundle.digest, own.bundle.size)),
    ];
    lines.extend(entry.doubt.as_ref().filter(|_| checked).map(|doubt| ("doubt", doubt.clone())));
    lines.extend(own.message.as_ref().map(|text| ("message", clean_excerpt(text))));
    lines.extend(own.commit.as_ref().map(|text| ("commit", clean_excerpt(text))));
    lines.extend(own.rolls_back_to.map(|version| ("goes back to", version.to_string())));
    lines.extend(own.not_before.map(|at| ("not before", at.to_string())));
    lines.extend(own.min_sidecar.as_ref().map(|text| ("min sidecar", clean_excerpt(text))));
    lines.iter().map(|(key, value)| format!("{key:<14}{value}\n")).collect()
}
