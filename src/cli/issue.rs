//! What `deny`, `grant` and `overlays` have in common: reading the overlays in force, and putting others in their place.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::store::{Session, SignArgs, StoreArgs, TrustArgs};
use super::wait::{Ear, WaitArgs};
use crate::model::EntityUid;
use crate::nats::Stored;
use crate::publish::overlays::{Edit, describe, edited, new_id};
use crate::publish::{Advance, is_anothers, read_overlays};
use crate::store::statement::{Kind, OverlayEffect, OverlayEntry, Overlays, Timestamp};
use crate::store::{SecretKey, envelope};
use crate::terminal::{clean_line, errln, outln};

/// How often the list is read anew when someone else was faster. Each of several issuers loses to each other once.
const ATTEMPTS: u32 = 20;

/// What an overlay is about.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("scope").required(true).multiple(true).args(["principal", "action", "resource", "everyone"])))]
pub(super) struct ScopeArgs {
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

/// Who issues it, and where.
#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// Begin a new list, whatever the store says: where none of its overlays is believed. Those that were in force end.
    #[arg(long)]
    new_epoch: bool,
    #[command(flatten)]
    sign: SignArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

fn entity(text: &str) -> Result<String, String> {
    let parsed = text.parse::<EntityUid>();
    parsed.map(|uid| uid.to_string()).map_err(|_| "an entity, such as 'User::\"mallory\"' (mind the quotes)".to_owned())
}

impl ScopeArgs {
    fn entry(
        &self,
        effect: OverlayEffect,
        issuer: String,
        approved_by: Option<String>,
    ) -> Result<OverlayEntry, String> {
        let now = SystemTime::now();
        let until = now.checked_add(self.lasting).ok_or("that is too long")?;
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
        entry.read().map(|_| entry)
    }
}

/// How far back an overlay begins.
const EARLY: Duration = Duration::from_secs(60);

/// Adds an overlay.
pub(super) async fn issue(
    effect: OverlayEffect,
    scope: &ScopeArgs,
    approved_by: Option<String>,
    args: &IssueArgs,
) -> Result<ExitCode, String> {
    let entry = scope.entry(effect, args.sign.publisher(), approved_by)?;
    let shown = describe(&entry, SystemTime::now());
    let key = args.sign.key()?;
    let session = args.store.connect(args.trust.keyring(Some(&key))).await?;
    let code = edit(&session, &key, args, &Edit::Add(entry)).await?;
    outln!("{}", clean_line(&shown));
    Ok(code)
}

/// Ends an overlay before its time.
pub(super) async fn end(id: &str, args: &IssueArgs) -> Result<ExitCode, String> {
    let key = args.sign.key()?;
    let session = args.store.connect(args.trust.keyring(Some(&key))).await?;
    let code = edit(&session, &key, args, &Edit::End(id.to_owned())).await?;
    outln!("ended {id}");
    Ok(code)
}

/// Edits the list, anew each time that someone else has edited it in between: nobody's overlays get lost.
async fn edit(session: &Session, key: &SecretKey, args: &IssueArgs, edit: &Edit) -> Result<ExitCode, String> {
    let ear = args.wait.listen(session).await?;
    let publisher = &args.sign.publisher();
    for _ in 0..ATTEMPTS {
        let newest = match args.new_epoch {
            false => newest(session).await?.map(|(sequence, overlays)| (sequence, Some(overlays))),
            true => stored(session).await?.map(|stored| (stored.sequence, None)),
        };
        let (after, current) = newest.unwrap_or((0, None));
        let next = edited(current.as_ref(), edit, session.store.name(), publisher, SystemTime::now())?;
        let payload = serde_json::to_vec(&next).map_err(|error| error.to_string())?;
        let sealed =
            envelope::seal(Kind::Overlays, &payload, key).map_err(|refusal| format!("the overlays: {refusal}"))?;
        if session.store.advance(Kind::Overlays, &sealed, after).await? != Advance::Overtaken {
            return Ok(Ear::wait_for(ear, Kind::Overlays, next.version, next.published_at).await);
        }
    }
    Err(format!("others have changed the overlays {ATTEMPTS} times in between; nothing was changed (try again)"))
}

async fn stored(session: &Session) -> Result<Option<Stored>, String> {
    session.store.newest(Kind::Overlays).await.map_err(|error| error.to_string())
}

/// The overlays in force and the sequence of the newest statement, if any were ever issued. They are signed again with each change, so
/// those of someone whom we do not trust must not get our signature, nor be left out: sidecars may trust them. Where the newest are
/// rubbish, the ones before them are in force, as on sidecars: rubbish must not keep anyone from denying.
pub(super) async fn newest(session: &Session) -> Result<Option<(u64, Overlays)>, String> {
    let Some(newest) = stored(session).await? else { return Ok(None) };
    let (store, keyring) = (session.store.name(), &session.keyring);
    let first = match read_overlays(store, keyring, &newest.payload) {
        Ok(believed) => return Ok(Some((newest.sequence, believed.says))),
        Err(why) => why,
    };
    let history = session.store.history(Kind::Overlays, 1).await.map_err(|error| error.to_string())?;
    for stored in history.iter().rev() {
        match read_overlays(store, keyring, &stored.payload) {
            Ok(believed) => {
                errln!("warning: {first}; the newest that is believed is version {}", believed.head.version);
                return Ok(Some((newest.sequence, believed.says)));
            }
            Err(why) if is_anothers(store, keyring, &stored.payload) => return Err(why),
            Err(_) => {}
        }
    }
    Err(format!("{first}, nor is any before it (`--new-epoch` with `deny` or `grant` begins a new list)"))
}
