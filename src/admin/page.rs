//! The page for people: one file of HTML, readable in a browser of a terminal as well.

use std::fmt::{self, Display, Write};

use super::{ROUTES, Readiness, store, timestamp};
use crate::feed::Status;
use crate::policy::{FootprintSummary, Hits, OverlaySummary, Summary};
use crate::terminal::clean;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1.5rem .15rem 0;vertical-align:top}\
    code{font-size:.9em}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}";

pub(super) fn render(readiness: &Readiness, summary: Option<&Summary>, status: &Status) -> String {
    let mut html = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut html, readiness, summary, status);
    html
}

fn write(html: &mut String, readiness: &Readiness, summary: Option<&Summary>, status: &Status) -> fmt::Result {
    let state = if readiness.ready { "ready" } else { "not ready" };
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Stockade: {state}</title>\n\
         <style>{STYLE}</style>\n<h1>Stockade is {state}</h1>\n"
    )?;
    list(html, &readiness.reasons)?;
    if let Some(summary) = summary {
        overlays(html, &summary.overlays)?;
        in_force(html, summary, status)?;
    }
    if let Some(store) = &status.store {
        html.push_str("<h2>Store</h2>\n<table>\n");
        for (name, value) in store::summary(store).rows() {
            row(html, &[&name, &value])?;
        }
        html.push_str("</table>\n");
    }
    if let Some(rejection) = &status.rejection {
        write!(html, "<h2>Last rejection</h2>\n<p>At {}, this version was refused:\n", timestamp(rejection.at))?;
        list(html, &rejection.problems)?;
    }
    html.push_str("<h2>More</h2>\n<ul>\n");
    for (path, meaning) in ROUTES.iter().skip(1) {
        writeln!(html, "<li><a href=\"{path}\">{path}</a>: {meaning}")?;
    }
    html.push_str("</ul>\n</html>\n");
    Ok(())
}

/// First of all, since they are exceptions: nothing if there are none.
fn overlays(html: &mut String, overlays: &[OverlaySummary]) -> fmt::Result {
    if overlays.is_empty() {
        return Ok(());
    }
    html.push_str("<h2>Overlays in force</h2>\n<table>\n");
    heading(html, &["id", "effect", "principal", "action", "resource", "until", "reason"])?;
    for overlay in overlays {
        let [principal, action, resource] =
            [&overlay.principal, &overlay.action, &overlay.resource].map(|text| text.as_deref().unwrap_or("any"));
        row(html, &[&overlay.id, &overlay.effect, &principal, &action, &resource, &overlay.until, &overlay.reason])?;
    }
    html.push_str("</table>\n");
    Ok(())
}

fn in_force(html: &mut String, summary: &Summary, status: &Status) -> fmt::Result {
    html.push_str("<h2>In force</h2>\n<table>\n");
    row(html, &[&"revision", &summary.revision.id])?;
    if let Some(number) = &summary.revision.number {
        row(html, &[&"number in the store", number])?;
    }
    row(html, &[&"generation", &summary.generation])?;
    row(html, &[&"since", &summary.enforced_at])?;
    if let Some(last_read) = status.last_read {
        row(html, &[&"source last read", &timestamp(last_read)])?;
    }
    if let Some(lead_time) = summary.lead_time_ms {
        row(html, &[&"from change to enforcement", &format_args!("{lead_time} ms")])?;
    }
    row(html, &[&"routes", &summary.routes])?;
    row(html, &[&"entities", &summary.entities])?;
    html.push_str("</table>\n<h2>Bundles</h2>\n<table>\n");
    heading(html, &["name", "version", "owner", "controls", "description"])?;
    for bundle in &summary.bundles {
        let [version, owner, description] =
            [&bundle.version, &bundle.owner, &bundle.description].map(|text| text.as_deref().unwrap_or(""));
        row(html, &[&bundle.name, &version, &owner, &bundle.controls.join(", "), &description])?;
    }
    html.push_str("</table>\n<h2>Policies</h2>\n<table>\n");
    heading(html, &["id", "effect", "mode", "file", "template"])?;
    for policy in &summary.policies {
        let template = policy.template.as_deref().unwrap_or("");
        row(html, &[&policy.id, &policy.effect, &policy.mode, &policy.file, &template])?;
    }
    html.push_str("</table>\n");
    cache_keys(html, &summary.footprints)?;
    if !summary.warnings.is_empty() {
        html.push_str("<h2>Warnings</h2>\n");
        list(html, &summary.warnings)?;
    }
    Ok(())
}

/// Only what keeps decisions from being found again; `/snapshot` has all.
fn cache_keys(html: &mut String, footprints: &[FootprintSummary]) -> fmt::Result {
    html.push_str("<h2>Cache keys</h2>\n");
    if footprints.iter().all(|footprint| footprint.hits == Hits::Usual) {
        html.push_str("<p>Nothing that policies read is known to keep decisions from being found again.\n");
        return Ok(());
    }
    html.push_str("<table>\n");
    heading(html, &["actions", "hits", "because a key holds", "which is", "by"])?;
    for footprint in footprints {
        for place in footprint.places.iter().filter(|place| place.hits > Hits::Usual) {
            let actions = first_of(footprint.actions.iter().map(String::as_str));
            let policies = first_of(place.policies.iter().map(|reader| reader.id.as_str()));
            row(html, &[&actions, &place.hits.as_str(), &place.place, &place.why.unwrap_or(""), &policies])?;
        }
    }
    html.push_str("</table>\n");
    Ok(())
}

/// The first three of many names.
fn first_of<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<&str> = names.by_ref().take(3).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn heading(html: &mut String, names: &[&str]) -> fmt::Result {
    let cells: String = names.iter().map(|name| format!("<th>{name}")).collect();
    writeln!(html, "<tr>{cells}")
}

fn row(html: &mut String, cells: &[&dyn Display]) -> fmt::Result {
    html.push_str("<tr>");
    cells.iter().try_for_each(|cell| write!(html, "<td>{}", escape(cell)))?;
    html.push('\n');
    Ok(())
}

fn list(html: &mut String, items: &[String]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    html.push_str("<ul>\n");
    items.iter().try_for_each(|item| writeln!(html, "<li>{}", escape(item)))?;
    html.push_str("</ul>\n");
    Ok(())
}

/// Text as HTML shows it, between tags and in quoted attributes alike. Names and messages come from files of others.
fn escape(text: &dyn Display) -> String {
    let mut escaped = String::new();
    for character in clean(&text.to_string()).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
