//! `/cache`: what the decision cache has done since the start, and its switch. As in Envoy's admin, what changes
//! something is a POST.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::info;

use super::{Admin, pretty};
use crate::observe::metrics::{CacheCounts, CacheUsage};

/// Shows it.
pub(super) async fn show(State(admin): State<Admin>) -> Response {
    shown(&admin)
}

/// `POST /cache?enabled=false`: switches it on or off, until the next start. What it remembers is forgotten.
pub(super) async fn switch(State(admin): State<Admin>, uri: Uri) -> Response {
    let enabled = match uri.query() {
        Some("enabled=true") => true,
        Some("enabled=false") => false,
        _ => {
            let help = "`POST /cache?enabled=true` or `POST /cache?enabled=false`\n";
            return (StatusCode::BAD_REQUEST, help).into_response();
        }
    };
    admin.cache.enable(enabled);
    info!(enabled, "the decision cache was switched at the admin endpoint");
    shown(&admin)
}

/// `POST /cache/clear`: forgets what it remembers.
pub(super) async fn clear(State(admin): State<Admin>) -> Response {
    admin.cache.clear();
    info!("the decision cache was cleared at the admin endpoint");
    shown(&admin)
}

/// `POST /cache/lookup` with a CheckRequest in protobuf JSON: what it has for such a request, and what a check would find.
/// Nothing is decided, and nothing counted.
pub(super) async fn lookup(State(admin): State<Admin>, body: String) -> Response {
    match (admin.lookup)(&body) {
        Ok(found) => pretty(&found),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

/// What is shown, by the names of the metrics.
#[derive(Serialize)]
struct Shown {
    enabled: bool,
    #[serde(flatten)]
    counts: CacheCounts,
    #[serde(flatten)]
    usage: CacheUsage,
}

fn shown(admin: &Admin) -> Response {
    pretty(&Shown {
        enabled: admin.cache.is_enabled(),
        counts: admin.counts.cache_counts(),
        usage: admin.cache.usage(),
    })
}
