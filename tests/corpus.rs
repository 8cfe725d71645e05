//! Cedar's own decision corpus (cedar-policy/cedar-integration-tests, Apache-2.0) as an oracle.
//!
//! Each test becomes a bundle, and each of its requests a Query, decided twice by the running engine and held against what
//! Cedar expects: made, then remembered, once with every hit decided again and once with none. And the policies of all
//! tests that have a schema in common become one bundle, held against plain Cedar over all of them, before and after
//! pushes that take policies away and bring them back.
//!
//! The corpus is not part of this repository. It is read from `STOCKADE_CORPUS`, else from beside the repository;
//! without it there is nothing to do, and the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cedar_policy::{
    AuthorizationError, Context, Entities, Policy, PolicyId, PolicySet, Request, Schema, SchemaFragment,
};
use serde_json::{Value as Json, json};
use stockade::decision::authorizer::Authorizer;
use stockade::decision::cache::{self, Cache};
use stockade::decision::freshness::LastProof;
use stockade::model::{Attributes, CacheState, Decision, Effect, EntityId, EntityUid, Principal, Proof, Query, Reason};
use stockade::observe::Metrics;
use stockade::policy::{Files, Snapshot};
use stockade::problem::{Problem, SourceFile};
use stockade::units::HumanDuration;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::fixture::{compile, files, lines, succeeding};

/// One test in so many, so that it takes seconds and not minutes without optimisation; `STOCKADE_CORPUS_EVERY=1` runs
/// all of them.
const EVERY: usize = 4;
/// How many tests of one schema become one bundle at most, and how many of their requests are asked, for the same reason.
const UNITED: usize = 60;

/// What `STOCKADE_CORPUS_EVERY` says.
fn every() -> usize {
    std::env::var("STOCKADE_CORPUS_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(EVERY)
}

fn archive() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/cedar-corpus.tar.gz");
    std::env::var_os("STOCKADE_CORPUS").map(PathBuf::from).or_else(|| beside.exists().then_some(beside))
}

fn uid(json: &Json) -> EntityUid {
    let text = |name: &str| json[name].as_str().expect("a string");
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

fn bundle(policy: &str, schema: &str, entities: &str) -> Files {
    files(
        "corpus",
        &[
            // Policies that name no action are validated against all of them; these are alone, then.
            ("bundle.yaml", "name: corpus\nunrouted: deny"),
            ("schemas/corpus.cedarschema", schema),
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

/// The corpus, unpacked.
struct Corpus {
    folder: PathBuf,
    /// Of the tests, sorted. Names are hashes, so every n-th of them is a fair sample, and always the same.
    names: Vec<String>,
    _dir: TempDir,
}

impl Corpus {
    /// `None` if there is none; the test says so.
    fn unpack() -> Option<Self> {
        let Some(archive) = archive() else {
            println!("skipped: there is no corpus; set STOCKADE_CORPUS to cedar-corpus.tar.gz to run it");
            return None;
        };
        let dir = TempDir::new().unwrap();
        let status = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(dir.path()).status().expect("tar");
        assert!(status.success(), "{} cannot be unpacked", archive.display());
        let folder = dir.path().join("corpus-tests");
        let mut names: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".cedar").map(str::to_owned))
            .collect();
        names.sort();
        Some(Self { folder, names, _dir: dir })
    }

    fn read(&self, name: &str, ending: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{name}.{ending}"))).unwrap()
    }

    fn requests(&self, name: &str) -> Vec<Json> {
        let test: Json = serde_json::from_str(&self.read(name, "json")).unwrap();
        test["requests"].as_array().unwrap().clone()
    }
}

/// The running engine, as far as a Query takes it.
struct Engine {
    authorizer: Authorizer,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Engine {
    fn new(snapshot: Arc<Snapshot>, metrics: &Metrics, self_check: f64) -> Self {
        let (sender, snapshots) = watch::channel(Some(snapshot));
        let hour = HumanDuration::seconds(3600);
        let config = cache::Config { self_check, allow_ttl: hour, deny_ttl: hour, ..cache::Config::default() };
        Self {
            authorizer: Authorizer::new(
                snapshots,
                Arc::new(LastProof::none()),
                Arc::new(Cache::new(config)),
                metrics.clone(),
            ),
            sender,
        }
    }

    fn decide(&self, query: &Query) -> Decision {
        self.authorizer.decide(&self.authorizer.current().unwrap(), query, None).unwrap()
    }

    /// A second time what was decided just now: from memory, unless an error had a part in it.
    fn again(&self, query: &Query, first: &Decision) -> Decision {
        let again = self.decide(query);
        let erred = !first.errors.is_empty();
        assert_eq!(matches!(again.cache, CacheState::Hit(_)), !erred, "{query:?}: {:?}", again.cache);
        again
    }
}

fn metrics() -> Metrics {
    let source = SourceFile::new("c", "bundles: [{directory: b}]");
    let config: stockade::config::Config = stockade::yaml::parse(&source).unwrap();
    Metrics::new(&config.metrics).unwrap().0
}

/// A request of the corpus as a Query; or why it is left out.
fn query(snapshot: &Snapshot, request: &Json) -> Result<Query, &'static str> {
    let (principal, action, resource) =
        (uid(&request["principal"]), uid(&request["action"]), uid(&request["resource"]));
    let applies = snapshot
        .types()
        .action(&action)
        .is_some_and(|action| action.applies_to(principal.type_name(), resource.type_name()));
    if !request["context"].as_object().is_some_and(serde_json::Map::is_empty) {
        return Err("with a context");
    }
    if !applies {
        return Err("not applicable");
    }
    let principal =
        Principal { uid: principal, attributes: Attributes::new(), parents: Vec::new(), proof: Proof::None };
    Ok(Query { principal, action, resource, context: Attributes::new() })
}

#[test]
fn the_corpus_is_decided_as_cedar_decides_it() {
    let Some(corpus) = Corpus::unpack() else { return };
    let all = corpus.names.len();
    let names: Vec<String> = corpus.names.iter().step_by(every()).cloned().collect();
    let metrics = metrics();

    // The tests are independent, so all cores may have their share.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let (names, corpus, metrics) = (&names, &corpus, &metrics);
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    names.iter().skip(worker).step_by(threads).for_each(|name| tally.test(corpus, metrics, name));
                    tally
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| total.add(worker.join().expect("a tally")));
    });

    println!(
        "{} of {all} tests: {} loaded; {} requests decided, {} remembered",
        names.len(),
        total.loaded,
        total.decided,
        total.remembered
    );
    println!("reasons: {:?}", total.reasons);
    println!("not loaded: {:#?}", total.refused);
    println!("requests left out: {:?}", total.left_out);
    assert_eq!(total.mismatches, Vec::<String>::new());
    // What ran must not shrink unnoticed.
    assert!(total.loaded * 10 > names.len() * 7, "only {} of {} tests were loaded", total.loaded, names.len());
    assert!(total.decided > total.loaded * 5, "only {} requests", total.decided);
    // Each is decided twice.
    assert!(total.remembered * 5 > total.decided * 2, "only {} remembered", total.remembered);
    assert!(total.reasons.len() >= 3, "{:?}", total.reasons);
}

#[derive(Default)]
struct Tally {
    loaded: usize,
    decided: usize,
    remembered: usize,
    refused: BTreeMap<&'static str, (usize, String)>,
    left_out: BTreeMap<&'static str, usize>,
    reasons: BTreeMap<(&'static str, &'static str), usize>,
    mismatches: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.loaded += other.loaded;
        self.decided += other.decided;
        self.remembered += other.remembered;
        for (why, (count, example)) in other.refused {
            self.refused.entry(why).or_insert((0, example)).0 += count;
        }
        other.left_out.into_iter().for_each(|(why, count)| *self.left_out.entry(why).or_default() += count);
        other.reasons.into_iter().for_each(|(why, count)| *self.reasons.entry(why).or_default() += count);
        self.mismatches.extend(other.mismatches);
    }

    fn test(&mut self, corpus: &Corpus, metrics: &Metrics, name: &str) {
        let compiled = without_contexts(&corpus.read(name, "cedarschema"))
            .map_err(|error| vec![format!("corpus.cedarschema: {error}")])
            .and_then(|schema| {
                let bundle = bundle(&corpus.read(name, "cedar"), &schema, &corpus.read(name, "entities.json"));
                Snapshot::compile(&[bundle], None, &mut Default::default()).map_err(|mut problems| {
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
        // Every hit decided again, and none.
        let engines = [1.0, 0.0].map(|self_check| Engine::new(Arc::clone(&snapshot), metrics, self_check));
        for request in corpus.requests(name) {
            match query(&snapshot, &request) {
                Ok(query) => engines.iter().for_each(|engine| self.request(name, engine, &query, &request)),
                Err(why) => *self.left_out.entry(why).or_default() += 1,
            }
        }
    }

    fn request(&mut self, name: &str, engine: &Engine, query: &Query, request: &Json) {
        let first = engine.decide(query);
        let again = engine.again(query, &first);
        self.decided += 2;
        self.remembered += usize::from(matches!(again.cache, CacheState::Hit(_)));
        for decision in [first, again] {
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
                let (cache, what) = (decision.cache, &request["description"]);
                self.mismatches.push(format!("{name}, {what}, {cache:?}: {found:?}, not {expected:?}"));
            }
        }
    }
}

// === All of them as one ===

/// The policies of the tests that have one schema in common.
#[derive(Default)]
struct Union {
    schema: String,
    /// By id.
    policies: BTreeMap<String, String>,
    /// Which of them err in their own tests: together, they would err for nearly every request.
    erring: BTreeSet<String>,
    entities: Vec<Json>,
    requests: Vec<Json>,
}

impl Union {
    /// The tests of one schema, as far as each loads alone: some are refused on purpose.
    fn of(corpus: &Corpus, schema: String, names: &[&str]) -> Self {
        let mut own = Self { schema, ..Self::default() };
        let (schema, _) = Schema::from_cedarschema_str(&own.schema).unwrap();
        for name in names {
            let (policy, entities) = (corpus.read(name, "cedar"), corpus.read(name, "entities.json"));
            if Snapshot::compile(&[bundle(&policy, &own.schema, &entities)], None, &mut Default::default()).is_err() {
                continue;
            }
            own.policies.insert(format!("p{name}"), policy);
            // Tests give the same entity other attributes and parents: the first counts, and those that would close a
            // circle stay out.
            let mut more: Vec<Json> = serde_json::from_str(&entities).unwrap();
            more.retain(|entity| own.entities.iter().all(|known| known["uid"] != entity["uid"]));
            let all = [own.entities.as_slice(), &more].concat();
            if Entities::from_json_value(json!(all), Some(&schema)).is_ok() {
                own.entities = all;
            }
            let requests = corpus.requests(name);
            if requests.iter().any(|request| request["errors"].as_array().is_some_and(|errors| !errors.is_empty())) {
                own.erring.insert(format!("p{name}"));
            }
            own.requests.extend(requests);
        }
        own
    }

    /// Those that stay after a push.
    fn kept(&self, push: usize) -> impl Iterator<Item = (&String, &String)> {
        let erring = |id: &String| self.erring.contains(id);
        self.policies
            .iter()
            .enumerate()
            .filter(move |(at, (id, _))| match push {
                0 => true,
                1 | 3 => !erring(id),
                _ => !erring(id) && at % push > 0,
            })
            .map(|(_, policy)| policy)
    }

    /// Every principal with every resource, and more: the requests of one test are about its own few.
    fn queries(&self, snapshot: &Snapshot) -> Vec<Query> {
        let mut queries: Vec<Query> = Vec::new();
        for (at, request) in self.requests.iter().enumerate() {
            let mut mixed = request.clone();
            mixed["resource"] = self.requests[at * 7 % self.requests.len()]["resource"].clone();
            for request in [request, &mixed] {
                queries.extend(query(snapshot, request).ok().filter(|query| !queries.contains(query)));
            }
        }
        queries
    }

    fn bundle(&self, push: usize) -> Files {
        let mut files = bundle("", &self.schema, &json!(self.entities).to_string());
        files.files.remove("policies/policy0.cedar");
        files.files.extend(self.kept(push).map(|(id, text)| (format!("policies/{id}.cedar"), text.clone())));
        files
    }

    /// Plain Cedar over the same.
    fn oracle(&self, push: usize) -> (PolicySet, Entities) {
        let parse = |(id, text)| Policy::parse(Some(PolicyId::new(format!("corpus/{id}"))), text).unwrap();
        let kept = self.kept(push).map(parse);
        let (schema, _) = Schema::from_cedarschema_str(&self.schema).unwrap();
        let entities = Entities::from_json_value(json!(self.entities), Some(&schema)).unwrap();
        (PolicySet::from_policies(kept).unwrap(), entities)
    }
}

/// What both sides must agree in: the effect, what determined it, what erred.
type Told = (bool, BTreeSet<String>, BTreeSet<String>);

fn told(decision: &Decision) -> Told {
    // A forbid that errs denies here, and is skipped by Cedar, which then decides by the others.
    let determining = decision.determining.iter().map(ToString::to_string).collect();
    let errors = decision.errors.iter().map(|error| error.policy.to_string()).collect();
    (decision.effect == Effect::Allow, determining, errors)
}

fn told_by_cedar(policies: &PolicySet, entities: &Entities, query: &Query) -> Told {
    let (principal, action) = (query.principal.uid.clone(), query.action.clone());
    let request = Request::new(principal, action, query.resource.clone(), Context::empty(), None).unwrap();
    let response = cedar_policy::Authorizer::new().is_authorized(&request, policies, entities);
    let reasons: BTreeSet<String> = response.diagnostics().reason().map(ToString::to_string).collect();
    let errors: BTreeSet<String> = response
        .diagnostics()
        .errors()
        .map(|AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
        .collect();
    let allow = response.decision() == cedar_policy::Decision::Allow;
    let forbids = |id: &String| policies.policy(&PolicyId::new(id)).unwrap().effect() == cedar_policy::Effect::Forbid;
    let erring_forbids: BTreeSet<String> = errors.iter().filter(|id| forbids(id)).cloned().collect();
    // Design, decision 2: closed where Cedar is open.
    if !erring_forbids.is_empty() && (allow || reasons.is_empty()) {
        return (false, erring_forbids, errors);
    }
    (allow, reasons, errors)
}

#[test]
fn many_policies_of_the_corpus_are_decided_as_cedar_decides_them() {
    let Some(corpus) = Corpus::unpack() else { return };
    let mut by_schema: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in &corpus.names {
        by_schema.entry(corpus.read(name, "cedarschema")).or_default().push(name);
    }
    let mut groups: Vec<(String, Vec<&str>)> = by_schema.into_iter().collect();
    groups.sort_by_key(|(schema, names)| (std::cmp::Reverse(names.len()), schema.clone()));
    groups.truncate(6);
    let united = if every() == 1 { usize::MAX } else { UNITED };
    let metrics = metrics();
    let (mut policies, mut compared, mut remembered) = (0, 0, 0);
    for (schema, names) in groups {
        let names: Vec<&str> = names.into_iter().take(united).collect();
        let union = Union::of(&corpus, without_contexts(&schema).unwrap(), &names);
        policies += union.policies.len();
        let mut snapshot = compile(&[union.bundle(0)]);
        let mut queries = union.queries(&snapshot);
        queries.truncate(united);
        let engine = Engine::new(Arc::clone(&snapshot), &metrics, 0.0);
        for push in 0..5 {
            if push > 0 {
                let next = succeeding(Some(&snapshot), &[union.bundle(push)], &[]);
                snapshot = Arc::new(next.unwrap_or_else(|problems| panic!("{:?}", lines(&problems))));
                engine.sender.send_replace(Some(Arc::clone(&snapshot)));
            }
            let (set, entities) = union.oracle(push);
            for query in &queries {
                let expected = told_by_cedar(&set, &entities, query);
                let first = engine.decide(query);
                let again = engine.again(query, &first);
                for decision in [first, again] {
                    compared += 1;
                    remembered += usize::from(matches!(decision.cache, CacheState::Hit(_)));
                    assert_eq!(told(&decision), expected, "push {push}, {query:?}, {:?}", decision.cache);
                }
            }
        }
    }
    println!("{policies} policies in unions; compared {compared} decisions, {remembered} of them remembered");
    assert!(policies > 100 && compared > 1_000 && remembered * 4 > compared, "{policies}, {compared}, {remembered}");
}
