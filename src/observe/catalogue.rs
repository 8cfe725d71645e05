//! Every metric there is: [`METRICS`] is the one place that lists them, docs/metrics.md is rendered from it, and the registry makes
//! their handles.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
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
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: MetricKind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, help }
}

/// A cache hit takes microseconds; what takes more than a tenth of a second has run into Envoy's timeout.
const CHECK_SECONDS: MetricKind =
    MetricKind::Histogram(&[5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1]);
/// Ten policies in scope take some microseconds.
const EVALUATION_SECONDS: MetricKind = MetricKind::Histogram(&[
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2,
]);
const LOAD_SECONDS: MetricKind =
    MetricKind::Histogram(&[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]);
/// The central store takes milliseconds; a kubelet takes up to a minute and a half to bring a changed ConfigMap into a pod.
const LEAD_SECONDS: MetricKind = MetricKind::Histogram(&[
    1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
]);

const AGE_SECONDS: MetricKind = MetricKind::Histogram(&[0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0]);
const POLICY_COUNTS: MetricKind = MetricKind::Histogram(&[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0]);

pub(super) const DECISIONS: &str = "stockade_decisions_total";
pub(super) const CHECK_DURATION: &str = "stockade_check_duration_seconds";
pub(super) const IN_FLIGHT: &str = "stockade_checks_in_flight";
pub(super) const POLICY_ERRORS: &str = "stockade_policy_errors_total";
pub(super) const SHADOW_DISAGREEMENTS: &str = "stockade_shadow_disagreements_total";
pub(super) const DETERMINING: &str = "stockade_determining_policy_total";
pub(super) const GENERATION: &str = "stockade_snapshot_generation";
pub(super) const AGE: &str = "stockade_snapshot_age_seconds";
pub(super) const POLICIES: &str = "stockade_snapshot_policies";
pub(super) const LOADS: &str = "stockade_snapshot_loads_total";
pub(super) const REJECTIONS: &str = "stockade_snapshot_rejections_total";
pub(super) const LOAD_DURATION: &str = "stockade_snapshot_load_duration_seconds";
pub(super) const LEAD_TIME: &str = "stockade_snapshot_lead_time_seconds";
pub(super) const OVERLAY_LEAD_TIME: &str = "stockade_overlay_lead_time_seconds";
pub(super) const OVERLAYS: &str = "stockade_overlays";
pub(super) const STORE_CONNECTED: &str = "stockade_store_connected";
pub(super) const STORE_FRESHNESS: &str = "stockade_store_freshness";
pub(super) const STORE_PROOF_AGE: &str = "stockade_store_proof_age_seconds";
pub(super) const STORE_REFUSALS: &str = "stockade_store_refusals_total";
pub(super) const STORE_FROM_DISK: &str = "stockade_store_from_disk";
pub(super) const STORE_WITHHELD: &str = "stockade_store_withheld";
pub(super) const CACHE_HITS: &str = "stockade_cache_hits_total";
pub(super) const CACHE_MISSES: &str = "stockade_cache_misses_total";
pub(super) const CACHE_PROMOTIONS: &str = "stockade_cache_promotions_total";
pub(super) const CACHE_CHECKS: &str = "stockade_cache_self_checks_total";
pub(super) const CACHE_AGE: &str = "stockade_cache_hit_age_seconds";
pub(super) const CACHE_ENTRIES: &str = "stockade_cache_entries";
pub(super) const CACHE_BYTES: &str = "stockade_cache_bytes";
pub(super) const CACHE_CAPACITY: &str = "stockade_cache_capacity_bytes";
pub(super) const CACHE_EVICTIONS: &str = "stockade_cache_evictions_total";
pub(super) const CACHE_EXPIRATIONS: &str = "stockade_cache_expirations_total";
pub(super) const CACHE_REPLACEMENTS: &str = "stockade_cache_replacements_total";
pub(super) const EVALUATION_DURATION: &str = "stockade_evaluation_duration_seconds";
pub(super) const CANDIDATES: &str = "stockade_evaluation_candidates";
pub(super) const LOG_QUEUE: &str = "stockade_decision_log_queue_depth";
pub(super) const LOG_LOST: &str = "stockade_decision_log_lost_total";
pub(super) const CONNECTIONS: &str = "stockade_connections";
pub(super) const CONNECTIONS_CLOSED: &str = "stockade_connections_closed_total";
pub(super) const MESSAGES_WAITING: &str = "stockade_messages_waiting";
pub(super) const MESSAGES_WAITING_BYTES: &str = "stockade_messages_waiting_bytes";
pub(super) const MESSAGES_SHED: &str = "stockade_messages_shed_total";
pub(super) const LOG_FAILING: &str = "stockade_decision_log_failing";
pub(super) const READY: &str = "stockade_ready";
pub(super) const BUILD_INFO: &str = "stockade_build_info";

/// All there are.
pub const METRICS: &[Metric] = &[
    metric(
        DECISIONS,
        MetricKind::Counter,
        &["kind", "outcome", "reason"],
        "Answers given to Envoy, each counted once.",
    ),
    metric(CHECK_DURATION, CHECK_SECONDS, &[], "From the arrival of a check to its answer."),
    metric(IN_FLIGHT, MetricKind::Gauge, &[], "Checks being answered right now."),
    metric(
        POLICY_ERRORS,
        MetricKind::Counter,
        &["consequence"],
        "Policies that could not be evaluated. `denied`: an erring `forbid` denied the request; `skipped`: an erring \
         `permit` was left out; `shadow`: the policy is in shadow mode.",
    ),
    metric(
        SHADOW_DISAGREEMENTS,
        MetricKind::Counter,
        &[],
        "Decisions that would have come out otherwise if the policies in shadow mode were in force.",
    ),
    metric(
        DETERMINING,
        MetricKind::Counter,
        &["policy"],
        "Decisions by determining policy; `other` beyond `metrics.policy_label_limit`. Only there with \
         `metrics.policy_label: true`.",
    ),
    metric(GENERATION, MetricKind::Gauge, &[], "Snapshots put in force since the start; 0 before the first."),
    metric(
        AGE,
        MetricKind::Gauge,
        &[],
        "Time since the source of the bundles was last read completely, changed or not; NaN before the first time.",
    ),
    metric(POLICIES, MetricKind::Gauge, &[], "Policies in force."),
    metric(LOADS, MetricKind::Counter, &[], "Versions of the bundles that were put in force."),
    metric(
        REJECTIONS,
        MetricKind::Counter,
        &[],
        "Versions of the bundles that were refused; the one before stays in force.",
    ),
    metric(LOAD_DURATION, LOAD_SECONDS, &[], "Reading and compiling a version that was put in force."),
    metric(LEAD_TIME, LEAD_SECONDS, &[], "From the change of a bundle, or its signing, to its enforcement."),
    metric(OVERLAY_LEAD_TIME, LEAD_SECONDS, &[], "From the signing of overlays to their enforcement."),
    metric(OVERLAYS, MetricKind::Gauge, &[], "Emergency denials and exceptions in force."),
    metric(STORE_CONNECTED, MetricKind::Gauge, &[], "1 while the central store can be reached."),
    metric(
        STORE_FRESHNESS,
        MetricKind::Gauge,
        &["state"],
        "1 for the state that holds: `fresh`, `stale` or `expired`, by how long ago a beacon proved what is in force to be \
         current.",
    ),
    metric(STORE_PROOF_AGE, MetricKind::Gauge, &[], "How long ago that was proved; not a number if it never was."),
    metric(
        STORE_REFUSALS,
        MetricKind::Counter,
        &["statement", "reason"],
        "Statements of the store that were not believed: alarm on any. `older` and `forked` say that the store has gone back or \
         serves two masters, `signature`, `unknown_key` and `role` that someone else writes to it.",
    ),
    metric(
        STORE_FROM_DISK,
        MetricKind::Gauge,
        &[],
        "1 while the copy on disk is in force, because the store could not be reached.",
    ),
    metric(
        STORE_WITHHELD,
        MetricKind::Gauge,
        &[],
        "1 while nothing is put in force after a start, because the newest overlays are refused: alarm.",
    ),
    metric(CACHE_HITS, MetricKind::Counter, &[], "Decisions that were remembered."),
    metric(
        CACHE_MISSES,
        MetricKind::Counter,
        &["reason"],
        "Decisions that were made although the cache was on. `absent`: not remembered; `expired`: remembered for too \
         long; `changed`: a new version of the bundles may have altered it; `uncacheable`: the policies of the action \
         read the clock.",
    ),
    metric(
        CACHE_PROMOTIONS,
        MetricKind::Counter,
        &[],
        "Remembered decisions that stood although the bundles had changed.",
    ),
    metric(
        CACHE_CHECKS,
        MetricKind::Counter,
        &["result"],
        "Hits that were decided again. `differs` is a bug of Stockade, and empties the cache.",
    ),
    metric(CACHE_AGE, AGE_SECONDS, &[], "How long ago a remembered decision was made."),
    metric(CACHE_ENTRIES, MetricKind::Gauge, &[], "Decisions that are remembered."),
    metric(CACHE_BYTES, MetricKind::Gauge, &[], "What they take, by the measure of `cache.size`."),
    metric(CACHE_CAPACITY, MetricKind::Gauge, &[], "What they may take: `cache.size`."),
    metric(
        CACHE_EVICTIONS,
        MetricKind::Counter,
        &[],
        "Remembered decisions that were still good and had to make room for others. One that grows says that `cache.size` is too small.",
    ),
    metric(
        CACHE_EXPIRATIONS,
        MetricKind::Counter,
        &[],
        "Remembered decisions whose time was over when another took their place, or their room.",
    ),
    metric(
        CACHE_REPLACEMENTS,
        MetricKind::Counter,
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
    metric(LOG_QUEUE, MetricKind::Gauge, &[], "Records that wait to be written."),
    metric(
        LOG_LOST,
        MetricKind::Counter,
        &["cause"],
        "Records that never reached the decision log. `queue_full`: they came faster than they could be written; \
         `write`: the disk was full, the pipe was closed.",
    ),
    metric(
        LOG_FAILING,
        MetricKind::Gauge,
        &[],
        "1 while Records cannot be written: the last attempt failed. With `when_full: undecided` no check is decided until \
         one succeeds.",
    ),
    metric(CONNECTIONS, MetricKind::Gauge, &["listener"], "Connections that are open."),
    metric(
        CONNECTIONS_CLOSED,
        MetricKind::Counter,
        &["listener", "reason"],
        "Connections that the sidecar closed. `displaced`: `limits.connections` were in use, and the last call of this one was longest \
         ago; `shed`: too many had not been called on yet, and this one had waited longest; `handshake_timeout`: TLS, the beginning \
         of HTTP/2 and the first call took longer than `http2.handshake_timeout`; `tls`: the TLS handshake failed; `not_http2`: the \
         cluster in Envoy lacks `http2_protocol_options`; `keep_alive_timeout`: the peer was gone; `request_timeout`: the request \
         was not there, or its answer not read, in time.",
    ),
    metric(MESSAGES_WAITING, MetricKind::Gauge, &[], "Calls whose message is still on its way."),
    metric(MESSAGES_WAITING_BYTES, MetricKind::Gauge, &[], "What is held of these messages."),
    metric(
        MESSAGES_SHED,
        MetricKind::Counter,
        &[],
        "Calls whose message was on its way for longest when there were more than `limits.in_flight` of them, or more than \
         `limits.waiting_bytes` in them; answered as `overloaded`.",
    ),
    metric(READY, MetricKind::Gauge, &[], "1 if `/readyz` says so, else 0."),
    metric(BUILD_INFO, MetricKind::Gauge, &["version"], "Always 1."),
];

// === impl Registry ===

/// Makes the handles of what is listed.
#[derive(Debug, Clone)]
pub(super) struct Registry(pub(super) Arc<PrometheusRecorder>);

impl Registry {
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    pub(super) fn describe(&self) {
        for Metric { name, kind, help, .. } in METRICS {
            let (name, help) = (KeyName::from_const_str(name), (*help).into());
            match kind {
                MetricKind::Counter => self.0.describe_counter(name, None, help),
                MetricKind::Gauge => self.0.describe_gauge(name, None, help),
                MetricKind::Histogram(_) => self.0.describe_histogram(name, None, help),
            }
        }
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
