use std::process::ExitCode;

use serde_json::{Map, Value as Json, json};

use crate::cli::args::session::ReaderArgs;
use crate::cli::output::{columns, run as run_command};
use crate::publish::history::Entry;
use crate::terminal::{clean_excerpt, out, outln};

/// Show what was published: who, when, why, and from which commit.
///
/// The newest first. With `--trust`, shows for each whether a trusted key has signed it; without, takes it as it is.
///
/// Exit status: 0, or 1 if the store cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    run_command(async {
        let session = args.reader.connect().await?;
        let mut entries = session.entries().await?;
        entries.reverse();
        let checked = args.reader.has_keys();
        match args.json {
            true => {
                outln!("{:#}", json!(entries.iter().map(|entry| self::json(entry, checked)).collect::<Vec<_>>()))
            }
            false => out!("{}", text(&entries, checked)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One entry: its manifest, and whether it is believed; `null` if that was not checked.
pub(super) fn json(entry: &Entry, checked: bool) -> Map<String, Json> {
    let believed = checked.then_some(entry.doubt.is_none());
    let doubt = entry.doubt.as_ref().filter(|_| checked);
    [
        ("version", json!(entry.head.version.to_string())),
        ("manifest", json!(entry.manifest)),
        ("believed", json!(believed)),
        ("doubt", json!(doubt)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .collect()
}

/// Whether a manifest is believed, in a word.
pub(super) fn signature(entry: &Entry, checked: bool) -> &'static str {
    match (checked, &entry.doubt) {
        (false, _) => "not checked",
        (true, None) => "good",
        (true, Some(_)) => "NOT BELIEVED",
    }
}

fn text(entries: &[Entry], checked: bool) -> String {
    if entries.is_empty() {
        return "nothing was ever published\n".to_owned();
    }
    let rows = entries.iter().map(|entry| {
        let own = &entry.manifest;
        let short = |text: &str| text.chars().take(12).collect::<String>();
        let back = own.rolls_back_to.map(|version| format!("(back to {version}) ")).unwrap_or_default();
        [
            own.version.to_string(),
            own.published_at.to_string(),
            clean_excerpt(&own.publisher),
            own.commit.as_deref().map_or_else(|| "-".to_owned(), |commit| clean_excerpt(&short(commit))),
            short(&own.bundle.digest.hex()),
            signature(entry, checked).to_owned(),
            format!("{back}{}", own.message.as_deref().map(clean_excerpt).unwrap_or_default()),
        ]
    });
    columns(&["VERSION", "PUBLISHED AT", "BY", "COMMIT", "DIGEST", "SIGNATURE", "MESSAGE"], rows)
}
