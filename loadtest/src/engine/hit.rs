//! Hits against the floor: skewed keys, metrics on, denials and 1 % of the allows logged; and with every decision logged.

use super::bundle::Settings;
use super::contest::{self, Contender, failures, not_at_limit, ratios, visit};
use super::figure::{Figure, latencies};
use super::goals::{HIT, HIT_LOGGED};
use super::{Report, Stage, shop};
use crate::findings::Finding;
use crate::load::Pace;
use crate::report::{Series, median};
use crate::server::Server;
use crate::workload::{Expect, Workload};

/// So many draws before the sequence begins again.
const DRAWS: usize = 1_000_000;

pub(crate) async fn run(stage: &Stage) -> anyhow::Result<Report> {
    let asks = shop::asks(shop::KEYS);
    let order = shop::zipf(shop::KEYS, DRAWS);
    let floor = Server::floor(&stage.cores).await?;
    let sampled = stage.stockade(&shop::scoped(&Settings::default())).await?;
    let logged = stage.stockade(&shop::scoped(&Settings { sample_allow: 1.0, ..Settings::default() })).await?;
    visit(&sampled, &asks, stage.shape).await?;
    visit(&logged, &asks, stage.shape).await?;

    let drawn = || Workload::drawn(&asks, &order);
    let mut contenders = [
        Contender::new("floor", "hit", &floor, drawn().answered(Expect::Allow)),
        Contender::new("stockade", "hit", &sampled, drawn()),
        Contender::new("stockade", "hit-logged", &logged, drawn()),
    ];
    contest::rounds(stage, &mut contenders, Pace::Closed).await?;
    let mut report = Report { findings: findings(&contenders).await?, ..Report::default() };
    let [floor_closed, ..] = &contenders;
    report.rows.extend(contenders.iter().map(|own| own.row(Some(&floor_closed.series))));

    // At half of what the slowest of them reached, all have short queues: what is seen is their own latency.
    let rate = contenders.iter().map(|own| rps(&own.series)).fold(f64::INFINITY, f64::min) / 2.0;
    let mut open = contenders.each_ref().map(|own| own.again(&format!("{}-open", own.series.scenario)));
    contest::rounds(stage, &mut open, Pace::Open { rate }).await?;
    report.rows.extend(open.iter().map(|own| own.row(None)));
    report.figures.push(figure(&open, rate));
    for server in [floor, sampled, logged] {
        server.stop().await?;
    }
    Ok(report)
}

/// Requests per second against the floor.
async fn findings([floor_closed, hit, hit_logged]: &[Contender<'_>; 3]) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (goal, own, other) in [(&HIT, hit, "1 % of the allows"), (&HIT_LOGGED, hit_logged, "every decision")] {
        let done = own.done().await?;
        let mut faults = failures([&floor_closed.series, &own.series]);
        faults.extend(done.not_hits(goal.name));
        faults.extend(done.lost(goal.name));
        faults.extend([floor_closed, own].into_iter().filter_map(|own| not_at_limit(&own.series)));
        let by_cpu = median(ratios(&floor_closed.series, &own.series, |sample| sample.cpu_us_per_check).into_iter());
        let by_cpu = by_cpu.unwrap_or_default();
        let evidence = format!(
            "floor {:.0} requests/s, Stockade {:.0}; by CPU time per check the ratio is {by_cpu:.2}; by its metrics {:.3} % hits, {:.1} % denied, {} log records lost; \
             {} keys by zipf(1.0), 1,001 policies, {other} logged to /dev/null",
            rps(&floor_closed.series),
            rps(&own.series),
            done.hit_percent(),
            done.denied_percent(),
            done.lost,
            shop::KEYS
        );
        let rounds = ratios(&own.series, &floor_closed.series, |sample| Some(sample.rps));
        findings.push(Finding::new(goal, rounds, evidence, faults));
    }
    Ok(findings)
}

fn figure(open: &[Contender<'_>; 3], rate: f64) -> Figure {
    let [floor_open, hit_open, logged_open] = open.each_ref().map(Contender::latency);
    Figure {
        title: "Latency of hits",
        caption: format!(
            "All at {rate:.0} checks per second, half of what the slowest reached, counted from when a call was due. Read \
             it at a percentile: so many of 100 calls took no longer."
        ),
        ..latencies([
            ("floor", &floor_open),
            ("Stockade, hits", &hit_open),
            ("Stockade, hits, every decision logged", &logged_open),
        ])
    }
}

fn rps(series: &Series) -> f64 {
    median(series.samples.iter().map(|sample| sample.rps)).unwrap_or_default()
}
