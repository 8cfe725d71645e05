//! What an overlay is about, and who issues it: for `deny`, `grant` and `overlays`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::session::WriterArgs;
use super::wait::StatusWatch;
use crate::cli::output::Error;
use crate::model::EntityUid;
use crate::publish::overlays::{Edit, describe, new_id};
use crate::store::statement::{Kind, OverlayEffect, OverlayEntry, Timestamp};
use crate::terminal::{clean_line, errln, outln};

/// How far back an overlay begins.
const EARLY: Duration = Duration::from_secs(60);

/// What an overlay is about.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("scope").required(true).multiple(true).args(["principal", "action", "resource", "everyone"])))]
pub(crate) struct ScopeArgs {
    /// Whom: this principal and all that are in it, such as `User::"mallory"` or `Group::"contractors"`.
    #[arg(value_name = "PRINCIPAL", value_parser = entity)]
    principal: Option<String>,
    /// Which actions: this one and all that are in it, such as `Action::"delete"`. Default: all.
    #[arg(long, value_name = "ACTION", value_parser = entity)]
    action: Option<String>,
    /// Which resources: this one and all that are in it. Default: all.
    #[arg(long, value_name = "RESOURCE", value_parser = entity)]
    resource: Option<String>,
    /// Everyone: for an overlay that names no principal, action or resource.
    #[arg(long, conflicts_with = "principal")]
    everyone: bool,
    /// For how long, such as `2h`. It ends by itself, also on a sidecar that is cut off.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasting: Duration,
    /// Why, for those who read the decision log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Who edits the list of overlays, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct IssueArgs {
    /// Begin a new list, whatever is in the store: where none of its overlays is believed. Those that were in force end.
    #[arg(long)]
    new_epoch: bool,
    #[command(flatten)]
    writer: WriterArgs,
}

fn entity(text: &str) -> Result<String, String> {
    let parsed = text.parse::<EntityUid>();
    parsed.map(|uid| uid.to_string()).map_err(|_| "an entity, such as 'User::\"mallory\"' (mind the quotes)".to_owned())
}

impl ScopeArgs {
    /// The overlay that these arguments describe, from now on.
    fn entry(&self, effect: OverlayEffect, issuer: String, approved_by: Option<String>) -> Result<OverlayEntry, Error> {
        let now = SystemTime::now();
        let until = now.checked_add(self.lasting).ok_or_else(|| Error::Arguments {
            message: "`--for` is too long".to_owned(),
            hint: "name a time such as `2h`",
        })?;
        let entry = OverlayEntry {
            id: new_id(effect, now),
            effect,
            principal: self.principal.clone(),
            action: self.action.clone(),
            resource: self.resource.clone(),
            // The clocks of the sidecars may be behind ours: it is to be in force when it arrives.
            from: Timestamp(now.checked_sub(EARLY).unwrap_or(now)),
            until: Timestamp(until),
            reason: self.reason.clone(),
            issuer,
            approved_by,
        };
        entry.read().map(|_| entry).map_err(|message| Error::Arguments { message, hint: "nothing was changed" })
    }
}

impl IssueArgs {
    /// Edits the list of overlays, prints `done`, and waits for sidecars if asked to.
    pub(crate) async fn edit(&self, edit: &Edit, done: &str) -> Result<ExitCode, Error> {
        let (key, session) = self.writer.connect().await?;
        let watch = self.writer.watch(&session).await?;
        let publisher = self.writer.publisher();
        let (overlays, doubt) = session.edit_overlays(&key, &publisher, edit, self.new_epoch).await?;
        if let Some(doubt) = doubt {
            errln!("warning: {doubt}");
        }
        let code = StatusWatch::wait_for(watch, Kind::Overlays, overlays.version, overlays.published_at).await;
        outln!("{}", clean_line(done));
        Ok(code)
    }
}

/// Adds the overlay that these arguments describe.
pub(crate) async fn issue(
    effect: OverlayEffect,
    scope: &ScopeArgs,
    approved_by: Option<String>,
    args: &IssueArgs,
) -> Result<ExitCode, Error> {
    let entry = scope.entry(effect, args.writer.publisher(), approved_by)?;
    let shown = describe(&entry, SystemTime::now());
    args.edit(&Edit::Add(entry), &shown).await
}
