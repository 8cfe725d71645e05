//! Whether what is in force is known to be current. The feed writes down when that was last proved; each request reads how long ago
//! that is, so that a paused process, or one whose feed is stuck, knows it at its first request and not at its next timer.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use deserr::{Deserr, ValuePointerRef};
use serde::Serialize;

use crate::model::{Freshness, Undecided};
use crate::units::HumanDuration;
use crate::yaml::Faults;

/// How long a proof lasts, and what happens after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields, validate = Config::validate -> Faults)]
pub struct Config {
    /// How long after the last proof a sidecar says that it is stale: it decides as before. Default: 3s, three beacons.
    #[deserr(default = Config::default().stale_after)]
    pub stale_after: HumanDuration,
    /// How long after the last proof a sidecar does what `on_expired` says. Default: 1h.
    #[deserr(default = Config::default().expired_after)]
    pub expired_after: HumanDuration,
    /// What it does then. Default: `undecided`.
    #[deserr(default)]
    pub on_expired: OnExpired,
}

/// What a sidecar does when what is in force was not proved to be current for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "snake_case")]
pub enum OnExpired {
    /// Answers every check as Undecided, which Envoy's `failure_mode_allow` decides about, and is not ready.
    #[default]
    Undecided,
    /// Decides as before, but is not ready: Kubernetes takes the pod out of its services.
    #[deserr(rename = "not_ready")]
    NotReady,
    /// Decides as before, and only says so.
    Serve,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stale_after: HumanDuration::seconds(3),
            expired_after: HumanDuration::seconds(3600),
            on_expired: OnExpired::default(),
        }
    }
}

impl Config {
    /// How current what is in force is so long after it was last proved; `None` if it never was.
    pub fn after(&self, age: Option<Duration>) -> Freshness {
        match age {
            Some(age) if age <= self.stale_after.0 => Freshness::Fresh,
            Some(age) if age <= self.expired_after.0 => Freshness::Stale,
            _ => Freshness::Expired,
        }
    }

    fn validate(self, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        match self.stale_after <= self.expired_after {
            true => Ok(self),
            false => Err(Faults::new(
                format!("`{}` is sooner than `stale_after` ({})", self.expired_after, self.stale_after),
                Some("what expires was stale before".to_owned()),
                location.push_key("expired_after"),
            )),
        }
    }
}

/// When what is in force was last proved to be current. The feed and all requests share one.
#[derive(Debug)]
pub struct LastProof {
    /// `None` if nothing has to be proved: directories are what they are.
    config: Option<Config>,
    /// What the nanoseconds count from.
    start: Instant,
    /// Nanoseconds from `start`, negative for what an earlier process saw proved; `NEVER` at first.
    proved: AtomicI64,
}

const NEVER: i64 = i64::MIN;

impl LastProof {
    /// Nothing has to be proved: always fresh.
    pub fn none() -> Self {
        Self { config: None, start: Instant::now(), proved: AtomicI64::new(NEVER) }
    }

    /// Expired until something is proved.
    pub fn required(config: Config) -> Self {
        Self { config: Some(config), ..Self::none() }
    }

    /// What is in force was current so long before this instant. Older proofs than the newest change nothing.
    pub fn prove(&self, now: Instant, age: Duration) {
        let proved = self.nanos(now).saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
        self.proved.fetch_max(proved.max(NEVER + 1), Ordering::Relaxed);
    }

    /// How long ago it was proved; `None` if it never was, or does not have to be.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let proved = Some(self.proved.load(Ordering::Relaxed)).filter(|proved| *proved != NEVER)?;
        Some(Duration::from_nanos(u64::try_from(self.nanos(now).saturating_sub(proved)).unwrap_or(0)))
    }

    /// How current what is in force is; `None` if that does not have to be proved.
    pub fn freshness(&self, now: Instant) -> Option<Freshness> {
        Some(self.config?.after(self.age(now)))
    }

    /// What the operator wants when it has expired; `None` if it has not.
    pub fn expired(&self, now: Instant) -> Option<OnExpired> {
        (self.freshness(now) == Some(Freshness::Expired)).then_some(self.config?.on_expired)
    }

    /// How current what is in force is, for deciding by it.
    ///
    /// # Errors
    /// [`Undecided::Stale`] if it is too old for that.
    pub fn check(&self) -> Result<Option<Freshness>, Undecided> {
        let Some(config) = self.config else { return Ok(None) };
        match self.freshness(Instant::now()) {
            Some(Freshness::Expired) if config.on_expired == OnExpired::Undecided => Err(Undecided::Stale),
            freshness => Ok(freshness),
        }
    }

    fn nanos(&self, now: Instant) -> i64 {
        let nanos = |since: Duration| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        match now.checked_duration_since(self.start) {
            Some(since) => nanos(since),
            None => -nanos(self.start.duration_since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_grows_old() {
        let proof = LastProof::required(Config::default());
        let start = Instant::now();
        let at = |seconds| proof.freshness(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(Freshness::Expired), "nothing was proved yet");
        proof.prove(start + Duration::from_secs(10), Duration::from_secs(1));
        for (seconds, expected) in [
            (10, Freshness::Fresh),
            (12, Freshness::Fresh),
            (13, Freshness::Stale),
            (3609, Freshness::Stale),
            (3610, Freshness::Expired),
        ] {
            assert_eq!(at(seconds), Some(expected), "{seconds}");
        }
        proof.prove(start + Duration::from_secs(20), Duration::from_secs(15));
        assert_eq!(
            proof.age(start + Duration::from_secs(20)),
            Some(Duration::from_secs(11)),
            "an older one, heard late"
        );
        assert_eq!(proof.expired(start + Duration::from_secs(9999)), Some(OnExpired::Undecided));
        assert_eq!(proof.check(), Ok(Some(Freshness::Fresh)));
    }

    #[test]
    fn what_an_earlier_process_saw_counts() {
        let proof = LastProof::required(Config::default());
        let start = Instant::now();
        proof.prove(start, Duration::from_secs(1800));
        assert_eq!(proof.freshness(start), Some(Freshness::Stale));
        assert_eq!(proof.freshness(start + Duration::from_secs(1801)), Some(Freshness::Expired));
    }

    #[test]
    fn directories_prove_nothing() {
        assert_eq!(LastProof::none().freshness(Instant::now()), None);
        assert_eq!(LastProof::none().expired(Instant::now()), None);
        assert_eq!(LastProof::none().check(), Ok(None));
    }

    #[test]
    fn what_has_expired_is_decided_by_where_the_operator_says_so() {
        for (on_expired, expected) in [
            (OnExpired::Undecided, Err(Undecided::Stale)),
            (OnExpired::NotReady, Ok(Some(Freshness::Expired))),
            (OnExpired::Serve, Ok(Some(Freshness::Expired))),
        ] {
            let proof = LastProof::required(Config { on_expired, ..Config::default() });
            assert_eq!(proof.check(), expected, "{on_expired:?}");
        }
    }
}
