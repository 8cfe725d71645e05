//! What sidecars report, as a table.

use std::time::SystemTime;

use super::{ago, columns, count};
use crate::publish::presence::{Presence, Sidecar};
use crate::store::statement::Head;
use crate::terminal::clean_excerpt;

/// A line that sums them up, and a table of those that have not left. `expected` is how many there should be, if anyone knows.
pub(crate) fn render(sidecars: &[Sidecar], newest: Option<&Head>, expected: Option<usize>, now: SystemTime) -> String {
    let those = |is: &dyn Fn(&Sidecar) -> bool| sidecars.iter().filter(|own| is(own)).count();
    let reporting = |own: &Sidecar| own.presence(now) == Presence::Reporting;
    let current = those(&|own| own.enforces(newest, now));
    let fresh = those(&|own| reporting(own) && own.status.freshness == "fresh");
    let rejecting = those(&|own| reporting(own) && own.status.rejection.is_some());
    let (silent, left) =
        (those(&|own| own.presence(now) == Presence::Silent), those(&|own| own.presence(now) == Presence::Left));
    let there = sidecars.len() - left;
    let version = newest.map_or_else(|| "nothing".to_owned(), |head| head.version.to_string());
    let mut summary = format!(
        "{version} is the newest; {current} of {} enforce it, {fresh} {} fresh, {rejecting} {} something",
        count(expected.map_or(there, |expected| expected.max(there)), "sidecar"),
        if fresh == 1 { "is" } else { "are" },
        if rejecting == 1 { "refuses" } else { "refuse" }
    );
    let missing = expected.map_or(0, |expected| expected.saturating_sub(there));
    for (number, one, several) in [
        (silent, "is silent", "are silent"),
        (left, "has left", "have left"),
        (missing, "has never been heard of, or not for a day", "have never been heard of, or not for a day"),
    ] {
        match number {
            0 => {}
            1 => summary += &format!(", 1 {one}"),
            _ => summary += &format!(", {number} {several}"),
        }
    }
    summary.push('\n');
    if there == 0 {
        return summary;
    }
    let shown = sidecars.iter().filter(|own| own.presence(now) != Presence::Left);
    summary + &columns(&HEADER, shown.map(|own| row(own, now)))
}

const HEADER: [&str; 9] =
    ["POD", "NAMESPACE", "VERSION", "REVISION", "SINCE", "LEAD", "FRESHNESS", "HEARD", "REJECTION"];

fn row(sidecar: &Sidecar, now: SystemTime) -> [String; 9] {
    let (status, dash) = (&sidecar.status, || "-".to_owned());
    let is_silent = sidecar.presence(now) == Presence::Silent;
    [
        clean_excerpt(&status.pod),
        clean_excerpt(&status.namespace),
        status.manifest.map_or_else(dash, |head| head.version.to_string()),
        status.revision.as_deref().map_or_else(dash, |id| id.chars().take(12).collect()),
        status.enforced_at.map_or_else(dash, |at| ago(at.age(now))),
        status.lead_time_ms.map_or_else(dash, |lead| format!("{lead}ms")),
        if is_silent { "silent".to_owned() } else { clean_excerpt(&status.freshness) },
        format!("{} ago", ago(now.duration_since(sidecar.heard).unwrap_or_default())),
        status.rejection.as_deref().map_or_else(dash, clean_excerpt),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::publish::presence::sort;
    use crate::store::statement::{Status, Timestamp, Version};

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
            "1.2 is the newest; 4 of 7 sidecars enforce it, 5 are fresh, 1 refuses something, 1 is silent, 1 has left\n\
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
}
