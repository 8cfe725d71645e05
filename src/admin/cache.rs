//! `/cache`: what the decision cache has done since the start, and its switch. As in Envoy's admin, what changes
//! something is a POST.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value as Json};
use tracing::info;

use super::{Admin, pretty};

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

fn shown(admin: &Admin) -> Response {
    (admin.refresh)();
    let mut all = Map::new();
    all.insert("enabled".to_owned(), admin.cache.is_enabled().into());
    all.extend(series(&admin.metrics.render()));
    pretty(&all)
}

/// The cache's counters and gauges of the metrics, so that both say the same: by name, and by the value of their label.
fn series(exposition: &str) -> Map<String, Json> {
    const PREFIX: &str = "stockade_cache_";
    let mut found = Map::new();
    let mut single = false;
    for line in exposition.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            single = !kind.ends_with(" histogram");
        }
        let Some((series, value)) = line.strip_prefix(PREFIX).filter(|_| single).and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        // Both kinds are whole numbers here; one that is not is shown as it stands.
        let value = value.parse::<u64>().map_or_else(|_| Json::from(value), Json::from);
        let (name, label) = series.split_once('{').unwrap_or((series, ""));
        let name = name.trim_end_matches("_total").to_owned();
        match label.split('"').nth(1) {
            None => found.insert(name, value),
            Some(label) => {
                let of_name = found.entry(name).or_insert_with(|| Map::new().into());
                of_name.as_object_mut().and_then(|of_name| of_name.insert(label.to_owned(), value))
            }
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn series_of_the_cache_are_read_and_no_others() {
        let exposition = "# HELP stockade_cache_hits_total Some text.\n# TYPE stockade_cache_hits_total counter\n\
            stockade_cache_hits_total 7\n\n# TYPE stockade_cache_misses_total counter\n\
            stockade_cache_misses_total{reason=\"absent\"} 3\nstockade_cache_misses_total{reason=\"expired\"} 0\n\n\
            # TYPE stockade_cache_entries gauge\nstockade_cache_entries 2\n\n\
            # TYPE stockade_cache_hit_age_seconds histogram\nstockade_cache_hit_age_seconds_bucket{le=\"1\"} 1\n\
            stockade_cache_hit_age_seconds_sum 0.5\nstockade_cache_hit_age_seconds_count 1\n\n\
            # TYPE stockade_ready gauge\nstockade_ready 1\n";
        let expected = json!({"hits": 7, "misses": {"absent": 3, "expired": 0}, "entries": 2});
        assert_eq!(Json::from(series(exposition)), expected);
        assert!(series("").is_empty());
    }
}
