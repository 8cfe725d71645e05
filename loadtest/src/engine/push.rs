//! A push that concerns few: what is kept, what callers notice, and how the hit ratio goes.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::bundle::{PUSHED, Settings};
use super::contest::{failures, latency, ratios, visit};
use super::figure::{Axis, Figure, Line, Scale, SeriesLabelPosition, latencies};
use super::goals::{KEPT, PUSH_P99};
use super::{Report, Stage, shop};
use crate::admin::{self, Metrics};
use crate::findings::Finding;
use crate::load::{self, Pace, Shape};
use crate::report::{Row, Series, median};
use crate::server::Server;
use crate::workload::{Ask, Workload};

/// Of the rate that the server reaches with a full queue. Where checks come one by one, each takes more than twice the
/// time, so this is two thirds of the core: what a push costs while it is compiled must be found in the rest. At half the
/// rate there is no rest, and the p99 without a push is that of a queue.
const LOAD: f64 = 0.25;

/// How long a push may take to be in force.
const IN_FORCE: Duration = Duration::from_secs(60);

/// How the hit ratio is followed: how long, when the push comes, how often it is looked at.
const FOLLOWED: Duration = Duration::from_secs(6);
const PUSH_AT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// A Stockade under load that is pushed to.
struct Pushed<'a> {
    stage: &'a Stage,
    server: Server,
    asks: Rc<[Ask]>,
    workload: Rc<Workload>,
    rate: f64,
    version: Cell<usize>,
    /// Before the first push.
    before: Metrics,
}

/// What became of the entries after a push.
struct Fate {
    promoted: f64,
    changed: f64,
}

pub(crate) async fn run(stage: &Stage) -> anyhow::Result<Report> {
    let pushed = Pushed::start(stage).await?;
    let series = |scenario: &str| Series { target: "stockade".into(), scenario: scenario.into(), samples: Vec::new() };
    let (mut quiet, mut during) = (series("push-without"), series("push-during"));
    let mut fates = Vec::new();
    for round in 0..stage.rounds.get() {
        if round % 2 == 0 {
            pushed.window(&mut quiet).await?;
        }
        let before = pushed.metrics().await?;
        pushed.push()?;
        pushed.window(&mut during).await?;
        pushed.in_force(&before).await?;
        fates.push(pushed.fate(&before).await?);
        if round % 2 == 1 {
            pushed.window(&mut quiet).await?;
        }
    }
    let timeline = pushed.follow().await?;
    let lead = pushed.lead_time().await?;
    let findings = findings(stage, [&quiet, &during], &fates, lead, pushed.rate);
    let (without, with) = (latency(&quiet.samples), latency(&during.samples));
    pushed.server.stop().await?;
    Ok(Report {
        findings,
        rows: vec![Row::new(&quiet, None), Row::new(&during, None)],
        figures: vec![
            timeline,
            Figure {
                title: "Latency around a push",
                caption: "The same load without a push, and in the time that begins with one.".into(),
                ..latencies([("without a push", &without), ("with a push", &with)])
            },
        ],
        ..Report::default()
    })
}

/// What was kept, and what callers noticed.
fn findings(stage: &Stage, [quiet, during]: [&Series; 2], fates: &[Fate], lead: f64, rate: f64) -> Vec<Finding> {
    let mut faults = failures([quiet, during]);
    let all: f64 = fates.iter().map(|fate| fate.promoted + fate.changed).fold(f64::INFINITY, f64::min);
    if all < shop::KEYS as f64 {
        faults.push(format!("only {all} of {} entries were looked at again", shop::KEYS));
    }
    let changed = median(fates.iter().map(|fate| fate.changed)).unwrap_or_default();
    let evidence = format!(
        "{} entries were asked for again after each push, {changed} of them a miss because of the change, which is about one \
         user's views; a push was in force {lead:.0} ms after the file was written",
        shop::KEYS
    );
    let kept = fates.iter().map(|fate| 100.0 * fate.promoted / (fate.promoted + fate.changed)).collect();
    let micros = |own: &Series| median(own.samples.iter().map(|sample| sample.p99_us)).unwrap_or_default();
    let p99 = format!(
        "p99 {:.0} us without, {:.0} us in the {:.1} s that begin with the push; {:.0} checks per second, a quarter of what the \
         server reaches; it compiles on the same core",
        micros(quiet),
        micros(during),
        stage.shape.duration.as_secs_f64(),
        rate
    );
    let p99_ratios = ratios(during, quiet, |sample| Some(sample.p99_us));
    vec![Finding::new(&KEPT, kept, evidence, faults.clone()), Finding::new(&PUSH_P99, p99_ratios, p99, faults)]
}

impl<'a> Pushed<'a> {
    /// Starts it, fills its cache, and finds its rate.
    async fn start(stage: &'a Stage) -> anyhow::Result<Self> {
        let server = stage.stockade(&shop::scoped(&Settings::default())).await?;
        let asks = shop::asks(shop::KEYS);
        visit(&server, &asks, stage.shape).await?;
        let workload = Rc::new(Workload::drawn(&asks, &shop::zipf(shop::KEYS, 10 * shop::KEYS)));
        let reached = load::measure(&server.address, None, &workload, Pace::Closed, stage.shape).await?;
        let before = admin::scrape(server.admin()?).await?;
        Ok(Self { stage, server, asks, workload, rate: (reached.rps * LOAD).max(1.0), version: Cell::new(0), before })
    }

    async fn metrics(&self) -> anyhow::Result<Metrics> {
        admin::scrape(self.server.admin()?).await
    }

    /// Writes another version of the policy that is about few.
    fn push(&self) -> anyhow::Result<()> {
        self.version.set(self.version.get() + 1);
        self.server.replace(PUSHED, &shop::pushed(self.version.get()))
    }

    /// Measures at the rate, from now on and for the time of a measurement.
    async fn window(&self, series: &mut Series) -> anyhow::Result<()> {
        let shape = Shape { warmup: Duration::ZERO, ..self.stage.shape };
        let sample = self.drive(shape).await?;
        eprintln!("{} {}: {sample}", series.target, series.scenario);
        series.samples.push(sample);
        Ok(())
    }

    async fn drive(&self, shape: Shape) -> anyhow::Result<crate::report::Sample> {
        let pace = Pace::Open { rate: self.rate };
        load::measure(&self.server.address, Some(self.server.pid), &self.workload, pace, shape).await
    }

    /// Makes sure that what was pushed is in force; the load is over, so this is only late where a window was too short.
    async fn in_force(&self, before: &Metrics) -> anyhow::Result<()> {
        const GENERATION: &str = "stockade_snapshot_generation";
        let started = Instant::now();
        while self.metrics().await?.growth(before, GENERATION, None) < 1.0 {
            ensure!(started.elapsed() < IN_FORCE, "the push was not in force after {} s", IN_FORCE.as_secs());
            ensure!(
                self.metrics().await?.growth(before, "stockade_snapshot_rejections_total", None) < 1.0,
                "the push was refused"
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Asks for every entry once more.
    async fn fate(&self, before: &Metrics) -> anyhow::Result<Fate> {
        visit(&self.server, &self.asks, self.stage.shape).await?;
        let now = self.metrics().await?;
        Ok(Fate {
            promoted: now.growth(before, "stockade_cache_promotions_total", None),
            changed: now.growth(before, "stockade_cache_misses_total", Some(("reason", "changed"))),
        })
    }

    /// From writing to being in force, in milliseconds, on average.
    async fn lead_time(&self) -> anyhow::Result<f64> {
        let now = self.metrics().await?;
        let growth = |name| now.growth(&self.before, name, None);
        let seconds = growth("stockade_snapshot_lead_time_seconds_sum");
        Ok(1e3 * seconds / growth("stockade_snapshot_lead_time_seconds_count"))
    }

    /// Drives it at the rate and looks at its metrics all the while. Looking costs the server time, so nothing else is
    /// measured here.
    async fn follow(&self) -> anyhow::Result<Figure> {
        let shape = Shape { warmup: Duration::ZERO, duration: FOLLOWED, ..self.stage.shape };
        let mut looks = Vec::new();
        let started = Instant::now();
        let watch = async {
            let mut pushed_at = None;
            let mut next = Duration::ZERO;
            while next < FOLLOWED {
                tokio::time::sleep_until((started + next).into()).await;
                if pushed_at.is_none() && started.elapsed() >= PUSH_AT {
                    self.push()?;
                    pushed_at = Some(started.elapsed());
                }
                let metrics = self.metrics().await?;
                looks.push((started.elapsed(), metrics));
                next += LOOK;
            }
            pushed_at.context("there was no push")
        };
        let (sample, pushed_at) = tokio::try_join!(self.drive(shape), watch)?;
        ensure!(sample.errors == 0, "{} answers were not right while the hit ratio was followed", sample.errors);
        Ok(timeline(&looks, pushed_at))
    }
}

fn timeline(looks: &[(Duration, Metrics)], pushed_at: Duration) -> Figure {
    let share = |name: &'static str| {
        let pairs = looks.iter().zip(looks.iter().skip(1));
        let points = pairs.filter_map(|((_, before), (at, now))| {
            let decisions = now.growth(before, "stockade_decisions_total", None);
            let part = now.growth(before, name, None);
            (decisions > 0.0).then(|| (at.as_secs_f64(), 100.0 * part / decisions))
        });
        points.collect()
    };
    Figure {
        title: "Hit ratio around a push",
        caption: "Shares of the checks in each tenth of a second. A hit after the push is promoted once: it was held against \
                  the change and stands."
            .into(),
        x: Axis { label: "seconds", scale: Scale::Linear, show: |value| format!("{value}") },
        y: Axis { label: "% of the checks", scale: Scale::Linear, show: |value| format!("{value}") },
        lines: vec![
            Line { name: "hits".into(), points: share("stockade_cache_hits_total") },
            Line { name: "promoted hits".into(), points: share("stockade_cache_promotions_total") },
            Line { name: "misses".into(), points: share("stockade_cache_misses_total") },
        ],
        mark: Some((pushed_at.as_secs_f64(), "push".into())),
        legend: SeriesLabelPosition::MiddleLeft,
    }
}
