//! Cached = fresh: whatever is asked and whatever changes, an answer of the running engine equals a fresh evaluation of all
//! policies by plain Cedar over all entities, under the snapshot in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use cedar_policy::{
    Authorizer as Cedar, Context, Entities, Entity, EntityUid, Policy, PolicySet, Request, RestrictedExpression,
};
use stockade::config::Config;
use stockade::decision::cache::{self, Cache};
use stockade::ext_authz::judge::Judge;
use stockade::ext_authz::wire;
use stockade::model::{CacheState, Decision, Effect, Outcome, Reason};
use stockade::observe::Metrics;
use stockade::policy::{Files, Snapshot};
use stockade::problem::SourceFile;
use tokio::sync::watch;

/// Small and fast, and the same sequence for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }

    fn maybe<T>(&mut self, one_in: usize, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.roll(one_in) == 0).then(|| value(self))
    }
}

const SCHEMA: &str = r#"
entity User in [Group] { dept?: String };
entity Doc in [Folder] { owner?: User, level: Long };
entity Folder in [Folder];
action "ga";
action "a0", "a1" in ["ga"] appliesTo {
    principal: [User, Anonymous],
    resource: [Doc],
    context: { query: { n: Long, m?: Long }, headers: { "x-s"?: String, "x-tags"?: Set<String> } },
};
"#;

const ROUTES: &str = r#"
routes:
  - { match: "GET /a0/{doc}", action: a0, resource: 'Doc::"{doc}"' }
  - { match: "GET /a1/{doc}", action: a1, resource: 'Doc::"{doc}"' }
"#;

const PRINCIPALS: [&str; 7] = [
    "principal",
    "principal",
    "principal == User::\"u0\"",
    "principal == User::\"u1\"",
    "principal in Group::\"g0\"",
    "principal in Group::\"g1\"",
    "principal is User",
];
const ACTIONS: [&str; 4] =
    ["action in Action::\"ga\"", "action == Action::\"a0\"", "action in Action::\"ga\"", "action in [Action::\"a1\"]"];
const RESOURCES: [&str; 7] = [
    "resource",
    "resource",
    "resource == Doc::\"d0\"",
    "resource in Folder::\"f0\"",
    "resource in Folder::\"f1\"",
    "resource is Doc",
    "resource is Doc in Folder::\"f1\"",
];
const CONDITIONS: [&str; 15] = [
    "",
    "",
    "context.query.n > 2",
    "context.headers has \"x-s\"",
    "context.headers has \"x-s\" && context.headers[\"x-s\"] == \"a\"",
    "context.headers has \"x-tags\" && context.headers[\"x-tags\"].contains(\"t\")",
    "resource.level > 1",
    "resource has owner && resource.owner == principal",
    "principal is User && principal has dept && principal.dept == \"eng\"",
    "resource in Folder::\"f1\"",
    "principal in Group::\"g1\"",
    "context.query.n + 9223372036854775805 > 0",
    "[context.query].contains(context.query) && context.query has m",
    "action in Action::\"ga\"",
    "context.query has m && context.query.m == context.query.n",
];
/// Reaches entities that a request does not name.
const DEEP: &str = "resource has owner && resource.owner has dept && resource.owner.dept == \"eng\"";

/// A bundle, as the dice have made it.
struct World {
    policies: BTreeMap<String, String>,
    docs: BTreeMap<usize, (Option<usize>, Option<usize>, usize)>,
    folders: BTreeMap<usize, Option<usize>>,
    groups: BTreeMap<usize, Option<usize>>,
    users: BTreeMap<usize, (Option<&'static str>, Vec<usize>)>,
    deep: bool,
}

/// A request, as the dice have made it.
#[derive(Debug, Clone)]
struct Ask {
    user: Option<usize>,
    groups: Vec<usize>,
    dept: Option<&'static str>,
    action: &'static str,
    doc: usize,
    n: i64,
    m: Option<i64>,
    s: Option<&'static str>,
    tags: Vec<&'static str>,
}

impl World {
    fn new(dice: &mut Dice, deep: bool) -> Self {
        let mut world = Self {
            policies: BTreeMap::new(),
            docs: BTreeMap::new(),
            folders: BTreeMap::new(),
            groups: BTreeMap::new(),
            users: BTreeMap::new(),
            deep,
        };
        for _ in 0..12 {
            world.change(dice);
        }
        world
    }

    /// Adds, alters or removes something.
    fn change(&mut self, dice: &mut Dice) {
        match dice.roll(10) {
            0..=3 => {
                let id = format!("p{}", dice.roll(8));
                let text = self.policy(dice, &id);
                self.policies.insert(id, text);
            }
            4 => {
                self.policies.remove(&format!("p{}", dice.roll(8)));
            }
            5 => {
                let doc = (dice.maybe(2, |dice| dice.roll(2)), dice.maybe(2, |dice| dice.roll(3)), dice.roll(4));
                self.docs.insert(dice.roll(4), doc);
            }
            6 => {
                self.docs.remove(&dice.roll(4));
            }
            7 => {
                // f1 may stand in f0, never the other way round: hierarchies have no circles.
                let parent = dice.maybe(2, |_| 0);
                self.folders.insert(1, parent);
                self.folders.insert(0, None);
            }
            8 => {
                let parent = dice.maybe(2, |_| 1);
                self.groups.insert(0, parent);
                self.groups.insert(1, None);
            }
            _ => {
                let dept = dice.maybe(2, |dice| *dice.pick(&["eng", "ops"]));
                let groups = dice.maybe(2, |dice| dice.roll(3)).into_iter().collect();
                let user = dice.roll(3);
                if self.users.remove(&user).is_none() {
                    self.users.insert(user, (dept, groups));
                }
            }
        }
    }

    fn policy(&self, dice: &mut Dice, id: &str) -> String {
        let permit = dice.roll(3) > 0;
        let mut text = format!("@id(\"{id}\")\n");
        if dice.roll(6) == 0 {
            text.push_str("@mode(\"shadow\")\n");
        }
        if !permit && dice.roll(2) == 0 {
            text.push_str(&format!("@message(\"m{}\")\n", dice.roll(3)));
        }
        let condition = if self.deep && dice.roll(4) == 0 { DEEP } else { *dice.pick(&CONDITIONS) };
        let condition = if condition.is_empty() { String::new() } else { format!(" when {{ {condition} }}") };
        let effect = if permit { "permit" } else { "forbid" };
        let scope = [*dice.pick(&PRINCIPALS), *dice.pick(&ACTIONS), *dice.pick(&RESOURCES)].join(", ");
        format!("{text}{effect} ({scope}){condition};\n")
    }

    fn entities(&self) -> serde_json::Value {
        use serde_json::{Value, json};
        let uid = |ty: &str, id: String| json!({"type": ty, "id": id});
        let mut all: Vec<Value> = Vec::new();
        for (doc, (folder, owner, level)) in &self.docs {
            let mut attrs = json!({"level": level});
            if let Some(owner) = owner {
                attrs["owner"] = json!({"__entity": uid("User", format!("u{owner}"))});
            }
            let parents: Vec<Value> = folder.iter().map(|folder| uid("Folder", format!("f{folder}"))).collect();
            all.push(json!({"uid": uid("Doc", format!("d{doc}")), "attrs": attrs, "parents": parents}));
        }
        for (folder, parent) in &self.folders {
            let parents: Vec<Value> = parent.iter().map(|parent| uid("Folder", format!("f{parent}"))).collect();
            all.push(json!({"uid": uid("Folder", format!("f{folder}")), "attrs": {}, "parents": parents}));
        }
        for (group, parent) in &self.groups {
            let parents: Vec<Value> = parent.iter().map(|parent| uid("Group", format!("g{parent}"))).collect();
            all.push(json!({"uid": uid("Group", format!("g{group}")), "attrs": {}, "parents": parents}));
        }
        for (user, (dept, groups)) in &self.users {
            let attrs = dept.map_or(json!({}), |dept| json!({"dept": dept}));
            let parents: Vec<Value> = groups.iter().map(|group| uid("Group", format!("g{group}"))).collect();
            all.push(json!({"uid": uid("User", format!("u{user}")), "attrs": attrs, "parents": parents}));
        }
        Value::Array(all)
    }

    fn files(&self) -> Files {
        let policies: String = self.policies.values().map(String::as_str).collect();
        let files = [
            ("bundle.yaml", "name: b\n".to_owned()),
            ("schema.cedarschema", SCHEMA.to_owned()),
            ("routes.yaml", ROUTES.to_owned()),
            ("policies/all.cedar", policies),
            ("entities.json", self.entities().to_string()),
        ];
        let files = files.into_iter().map(|(path, text)| (path.to_owned(), text)).collect();
        Files { root: "b".to_owned(), files, changed: None }
    }
}

impl Ask {
    fn new(dice: &mut Dice) -> Self {
        Self {
            user: (dice.roll(5) > 0).then(|| dice.roll(3)),
            groups: dice.maybe(2, |dice| dice.roll(3)).into_iter().collect(),
            dept: dice.maybe(2, |dice| *dice.pick(&["eng", "ops"])),
            action: *dice.pick(&["a0", "a1"]),
            doc: dice.roll(4),
            n: dice.roll(4) as i64,
            m: dice.maybe(3, |dice| dice.roll(3) as i64),
            s: dice.maybe(2, |dice| *dice.pick(&["a", "b"])),
            tags: dice.maybe(2, |dice| *dice.pick(&["t", "u"])).into_iter().collect(),
        }
    }

    /// As Envoy would send it.
    fn request(&self) -> wire::CheckRequest {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let header = |key: &str, value: &str| wire::HeaderValue {
            key: bytes(key),
            value: Bytes::new(),
            raw_value: bytes(value),
        };
        let m = self.m.map_or(String::new(), |m| format!("&m={m}"));
        let path = format!("/{}/d{}?n={}{m}", self.action, self.doc, self.n);
        let mut headers = vec![header(":method", "GET"), header(":path", &path), header("x-noise", "1")];
        headers.extend(self.s.map(|s| header("x-s", s)));
        headers.extend(self.tags.iter().map(|tag| header("x-tags", tag)));
        let text = |text: String| wire::StructValue { kind: Some(wire::Kind::String(text)) };
        let metadata = self.user.map(|user| {
            let groups = self.groups.iter().map(|group| text(format!("g{group}"))).collect();
            let mut fields = HashMap::from([
                ("sub".to_owned(), text(format!("u{user}"))),
                (
                    "groups".to_owned(),
                    wire::StructValue { kind: Some(wire::Kind::List(wire::ListValue { values: groups })) },
                ),
            ]);
            fields.extend(self.dept.map(|dept| ("dept".to_owned(), text(dept.to_owned()))));
            let payload = wire::StructValue { kind: Some(wire::Kind::Struct(wire::Struct { fields })) };
            let space = wire::Struct { fields: HashMap::from([("jwt_payload".to_owned(), payload)]) };
            wire::Metadata { filter_metadata: HashMap::from([("envoy.filters.http.jwt_authn".to_owned(), space)]) }
        });
        wire::CheckRequest {
            attributes: Some(wire::Attributes {
                request: Some(wire::Request {
                    time: None,
                    http: Some(wire::HttpRequest {
                        method: bytes("GET"),
                        path: bytes(&path),
                        header_map: Some(wire::HeaderMap { headers }),
                        ..wire::HttpRequest::default()
                    }),
                }),
                metadata_context: metadata,
                ..wire::Attributes::default()
            }),
        }
    }
}

/// Plain Cedar over everything: the oracle.
struct Oracle {
    enforced: PolicySet,
    shadow: PolicySet,
    forbids: HashSet<String>,
    entities: Entities,
    world: Vec<Entity>,
    messages: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    effect: Effect,
    reason: Reason,
    determining: Vec<String>,
    erring: Vec<String>,
    message: Option<String>,
    shadow: Option<(Effect, Vec<String>, Vec<String>)>,
}

impl Oracle {
    fn new(world: &World) -> Self {
        let (base, _) =
            cedar_policy::Schema::from_cedarschema_str(&format!("entity Group in [Group]; entity Anonymous; {SCHEMA}"))
                .unwrap();
        let entities = Entities::from_json_value(world.entities(), Some(&base)).unwrap();
        let mut oracle = Self {
            enforced: PolicySet::new(),
            shadow: PolicySet::new(),
            forbids: HashSet::new(),
            world: entities.iter().cloned().collect(),
            entities,
            messages: BTreeMap::new(),
        };
        for (id, text) in &world.policies {
            let id = format!("b/{id}");
            let policy = Policy::parse(Some(cedar_policy::PolicyId::new(&id)), text).unwrap();
            if policy.effect() == cedar_policy::Effect::Forbid {
                oracle.forbids.insert(id.clone());
            }
            oracle.messages.extend(policy.annotation("message").map(|message| (id, message.to_owned())));
            let shadow = policy.annotation("mode") == Some("shadow");
            let set = if shadow { &mut oracle.shadow } else { &mut oracle.enforced };
            set.add(policy).unwrap();
        }
        oracle
    }

    fn answer(&self, ask: &Ask) -> Answer {
        let uid = |text: String| -> EntityUid { text.parse().unwrap() };
        let principal = match ask.user {
            Some(user) => uid(format!("User::\"u{user}\"")),
            None => uid("Anonymous::\"anonymous\"".to_owned()),
        };
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let mut query = vec![("n".to_owned(), RestrictedExpression::new_long(ask.n))];
        query.extend(ask.m.map(|m| ("m".to_owned(), RestrictedExpression::new_long(m))));
        let mut headers = Vec::new();
        headers.extend(ask.s.map(|s| ("x-s".to_owned(), text(s))));
        if !ask.tags.is_empty() {
            let tags = ask.tags.iter().map(|tag| text(tag));
            headers.push(("x-tags".to_owned(), RestrictedExpression::new_set(tags)));
        }
        let context = Context::from_pairs([
            ("query".to_owned(), RestrictedExpression::new_record(query).unwrap()),
            ("headers".to_owned(), RestrictedExpression::new_record(headers).unwrap()),
        ])
        .unwrap();
        let entities = self.with_principal(&principal, ask);
        let action = uid(format!("Action::\"{}\"", ask.action));
        let resource = uid(format!("Doc::\"d{}\"", ask.doc));
        let request = Request::new(principal, action, resource, context, None).unwrap();
        let respond = |set: &PolicySet| Cedar::new().is_authorized(&request, set, &entities);
        let ids = |ids: &mut dyn Iterator<Item = String>| {
            let mut ids: Vec<String> = ids.collect();
            ids.sort();
            ids
        };
        let reasons =
            |response: &cedar_policy::Response| ids(&mut response.diagnostics().reason().map(ToString::to_string));
        let erring = |response: &cedar_policy::Response| {
            let errors = response.diagnostics().errors();
            ids(&mut errors.map(|cedar_policy::AuthorizationError::PolicyEvaluationError(e)| e.policy_id().to_string()))
        };
        let allows = |response: &cedar_policy::Response| response.decision() == cedar_policy::Decision::Allow;
        let forbids = |response: &cedar_policy::Response| !allows(response) && !reasons(response).is_empty();
        let enforced = respond(&self.enforced);
        let errors = erring(&enforced);
        let erring_forbids: Vec<String> = errors.iter().filter(|id| self.forbids.contains(*id)).cloned().collect();
        let (effect, reason, determining) = if forbids(&enforced) {
            (Effect::Deny, Reason::Policy, reasons(&enforced))
        } else if !erring_forbids.is_empty() {
            (Effect::Deny, Reason::PolicyError, erring_forbids)
        } else if allows(&enforced) {
            (Effect::Allow, Reason::Policy, reasons(&enforced))
        } else {
            (Effect::Deny, Reason::DefaultDeny, Vec::new())
        };
        let message = (effect == Effect::Deny).then(|| {
            let own = if reason == Reason::Policy { determining.as_slice() } else { &[] };
            let shaped = own.iter().find_map(|id| self.messages.get(id));
            shaped.cloned().unwrap_or_else(|| "access denied".to_owned())
        });
        let shadow = (self.shadow.num_of_policies() > 0).then(|| {
            let shadow = respond(&self.shadow);
            let errs = |response: &cedar_policy::Response| erring(response).iter().any(|id| self.forbids.contains(id));
            let denied = [&enforced, &shadow].into_iter().any(|response| forbids(response) || errs(response));
            let allow = !denied && (allows(&enforced) || allows(&shadow));
            (if allow { Effect::Allow } else { Effect::Deny }, reasons(&shadow), erring(&shadow))
        });
        Answer { effect, reason, determining, erring: errors, message, shadow }
    }

    /// The whole world, with the principal as its token says.
    fn with_principal(&self, principal: &EntityUid, ask: &Ask) -> Entities {
        if ask.user.is_none() || (ask.groups.is_empty() && ask.dept.is_none()) {
            return self.entities.clone();
        }
        let mut attributes: HashMap<String, RestrictedExpression> = HashMap::new();
        let mut parents: HashSet<EntityUid> =
            ask.groups.iter().map(|group| format!("Group::\"g{group}\"").parse().unwrap()).collect();
        attributes.extend(ask.dept.map(|dept| ("dept".to_owned(), RestrictedExpression::new_string(dept.to_owned()))));
        let mut others = Vec::new();
        for entity in &self.world {
            if &entity.uid() != principal {
                others.push(entity.clone());
                continue;
            }
            let (_, known, own_parents) = entity.clone().into_inner();
            attributes.extend(known);
            parents.extend(own_parents);
        }
        others.push(Entity::new(principal.clone(), attributes, parents).unwrap());
        Entities::from_entities(others, None).unwrap()
    }
}

fn answer(decision: &Decision) -> Answer {
    let ids = |ids: &[stockade::model::PolicyId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let erring = |errors: &[stockade::model::PolicyError]| {
        errors.iter().map(|error| error.policy.to_string()).collect::<Vec<_>>()
    };
    Answer {
        effect: decision.effect,
        reason: decision.reason,
        determining: ids(&decision.determining),
        erring: erring(&decision.errors),
        message: decision.denial.as_ref().map(|denial| denial.message.clone()),
        shadow: decision
            .shadow
            .as_ref()
            .map(|shadow| (shadow.effect, ids(&shadow.determining), erring(&shadow.errors))),
    }
}

/// What happened in a run.
#[derive(Debug, Default)]
struct Tally {
    asked: usize,
    hits: usize,
    changes: usize,
}

/// Asks and changes, in any order, until so many answers were compared.
fn run(seed: u64, comparisons: usize, deep: bool) -> Tally {
    let mut dice = Dice(seed | 1);
    let mut world = World::new(&mut dice, deep);
    let first = Arc::new(
        Snapshot::compile(&[world.files()], 1)
            .unwrap_or_else(|problems| panic!("{}", stockade::problem::one_line(&problems))),
    );
    let (sender, snapshots) = watch::channel(Some(first));
    let config: Config = stockade::yaml::parse(&SourceFile::new("c", "bundles: [{directory: b}]")).unwrap();
    // No second look at hits: it would hide what this test is for.
    let hour = stockade::units::Span::seconds(3600);
    let cache = cache::Config { self_check: 0.0, allow_ttl: hour, deny_ttl: hour, ..cache::Config::default() };
    let (metrics, _) = Metrics::new(&config.metrics).unwrap();
    let judge: Judge = config.judge(snapshots, Arc::new(Cache::new(cache)), metrics);
    let asks: Vec<Ask> = (0..60).map(|_| Ask::new(&mut dice)).collect();
    let mut oracle = Oracle::new(&world);
    let mut tally = Tally::default();
    while tally.asked < comparisons {
        if dice.roll(40) == 0 {
            world.change(&mut dice);
            let previous = sender.borrow().clone().unwrap();
            let next = Snapshot::succeed(&previous, &[world.files()])
                .unwrap_or_else(|problems| panic!("{}", stockade::problem::one_line(&problems)));
            sender.send_replace(Some(Arc::new(next)));
            oracle = Oracle::new(&world);
            tally.changes += 1;
        }
        let ask = dice.pick(&asks);
        let verdict = judge.request(&ask.request(), "d");
        let Outcome::Decided(decision) = &verdict.outcome else { panic!("{ask:?}: {:?}", verdict.outcome) };
        let expected = oracle.answer(ask);
        assert_eq!(
            answer(decision),
            expected,
            "seed {seed}, {ask:?}, {:?}\n{:#?}\n{:#}",
            decision.cache,
            world.policies,
            world.entities()
        );
        tally.asked += 1;
        tally.hits += usize::from(matches!(decision.cache, CacheState::Hit(_)));
    }
    tally
}

fn runs(comparisons: usize) {
    let each = 500;
    let mut total = Tally::default();
    for seed in 0..(comparisons / each) as u64 {
        let tally = run(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), each, seed % 3 == 0);
        total = Tally {
            asked: total.asked + tally.asked,
            hits: total.hits + tally.hits,
            changes: total.changes + tally.changes,
        };
    }
    println!("compared {} answers, {} of them remembered, over {} changes", total.asked, total.hits, total.changes);
    // A cache that remembers nothing would be right as well.
    assert!(total.hits * 5 > total.asked, "{total:?}");
}

#[test]
fn what_is_remembered_equals_what_would_be_decided() {
    runs(20_000);
}

/// The long form.
#[test]
#[ignore = "takes half an hour; `make engine` runs it"]
fn what_is_remembered_equals_what_would_be_decided_a_million_times() {
    runs(1_000_000);
}
