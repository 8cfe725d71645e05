//! What the parts of a decision cost, without mapping and without a wire: `cargo bench --bench engine`.
//!
//! Keys and the cache, overlays, evaluation over the number of policies, and plain Cedar, which is
//! `Authorizer::is_authorized` over all policies with its request made beforehand. `loadtest engine` measures the same
//! through the wire.

#![allow(missing_docs, clippy::expect_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cedar_policy::{Authorizer, Context, Entities, PolicySet, Request};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::json;
use stockade::decision::cache::{Bounds, Cache, Config};
use stockade::decision::key;
use stockade::model::{Attributes, Effect, EntityUid, Overlay, Principal, Proof, Query, Value};
use stockade::policy::{Files, Snapshot};
use stockade::units::{Bytes, HumanDuration};

const POLICIES: [usize; 4] = [10, 100, 1_000, 10_000];

/// So many decisions are remembered where one is looked up.
const ENTRIES: usize = 100_000;

const SCHEMA: &str = r#"
    entity Folder;
    action "view" appliesTo {
        principal: [User], resource: [Folder], context: { headers: { "x-tenant"?: String } }
    };
"#;

const TENANT: &str = r#"context.headers has "x-tenant" && context.headers["x-tenant"]"#;

/// Half of them scoped by principal, the other half by resource; with a condition or without.
fn scoped(count: usize, condition: &str) -> String {
    let policy = |own: usize, principal: &str, resource: &str| {
        format!(
            "@id(\"{own}\") permit (principal{principal}, action == Action::\"view\", resource{resource}) {condition};\n"
        )
    };
    let by_principal = (0..count / 2).map(|own| policy(own, &format!(" == User::\"{own}\""), ""));
    let by_resource = (0..count / 2).map(|own| policy(count + own, "", &format!(" == Folder::\"{own}\"")));
    by_principal.chain(by_resource).collect()
}

/// Scoped by the action alone: all of them are candidates.
fn unscoped(count: usize) -> String {
    let policy = |own| {
        format!(
            "@id(\"{own}\") permit (principal, action == Action::\"view\", resource) when {{ {TENANT} == \"t-{own}\" }};\n"
        )
    };
    (0..count).map(policy).collect()
}

fn compile(policies: &str) -> Snapshot {
    let files = [("bundle.yaml", "name: bench"), ("schema.cedarschema", SCHEMA), ("policies.cedar", policies)];
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    let bundle = Files { root: "bench".to_owned(), files, changed: None };
    Snapshot::compile(&[bundle], None, &mut Default::default()).expect("a good bundle")
}

fn uid(text: &str) -> EntityUid {
    text.parse().expect("an entity")
}

fn query(user: usize, folder: usize) -> Query {
    let tenant = Attributes::from([("x-tenant".into(), Value::String("t-7".into()))]);
    Query {
        principal: Principal {
            uid: uid(&format!("User::\"{user}\"")),
            attributes: Attributes::new(),
            parents: vec![uid("Group::\"readers\"")],
            proof: Proof::Jwt,
        },
        action: uid("Action::\"view\""),
        resource: uid(&format!("Folder::\"{folder}\"")),
        context: Attributes::from([("headers".into(), Value::Record(tenant))]),
    }
}

/// The same for Cedar.
fn request(user: usize, folder: usize) -> Request {
    let context = Context::from_json_value(json!({"headers": {"x-tenant": "t-7"}}), None).expect("a context");
    let (user, folder) = (uid(&format!("User::\"{user}\"")), uid(&format!("Folder::\"{folder}\"")));
    Request::new(user, uid("Action::\"view\""), folder, context, None).expect("a request")
}

fn remembering(c: &mut Criterion) {
    let snapshot = compile(&scoped(10, &format!("when {{ {TENANT} == \"t-7\" }}")));
    let fingerprint = [7; 16];
    let encoded = |query: &Query| {
        let mut key = Vec::with_capacity(256);
        key::encode(query, &fingerprint, &mut key);
        key
    };
    let hour = HumanDuration(Duration::from_secs(3_600));
    let cache = Cache::new(Config { size: Bytes(256 << 20), allow_ttl: hour, deny_ttl: hour, ..Config::default() });
    let decision = snapshot.decide(&query(1, 1)).expect("a decision");
    let now = Instant::now();
    let keys: Vec<Vec<u8>> = (0..ENTRIES).map(|own| encoded(&query(own, own % 10))).collect();
    for key in &keys {
        cache.insert(key, &decision.ruling, 1, Bounds::default(), now);
    }
    assert_eq!(cache.usage().entries, ENTRIES as u64, "all of them are remembered");

    let mut group = c.benchmark_group("remembering");
    let asked = query(1, 1);
    group.bench_function("key", |b| b.iter(|| encoded(black_box(&asked))));
    group.bench_function("get, always the same", |b| b.iter(|| cache.get(black_box(&keys[1]), now)));
    // A stride that visits all of them, far from one another.
    let mut at = 0;
    group.bench_function("get, one of 100,000", |b| {
        b.iter(|| {
            at = (at + 61_803) % ENTRIES;
            cache.get(black_box(&keys[at]), now)
        });
    });
    let absent = encoded(&query(ENTRIES, 1));
    group.bench_function("get, absent", |b| b.iter(|| cache.get(black_box(&absent), now)));
    group.finish();
}

fn deciding(c: &mut Criterion) {
    let mut group = c.benchmark_group("deciding");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    let authorizer = Authorizer::new();
    let entities = Entities::empty();
    for count in POLICIES {
        let middle = count / 4;
        let (query, request) = (query(middle, middle), request(middle, middle));
        // Without conditions there is nothing to evaluate: what is left is finding the candidates.
        let lookup = compile(&scoped(count, ""));
        assert_eq!(lookup.evaluate(&query, None).expect("an evaluation").candidates, 2);
        group.bench_function(BenchmarkId::new("index", count), |b| b.iter(|| lookup.evaluate(black_box(&query), None)));
        let text = scoped(count, &format!("when {{ {TENANT} == \"t-7\" }}"));
        let snapshot = compile(&text);
        group.bench_function(BenchmarkId::new("evaluation", count), |b| {
            b.iter(|| snapshot.evaluate(black_box(&query), None));
        });
        let policies: PolicySet = text.parse().expect("policies");
        group.bench_function(BenchmarkId::new("plain Cedar", count), |b| {
            b.iter(|| authorizer.is_authorized(black_box(&request), &policies, &entities));
        });
    }
    let text = unscoped(1_000);
    let (snapshot, policies): (_, PolicySet) = (compile(&text), text.parse().expect("policies"));
    let (query, request) = (query(1, 1), request(1, 1));
    group.bench_function("attribute-only, evaluation/1000", |b| b.iter(|| snapshot.evaluate(black_box(&query), None)));
    group.bench_function("attribute-only, plain Cedar/1000", |b| {
        b.iter(|| authorizer.is_authorized(black_box(&request), &policies, &entities));
    });
    group.finish();
}

/// What an emergency denial costs a sidecar that has 10,000 policies, among as many overlays; and each miss from then on.
fn overlaying(c: &mut Criterion) {
    let mut group = c.benchmark_group("overlaying");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    let base = compile(&scoped(10_000, ""));
    let denial = |own: usize| Overlay {
        id: own.to_string(),
        effect: Effect::Deny,
        principal: Some(uid(&format!("User::\"{own}\""))),
        action: None,
        resource: None,
        from: UNIX_EPOCH,
        until: SystemTime::now() + Duration::from_secs(3_600),
        reason: "stolen laptop".to_owned(),
    };
    for count in [1, 100, 1_000] {
        let overlays: Vec<Overlay> = (0..count).map(denial).collect();
        let before = base.overlaid(&overlays[1..], None);
        group.bench_function(BenchmarkId::new("put in force", count), |b| {
            b.iter(|| before.overlaid(black_box(&overlays), None));
        });
        let (after, query) = (before.overlaid(&overlays, None), query(5_000, 5_000));
        group.bench_function(BenchmarkId::new("index", count), |b| b.iter(|| after.evaluate(black_box(&query), None)));
    }
    group.finish();
}

criterion_group!(benches, remembering, deciding, overlaying);
criterion_main!(benches);
