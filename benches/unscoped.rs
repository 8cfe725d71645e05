//! What an unscoped policy adds to every decision that is made: `cargo bench --bench unscoped`.
//!
//! Ten of them against a thousand and ten, so that what a decision costs anyway falls out of the difference; once with a
//! condition that does not hold, and once with one that does, which adds an id to the reasons. `stockade validate` quotes
//! the result.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use stockade::model::{Attributes, Principal, Proof, Query, Value};
use stockade::policy::{Files, Snapshot};

fn snapshot(policies: usize) -> Snapshot {
    let text: String = (0..policies)
        .map(|n| format!("@id(\"p{n}\") permit (principal, action, resource) when {{ context.method == \"GET\" }};\n"))
        .collect();
    let files = [("bundle.yaml", "name: bench".to_owned()), ("policies.cedar", text)];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text)).collect();
    Snapshot::compile(&[Files { root: "bench".to_owned(), files, changed: None }], None, &mut Default::default())
        .expect("a good bundle")
}

fn query(method: &str) -> Query {
    let uid = |text: &str| text.parse().expect("an id");
    Query {
        principal: Principal {
            uid: uid("User::\"alice\""),
            attributes: Attributes::new(),
            parents: Vec::new(),
            proof: Proof::Jwt,
        },
        action: uid("Action::\"GET\""),
        resource: uid("Service::\"bench\""),
        context: Attributes::from([("method".into(), Value::String(method.into()))]),
    }
}

fn unscoped(c: &mut Criterion) {
    let mut group = c.benchmark_group("unscoped");
    for policies in [10, 1010] {
        let snapshot = snapshot(policies);
        for (holds, method) in [("does not hold", "POST"), ("holds", "GET")] {
            let query = query(method);
            let found = snapshot.evaluate(&query, None).expect("a decision");
            assert_eq!(found.candidates, policies);
            assert_eq!(found.ruling.determining.len(), if method == "GET" { policies } else { 0 });
            group.bench_function(BenchmarkId::new(holds, policies), |b| {
                b.iter(|| snapshot.evaluate(black_box(&query), None));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, unscoped);
criterion_main!(benches);
