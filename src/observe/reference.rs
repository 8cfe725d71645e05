//! docs/metrics.md, as it is rendered from the catalogue.

use super::catalogue::{METRICS, Metric, MetricKind};
use super::decisions;

/// The text of docs/metrics.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\nAt `/metrics` of the admin listener, in the Prometheus text format. Every series is there from \
         the start.\nThis file is rendered from `METRICS` in `src/observe/catalogue.rs`; a test holds them together.\n\n\
         | Metric | Type | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help } in METRICS {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
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
    for (kind, outcome, reason) in decisions::labels() {
        text.push_str(&format!("| `{kind}` | `{outcome}` | `{reason}` |\n"));
    }
    text
}
