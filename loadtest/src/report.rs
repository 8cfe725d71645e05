//! From measurements to the rows of a table.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::client::Failure;

/// What one measurement of one target found.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Right answers per second.
    pub(crate) rps: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// User and system time of the server's process, if that can be seen.
    pub(crate) cpu_us_per_check: Option<f64>,
    /// The share of its core that the server used.
    pub(crate) server_core: Option<f64>,
    /// The share of its core that the generator used. An open loop always uses all: it polls.
    pub(crate) generator_core: f64,
    /// After the measurement.
    pub(crate) rss_bytes: Option<u64>,
    pub(crate) errors: u64,
    pub(crate) first_failure: Option<Failure>,
    /// Of the right answers, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

/// The measurements of one target in one scenario, a sample per round.
pub(crate) struct Series {
    pub(crate) target: String,
    pub(crate) scenario: String,
    pub(crate) samples: Vec<Sample>,
}

/// A series in medians. What is serialized is for machines; the rest is for the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    target: String,
    scenario: String,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    cpu_us_per_check: Option<f64>,
    /// At the end of the last round.
    rss_bytes: Option<u64>,
    /// Of all rounds together.
    pub(crate) errors: u64,
    #[serde(skip)]
    ratio: Option<f64>,
    #[serde(skip)]
    server_core: Option<f64>,
    #[serde(skip)]
    pub(crate) notes: Vec<String>,
}

/// Below this share of its core a server waited for the generator, or for its neighbours.
pub(crate) const BUSY: f64 = 0.9;

// === impl Row ===

impl Row {
    /// Sums a series up. With the floor's series, which must have as many rounds, it is compared
    /// to it round by round.
    pub(crate) fn new(series: &Series, floor: Option<&Series>) -> Self {
        let median_of = |value: fn(&Sample) -> f64| median(series.samples.iter().map(value)).unwrap_or_default();
        let ratio = floor.and_then(|floor| {
            let rounds = series.samples.iter().zip(&floor.samples);
            median(rounds.map(|(sample, floor)| sample.rps / floor.rps))
        });
        let server_core = median(series.samples.iter().filter_map(|sample| sample.server_core));
        let generator_core = median_of(|sample| sample.generator_core);

        let name = format!("{} {}", series.target, series.scenario);
        let mut notes = Vec::new();
        if let Some(failure) = series.samples.iter().find_map(|s| s.first_failure.as_ref()) {
            notes.push(format!("{name}: {failure}"));
        }
        if let (Some(_), Some(server)) = (ratio, server_core.filter(|share| *share < BUSY)) {
            notes.push(format!(
                "{name}: the server used only {:.0} % of its core (the generator {:.0} % of its \
                 own), so its rate and ratio are not its limit",
                server * 100.0,
                generator_core * 100.0
            ));
        }
        Self {
            target: series.target.clone(),
            scenario: series.scenario.clone(),
            rps: median_of(|sample| sample.rps),
            p50_us: median_of(|sample| sample.p50_us),
            p99_us: median_of(|sample| sample.p99_us),
            p999_us: median_of(|sample| sample.p999_us),
            cpu_us_per_check: median(series.samples.iter().filter_map(|s| s.cpu_us_per_check)),
            rss_bytes: series.samples.last().and_then(|sample| sample.rss_bytes),
            errors: series.samples.iter().map(|sample| sample.errors).sum(),
            ratio,
            server_core,
            notes,
        }
    }
}

/// The table, and below it what a reader of the table must know.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = |name: fn(&Row) -> &String| rows.iter().map(|row| name(row).len()).max().unwrap_or_default().max(8);
    let (width, wide) = (width(|row| &row.target), width(|row| &row.scenario));
    let mut lines = vec![format!(
        "{:width$}  {:wide$} {:>9} {:>6} {:>8} {:>8} {:>8} {:>7} {:>6} {:>8} {:>7}",
        "target", "scenario", "req/s", "ratio", "p50 us", "p99 us", "p99.9 us", "cpu us", "core %", "rss MiB", "errors"
    )];
    for row in rows {
        let mebibytes = row.rss_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        lines.push(format!(
            "{:width$}  {:wide$} {:>9.0} {:>6} {:>8.0} {:>8.0} {:>8.0} {:>7} {:>6} {:>8} {:>7}",
            row.target,
            row.scenario,
            row.rps,
            known(row.ratio, 2),
            row.p50_us,
            row.p99_us,
            row.p999_us,
            known(row.cpu_us_per_check, 2),
            known(row.server_core.map(|share| share * 100.0), 0),
            known(mebibytes, 1),
            row.errors
        ));
    }
    lines.extend(rows.iter().flat_map(|row| &row.notes).map(|note| format!("note: {note}")));
    lines.push(String::new());
    lines.join("\n")
}

/// A number, or a dash for what was not measured.
fn known(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(lower.midpoint(upper))
}

// === impl Sample ===

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| share * 100.0;
        write!(
            f,
            "{:.0} req/s, p99 {:.0} us, core: server {} %, generator {:.0} %, {} errors",
            self.rps,
            self.p99_us,
            known(self.server_core.map(percent), 0),
            percent(self.generator_core),
            self.errors
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(target: &str, rates: &[f64]) -> Series {
        let samples = rates.iter().map(|rps| Sample {
            rps: *rps,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            cpu_us_per_check: Some(8.0),
            server_core: Some(1.0),
            generator_core: 0.5,
            rss_bytes: Some(1 << 20),
            errors: 0,
            first_failure: None,
            latency: Histogram::new(3).unwrap(),
        });
        Series { target: target.into(), scenario: "closed".into(), samples: samples.collect() }
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([7.0].into_iter()), Some(7.0));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn the_ratio_is_taken_within_each_round() {
        // The machine slows down to half in the last two rounds, for both.
        let floor = series("floor", &[100.0, 50.0, 50.0]);
        let target = series("stockade", &[120.0, 60.0, 60.0]);
        let row = Row::new(&target, Some(&floor));
        assert_eq!(row.ratio, Some(1.2));
        assert_eq!(row.rps, 60.0);
        assert!(row.notes.is_empty(), "{:?}", row.notes);
    }

    #[test]
    fn an_idle_server_is_noted_where_it_is_compared() {
        let mut idle = series("stockade", &[100.0]);
        idle.samples.iter_mut().for_each(|sample| sample.server_core = Some(0.5));
        let row = Row::new(&idle, Some(&series("floor", &[100.0])));
        assert!(table(&[row]).contains("note: stockade closed: the server used only 50 %"));
        assert!(Row::new(&idle, None).notes.is_empty());
    }

    #[test]
    fn errors_are_summed_and_explained() {
        let mut series = series("peer", &[100.0, 100.0]);
        for sample in &mut series.samples {
            (sample.errors, sample.first_failure) = (2, Some(Failure::NoStatus));
        }
        let row = Row::new(&series, None);
        assert_eq!(row.errors, 4);
        assert_eq!(row.notes, ["peer closed: the answer has no status, so Envoy would allow it"]);
    }

    #[test]
    fn the_json_has_the_agreed_fields() {
        let mut series = series("opa", &[100.0]);
        for sample in &mut series.samples {
            (sample.cpu_us_per_check, sample.server_core, sample.rss_bytes) = (None, None, None);
        }
        let json = serde_json::to_value(Row::new(&series, None)).unwrap();
        let expected = serde_json::json!({
            "target": "opa", "scenario": "closed", "rps": 100.0, "p50_us": 1.0, "p99_us": 2.0,
            "p999_us": 3.0, "cpu_us_per_check": null, "rss_bytes": null, "errors": 0,
        });
        assert_eq!(json, expected);
    }
}
