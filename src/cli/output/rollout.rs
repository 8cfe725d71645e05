//! How far a statement has come: while it is waited for, and in the end.

use indicatif::{ProgressBar, ProgressStyle};

use super::count;
use crate::publish::rollout::Report;
use crate::terminal::{Stream, clean_excerpt, errln};

/// A bar on a terminal; a line now and then elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    expected: usize,
    tenths: usize,
}

impl Progress {
    pub(crate) fn new(expected: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} sidecars enforce it, {elapsed_precise}");
        let bar = style.ok().filter(|_| Stream::Err.is_terminal());
        let bar = bar.map(|style| ProgressBar::new(expected as u64).with_style(style));
        Self { bar, expected, tenths: 0 }
    }

    pub(crate) fn show(&mut self, enforced: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(enforced as u64);
            return;
        }
        let tenths = enforced * 10 / self.expected.max(1);
        if tenths > self.tenths {
            self.tenths = tenths;
            errln!("{enforced} of {} enforce it", count(self.expected, "sidecar"));
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many are named of those that have reported nothing.
pub(crate) const NAMED: usize = 5;

/// The report for people.
pub(crate) fn text(report: &Report) -> String {
    let millis = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |value| format!("{value}ms"));
    let mut text = format!(
        "enforced by {} of {}; lead time p50 {}, p99 {}\n",
        report.enforced,
        count(report.sidecars, "sidecar"),
        millis(report.p50_ms),
        millis(report.p99_ms)
    );
    if !report.slowest.is_empty() {
        let slowest: Vec<String> =
            report.slowest.iter().map(|(pod, lead)| format!("{} {lead}ms", clean_excerpt(pod))).collect();
        text += &format!("slowest: {}\n", slowest.join(", "));
    }
    for (pod, why) in &report.rejections {
        text += &format!("rejected by {}: {}\n", clean_excerpt(pod), clean_excerpt(why));
    }
    if !report.missing.is_empty() {
        let named: Vec<String> = report.missing.iter().take(NAMED).map(|pod| clean_excerpt(pod)).collect();
        let more = report.missing.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text += &format!("no word from {}{more}\n", named.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_those_who_matter() {
        let report = Report {
            sidecars: 9,
            enforced: 1,
            p50_ms: Some(7),
            p99_ms: None,
            slowest: vec![("shop/a".to_owned(), 7)],
            rejections: vec![("shop/b".to_owned(), "no\nsuch type".to_owned())],
            missing: (0..7).map(|n| format!("shop/{n}")).collect(),
        };
        assert_eq!(
            text(&report),
            "enforced by 1 of 9 sidecars; lead time p50 7ms, p99 unknown\nslowest: shop/a 7ms\n\
             rejected by shop/b: no such type\nno word from shop/0, shop/1, shop/2, shop/3, shop/4 and 2 more\n"
        );
    }
}
