//! The metrics. [`METRICS`] is the one place that lists them; docs/metrics.md is rendered from it.
//!
//! All series are registered at the start, so each is there with its zero before anything happens, and counting is one
//! atomic instruction on a handle. Nothing is global: whoever counts holds a [`Metrics`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use deserr::Deserr;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use serde::Serialize;

use super::store::{StoreHandles, StoreState};
use super::transport::{ConnectionMetrics, Role, TransportHandles};
use crate::model::{Decision, Effect, MissReason, Outcome, PolicyId, Reason, Undecided, UnmappedKind};
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

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets of these upper bounds.
    Histogram(&'static [f64]),
}

/// A line of [`METRICS`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, help }
}

/// A cache hit takes microseconds; what takes more than a tenth of a second has run into Envoy's timeout.
const CHECK_SECONDS: Kind =
    Kind::Histogram(&[5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1]);
/// Ten policies in scope take some microseconds.
const EVALUATION_SECONDS: Kind =
    Kind::Histogram(&[1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2]);
const LOAD_SECONDS: Kind = Kind::Histogram(&[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]);
/// The central store takes milliseconds; a kubelet takes up to a minute and a half to bring a changed ConfigMap into a pod.
const LEAD_SECONDS: Kind =
    Kind::Histogram(&[1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]);

const AGE_SECONDS: Kind = Kind::Histogram(&[0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0]);
const POLICY_COUNTS: Kind = Kind::Histogram(&[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0]);

const DECISIONS: &str = "stockade_decisions_total";
const CHECK_DURATION: &str = "stockade_check_duration_seconds";
const IN_FLIGHT: &str = "stockade_checks_in_flight";
const POLICY_ERRORS: &str = "stockade_policy_errors_total";
const SHADOW_DISAGREEMENTS: &str = "stockade_shadow_disagreements_total";
const DETERMINING: &str = "stockade_determining_policy_total";
const GENERATION: &str = "stockade_snapshot_generation";
const AGE: &str = "stockade_snapshot_age_seconds";
const POLICIES: &str = "stockade_snapshot_policies";
const LOADS: &str = "stockade_snapshot_loads_total";
const REJECTIONS: &str = "stockade_snapshot_rejections_total";
const LOAD_DURATION: &str = "stockade_snapshot_load_duration_seconds";
const LEAD_TIME: &str = "stockade_snapshot_lead_time_seconds";
pub(super) const OVERLAY_LEAD_TIME: &str = "stockade_overlay_lead_time_seconds";
pub(super) const OVERLAYS: &str = "stockade_overlays";
pub(super) const STORE_CONNECTED: &str = "stockade_store_connected";
pub(super) const STORE_FRESHNESS: &str = "stockade_store_freshness";
pub(super) const STORE_PROOF_AGE: &str = "stockade_store_proof_age_seconds";
pub(super) const STORE_REFUSALS: &str = "stockade_store_refusals_total";
pub(super) const STORE_FROM_DISK: &str = "stockade_store_from_disk";
pub(super) const STORE_WITHHELD: &str = "stockade_store_withheld";
const CACHE_HITS: &str = "stockade_cache_hits_total";
const CACHE_MISSES: &str = "stockade_cache_misses_total";
const CACHE_PROMOTIONS: &str = "stockade_cache_promotions_total";
const CACHE_CHECKS: &str = "stockade_cache_self_checks_total";
const CACHE_AGE: &str = "stockade_cache_hit_age_seconds";
const CACHE_ENTRIES: &str = "stockade_cache_entries";
const CACHE_BYTES: &str = "stockade_cache_bytes";
const CACHE_CAPACITY: &str = "stockade_cache_capacity_bytes";
const CACHE_EVICTIONS: &str = "stockade_cache_evictions_total";
const CACHE_EXPIRATIONS: &str = "stockade_cache_expirations_total";
const CACHE_REPLACEMENTS: &str = "stockade_cache_replacements_total";
const EVALUATION_DURATION: &str = "stockade_evaluation_duration_seconds";
const CANDIDATES: &str = "stockade_evaluation_candidates";
const LOG_QUEUE: &str = "stockade_decision_log_queue_depth";
const LOG_LOST: &str = "stockade_decision_log_lost_total";
pub(super) const CONNECTIONS: &str = "stockade_connections";
pub(super) const CONNECTIONS_CLOSED: &str = "stockade_connections_closed_total";
pub(super) const MESSAGES_WAITING: &str = "stockade_messages_waiting";
pub(super) const MESSAGES_WAITING_BYTES: &str = "stockade_messages_waiting_bytes";
pub(super) const MESSAGES_SHED: &str = "stockade_messages_shed_total";
const LOG_FAILING: &str = "stockade_decision_log_failing";
const READY: &str = "stockade_ready";
const BUILD_INFO: &str = "stockade_build_info";

/// All there are.
pub const METRICS: &[Metric] = &[
    metric(DECISIONS, Kind::Counter, &["kind", "outcome", "reason"], "Answers given to Envoy, each counted once."),
    metric(CHECK_DURATION, CHECK_SECONDS, &[], "From the arrival of a check to its answer."),
    metric(IN_FLIGHT, Kind::Gauge, &[], "Checks being answered right now."),
    metric(
        POLICY_ERRORS,
        Kind::Counter,
        &["consequence"],
        "Policies that could not be evaluated. `denied`: an erring `forbid` denied the request; `skipped`: an erring \
         `permit` was left out; `shadow`: the policy is in shadow mode.",
    ),
    metric(
        SHADOW_DISAGREEMENTS,
        Kind::Counter,
        &[],
        "Decisions that would have come out otherwise if the policies in shadow mode were in force.",
    ),
    metric(
        DETERMINING,
        Kind::Counter,
        &["policy"],
        "Decisions by determining policy; `other` beyond `metrics.policy_label_limit`. Only there with \
         `metrics.policy_label: true`.",
    ),
    metric(GENERATION, Kind::Gauge, &[], "Snapshots put in force since the start; 0 before the first."),
    metric(
        AGE,
        Kind::Gauge,
        &[],
        "Time since the source of the bundles was last read completely, changed or not; NaN before the first time.",
    ),
    metric(POLICIES, Kind::Gauge, &[], "Policies in force."),
    metric(LOADS, Kind::Counter, &[], "Versions of the bundles that were put in force."),
    metric(REJECTIONS, Kind::Counter, &[], "Versions of the bundles that were refused; the one before stays in force."),
    metric(LOAD_DURATION, LOAD_SECONDS, &[], "Reading and compiling a version that was put in force."),
    metric(LEAD_TIME, LEAD_SECONDS, &[], "From the change of a bundle, or its signing, to its enforcement."),
    metric(OVERLAY_LEAD_TIME, LEAD_SECONDS, &[], "From the signing of overlays to their enforcement."),
    metric(OVERLAYS, Kind::Gauge, &[], "Emergency denials and exceptions in force."),
    metric(STORE_CONNECTED, Kind::Gauge, &[], "1 while the central store can be reached."),
    metric(
        STORE_FRESHNESS,
        Kind::Gauge,
        &["state"],
        "1 for the state that holds: `fresh`, `stale` or `expired`, by how long ago a beacon proved what is in force to be \
         current.",
    ),
    metric(STORE_PROOF_AGE, Kind::Gauge, &[], "How long ago that was proved; not a number if it never was."),
    metric(
        STORE_REFUSALS,
        Kind::Counter,
        &["statement", "reason"],
        "Statements of the store that were not believed: alarm on any. `older` and `forked` say that the store has gone back or \
         serves two masters, `signature`, `unknown_key` and `role` that someone else writes to it.",
    ),
    metric(
        STORE_FROM_DISK,
        Kind::Gauge,
        &[],
        "1 while the copy on disk is in force, because the store could not be reached.",
    ),
    metric(
        STORE_WITHHELD,
        Kind::Gauge,
        &[],
        "1 while nothing is put in force after a start, because the newest overlays are refused: alarm.",
    ),
    metric(CACHE_HITS, Kind::Counter, &[], "Decisions that were remembered."),
    metric(
        CACHE_MISSES,
        Kind::Counter,
        &["reason"],
        "Decisions that were made although the cache was on. `absent`: not remembered; `expired`: remembered for too \
         long; `changed`: a new version of the bundles may have altered it; `uncacheable`: the policies of the action \
         read the clock.",
    ),
    metric(CACHE_PROMOTIONS, Kind::Counter, &[], "Remembered decisions that stood although the bundles had changed."),
    metric(
        CACHE_CHECKS,
        Kind::Counter,
        &["result"],
        "Hits that were decided again. `differs` is a bug of Stockade, and empties the cache.",
    ),
    metric(CACHE_AGE, AGE_SECONDS, &[], "How long ago a remembered decision was made."),
    metric(CACHE_ENTRIES, Kind::Gauge, &[], "Decisions that are remembered."),
    metric(CACHE_BYTES, Kind::Gauge, &[], "What they take, by the measure of `cache.size`."),
    metric(CACHE_CAPACITY, Kind::Gauge, &[], "What they may take: `cache.size`."),
    metric(
        CACHE_EVICTIONS,
        Kind::Counter,
        &[],
        "Remembered decisions that were still good and had to make room for others. One that grows says that `cache.size` is too small.",
    ),
    metric(
        CACHE_EXPIRATIONS,
        Kind::Counter,
        &[],
        "Remembered decisions whose time was over when another took their place, or their room.",
    ),
    metric(
        CACHE_REPLACEMENTS,
        Kind::Counter,
        &[],
        "Remembered decisions that were still good for a while when the same request was decided again, because the bundles had \
         changed, or two checks came at once.",
    ),
    metric(
        EVALUATION_DURATION,
        EVALUATION_SECONDS,
        &[],
        "Making a decision from the policies, without mapping the request and answering it. Not of requests that no route names: \
         those are denied before the cache and the policies are asked, and are neither hits nor misses.",
    ),
    metric(CANDIDATES, POLICY_COUNTS, &[], "Policies that were evaluated to make a decision."),
    metric(LOG_QUEUE, Kind::Gauge, &[], "Records that wait to be written."),
    metric(
        LOG_LOST,
        Kind::Counter,
        &["cause"],
        "Records that never reached the decision log. `queue_full`: they came faster than they could be written; \
         `write`: the disk was full, the pipe was closed.",
    ),
    metric(
        LOG_FAILING,
        Kind::Gauge,
        &[],
        "1 while Records cannot be written: the last attempt failed. With `when_full: undecided` no check is decided until \
         one succeeds.",
    ),
    metric(CONNECTIONS, Kind::Gauge, &["listener"], "Connections that are open."),
    metric(
        CONNECTIONS_CLOSED,
        Kind::Counter,
        &["listener", "reason"],
        "Connections that the sidecar closed. `displaced`: `limits.connections` were in use, and the last call of this one was longest \
         ago; `shed`: too many had not been called on yet, and this one had waited longest; `handshake_timeout`: TLS, the beginning \
         of HTTP/2 and the first call took longer than `http2.handshake_timeout`; `tls`: the TLS handshake failed; `not_http2`: the \
         cluster in Envoy lacks `http2_protocol_options`; `keep_alive_timeout`: the peer was gone; `request_timeout`: the request \
         was not there, or its answer not read, in time.",
    ),
    metric(MESSAGES_WAITING, Kind::Gauge, &[], "Calls whose message is still on its way."),
    metric(MESSAGES_WAITING_BYTES, Kind::Gauge, &[], "What is held of these messages."),
    metric(
        MESSAGES_SHED,
        Kind::Counter,
        &[],
        "Calls whose message was on its way for longest when there were more than `limits.in_flight` of them, or more than \
         `limits.waiting_bytes` in them; answered as `overloaded`.",
    ),
    metric(READY, Kind::Gauge, &[], "1 if `/readyz` says so, else 0."),
    metric(BUILD_INFO, Kind::Gauge, &["version"], "Always 1."),
];

/// The text of docs/metrics.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\nAt `/metrics` of the admin listener, in the Prometheus text format. Every series is there from \
         the start.\nThis file is rendered from `METRICS` in `src/observe/metrics.rs`; a test holds them together.\n\n\
         | Metric | Type | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help } in METRICS {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    }
    text.push_str(
        "\n## Decisions\n\n`outcome` is what Envoy's own `ext_authz` counters tell apart: `allow` is its `ok`, `deny` \
         its `denied`, `undecided` its `error`.\n`kind` tells the three kinds of \"no\" apart: `decided` by policies, \
         `unmapped` because the request could not be understood (400), `undecided`\nbecause the sidecar could not \
         decide. `reason` is the word that records and response metadata use as well.\n\n\
         | `kind` | `outcome` | `reason` |\n|---|---|---|\n",
    );
    for (kind, outcome, reason) in Decisions::labels() {
        text.push_str(&format!("| `{kind}` | `{outcome}` | `{reason}` |\n"));
    }
    text
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

#[derive(Debug)]
struct CacheHandles {
    hits: Counter,
    misses: [(MissReason, Counter); MissReason::ALL.len()],
    promotions: Counter,
    agreed: Counter,
    differed: Counter,
    age: Histogram,
    entries: Gauge,
    bytes: Gauge,
    capacity: Gauge,
    evictions: Counter,
    expirations: Counter,
    replacements: Counter,
}

/// How full the decision cache is, and what it lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheUsage {
    /// Rulings that are remembered; those that have expired leave when their key is asked for, or room is needed.
    pub entries: u64,
    /// What they take in bytes, by the measure of `cache.size`.
    pub bytes: u64,
    /// What they may take.
    pub capacity: u64,
    /// How many had to make room since the start.
    pub evictions: u64,
    /// How many were over when something took their place.
    pub expirations: u64,
    /// How many were decided again before they were over.
    pub replacements: u64,
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
            if let Kind::Histogram(buckets) = metric.kind {
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
            cache: CacheHandles {
                hits: registry.counter(CACHE_HITS, &[]),
                misses: MissReason::ALL
                    .map(|reason| (reason, registry.counter(CACHE_MISSES, &[("reason", reason.as_str())]))),
                promotions: registry.counter(CACHE_PROMOTIONS, &[]),
                agreed: registry.counter(CACHE_CHECKS, &[("result", "agrees")]),
                differed: registry.counter(CACHE_CHECKS, &[("result", "differs")]),
                age: registry.histogram(CACHE_AGE),
                entries: registry.gauge(CACHE_ENTRIES, &[]),
                bytes: registry.gauge(CACHE_BYTES, &[]),
                capacity: registry.gauge(CACHE_CAPACITY, &[]),
                evictions: registry.counter(CACHE_EVICTIONS, &[]),
                expirations: registry.counter(CACHE_EXPIRATIONS, &[]),
                replacements: registry.counter(CACHE_REPLACEMENTS, &[]),
            },
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
        self.0.cache.hits.increment(1);
        self.0.cache.age.record(age);
    }

    /// A decision was made although the cache was on.
    pub fn cache_missed(&self, reason: MissReason) {
        if let Some((_, counter)) = self.0.cache.misses.iter().find(|(own, _)| *own == reason) {
            counter.increment(1);
        }
    }

    /// A remembered decision stood although the bundles had changed.
    pub fn cache_promoted(&self) {
        self.0.cache.promotions.increment(1);
    }

    /// A hit was decided again.
    pub fn cache_checked(&self, agrees: bool) {
        let counter = if agrees { &self.0.cache.agreed } else { &self.0.cache.differed };
        counter.increment(1);
    }

    /// What is remembered now, what it may take, and what has had to make room.
    pub fn cache(&self, usage: &CacheUsage) {
        self.0.cache.entries.set(usage.entries as f64);
        self.0.cache.bytes.set(usage.bytes as f64);
        self.0.cache.capacity.set(usage.capacity as f64);
        self.0.cache.evictions.absolute(usage.evictions);
        self.0.cache.expirations.absolute(usage.expirations);
        self.0.cache.replacements.absolute(usage.replacements);
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

// === impl Decisions ===

/// One counter for each thing that can become of a request.
#[derive(Debug)]
struct Decisions {
    allow: Counter,
    policy: Counter,
    default_deny: Counter,
    not_applicable: Counter,
    unrouted: Counter,
    unknown_principal: Counter,
    policy_error: Counter,
    unmapped: Vec<(UnmappedKind, Counter)>,
    undecided: Vec<(Undecided, Counter)>,
}

impl Decisions {
    fn new(registry: &Registry) -> Self {
        let deny = |reason: Reason| registry.decision("decided", "deny", reason.as_str());
        let unmapped = |kind: UnmappedKind| (kind, registry.decision("unmapped", "deny", kind.as_str()));
        let undecided = |reason: Undecided| (reason, registry.decision("undecided", "undecided", reason.as_str()));
        Self {
            allow: registry.decision("decided", "allow", Reason::Policy.as_str()),
            policy: deny(Reason::Policy),
            default_deny: deny(Reason::DefaultDeny),
            not_applicable: deny(Reason::NotApplicable),
            unrouted: deny(Reason::Unrouted),
            unknown_principal: deny(Reason::UnknownPrincipal),
            policy_error: deny(Reason::PolicyError),
            unmapped: UnmappedKind::ALL.into_iter().map(unmapped).collect(),
            undecided: Undecided::ALL.into_iter().map(undecided).collect(),
        }
    }

    fn of(&self, outcome: &Outcome) -> Option<&Counter> {
        match outcome {
            Outcome::Decided(decision) => Some(match (decision.effect, decision.reason) {
                // Only a policy allows.
                (Effect::Allow, _) => &self.allow,
                (Effect::Deny, Reason::Policy) => &self.policy,
                (Effect::Deny, Reason::DefaultDeny) => &self.default_deny,
                (Effect::Deny, Reason::NotApplicable) => &self.not_applicable,
                (Effect::Deny, Reason::Unrouted) => &self.unrouted,
                (Effect::Deny, Reason::UnknownPrincipal) => &self.unknown_principal,
                (Effect::Deny, Reason::PolicyError) => &self.policy_error,
            }),
            Outcome::Unmapped(unmapped) => {
                self.unmapped.iter().find(|(kind, _)| *kind == unmapped.kind).map(|(_, counter)| counter)
            }
            Outcome::Undecided(undecided) => {
                self.undecided.iter().find(|(reason, _)| reason == undecided).map(|(_, counter)| counter)
            }
        }
    }

    /// The labels of all of them, for the reference.
    fn labels() -> Vec<(&'static str, &'static str, &'static str)> {
        let mut labels = vec![("decided", "allow", Reason::Policy.as_str())];
        labels.extend(Reason::DENIALS.map(|reason| ("decided", "deny", reason.as_str())));
        labels.extend(UnmappedKind::ALL.map(|kind| ("unmapped", "deny", kind.as_str())));
        labels.extend(Undecided::ALL.map(|reason| ("undecided", "undecided", reason.as_str())));
        labels
    }
}

// === impl Determining ===

/// Decisions by policy. Policies come and go for as long as the process lives, series never go: hence the limit.
#[derive(Debug)]
struct Determining {
    registry: Registry,
    limit: usize,
    known: RwLock<HashMap<PolicyId, Counter>>,
    other: Counter,
}

impl Determining {
    fn new(registry: &Registry, limit: usize) -> Self {
        let other = registry.counter(DETERMINING, &[("policy", "other")]);
        Self { registry: registry.clone(), limit, known: RwLock::default(), other }
    }

    fn count(&self, policy: &PolicyId) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = known.get(policy) {
            return counter.increment(1);
        }
        let full = known.len() >= self.limit;
        drop(known);
        if full {
            return self.other.increment(1);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < self.limit || known.contains_key(policy) {
            let register = || self.registry.counter(DETERMINING, &[("policy", policy.as_ref())]);
            known.entry(policy.clone()).or_insert_with(register).increment(1);
        } else {
            self.other.increment(1);
        }
    }
}

// === impl Registry ===

#[derive(Debug, Clone)]
pub(super) struct Registry(Arc<PrometheusRecorder>);

impl Registry {
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    fn describe(&self) {
        for Metric { name, kind, help, .. } in METRICS {
            let (name, help) = (KeyName::from_const_str(name), (*help).into());
            match kind {
                Kind::Counter => self.0.describe_counter(name, None, help),
                Kind::Gauge => self.0.describe_gauge(name, None, help),
                Kind::Histogram(_) => self.0.describe_histogram(name, None, help),
            }
        }
    }

    fn decision(&self, kind: &'static str, outcome: &'static str, reason: &'static str) -> Counter {
        self.counter(DECISIONS, &[("kind", kind), ("outcome", outcome), ("reason", reason)])
    }

    pub(super) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &Self::METADATA)
    }

    pub(super) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &Self::METADATA)
    }

    pub(super) fn histogram(&self, name: &'static str) -> Histogram {
        self.0.register_histogram(&key(name, &[]), &Self::METADATA)
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::model::{PolicyError, Ruling, Shadow, Unmapped};
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
        let of_type = |kind: &Kind| match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
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
        for (outcome, (kind, ..)) in outcomes().iter().zip(Decisions::labels()) {
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
