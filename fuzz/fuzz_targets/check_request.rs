//! Whatever comes in, an answer goes out that Envoy cannot misread: any bytes, taken for a CheckRequest, under a bundle
//! that looks at everything; and what is remembered is what would be decided again. The first is a property over generated
//! requests in tests/wire.rs, too.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use libfuzzer_sys::fuzz_target;
use stockade::config::Config;
use stockade::decision::cache::Cache;
use stockade::ext_authz::check::{Pipeline, Checked};
use stockade::feed::{Limits, read};
use stockade::model::{Effect, Outcome};
use stockade::observe::{Metrics, words};
use stockade::policy::Snapshot;
use stockade::problem::SourceFile;
use stockade::yaml;
use tokio::sync::watch;

/// Checks under one bundle: as a sidecar is by default, the same without remembering anything, and with every form of
/// paths let through.
static PIPELINES: LazyLock<[Pipeline; 3]> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/everything");
    let bundle = read(&directory, &Limits::default()).expect("a directory");
    let snapshot = Arc::new(Snapshot::compile(&[bundle], None, &mut Default::default()).expect("a good bundle"));
    let forms = "paths: {allow: [empty_path, double_slash, dot_segments, path_parameters, backslash, encoded_slash, \
                 encoded_dot, encoded_nul, double_encoding, malformed_escape, not_utf8, fragment]}";
    ["", "cache: {enabled: false}", forms].map(|more| {
        let text = format!("bundles: [{{directory: .}}]\n{more}\n");
        let config: Config = yaml::parse(&SourceFile::new("stockade.yaml", text)).expect("a good configuration");
        let (_, snapshots) = watch::channel(Some(Arc::clone(&snapshot)));
        let (metrics, _) = Metrics::new(&config.metrics).expect("metrics");
        let cache = Arc::new(Cache::new(config.cache.clone()));
        Pipeline::new(config.pipeline(), snapshots, Arc::new(config.proof()), cache, metrics)
    })
});

fuzz_target!(|frame: &[u8]| {
    let all = PIPELINES.each_ref().map(|pipeline| pipeline.frame(Bytes::copy_from_slice(frame), "d-1"));
    all.iter().for_each(sound);
    let [remembered, fresh, _] = &all;
    assert_eq!(summary(remembered), summary(fresh));
});

/// What a check comes to, to compare two.
fn summary(checked: &Checked) -> String {
    match &checked.outcome {
        Outcome::Decided(decision) => format!("{:?} {:?}", words(&checked.outcome), decision.determining),
        other => format!("{other:?}"),
    }
}

/// What must be true of every answer. There is a snapshot, so nothing is Undecided: that would be a fault of ours.
fn sound(checked: &Checked) {
    let answer = checked.response.as_ref().expect("an answer: a gRPC error is for the Undecided");
    let response = answer.response().expect("a CheckResponse");
    // Envoy allows an answer without a status.
    let code = response.status.as_ref().expect("a status").code;
    let allowed = matches!(&checked.outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
    assert_eq!(code == 0, allowed, "{checked:?}");
    let status = match (&checked.outcome, response.http_response.as_ref().expect("a body")) {
        (Outcome::Decided(_), HttpResponse::OkResponse(_)) if allowed => return,
        (Outcome::Decided(_) | Outcome::Unmapped(_), HttpResponse::DeniedResponse(denied)) => {
            denied.status.as_ref().expect("an HTTP status").code
        }
        _ => panic!("an outcome and a body that do not belong together: {checked:?}"),
    };
    let expected = if matches!(checked.outcome, Outcome::Unmapped(_)) { 400..=400 } else { 300..=599 };
    assert!(expected.contains(&status), "{checked:?}");
}
