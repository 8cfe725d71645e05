//! `--wait`: which sidecars enforce what was just published.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::cli::output::Error;
use crate::cli::output::rollout::{self, NAMED, Progress};
use crate::publish::Session;
use crate::publish::presence::{Presence, Sidecar};
use crate::publish::rollout::Waiting;
use crate::store::statement::{Kind, Status, Timestamp, Version};
use crate::terminal::{clean_excerpt, errln, out};

/// What a statement that was published, but not enforced as asked for, exits with.
pub(crate) const NOT_ENFORCED: u8 = 2;

/// Waiting until sidecars enforce it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct WaitArgs {
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

/// Watches what sidecars report, from before anything is published: reports are not repeated.
pub(crate) struct StatusWatch {
    reports: Subscriber,
    present: Vec<Status>,
    /// Those that have reported nothing for too long to be waited for.
    silent: Vec<Sidecar>,
    expect: usize,
    percent: f64,
    timeout: Duration,
}

impl WaitArgs {
    /// Begins to watch, if asked to wait.
    pub(crate) async fn watch(&self, session: &Session) -> Result<Option<StatusWatch>, Error> {
        let Some(percent) = self.percent else { return Ok(None) };
        let reports = session.store.hear_statuses().await?;
        let sidecars = session.store.sidecars().await?;
        let now = SystemTime::now();
        let of = |presence: Presence| sidecars.iter().filter(move |own| own.presence(now) == presence).cloned();
        let present = of(Presence::Reporting).map(|own| own.status).collect();
        let (silent, expect) = (of(Presence::Silent).collect(), self.expect.unwrap_or(0));
        Ok(Some(StatusWatch { reports, present, silent, expect, percent, timeout: self.timeout }))
    }
}

impl StatusWatch {
    /// Waits until enough sidecars enforce a statement, and shows which do, and how soon; if asked to.
    pub(crate) async fn wait_for(
        watch: Option<Self>,
        kind: Kind,
        version: Version,
        published_at: Timestamp,
    ) -> ExitCode {
        match watch {
            Some(watch) => watch.wait(kind, version, published_at).await,
            None => ExitCode::SUCCESS,
        }
    }

    async fn wait(mut self, kind: Kind, version: Version, published_at: Timestamp) -> ExitCode {
        let mut waiting = Waiting::new(kind, version, published_at, &self.present, self.expect);
        self.warn_of_silent();
        if waiting.expected() == 0 {
            errln!(
                "published, but no sidecar is in sight: none is known to enforce it (if some should be there, see whether they \
                 reach the store; `--expect N` waits for them)"
            );
            return ExitCode::from(NOT_ENFORCED);
        }
        let mut progress = Progress::new(waiting.expected());
        let deadline = Instant::now() + self.timeout;
        while !waiting.has(self.percent) && !waiting.is_over() {
            let Ok(Some(message)) = timeout_at(deadline, self.reports.next()).await else { break };
            if let Ok(status) = serde_json::from_slice::<Status>(&message.payload) {
                waiting.hear(&status);
                progress.show(waiting.enforced());
            }
        }
        progress.finish();
        out!("{}", rollout::text(&waiting.report()));
        match waiting.has(self.percent) && !waiting.is_rejected() {
            true => ExitCode::SUCCESS,
            false => {
                errln!("published, but not enforced by {} % of the sidecars within {:?}", self.percent, self.timeout);
                ExitCode::from(NOT_ENFORCED)
            }
        }
    }

    fn warn_of_silent(&self) {
        let name = |own: &Sidecar| clean_excerpt(&format!("{}/{}", own.status.namespace, own.status.pod));
        let named: Vec<String> = self.silent.iter().take(NAMED).map(name).collect();
        let more = self.silent.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        match self.silent.len() {
            0 => {}
            1 => errln!(
                "warning: 1 sidecar has reported nothing for more than a minute, and is not waited for: {}",
                named.join(", ")
            ),
            several => errln!(
                "warning: {several} sidecars have reported nothing for more than a minute, and are not waited for: {}{more}",
                named.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!((percent("99%"), percent("99.5"), percent("0 %")), (Ok(99.0), Ok(99.5), Ok(0.0)));
        assert!(["", "101", "-1", "all", "NaN"].iter().all(|text| percent(text).is_err()));
    }
}
