//! `--wait`: who enforces what was just published.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use async_nats::Subscriber;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, timeout_at};

use super::store::Session;
use crate::publish::leads::{Report, Waiting};
use crate::publish::table::{Presence, Sidecar, clean};
use crate::store::statement::{Kind, Status, Timestamp, Version};
use crate::terminal::{Stream, errln, out};

/// What a statement that was published, but not enforced as asked for, exits with.
pub(super) const NOT_ENFORCED: u8 = 2;

/// Waiting until sidecars enforce it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Waiting")]
pub(super) struct WaitArgs {
    /// Wait until this share of the sidecars enforces it, such as `99%`.
    #[arg(long = "wait", value_name = "PERCENT", value_parser = percent)]
    percent: Option<f64>,
    /// How many sidecars there are: as many are waited for, also if fewer have been heard of.
    #[arg(long, value_name = "N", requires = "percent")]
    expect: Option<usize>,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    number.filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(|| "a percentage, such as `99%`".to_owned())
}

/// An ear to the sidecars, opened before anything is published: what they say is not repeated.
pub(super) struct Ear {
    heard: Subscriber,
    present: Vec<Status>,
    /// Those that have said nothing for too long to be waited for.
    silent: Vec<Sidecar>,
    expect: usize,
    percent: f64,
    timeout: Duration,
}

impl WaitArgs {
    /// Listens, if asked to wait.
    pub(super) async fn listen(&self, session: &Session) -> Result<Option<Ear>, String> {
        let Some(percent) = self.percent else { return Ok(None) };
        let heard = session.store.hear_statuses().await?;
        let sidecars = session.store.sidecars().await.map_err(|error| error.to_string())?;
        let now = SystemTime::now();
        let of = |presence: Presence| sidecars.iter().filter(move |own| own.presence(now) == presence).cloned();
        let present = of(Presence::Reporting).map(|own| own.status).collect();
        let (silent, expect) = (of(Presence::Silent).collect(), self.expect.unwrap_or(0));
        Ok(Some(Ear { heard, present, silent, expect, percent, timeout: self.timeout }))
    }
}

impl Ear {
    /// Waits until enough sidecars enforce a statement, shows who does, and says how soon; if asked to.
    pub(super) async fn wait_for(ear: Option<Self>, kind: Kind, version: Version, published_at: Timestamp) -> ExitCode {
        match ear {
            Some(ear) => ear.wait(kind, version, published_at).await,
            None => ExitCode::SUCCESS,
        }
    }

    async fn wait(mut self, kind: Kind, version: Version, published_at: Timestamp) -> ExitCode {
        let mut waiting = Waiting::new(kind, version, published_at, &self.present, self.expect);
        if !self.silent.is_empty() {
            let named: Vec<String> = self
                .silent
                .iter()
                .take(NAMED)
                .map(|own| clean(&format!("{}/{}", own.status.namespace, own.status.pod)))
                .collect();
            errln!(
                "warning: {} sidecars have said nothing for more than a minute, and are not waited for: {}",
                self.silent.len(),
                named.join(", ")
            );
        }
        if waiting.expected() == 0 {
            errln!(
                "published, but no sidecar is in sight: nobody is known to enforce it (if some should be there, see whether they \
                 reach the store; `--expect N` waits for them)"
            );
            return ExitCode::from(NOT_ENFORCED);
        }
        let mut progress = Progress::new(waiting.expected());
        let deadline = Instant::now() + self.timeout;
        while !waiting.has(self.percent) && !waiting.is_over() {
            let Ok(Some(message)) = timeout_at(deadline, self.heard.next()).await else { break };
            if let Ok(status) = serde_json::from_slice::<Status>(&message.payload) {
                waiting.hear(&status);
                progress.show(waiting.enforced());
            }
        }
        progress.finish();
        out!("{}", text(&waiting.report()));
        match waiting.has(self.percent) && !waiting.is_rejected() {
            true => ExitCode::SUCCESS,
            false => {
                errln!("published, but not enforced by {} % of the sidecars within {:?}", self.percent, self.timeout);
                ExitCode::from(NOT_ENFORCED)
            }
        }
    }
}

/// A bar on a terminal; a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    expected: usize,
    tenths: usize,
}

impl Progress {
    fn new(expected: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} sidecars enforce it, {elapsed_precise}");
        let bar = style.ok().filter(|_| Stream::Err.is_terminal());
        let bar = bar.map(|style| ProgressBar::new(expected as u64).with_style(style));
        Self { bar, expected, tenths: 0 }
    }

    fn show(&mut self, enforced: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(enforced as u64);
            return;
        }
        let tenths = enforced * 10 / self.expected.max(1);
        if tenths > self.tenths {
            self.tenths = tenths;
            errln!("{enforced} of {} sidecars enforce it", self.expected);
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many are named of those that have said nothing.
const NAMED: usize = 5;

fn text(report: &Report) -> String {
    let millis = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |value| format!("{value}ms"));
    let mut text = format!(
        "enforced by {} of {} sidecars; lead time p50 {}, p99 {}\n",
        report.enforced,
        report.sidecars,
        millis(report.p50_ms),
        millis(report.p99_ms)
    );
    if !report.slowest.is_empty() {
        let slowest: Vec<String> =
            report.slowest.iter().map(|(pod, lead)| format!("{} {lead}ms", clean(pod))).collect();
        text += &format!("slowest: {}\n", slowest.join(", "));
    }
    for (pod, why) in &report.rejections {
        text += &format!("rejected by {}: {}\n", clean(pod), clean(why));
    }
    if !report.missing.is_empty() {
        let named: Vec<String> = report.missing.iter().take(NAMED).map(|pod| clean(pod)).collect();
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
    fn a_share_is_a_percentage() {
        assert_eq!((percent("99%"), percent("99.5"), percent("0 %")), (Ok(99.0), Ok(99.5), Ok(0.0)));
        assert!(["", "101", "-1", "all", "NaN"].iter().all(|text| percent(text).is_err()));
    }

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
