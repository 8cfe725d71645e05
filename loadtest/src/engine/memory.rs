//! What 100,000 remembered decisions take.

use super::bundle::Settings;
use super::goals::MEMORY;
use super::rounds::visit;
use super::{Report, Stage, hit_bundle};
use crate::admin;
use crate::findings::Finding;

const MEBIBYTE: f64 = 1_048_576.0;

pub(crate) async fn run(stage: &Stage) -> anyhow::Result<Report> {
    let settings = Settings::default();
    let server = stage.stockade(&hit_bundle::scoped(&settings)).await?;
    let mebibytes = |bytes: u64| bytes as f64 / MEBIBYTE;
    let idle = mebibytes(server.pid.rss()?);
    let asks = hit_bundle::asks(hit_bundle::KEYS);
    visit(&server, &asks, stage.shape).await?;
    let metrics = admin::scrape(server.admin()?).await?;
    let entries = metrics.sum("stockade_cache_entries", None);
    let cache = metrics.sum("stockade_cache_bytes", None) / MEBIBYTE;
    let filled = mebibytes(server.pid.rss()?);
    eprintln!("memory: {filled:.1} MiB with {entries} entries, {idle:.1} MiB before");
    let keys = hit_bundle::KEYS as f64;
    let faults = (entries < keys).then(|| format!("only {entries} of {keys} decisions are remembered"));
    let evidence = format!(
        "{idle:.1} MiB before the first check, with 1,001 policies; {entries} entries by `stockade_cache_entries`, {cache:.1} \
         MiB by the measure of `cache.size`, which is {} here so that all of them find room",
        settings.cache_size
    );
    server.stop().await?;
    let finding = Finding::new(&MEMORY, vec![filled], evidence, faults.into_iter().collect());
    Ok(Report { findings: vec![finding], ..Report::default() })
}
