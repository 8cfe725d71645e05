use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::args::bundle::BundleArgs;
use crate::cli::output::show;
use crate::policy::{ALWAYS_IN_KEY, FootprintSummary, PlaceSummary, PolicyRead, Read};
use crate::terminal::{out, outln};

/// Show what the cache keys of each action hold.
///
/// What a policy reads becomes part of the key under which decisions are remembered. Prints, for each action, what its
/// key holds, which policies put it there, and whether that keeps decisions from being found again: the clock, ids in
/// paths, ids of requests, tokens. Actions whose keys hold the same stand together, those with the fewest hits first.
///
/// Exit status: 0, whatever is reported; 1 if the bundle cannot be read or is not valid.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Print JSON, with nothing left out.
    #[arg(long)]
    json: bool,
}

/// How many names of a kind are shown to people; JSON has all.
const SHOWN: usize = 8;

pub(super) fn run(args: &Args) -> ExitCode {
    match args.bundle.load() {
        Ok(snapshot) => {
            let footprints = snapshot.footprints();
            if args.json {
                let revision = &snapshot.revision.id;
                outln!("{:#}", json!({"revision": revision, "always": ALWAYS_IN_KEY, "footprints": footprints}));
            } else {
                let mut report = String::new();
                // Writing to a String cannot fail.
                let _ = text(&mut report, &snapshot.revision.id, &footprints);
                out!("{report}");
            }
            ExitCode::SUCCESS
        }
        Err(problems) => {
            show(&problems);
            ExitCode::FAILURE
        }
    }
}

/// The report for people: a line for each fact, and what belongs to it below.
fn text(out: &mut String, revision: &str, footprints: &[FootprintSummary]) -> std::fmt::Result {
    writeln!(out, "{:<22}{revision}", "revision")?;
    writeln!(out, "{:<22}{}", "every key", ALWAYS_IN_KEY.join(", "))?;
    for footprint in footprints {
        writeln!(out, "\n{:<22}{}", "actions", some(&footprint.actions, "--json lists them"))?;
        writeln!(out, "{:<22}{}", "hits", footprint.hits.as_str())?;
        if footprint.places.is_empty() {
            writeln!(out, "{:<22}nothing more", "reads")?;
        }
        for place in &footprint.places {
            self::place(out, place, footprint.actions.len())?;
        }
    }
    Ok(())
}

fn place(out: &mut String, place: &PlaceSummary, actions: usize) -> std::fmt::Result {
    let how = match (place.read, place.ty.as_str()) {
        (Read::Value, _) => "",
        (Read::Presence, "record") => ", only whether it is there",
        (Read::Presence, _) => ", only whether it is there; but the key holds its value",
    };
    writeln!(out, "{:<22}{} ({}){how}", "reads", place.place, place.ty)?;
    for remark in place.why.iter().chain(&place.advice) {
        writeln!(out, "{:<24}{remark}", "")?;
    }
    for reader in place.policies.iter().take(SHOWN) {
        writeln!(out, "{:<24}{}", "", self::reader(reader, actions))?;
    }
    match place.policies.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "{:<24}and {more} more policies (--json lists them)", ""),
    }
}

fn reader(reader: &PolicyRead, actions: usize) -> String {
    let mut text = format!("by {} in {}", reader.id, reader.file);
    if let Some(whole) = &reader.as_part_of {
        text += &format!(", which reads all of `{whole}`");
    }
    if reader.all_actions {
        text += ", which applies to all actions";
    }
    if !reader.only_for.is_empty() {
        text += &match reader.only_for.as_slice() {
            [one] => format!(", for {one} only"),
            several => format!(", for {} of the {actions} actions", several.len()),
        };
    }
    text
}

/// The first of many names.
fn some(names: &[String], more: &str) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        left => format!("{shown} and {left} more ({more})"),
    }
}
