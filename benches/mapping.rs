//! What the parts of a check cost, without a wire: `cargo bench --bench mapping`.
//!
//! The request is the one of design.md, section 6: 13 headers, 800 bytes. The bundle has one policy that applies, and a schema
//! that looks at a few things of each kind, so the numbers are what is added to the floor, not what a large bundle costs.
//! Nothing is remembered.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use envoy_types::pb::envoy::service::auth::v3 as auth;
use prost::Message;
use stockade::config::Config;
use stockade::decision::cache::{self, Cache};
use stockade::ext_authz::check::Pipeline;
use stockade::ext_authz::response::Response;
use stockade::observe::Metrics;
use stockade::policy::{Files, Snapshot};
use stockade::problem::SourceFile;
use stockade::proto::wire::{
    Address, AttributeContext, CheckRequest, HttpRequest, Pair, Peer, Request, SocketAddress, Timestamp,
};
use stockade::proto::{view, wire};
use stockade::yaml;
use tokio::sync::watch;

const SCHEMA: &str = r#"
    action "viewBook" appliesTo {
        principal: [User, Workload, Anonymous],
        resource: [Service],
        context: {
            method: String,
            source: { address?: ipaddr },
            params: { id: Long },
            query: { lang?: String },
            headers: { "x-tenant"?: String, "accept-language"?: Set<String> },
        },
    };
"#;

/// The second one is never evaluated here, but could read all that the schema declares, so that all of it is mapped.
const POLICIES: &str = r#"
    @id("blue")
    permit (principal, action == Action::"viewBook", resource) when {
        context.headers has "x-tenant" && context.headers["x-tenant"] == "blue" && context.params.id > 0
    };
    @id("reads")
    forbid (principal == User::"nobody", action == Action::"viewBook", resource) when { [context].contains(context) };
"#;

const HEADERS: [(&str, &str); 13] = [
    (":method", "GET"),
    (":path", "/books/42?lang=en"),
    (":authority", "bookstore.example"),
    (":scheme", "https"),
    ("accept", "application/json"),
    ("accept-language", "en-GB,en;q=0.9"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("authorization", "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLXNvbWUtbGVuZ3RoLWhlcmU"),
    ("x-forwarded-for", "192.0.2.7"),
    ("x-forwarded-proto", "https"),
    ("x-request-id", "e0d95bba-d1d0-4caa-a4a1-30d92d3cd21d"),
    ("x-tenant", "blue"),
    ("cookie", "session=4f6b1c9a8e2d47d1b3a5c7e9f0a1b2c3; theme=dark"),
];

fn pipeline() -> (Pipeline, Arc<Snapshot>) {
    let files = [
        ("bundle.yaml", "name: bench"),
        ("schema.cedarschema", SCHEMA),
        ("policies.cedar", POLICIES),
        ("routes.yaml", "routes: [{match: 'GET /books/{id}', action: viewBook}]"),
    ];
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    let bundle = Files { root: "bench".to_owned(), files, changed: None };
    let snapshot = Arc::new(Snapshot::compile(&[bundle], None, &mut Default::default()).expect("a good bundle"));
    let source = SourceFile::new("stockade.yaml", "bundles: [{directory: .}]");
    let config: Config = yaml::parse(&source).expect("a good configuration");
    let (_, snapshots) = watch::channel(Some(Arc::clone(&snapshot)));
    let cache = Cache::new(cache::Config { enabled: false, ..config.cache.clone() });
    let (metrics, _) = Metrics::new(&config.metrics).expect("metrics");
    (Pipeline::new(config.pipeline(), snapshots, Arc::new(config.proof()), Arc::new(cache), metrics), snapshot)
}

fn frame() -> Bytes {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let peer = |address: &str, port_value| Peer {
        address: Some(Address { socket_address: Some(SocketAddress { address: text(address), port_value }) }),
        ..Peer::default()
    };
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer("192.0.2.7", 40_000)),
            destination: Some(peer("192.0.2.1", 8443)),
            request: Some(Request {
                time: Some(Timestamp { seconds: 1_795_326_285, nanos: 840_910_000 }),
                http: Some(HttpRequest {
                    method: text("GET"),
                    path: text("/books/42?lang=en"),
                    host: text("bookstore.example"),
                    scheme: text("https"),
                    protocol: text("HTTP/2"),
                    headers: HEADERS.iter().map(|(key, value)| Pair { key: text(key), value: text(value) }).collect(),
                    ..HttpRequest::default()
                }),
            }),
            ..AttributeContext::default()
        }),
    };
    request.encode_to_vec().into()
}

fn check(c: &mut Criterion) {
    let (pipeline, snapshot) = pipeline();
    let frame = frame();
    let request = view::CheckRequest::decode(&frame).expect("a CheckRequest");
    let query = pipeline.mapping.map(&request, &snapshot).expect("a Query").query;
    let decision = pipeline.authorizer.decide(&snapshot, &query, None).expect("a decision");
    assert_eq!(decision.effect.as_str(), "allow", "the benchmark is of the way through");

    let mut group = c.benchmark_group("check");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("decode", |b| b.iter(|| view::CheckRequest::decode(black_box(&frame))));
    group.bench_function("decode with prost and shared bytes", |b| {
        b.iter(|| wire::CheckRequest::decode(black_box(&frame).clone()))
    });
    // What decoding would cost with the messages of envoy-types, for comparison.
    group.bench_function("decode with envoy-types", |b| {
        b.iter(|| auth::CheckRequest::decode(black_box(&frame).clone()))
    });
    group.bench_function("map", |b| b.iter(|| pipeline.mapping.map(black_box(&request), &snapshot)));
    group.bench_function("decide", |b| b.iter(|| pipeline.authorizer.decide(&snapshot, black_box(&query), None)));
    group.bench_function("from frame to frame", |b| {
        b.iter(|| {
            let checked = pipeline.frame(black_box(&frame).clone(), "d-1");
            checked.response.map(Response::into_frame)
        });
    });
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
