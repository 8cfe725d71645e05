//! Several servers measured in turn, each with a stream of requests of its own, and proof of what they did.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;

use super::Stage;
use crate::admin::{self, Metrics};
use crate::load::{self, Pace, Shape};
use crate::report::{BUSY, Row, Sample, Series, median};
use crate::server::Server;
use crate::workload::{Ask, Workload};

/// A server, what it is asked, and what was measured of it so far.
pub(crate) struct Contender<'a> {
    server: &'a Server,
    workload: Rc<Workload>,
    pub(crate) series: Series,
    /// Of a Stockade, before the first measurement.
    before: Option<Metrics>,
}

/// What a Stockade did with the checks of a measurement, by its own count.
pub(crate) struct Done {
    pub(crate) hits: f64,
    pub(crate) absent: f64,
    pub(crate) misses: f64,
    pub(crate) denied: f64,
    pub(crate) decisions: f64,
    /// Records that never reached the decision log.
    pub(crate) lost: f64,
}

/// Fillings and sweeps end when all was asked; this is for one that does not.
const FILL_LIMIT: Duration = Duration::from_secs(600);

impl<'a> Contender<'a> {
    pub(crate) fn new(target: &str, scenario: &str, server: &'a Server, workload: Workload) -> Self {
        let series = Series { target: target.into(), scenario: scenario.into(), samples: Vec::new() };
        Self { server, workload: Rc::new(workload), series, before: None }
    }

    /// The same server and stream, to be measured at another pace.
    pub(crate) fn again(&self, scenario: &str) -> Self {
        let series = Series { target: self.series.target.clone(), scenario: scenario.into(), samples: Vec::new() };
        Self { server: self.server, workload: Rc::clone(&self.workload), series, before: None }
    }

    async fn measure(&mut self, pace: Pace, shape: Shape) -> anyhow::Result<()> {
        let sample = load::measure(&self.server.address, Some(self.server.pid), &self.workload, pace, shape).await?;
        eprintln!("{} {}: {sample}", self.series.target, self.series.scenario);
        self.series.samples.push(sample);
        Ok(())
    }

    /// What it did since the first measurement began.
    pub(crate) async fn done(&self) -> anyhow::Result<Done> {
        let before = self.before.as_ref().context("nothing was measured")?;
        let now = admin::scrape(self.server.admin()?).await?;
        Ok(Done::between(before, &now))
    }

    /// Right answers per second and the like, as a row.
    pub(crate) fn row(&self, floor: Option<&Series>) -> Row {
        Row::new(&self.series, floor)
    }

    /// The latencies of all rounds.
    pub(crate) fn latency(&self) -> Histogram<u64> {
        latency(&self.series.samples)
    }
}

/// Measures each of them once per round, another one first each time.
pub(crate) async fn measure_all(stage: &Stage, contenders: &mut [Contender<'_>], pace: Pace) -> anyhow::Result<()> {
    for contender in contenders.iter_mut() {
        if let Ok(admin) = contender.server.admin() {
            contender.before = Some(admin::scrape(admin).await?);
        }
    }
    let count = contenders.len();
    for round in 0..stage.rounds.get() {
        for nth in 0..count {
            if let Some(contender) = contenders.get_mut((round + nth) % count) {
                contender.measure(pace, stage.shape).await?;
            }
        }
    }
    Ok(())
}

/// Asks each request once, so that all of them are remembered.
pub(crate) async fn visit(server: &Server, asks: &Rc<[Ask]>, shape: Shape) -> anyhow::Result<()> {
    let once = Rc::new(Workload::once(asks));
    let shape = Shape { warmup: Duration::ZERO, duration: FILL_LIMIT, ..shape };
    let sample = load::measure(&server.address, None, &once, Pace::Closed, shape).await?;
    if let Some(failure) = &sample.first_failure {
        anyhow::bail!("{} of {} answers were not right: {failure}", sample.errors, asks.len());
    }
    ensure!(
        sample.latency.len() == asks.len() as u64,
        "only {} of {} requests were asked",
        sample.latency.len(),
        asks.len()
    );
    Ok(())
}

/// A value of one series to that of another, round by round.
pub(crate) fn ratios(over: &Series, under: &Series, value: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let rounds = over.samples.iter().zip(&under.samples);
    rounds.filter_map(|(over, under)| Some(value(over)? / value(under)?)).collect()
}

/// Says so if requests per second of a server are not its limit, because it did not have its core to itself. A neighbour
/// takes more from a server with one thread than from one with several, so the ratio of two would mislead.
pub(crate) fn not_at_limit(series: &Series) -> Option<String> {
    let share = median(series.samples.iter().filter_map(|sample| sample.server_core))?;
    let (target, scenario) = (&series.target, &series.scenario);
    (share < BUSY).then(|| format!("{target} {scenario}: the server had only {:.0} % of its core", share * 100.0))
}

/// What is wrong with the answers of these, if anything.
pub(crate) fn failures<'a>(series: impl IntoIterator<Item = &'a Series>) -> Vec<String> {
    let failures = series.into_iter().filter_map(|series| {
        let errors: u64 = series.samples.iter().map(|sample| sample.errors).sum();
        let first = series.samples.iter().find_map(|sample| sample.first_failure.as_ref())?;
        Some(format!("{} {}: {errors} answers were not right: {first}", series.target, series.scenario))
    });
    failures.collect()
}

/// The latencies of several measurements.
pub(crate) fn latency<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Histogram<u64> {
    samples.into_iter().fold(load::no_latency(), |mut all, sample| {
        all += &sample.latency;
        all
    })
}

// === impl Done ===

impl Done {
    pub(crate) fn between(before: &Metrics, now: &Metrics) -> Self {
        let growth = |name, label| now.growth(before, name, label);
        Self {
            hits: growth("stockade_cache_hits_total", None),
            absent: growth("stockade_cache_misses_total", Some(("reason", "absent"))),
            misses: growth("stockade_cache_misses_total", None),
            denied: growth("stockade_decisions_total", Some(("outcome", "deny"))),
            decisions: growth("stockade_decisions_total", None),
            lost: growth("stockade_decision_log_lost_total", None),
        }
    }

    /// The share of hits, in percent.
    pub(crate) fn hit_percent(&self) -> f64 {
        100.0 * self.hits / (self.hits + self.misses)
    }

    /// The share of misses because nothing was remembered, in percent.
    pub(crate) fn absent_percent(&self) -> f64 {
        100.0 * self.absent / self.decisions
    }

    /// The share of denials, in percent.
    pub(crate) fn denied_percent(&self) -> f64 {
        100.0 * self.denied / self.decisions
    }

    /// The faults of a measurement that is one of hits.
    pub(crate) fn not_hits(&self, name: &str) -> Option<String> {
        // NaN, nothing counted, is no hit either.
        let are_hits = self.hit_percent() >= 99.9;
        (!are_hits).then(|| format!("{name}: only {:.2} % of the checks were hits", self.hit_percent()))
    }

    /// The faults of a measurement that is one of misses.
    pub(crate) fn not_misses(&self, name: &str) -> Option<String> {
        let are_misses = self.absent_percent() >= 99.9;
        (!are_misses).then(|| format!("{name}: only {:.2} % of the checks were misses", self.absent_percent()))
    }

    /// The faults of a measurement with a decision log.
    pub(crate) fn lost(&self, name: &str) -> Option<String> {
        (self.lost > 0.0).then(|| {
            let percent = 100.0 * self.lost / self.decisions;
            format!(
                "{name}: {} records, for {percent:.1} % of the decisions, never reached the decision log",
                self.lost
            )
        })
    }
}
