//! What sidecars say of themselves, for people: those that need attention first.

use std::time::{Duration, SystemTime};

use crate::store::statement::{Head, Status};
use crate::terminal::clean_line;

/// The statuses in the order in which they need attention: who refuses something or enforces something old, who is not fresh, the rest.
pub fn sort(statuses: &mut [Status], newest: Option<&Head>) {
    statuses.sort_by(|one, other| {
        let key = |status: &Status| (attention(status, newest), status.namespace.clone(), status.pod.clone());
        key(one).cmp(&key(other))
    });
}

fn attention(status: &Status, newest: Option<&Head>) -> u8 {
    match status {
        Status { rejection: Some(_), .. } => 0,
        _ if status.manifest.as_ref() != newest => 1,
        _ if status.freshness != "fresh" => 2,
        _ => 3,
    }
}

/// A line for how they stand, and a table.
pub fn render(statuses: &[Status], newest: Option<&Head>, now: SystemTime) -> String {
    let current = statuses.iter().filter(|status| status.manifest.as_ref() == newest).count();
    let fresh = statuses.iter().filter(|status| status.freshness == "fresh").count();
    let rejecting = statuses.iter().filter(|status| status.rejection.is_some()).count();
    let version = newest.map_or_else(|| "nothing".to_owned(), |head| head.version.to_string());
    let summary = format!(
        "{version} is the newest; {current} of {} sidecars enforce it, {fresh} are fresh, {rejecting} refuse something\n",
        statuses.len()
    );
    if statuses.is_empty() {
        return summary;
    }
    let header = ["POD", "NAMESPACE", "VERSION", "REVISION", "SINCE", "LEAD", "FRESHNESS", "REJECTION"];
    let mut rows = vec![header.map(ToOwned::to_owned).to_vec()];
    rows.extend(statuses.iter().map(|status| row(status, now)));
    summary + &columns(&rows)
}

fn row(status: &Status, now: SystemTime) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        clean(&status.pod),
        clean(&status.namespace),
        status.manifest.map_or_else(dash, |head| head.version.to_string()),
        status.revision.as_deref().map_or_else(dash, |id| id.chars().take(12).collect()),
        status.enforced_at.map_or_else(dash, |at| ago(at.age(now))),
        status.lead_time_ms.map_or_else(dash, |lead| format!("{lead}ms")),
        clean(&status.freshness),
        status.rejection.as_deref().map_or_else(dash, clean),
    ]
}

/// A length of time in one unit, as people say it.
pub fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Text that others wrote, for a terminal: nothing in it moves the cursor, and it has an end.
pub fn clean(text: &str) -> String {
    let mut shown = clean_line(&text.chars().take(200).collect::<String>());
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

/// Rows of cells, each column as wide as its widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::store::statement::{Timestamp, Version};

    fn head(generation: u64) -> Head {
        Head::of(Version { epoch: 1, generation }, b"")
    }

    fn status(pod: &str, generation: u64, freshness: &str, rejection: Option<&str>) -> Status {
        Status {
            pod: pod.to_owned(),
            namespace: "shop".to_owned(),
            sidecar: "0.1.0".to_owned(),
            manifest: Some(head(generation)),
            overlays: None,
            revision: Some("0123456789abcdef".to_owned()),
            enforced_at: Some(Timestamp(UNIX_EPOCH)),
            lead_time_ms: Some(7),
            overlays_lead_time_ms: None,
            freshness: freshness.to_owned(),
            rejection: rejection.map(ToOwned::to_owned),
            at: Timestamp(UNIX_EPOCH),
        }
    }

    #[test]
    fn stragglers_come_first() {
        let newest = head(2);
        let mut statuses = [
            status("d", 2, "fresh", None),
            status("a", 2, "fresh", None),
            status("stale", 2, "stale", None),
            status("old", 1, "fresh", None),
            status("no", 1, "fresh", Some("bad\u{1b}[2Jbundle")),
        ];
        sort(&mut statuses, Some(&newest));
        let now = UNIX_EPOCH + Duration::from_secs(150);
        assert_eq!(
            render(&statuses, Some(&newest), now),
            "1.2 is the newest; 3 of 5 sidecars enforce it, 4 are fresh, 1 refuse something\n\
             POD    NAMESPACE  VERSION  REVISION      SINCE  LEAD  FRESHNESS  REJECTION\n\
             no     shop       1.1      0123456789ab  2m     7ms   fresh      bad\\u001b[2Jbundle\n\
             old    shop       1.1      0123456789ab  2m     7ms   fresh      -\n\
             stale  shop       1.2      0123456789ab  2m     7ms   stale      -\n\
             a      shop       1.2      0123456789ab  2m     7ms   fresh      -\n\
             d      shop       1.2      0123456789ab  2m     7ms   fresh      -\n"
        );
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, expected) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            assert_eq!(ago(Duration::from_secs(seconds)), expected);
        }
    }
}
