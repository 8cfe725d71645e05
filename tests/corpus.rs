//! Cedar's own decision corpus (cedar-policy/cedar-integration-tests, Apache-2.0) as an oracle: each test becomes a
//! bundle, and each of its requests a Query, decided by a Snapshot and held against what Cedar expects.
//!
//! The corpus is not part of this repository. It is read from `STOCKADE_CORPUS`, else from beside the repository;
//! without it there is nothing to do, and the test says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cedar_policy::SchemaFragment;
use serde_json::{Value as Json, json};
use stockade::model::{EntityId, EntityUid, Principal, Proof, Query, Reason, Record};
use stockade::policy::{Files, Snapshot};
use stockade::problem::Problem;
use tempfile::TempDir;

use crate::fixture::{files, lines};

/// One test in so many, so that it takes seconds and not minutes without optimisation; `STOCKADE_CORPUS_EVERY=1` runs
/// all of them.
const EVERY: usize = 4;

fn archive() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/cedar-corpus.tar.gz");
    std::env::var_os("STOCKADE_CORPUS").map(PathBuf::from).or_else(|| beside.exists().then_some(beside))
}

fn uid(json: &Json) -> EntityUid {
    let text = |name: &str| json[name].as_str().expect("a text");
    EntityUid::from_type_name_and_id(text("type").parse().expect("an entity type"), EntityId::new(text("id")))
}

/// The schema without contexts, which ask for what no request has. The requests that are used have none.
fn without_contexts(text: &str) -> Result<String, String> {
    let (fragment, _) = SchemaFragment::from_cedarschema_str(text).map_err(|error| error.to_string())?;
    let mut schema = fragment.to_json_value().map_err(|error| error.to_string())?;
    for namespace in schema.as_object_mut().into_iter().flatten().map(|(_, namespace)| namespace) {
        for (_, action) in namespace["actions"].as_object_mut().into_iter().flatten() {
            if let Some(applies_to) = action.get_mut("appliesTo").filter(|applies_to| !applies_to.is_null()) {
                applies_to["context"] = json!({"type": "Record", "attributes": {}});
            }
        }
    }
    let fragment = SchemaFragment::from_json_value(schema).map_err(|error| error.to_string())?;
    fragment.to_cedarschema().map_err(|error| error.to_string())
}

/// Takes the actions of the base schema out of the way: policies that name no action are validated against all of them.
const NO_BASE_ACTIONS: &str =
    "action \"GET\", \"HEAD\", \"OPTIONS\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\", \"CONNECT\", \"TRACE\";";

fn bundle(policy: &str, schema: &str, entities: &str) -> Files {
    files(
        "corpus",
        &[
            ("bundle.yaml", "name: corpus"),
            ("schemas/corpus.cedarschema", schema),
            ("schemas/base.cedarschema", NO_BASE_ACTIONS),
            ("policies/policy0.cedar", policy),
            ("entities.json", entities),
        ],
    )
}

/// What kept a test from being loaded, in a few words.
fn category(problems: &[String]) -> &'static str {
    let known = [
        ("`@", "an annotation that means something here"),
        ("entities.json", "entities that do not fit the schema"),
        ("policy0.cedar", "a policy that does not validate strictly"),
        (".cedarschema", "a schema that Cedar refuses"),
    ];
    let is = |marker: &str| problems.iter().any(|problem| problem.contains(marker));
    known.iter().find(|(marker, _)| is(marker)).map_or("something else", |(_, words)| words)
}

#[test]
fn the_corpus_is_decided_as_cedar_decides_it() {
    let Some(archive) = archive() else {
        println!("skipped: there is no corpus; set STOCKADE_CORPUS to cedar-corpus.tar.gz to run it");
        return;
    };
    let every = std::env::var("STOCKADE_CORPUS_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(EVERY);
    let dir = TempDir::new().unwrap();
    let status = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(dir.path()).status().expect("tar");
    assert!(status.success(), "{} cannot be unpacked", archive.display());
    let folder = dir.path().join("corpus-tests");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".cedar").map(str::to_owned))
        .collect();
    // Names are hashes, so every n-th of them is a fair sample, and always the same.
    names.sort();
    let all = names.len();
    let names: Vec<String> = names.into_iter().step_by(every).collect();

    // The tests are independent, so all cores may have their share.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let (names, folder) = (&names, &folder);
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    names.iter().skip(worker).step_by(threads).for_each(|name| tally.test(folder, name));
                    tally
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| total.add(worker.join().expect("a tally")));
    });

    println!("{} of {all} tests: {} loaded; {} requests decided", names.len(), total.loaded, total.decided);
    println!("reasons: {:?}", total.reasons);
    println!("not loaded: {:#?}", total.refused);
    println!("requests left out: {:?}", total.left_out);
    assert_eq!(total.mismatches, Vec::<String>::new());
    // What ran must not shrink unnoticed.
    assert!(total.loaded * 10 > names.len() * 7, "only {} of {} tests were loaded", total.loaded, names.len());
    assert!(total.decided > total.loaded * 5, "only {} requests", total.decided);
    assert!(total.reasons.len() >= 3, "{:?}", total.reasons);
}

#[derive(Default)]
struct Tally {
    loaded: usize,
    decided: usize,
    refused: BTreeMap<&'static str, (usize, String)>,
    left_out: BTreeMap<&'static str, usize>,
    reasons: BTreeMap<(&'static str, &'static str), usize>,
    mismatches: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.loaded += other.loaded;
        self.decided += other.decided;
        for (why, (count, example)) in other.refused {
            self.refused.entry(why).or_insert((0, example)).0 += count;
        }
        other.left_out.into_iter().for_each(|(why, count)| *self.left_out.entry(why).or_default() += count);
        other.reasons.into_iter().for_each(|(why, count)| *self.reasons.entry(why).or_default() += count);
        self.mismatches.extend(other.mismatches);
    }

    fn test(&mut self, folder: &Path, name: &str) {
        let read = |ending: &str| fs::read_to_string(folder.join(format!("{name}.{ending}"))).unwrap();
        let compiled = without_contexts(&read("cedarschema"))
            .map_err(|error| vec![format!("corpus.cedarschema: {error}")])
            .and_then(|schema| {
                let bundle = bundle(&read("cedar"), &schema, &read("entities.json"));
                Snapshot::compile(&[bundle], 1).map_err(|mut problems| {
                    problems.retain(Problem::is_error);
                    lines(&problems)
                })
            });
        let snapshot = match compiled {
            Ok(snapshot) => Arc::new(snapshot),
            Err(problems) => {
                let example = format!("{name}: {}", problems.first().map_or("", |problem| problem));
                self.refused.entry(category(&problems)).or_insert((0, example)).0 += 1;
                return;
            }
        };
        self.loaded += 1;
        let test: Json = serde_json::from_str(&read("json")).unwrap();
        for request in test["requests"].as_array().unwrap() {
            self.request(name, &snapshot, request);
        }
    }

    fn request(&mut self, name: &str, snapshot: &Snapshot, request: &Json) {
        let (principal, action, resource) =
            (uid(&request["principal"]), uid(&request["action"]), uid(&request["resource"]));
        let applies = snapshot
            .types()
            .action(&action)
            .is_some_and(|action| action.applies_to(principal.type_name(), resource.type_name()));
        let left_out = match () {
            () if !request["context"].as_object().is_some_and(serde_json::Map::is_empty) => Some("with a context"),
            () if !applies => Some("not applicable"),
            () => None,
        };
        if let Some(why) = left_out {
            *self.left_out.entry(why).or_default() += 1;
            return;
        }
        let query = Query {
            principal: Principal { uid: principal, attributes: Record::new(), parents: Vec::new(), proof: Proof::None },
            action,
            resource,
            context: Record::new(),
        };
        let decision = snapshot.decide(&query).unwrap();
        self.decided += 1;
        *self.reasons.entry((decision.effect.as_str(), decision.reason.as_str())).or_default() += 1;
        let count = |field: &str| request[field].as_array().unwrap().len();
        // The one policy has another name here. A forbid that errs is a reason of its own: Cedar skips it.
        let determining = match decision.reason {
            Reason::PolicyError => 0,
            _ => decision.determining.len(),
        };
        let found = (decision.effect.as_str(), determining, decision.errors.len());
        let expected = (request["decision"].as_str().unwrap(), count("reason"), count("errors"));
        if found != expected {
            self.mismatches.push(format!("{name}, {}: {found:?}, not {expected:?}", request["description"]));
        }
    }
}
