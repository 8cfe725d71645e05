//! The cost of a miss as bundles grow: by policies, by entities, and with policies that no index helps with.
//!
//! A miss is measured with the cache on and requests that were never made before, each with a number of its own in an
//! attribute that policies read. With the cache off a check would be spared the key, the look-up and the remembering, all
//! of which a miss pays for; and the entries that it pushes out once the cache is full.

use super::bundle::Settings;
use super::contest::{self, Contender, failures, not_at_limit, ratios, visit};
use super::figure::{Axis, Figure, Line, Scale, SeriesLabelPosition};
use super::goals::{ATTRIBUTES_HIT, ATTRIBUTES_MISS, ENTITIES_GROWTH, MISS_COST, MISS_GROWTH};
use super::plain::Bench;
use super::{Report, Stage, growing, shop};
use crate::findings::Finding;
use crate::load::Pace;
use crate::report::{Sample, Series, median};
use crate::request::Question;
use crate::server::Server;
use crate::workload::{Expect, Files, Workload};

/// Numbers of policies.
const POLICIES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Numbers of entities.
const ENTITIES: [usize; 2] = [10, 100_000];

/// The size that a cache has by default, so that misses push out what misses remembered.
const CACHE: &str = "32MiB";

/// So many questions are asked of plain Cedar, which takes milliseconds for each.
const PLAIN_QUESTIONS: usize = 200;

/// So many keys are warmed up where each takes a millisecond.
const ATTRIBUTE_KEYS: usize = 10_000;

fn cpu(sample: &Sample) -> Option<f64> {
    sample.cpu_us_per_check
}

/// Misses with few and with many scoped policies.
pub(crate) async fn policies(stage: &Stage) -> anyhow::Result<Report> {
    let sizes = POLICIES.map(|count| (count, format!("miss-{count}")));
    let mut servers = Vec::new();
    for (count, _) in &sizes {
        servers.push(stage.stockade(&growing::policy_files(*count, CACHE)).await?);
    }
    let floor = Server::floor(&stage.cores).await?;
    let mut contenders = Vec::new();
    for ((count, name), server) in sizes.iter().zip(&servers) {
        let asks = growing::asks(|index| growing::policy_question(*count, index));
        contenders.push(Contender::new("stockade", name, server, Workload::fresh(&asks)?));
    }
    let asks = growing::asks(|index| growing::policy_question(POLICIES[0], index));
    contenders.push(Contender::new("floor", "miss", &floor, Workload::fresh(&asks)?.answered(Expect::Allow)));
    contest::rounds(stage, &mut contenders, Pace::Closed).await?;

    let mut faults = failures(contenders.iter().map(|own| &own.series));
    for own in contenders.iter().filter(|own| own.series.target == "stockade") {
        faults.extend(own.done().await?.not_misses(&own.series.scenario));
    }
    let mut report = by_policies(&contenders, &faults);
    if let Some(floor) = contenders.last() {
        let measured = POLICIES.iter().zip(&contenders).map(|(count, own)| (*count, cost(&own.series)));
        let lines = vec![
            line("a check that misses, with transport", measured),
            line("the floor: transport and decoding", POLICIES.iter().map(|count| (*count, cost(&floor.series)))),
        ];
        report.figures.push(figure(lines, &plain_costs(stage)?));
    }
    for server in servers.into_iter().chain([floor]) {
        server.stop().await?;
    }
    Ok(report)
}

/// What is found of contenders with [`POLICIES`], and the floor after them.
fn by_policies(contenders: &[Contender<'_>], faults: &[String]) -> Report {
    let costs: Vec<_> = contenders.iter().map(|own| micros(&own.series)).collect();
    let mut report = Report { rows: contenders.iter().map(|own| own.row(None)).collect(), ..Report::default() };
    let [few, .., many, floor_series] = contenders else { return report };
    let evidence = format!(
        "CPU per check at {}; the floor, which only decodes, {}; requests that were never made before, every one a miss; a \
         policy of each half is a candidate",
        POLICIES
            .iter()
            .zip(&costs)
            .map(|(count, cost)| format!("{count} policies {cost}"))
            .collect::<Vec<_>>()
            .join(", "),
        micros(&floor_series.series)
    );
    let growth = ratios(&many.series, &few.series, cpu);
    report.findings.push(Finding::new(&MISS_GROWTH, growth, evidence, faults.to_vec()));
    let evidence = format!(
        "user and system time of the process, so all of transport, decoding, metrics and logging is in it; the floor needs {} \
         for transport and decoding",
        micros(&floor_series.series)
    );
    report.findings.push(Finding::new(
        &MISS_COST,
        many.series.samples.iter().filter_map(cpu).collect(),
        evidence,
        faults.to_vec(),
    ));
    report
}

/// What evaluation alone takes with so many scoped policies: the engine's, and plain Cedar's.
fn plain_costs(stage: &Stage) -> anyhow::Result<Vec<(usize, f64, f64)>> {
    let each = POLICIES.map(|count| {
        let questions: Vec<_> = (0..PLAIN_QUESTIONS)
            .map(|index| growing::policy_question(count, index * growing::QUESTIONS / PLAIN_QUESTIONS))
            .collect();
        let costs =
            Bench::new(&growing::policy_files(count, CACHE), &questions)?.measure(stage.shape.duration / 4, false)?;
        eprintln!("evaluation, {count} policies: {:.2} us, plain Cedar {:.1} us", costs.engine, costs.cedar);
        Ok((count, costs.engine, costs.cedar))
    });
    each.into_iter().collect()
}

fn figure(mut lines: Vec<Line>, plain: &[(usize, f64, f64)]) -> Figure {
    lines.push(line("evaluation alone", plain.iter().map(|(count, engine, _)| (*count, *engine))));
    lines.push(line("plain Cedar, evaluation alone", plain.iter().map(|(count, _, cedar)| (*count, *cedar))));
    Figure {
        title: "Misses over the number of policies",
        caption:
            "CPU time, policies scoped by principal or by resource. What grows with the number of policies is plain \
                  Cedar, which looks at each of them."
                .into(),
        x: Axis { label: "policies", scale: Scale::Log, show: |value| format!("{value:.0}") },
        y: Axis { label: "CPU us", scale: Scale::Log, show: |value| format!("{value}") },
        lines,
        mark: None,
        legend: SeriesLabelPosition::UpperLeft,
    }
}

fn line(name: &str, points: impl Iterator<Item = (usize, f64)>) -> Line {
    Line { name: name.into(), points: points.map(|(count, cost)| (count as f64, cost)).collect() }
}

/// Misses with few and with many entities kept.
pub(crate) async fn entities(stage: &Stage) -> anyhow::Result<Report> {
    let [few, many] = ENTITIES;
    let few_server = stage.stockade(&growing::entity_files(few, CACHE)).await?;
    let many_server = stage.stockade(&growing::entity_files(many, CACHE)).await?;
    let fresh = |count| Workload::fresh(&growing::asks(|index| growing::entity_question(count, index)));
    let mut contenders = [
        Contender::new("stockade", "entities-10", &few_server, fresh(few)?),
        Contender::new("stockade", "entities-100000", &many_server, fresh(many)?),
    ];
    contest::rounds(stage, &mut contenders, Pace::Closed).await?;
    let [few, many] = &contenders;
    let mut faults = failures([&few.series, &many.series]);
    for own in &contenders {
        faults.extend(own.done().await?.not_misses(&own.series.scenario));
    }
    let evidence = format!(
        "CPU per check {} with 10 entities kept, {} with 100,000; every check a miss that reads an attribute of its \
         resource, and the resources are spread over all that are kept",
        micros(&few.series),
        micros(&many.series)
    );
    let finding = Finding::new(&ENTITIES_GROWTH, ratios(&many.series, &few.series, cpu), evidence, faults);
    let report = Report {
        findings: vec![finding],
        rows: contenders.iter().map(|own| own.row(None)).collect(),
        ..Report::default()
    };
    few_server.stop().await?;
    many_server.stop().await?;
    Ok(report)
}

/// Policies that no index can help with: hits must not notice, and a miss may cost what plain Cedar costs.
pub(crate) async fn attributes(stage: &Stage) -> anyhow::Result<Report> {
    let settings = Settings::default();
    let asks = shop::asks(ATTRIBUTE_KEYS);
    let order = shop::zipf(ATTRIBUTE_KEYS, 10 * ATTRIBUTE_KEYS);
    let scoped = stage.stockade(&shop::scoped(&settings)).await?;
    let unscoped = stage.stockade(&shop::attributes(&settings)).await?;
    visit(&scoped, &asks, stage.shape).await?;
    visit(&unscoped, &asks, stage.shape).await?;
    let mut contenders = [
        Contender::new("stockade", "hit-scoped", &scoped, Workload::drawn(&asks, &order)),
        Contender::new("stockade", "hit-attributes", &unscoped, Workload::drawn(&asks, &order)),
    ];
    contest::rounds(stage, &mut contenders, Pace::Closed).await?;
    let mut faults = failures(contenders.iter().map(|own| &own.series));
    for own in &contenders {
        faults.extend(own.done().await?.not_hits(&own.series.scenario));
        faults.extend(not_at_limit(&own.series));
    }
    let [hit_scoped, hit_unscoped] = &contenders;
    let evidence = format!(
        "{:.0} requests/s with scoped policies, {:.0} with attribute-only ones; {ATTRIBUTE_KEYS} keys by zipf(1.0), the same \
         requests and answers, every check a hit",
        hit_rate(&hit_scoped.series),
        hit_rate(&hit_unscoped.series)
    );
    let rounds = ratios(&hit_unscoped.series, &hit_scoped.series, |sample| Some(sample.rps));
    let hit = Finding::new(&ATTRIBUTES_HIT, rounds, evidence, faults);
    let rows = contenders.iter().map(|own| own.row(None)).collect();
    scoped.stop().await?;
    unscoped.stop().await?;
    Ok(Report { findings: vec![hit, against_cedar(stage, &shop::attributes(&settings))?], rows, ..Report::default() })
}

fn against_cedar(stage: &Stage, files: &Files) -> anyhow::Result<Finding> {
    // Some of each network, and of those who are denied.
    let questions: Vec<Question> = (0..PLAIN_QUESTIONS).map(|index| shop::question(index * 499)).collect();
    let bench = Bench::new(files, &questions)?;
    let (mut ratios, mut engine, mut cedar) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..stage.rounds.get() {
        let costs = bench.measure(stage.shape.duration / 2, round % 2 == 1)?;
        eprintln!("evaluation, attribute-only policies: {:.0} us, plain Cedar {:.0} us", costs.engine, costs.cedar);
        ratios.push(costs.engine / costs.cedar);
        engine.push(costs.engine);
        cedar.push(costs.cedar);
    }
    let middle = |values: Vec<f64>| median(values.into_iter()).unwrap_or_default();
    let evidence = format!(
        "{:.0} us of CPU for a decision, plain Cedar {:.0} us; in one process, without transport; Cedar's requests are made \
         beforehand, the engine's Queries turned into Cedar's values on the clock",
        middle(engine),
        middle(cedar)
    );
    Ok(Finding::new(&ATTRIBUTES_MISS, ratios, evidence, Vec::new()))
}

fn hit_rate(series: &Series) -> f64 {
    median(series.samples.iter().map(|sample| sample.rps)).unwrap_or_default()
}

fn cost(series: &Series) -> f64 {
    median(series.samples.iter().filter_map(cpu)).unwrap_or_default()
}

fn micros(series: &Series) -> String {
    format!("{:.1} us", cost(series))
}
