//! Whatever comes in, an answer goes out that Envoy cannot misread: any bytes, taken for a CheckRequest, under a bundle
//! that looks at everything. The same is a property over generated requests in tests/wire.rs.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use libfuzzer_sys::fuzz_target;
use stockade::config::Config;
use stockade::ext_authz::judge::{Judge, Verdict};
use stockade::feed::{Limits, read};
use stockade::model::{Effect, Outcome};
use stockade::policy::Snapshot;
use stockade::problem::SourceFile;
use stockade::yaml;
use tokio::sync::watch;

/// As a sidecar is by default, and with every form of paths let through.
static JUDGES: LazyLock<[Judge; 2]> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/everything");
    let bundle = read(&directory, &Limits::default()).expect("a directory");
    let snapshot = Arc::new(Snapshot::compile(&[bundle], 1).expect("a good bundle"));
    let forms = "empty_path, double_slash, dot_segments, path_parameters, backslash, encoded_slash, encoded_dot, \
                 encoded_nul, double_encoding, malformed_escape, not_utf8, fragment";
    ["", forms].map(|forms| {
        let text = format!("bundles: [{{directory: .}}]\npaths: {{allow: [{forms}]}}\n");
        let config: Config = yaml::parse(&SourceFile::new("stockade.yaml", text)).expect("a good configuration");
        let (_, snapshots) = watch::channel(Some(Arc::clone(&snapshot)));
        config.judge(snapshots)
    })
});

fuzz_target!(|frame: &[u8]| {
    for judge in &*JUDGES {
        sound(&judge.frame(Bytes::copy_from_slice(frame), "d-1"));
    }
});

/// What must be true of every answer. There is a snapshot, so nothing is Undecided: that would be a fault of ours.
fn sound(verdict: &Verdict) {
    let response = verdict.answer.as_ref().expect("a CheckResponse: a gRPC error is for the Undecided");
    // Envoy allows an answer without a status.
    let code = response.status.as_ref().expect("a status").code;
    let allowed = matches!(&verdict.outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
    assert_eq!(code == 0, allowed, "{verdict:?}");
    let status = match (&verdict.outcome, response.http_response.as_ref().expect("a body")) {
        (Outcome::Decided(_), HttpResponse::OkResponse(_)) if allowed => return,
        (Outcome::Decided(_) | Outcome::Unmapped(_), HttpResponse::DeniedResponse(denied)) => {
            denied.status.as_ref().expect("an HTTP status").code
        }
        _ => panic!("an outcome and a body that do not belong together: {verdict:?}"),
    };
    let expected = if matches!(verdict.outcome, Outcome::Unmapped(_)) { 400..=400 } else { 300..=599 };
    assert!(expected.contains(&status), "{verdict:?}");
}
