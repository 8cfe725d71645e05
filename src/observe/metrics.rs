//! The handles of the metrics that the [catalogue](super::catalogue) lists.
//!
//! All series are registered at the start, so each is there with its zero before anything happens, and counting is one
//! atomic instruction on a handle. Nothing is global: whoever counts holds a [`Metrics`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deserr::Deserr;
use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;

use super::cache::CacheHandles;
pub use super::cache::{CacheCounts, CacheUsage};
use super::catalogue::{
    AGE, BUILD_INFO, CANDIDATES, CHECK_DURATION, EVALUATION_DURATION, GENERATION, IN_FLIGHT, LEAD_TIME, LOAD_DURATION,
    LOADS, LOG_FAILING, LOG_LOST, LOG_QUEUE, METRICS, MetricKind, POLICIES, POLICY_ERRORS, READY, REJECTIONS, Registry,
    SHADOW_DISAGREEMENTS,
};
use super::decisions::{Decisions, Determining};
use super::store::{StoreHandles, StoreState};
use super::transport::{ConnectionMetrics, Role, TransportHandles};
use crate::model::{Decision, MissReason, Outcome, Reason};
use crate::waiting::Usage;
use crate::yaml::Faults;

/// `metrics:` what is counted beyond the default.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Whether decisions are counted by determining policy too. Default `false`.
    #[deserr(default)]
    pub policy_label: bool,
    /// How many policies get a series of their own, the first ones to determine a decision; the rest are counted as
    /// `other`. Default `100`.
    #[deserr(default = Self::default().policy_label_limit)]
    pub policy_label_limit: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { policy_label: false, policy_label_limit: 100 }
    }
}

/// The handles of all metrics. Clones count into the same series.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Handles>);

#[derive(Debug)]
struct Handles {
    decisions: Decisions,
    check_duration: Histogram,
    in_flight: Gauge,
    errors_denied: Counter,
    errors_skipped: Counter,
    errors_shadow: Counter,
    shadow_disagreements: Counter,
    determining: Option<Determining>,
    generation: Gauge,
    age: Gauge,
    policies: Gauge,
    loads: Counter,
    rejections: Counter,
    load_duration: Histogram,
    lead_time: Histogram,
    store: StoreHandles,
    cache: CacheHandles,
    evaluation_duration: Histogram,
    candidates: Histogram,
    decision_log: DecisionLogMetrics,
    transport: TransportHandles,
    ready: Gauge,
}

/// What the decision log counts.
#[derive(Debug, Clone)]
pub struct DecisionLogMetrics {
    /// Records in the queue.
    pub queue_depth: Gauge,
    /// Records lost because the queue was full.
    pub lost_queue_full: Counter,
    /// Records lost because they could not be written.
    pub lost_write: Counter,
    /// Whether the last attempt to write failed.
    pub failing: Gauge,
}

/// A check that is being answered, until it is dropped.
#[derive(Debug)]
#[must_use = "the check counts as answered once this is dropped"]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything, and returns what renders it. Observations of histograms pile up until
    /// [`PrometheusHandle::run_upkeep`] or a scrape sorts them into their buckets: call it every second or so.
    ///
    /// # Errors
    /// If a histogram has no buckets, which [`METRICS`] excludes.
    pub fn new(config: &Config) -> Result<(Self, PrometheusHandle), BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS {
            if let MetricKind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
            }
        }
        let registry = Registry(Arc::new(builder.build_recorder()));
        registry.describe();
        registry.gauge(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let handles = Handles {
            decisions: Decisions::new(&registry),
            check_duration: registry.histogram(CHECK_DURATION),
            in_flight: registry.gauge(IN_FLIGHT, &[]),
            errors_denied: registry.counter(POLICY_ERRORS, &[("consequence", "denied")]),
            errors_skipped: registry.counter(POLICY_ERRORS, &[("consequence", "skipped")]),
            errors_shadow: registry.counter(POLICY_ERRORS, &[("consequence", "shadow")]),
            shadow_disagreements: registry.counter(SHADOW_DISAGREEMENTS, &[]),
            determining: config.policy_label.then(|| Determining::new(&registry, config.policy_label_limit)),
            generation: registry.gauge(GENERATION, &[]),
            age: registry.gauge(AGE, &[]),
            policies: registry.gauge(POLICIES, &[]),
            loads: registry.counter(LOADS, &[]),
            rejections: registry.counter(REJECTIONS, &[]),
            load_duration: registry.histogram(LOAD_DURATION),
            lead_time: registry.histogram(LEAD_TIME),
            store: StoreHandles::new(&registry),
            cache: CacheHandles::new(&registry),
            evaluation_duration: registry.histogram(EVALUATION_DURATION),
            candidates: registry.histogram(CANDIDATES),
            decision_log: DecisionLogMetrics {
                queue_depth: registry.gauge(LOG_QUEUE, &[]),
                lost_queue_full: registry.counter(LOG_LOST, &[("cause", "queue_full")]),
                lost_write: registry.counter(LOG_LOST, &[("cause", "write")]),
                failing: registry.gauge(LOG_FAILING, &[]),
            },
            transport: TransportHandles::new(&registry),
            ready: registry.gauge(READY, &[]),
        };
        handles.age.set(f64::NAN);
        Ok((Self(Arc::new(handles)), registry.0.handle()))
    }

    /// A check has arrived.
    pub fn in_flight(&self) -> InFlight {
        let gauge = self.0.in_flight.clone();
        gauge.increment(1.0);
        InFlight(gauge)
    }

    /// What is counted of the connections of such listeners.
    pub fn connections(&self, role: Role) -> ConnectionMetrics {
        self.0.transport.connections(role)
    }

    /// A call was shed while its message was on its way.
    pub fn message_shed(&self) {
        self.0.transport.message_shed();
    }

    /// What is on its way right now.
    pub fn messages(&self, usage: Usage) {
        self.0.transport.messages(usage);
    }

    /// A check was answered.
    pub fn decided(&self, outcome: &Outcome, latency: Duration) {
        self.0.check_duration.record(latency);
        if let Some(counter) = self.0.decisions.of(outcome) {
            counter.increment(1);
        }
        if let Outcome::Decided(decision) = outcome {
            self.look_into(decision);
        }
    }

    fn look_into(&self, decision: &Decision) {
        if !decision.errors.is_empty() {
            let denied = decision.reason == Reason::PolicyError;
            let counter = if denied { &self.0.errors_denied } else { &self.0.errors_skipped };
            counter.increment(decision.errors.len() as u64);
        }
        if let Some(shadow) = &decision.shadow {
            self.0.errors_shadow.increment(shadow.errors.len() as u64);
            self.0.shadow_disagreements.increment(u64::from(shadow.effect != decision.effect));
        }
        if let Some(determining) = &self.0.determining {
            decision.determining.iter().for_each(|policy| determining.count(policy));
        }
    }

    /// A snapshot was put in force. `took` is what reading and compiling it took, `lead_time` what lies between the change
    /// of its bundles and its enforcement.
    pub fn snapshot(&self, generation: u64, policies: usize, took: Option<Duration>, lead_time: Option<Duration>) {
        self.0.generation.set(generation as f64);
        self.0.policies.set(policies as f64);
        if let Some(took) = took {
            self.0.load_duration.record(took);
        }
        if let Some(lead_time) = lead_time {
            self.0.lead_time.record(lead_time);
        }
    }

    /// How following goes: versions put in force and refused since the start, and when the source was last read. Call it
    /// before every scrape, so that the age is the age.
    pub fn following(&self, loads: u64, rejections: u64, last_read: Option<SystemTime>) {
        self.0.loads.absolute(loads);
        self.0.rejections.absolute(rejections);
        // A clock that was set back makes nothing older.
        let age = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs_f64();
        self.0.age.set(last_read.map_or(f64::NAN, age));
    }

    /// How following the central store goes. Call it before every scrape.
    pub fn store(&self, state: &StoreState) {
        self.0.store.set(state);
    }

    /// Overlays are in force that were signed so long before.
    pub fn overlay_lead_time(&self, lead_time: Duration) {
        self.0.store.overlay_lead_time.record(lead_time);
    }

    /// A remembered decision of this age was the answer.
    pub fn cache_hit(&self, age: Duration) {
        self.0.cache.hit(age);
    }

    /// A decision was made although the cache was on.
    pub fn cache_missed(&self, reason: MissReason) {
        self.0.cache.missed(reason);
    }

    /// A remembered decision stood although the bundles had changed.
    pub fn cache_promoted(&self) {
        self.0.cache.promoted();
    }

    /// A hit was decided again.
    pub fn cache_checked(&self, agrees: bool) {
        self.0.cache.checked(agrees);
    }

    /// What is remembered now, what it may take, and what has had to make room. Call it before every scrape.
    pub fn cache(&self, usage: &CacheUsage) {
        self.0.cache.show(usage);
    }

    /// What the decision cache has done since the start.
    pub fn cache_counts(&self) -> CacheCounts {
        self.0.cache.counts()
    }

    /// A decision was made from so many policies in this time.
    pub fn evaluated(&self, candidates: usize, took: Duration) {
        self.0.evaluation_duration.record(took);
        self.0.candidates.record(candidates as f64);
    }

    /// Whether `/readyz` says so.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(f64::from(u8::from(ready)));
    }

    /// What the decision log counts.
    pub fn decision_log(&self) -> DecisionLogMetrics {
        self.0.decision_log.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::super::catalogue::{DECISIONS, DETERMINING};
    use super::super::decisions::labels;
    use super::super::reference::reference;
    use super::*;
    use crate::model::{Effect, PolicyError, PolicyId, Ruling, Shadow, Undecided, Unmapped, UnmappedKind};
    use crate::observe::words;

    fn decision(effect: Effect, reason: Reason, determining: &[&str]) -> Decision {
        let determining = determining.iter().map(PolicyId::new).collect();
        let ruling = Ruling { effect, reason, determining, errors: Vec::new(), shadow: None, denial: None };
        Decision::of(ruling)
    }

    fn outcomes() -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Decided(decision(Effect::Allow, Reason::Policy, &[]))];
        outcomes.extend(Reason::DENIALS.map(|reason| Outcome::Decided(decision(Effect::Deny, reason, &[]))));
        outcomes.extend(UnmappedKind::ALL.map(|kind| Outcome::Unmapped(Unmapped::new(kind, "why"))));
        outcomes.extend(Undecided::ALL.map(Outcome::Undecided));
        outcomes
    }

    /// The value of the one series of this name and these labels.
    fn value(handle: &PrometheusHandle, series: &str) -> String {
        let text = handle.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no `{series}` in\n{text}")).to_owned()
    }

    #[test]
    fn everything_that_is_listed_is_there_from_the_start_and_nothing_else() {
        let config = Config { policy_label: true, ..Config::default() };
        let (_metrics, handle) = Metrics::new(&config).expect("metrics");
        let text = handle.render();
        let of_type = |kind: &MetricKind| match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let listed: BTreeSet<String> =
            METRICS.iter().map(|metric| format!("{} {}", metric.name, of_type(&metric.kind))).collect();
        let there: BTreeSet<String> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
        assert_eq!(there, listed);
        assert_eq!(text.lines().filter(|line| line.starts_with("# HELP ")).count(), METRICS.len());
        assert_eq!(value(&handle, "stockade_check_duration_seconds_bucket{le=\"0.000005\"}"), "0");
        assert_eq!(value(&handle, AGE), "NaN");
    }

    #[test]
    fn the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("BLESS").is_some() {
            fs::write(path, reference()).expect("write");
        }
        assert!(fs::read_to_string(path).expect(path) == reference(), "run this test once with BLESS=1");
    }

    #[test]
    fn each_outcome_is_counted_once_under_the_words_of_its_record() {
        let (metrics, handle) = Metrics::new(&Config::default()).expect("metrics");
        let mut seen = BTreeSet::new();
        for (outcome, (kind, ..)) in outcomes().iter().zip(labels()) {
            metrics.decided(outcome, Duration::from_micros(7));
            let (word, reason) = words(outcome);
            let series = format!("{DECISIONS}{{kind=\"{kind}\",outcome=\"{word}\",reason=\"{reason}\"}}");
            assert_eq!(value(&handle, &series), "1");
            assert!(seen.insert(series), "two outcomes of one name");
        }
        assert_eq!(handle.render().matches(&format!("\n{DECISIONS}{{")).count(), seen.len());
        assert_eq!(value(&handle, "stockade_check_duration_seconds_bucket{le=\"0.00001\"}"), seen.len().to_string());
    }

    #[test]
    fn errors_and_disagreements_are_told_apart() {
        let (metrics, handle) = Metrics::new(&Config::default()).expect("metrics");
        let error = || PolicyError { policy: PolicyId::new("p"), message: "overflow".into() };
        let mut allow = decision(Effect::Allow, Reason::Policy, &[]);
        Arc::make_mut(&mut allow.ruling).errors = vec![error(), error()];
        Arc::make_mut(&mut allow.ruling).shadow =
            Some(Shadow { effect: Effect::Deny, determining: Vec::new(), errors: vec![error()] });
        let mut deny = decision(Effect::Deny, Reason::PolicyError, &[]);
        Arc::make_mut(&mut deny.ruling).errors = vec![error()];
        Arc::make_mut(&mut deny.ruling).shadow =
            Some(Shadow { effect: Effect::Deny, determining: Vec::new(), errors: Vec::new() });
        metrics.decided(&Outcome::Decided(allow), Duration::ZERO);
        metrics.decided(&Outcome::Decided(deny), Duration::ZERO);
        for (consequence, count) in [("skipped", "2"), ("denied", "1"), ("shadow", "1")] {
            assert_eq!(value(&handle, &format!("{POLICY_ERRORS}{{consequence=\"{consequence}\"}}")), count);
        }
        assert_eq!(value(&handle, SHADOW_DISAGREEMENTS), "1");
    }

    #[test]
    fn policies_beyond_the_limit_are_counted_as_other() {
        let config = Config { policy_label: true, policy_label_limit: 2 };
        let (metrics, handle) = Metrics::new(&config).expect("metrics");
        for policies in [&["a", "b"][..], &["c", "a"], &["d"]] {
            metrics.decided(&Outcome::Decided(decision(Effect::Allow, Reason::Policy, policies)), Duration::ZERO);
        }
        for (policy, count) in [("a", "2"), ("b", "1"), ("other", "2")] {
            assert_eq!(value(&handle, &format!("{DETERMINING}{{policy=\"{policy}\"}}")), count);
        }
        assert!(!handle.render().contains("policy=\"c\""));
    }

    #[test]
    fn what_is_in_flight_comes_down_again() {
        let (metrics, handle) = Metrics::new(&Config::default()).expect("metrics");
        let (one, two) = (metrics.in_flight(), metrics.in_flight());
        assert_eq!(value(&handle, IN_FLIGHT), "2");
        drop((one, two));
        assert_eq!(value(&handle, IN_FLIGHT), "0");
    }

    #[test]
    fn snapshots_are_counted() {
        let (metrics, handle) = Metrics::new(&Config::default()).expect("metrics");
        metrics.snapshot(3, 40, Some(Duration::from_millis(2)), Some(Duration::from_secs(20)));
        metrics.following(3, 1, Some(SystemTime::now() - Duration::from_secs(90)));
        metrics.ready(true);
        for (series, expected) in [
            (GENERATION, "3"),
            (POLICIES, "40"),
            (LOADS, "3"),
            (REJECTIONS, "1"),
            (READY, "1"),
            ("stockade_snapshot_load_duration_seconds_count", "1"),
            ("stockade_snapshot_lead_time_seconds_bucket{le=\"30\"}", "1"),
        ] {
            assert_eq!(value(&handle, series), expected, "{series}");
        }
        assert!(value(&handle, AGE).starts_with("90"));
    }
}
