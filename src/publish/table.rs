//! What sidecars say of themselves, for people: those that need attention first.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::store::statement::{Head, REPORT_INTERVAL, Status};
use crate::terminal::clean_line;

/// What a sidecar said last, and when the server heard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// What it said.
    pub status: Status,
    /// When, by the server's clock.
    pub heard: SystemTime,
}

/// Whether a sidecar goes on saying what it enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It does.
    Reporting,
    /// It has missed two reports, and said no goodbye: what it enforces now, if anything, is not known.
    Silent,
    /// It said that it was about to end.
    Left,
}

/// How late a report may be: sidecars tell within a tenth of a second, and try again after five.
const SLACK: Duration = Duration::from_secs(6);

impl Sidecar {
    /// Whether it goes on saying what it enforces.
    pub fn presence(&self, now: SystemTime) -> Presence {
        let age = now.duration_since(self.heard).unwrap_or_default();
        match self.status.leaving {
            true => Presence::Left,
            false if age > REPORT_INTERVAL * 2 + SLACK => Presence::Silent,
            false => Presence::Reporting,
        }
    }

    /// Whether it enforces this, as far as is known.
    pub fn enforces(&self, newest: Option<&Head>, now: SystemTime) -> bool {
        self.presence(now) == Presence::Reporting && self.status.manifest.as_ref() == newest
    }
}

/// The sidecars in the order in which they need attention: who refuses something, who is silent or enforces something old, who is
/// not fresh, the rest; then those that have left.
pub fn sort(sidecars: &mut [Sidecar], newest: Option<&Head>, now: SystemTime) {
    sidecars
        .sort_by_cached_key(|own| (attention(own, newest, now), own.status.namespace.clone(), own.status.pod.clone()));
}

fn attention(sidecar: &Sidecar, newest: Option<&Head>, now: SystemTime) -> u8 {
    match (sidecar.presence(now), &sidecar.status) {
        (Presence::Left, _) => 5,
        (_, Status { rejection: Some(_), .. }) => 0,
        (Presence::Silent, _) => 1,
        (_, status) if status.manifest.as_ref() != newest => 2,
        (_, status) if status.freshness != "fresh" => 3,
        _ => 4,
    }
}

/// A line for how they stand, and a table of those that have not left. `expected` is how many there should be, if anyone knows.
pub fn render(sidecars: &[Sidecar], newest: Option<&Head>, expected: Option<usize>, now: SystemTime) -> String {
    let count = |is: &dyn Fn(&Sidecar) -> bool| sidecars.iter().filter(|own| is(own)).count();
    let reporting = |own: &Sidecar| own.presence(now) == Presence::Reporting;
    let current = count(&|own| own.enforces(newest, now));
    let fresh = count(&|own| reporting(own) && own.status.freshness == "fresh");
    let rejecting = count(&|own| reporting(own) && own.status.rejection.is_some());
    let (silent, left) =
        (count(&|own| own.presence(now) == Presence::Silent), count(&|own| own.presence(now) == Presence::Left));
    let there = sidecars.len() - left;
    let version = newest.map_or_else(|| "nothing".to_owned(), |head| head.version.to_string());
    let mut summary = format!(
        "{version} is the newest; {current} of {} sidecars enforce it, {fresh} are fresh, {rejecting} refuse something",
        expected.map_or(there, |expected| expected.max(there))
    );
    for (number, what) in [
        (silent, "are silent"),
        (left, "have left"),
        (expected.map_or(0, |expected| expected.saturating_sub(there)), "have never been heard of, or not for a day"),
    ] {
        if number > 0 {
            summary += &format!(", {number} {what}");
        }
    }
    summary.push('\n');
    if there == 0 {
        return summary;
    }
    let header = ["POD", "NAMESPACE", "VERSION", "REVISION", "SINCE", "LEAD", "FRESHNESS", "HEARD", "REJECTION"];
    let mut rows = vec![header.map(ToOwned::to_owned).to_vec()];
    let shown = sidecars.iter().filter(|own| own.presence(now) != Presence::Left);
    rows.extend(shown.map(|own| row(own, now)));
    summary + &columns(&rows)
}

fn row(sidecar: &Sidecar, now: SystemTime) -> Vec<String> {
    let (status, dash) = (&sidecar.status, || "-".to_owned());
    let is_silent = sidecar.presence(now) == Presence::Silent;
    vec![
        clean(&status.pod),
        clean(&status.namespace),
        status.manifest.map_or_else(dash, |head| head.version.to_string()),
        status.revision.as_deref().map_or_else(dash, |id| id.chars().take(12).collect()),
        status.enforced_at.map_or_else(dash, |at| ago(at.age(now))),
        status.lead_time_ms.map_or_else(dash, |lead| format!("{lead}ms")),
        if is_silent { "silent".to_owned() } else { clean(&status.freshness) },
        format!("{} ago", ago(now.duration_since(sidecar.heard).unwrap_or_default())),
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

    fn sidecar(pod: &str, generation: u64, freshness: &str, rejection: Option<&str>) -> Sidecar {
        let status = Status {
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
            leaving: false,
            at: Timestamp(UNIX_EPOCH),
        };
        Sidecar { status, heard: UNIX_EPOCH + Duration::from_secs(140) }
    }

    fn heard(at: u64, own: Sidecar) -> Sidecar {
        Sidecar { heard: UNIX_EPOCH + Duration::from_secs(at), ..own }
    }

    #[test]
    fn stragglers_come_first() {
        let newest = head(2);
        let left = sidecar("left", 2, "fresh", None);
        let mut sidecars = [
            sidecar("d", 2, "fresh", None),
            sidecar("a", 2, "fresh", None),
            sidecar("stale", 2, "stale", None),
            heard(83, sidecar("gone", 2, "fresh", None)),
            heard(84, sidecar("late", 2, "fresh", None)),
            Sidecar { status: Status { leaving: true, ..left.status }, ..left },
            sidecar("old", 1, "fresh", None),
            sidecar("no", 1, "fresh", Some("bad\u{1b}[2Jbundle")),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(150);
        sort(&mut sidecars, Some(&newest), now);
        assert_eq!(
            render(&sidecars, Some(&newest), None, now),
            "1.2 is the newest; 4 of 7 sidecars enforce it, 5 are fresh, 1 refuse something, 1 are silent, 1 have left\n\
             POD    NAMESPACE  VERSION  REVISION      SINCE  LEAD  FRESHNESS  HEARD    REJECTION\n\
             no     shop       1.1      0123456789ab  2m     7ms   fresh      10s ago  bad\\u001b[2Jbundle\n\
             gone   shop       1.2      0123456789ab  2m     7ms   silent     67s ago  -\n\
             old    shop       1.1      0123456789ab  2m     7ms   fresh      10s ago  -\n\
             stale  shop       1.2      0123456789ab  2m     7ms   stale      10s ago  -\n\
             a      shop       1.2      0123456789ab  2m     7ms   fresh      10s ago  -\n\
             d      shop       1.2      0123456789ab  2m     7ms   fresh      10s ago  -\n\
             late   shop       1.2      0123456789ab  2m     7ms   fresh      66s ago  -\n"
        );
        assert_eq!(
            render(&[], Some(&newest), Some(3), now),
            "1.2 is the newest; 0 of 3 sidecars enforce it, 0 are fresh, 0 refuse something, 3 have never been heard of, or not \
             for a day\n"
        );
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, expected) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            assert_eq!(ago(Duration::from_secs(seconds)), expected);
        }
    }
}
