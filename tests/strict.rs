//! What Cedar's strict checks of requests and entities would refuse is refused by the mapping, which does without them: they
//! cost more than a remembered decision. Random schemas, and for each of them random requests that fit it, but for a
//! flaw here and there.
//!
//! Two things must hold. What is mapped is accepted by `Request::new(.., Some(&schema))` and
//! `Entities::from_entities(.., Some(&schema))`, or the answer is `not_applicable`. And what has no flaw is mapped.
//!
//! The comparison is under policies that read everything: elsewhere the mapping leaves out what no policy reads, and a context
//! without an attribute that the schema requires and nobody reads is one that Cedar would refuse, and rightly decides on.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use bytes::Bytes;
use cedar_policy::{Context, Entities, Entity, Request, RestrictedExpression, Schema};
use fastrand::Rng;
use serde_json::{Map, Value as Json, json};
use stockade::model::{Extension, Query, Reason, Value};
use stockade::proto::wire::{CheckRequest, HeaderMap, HeaderValue};

use crate::fixture::{Court, EVERYTHING, compile, files, metadata, pairs, with};

#[test]
fn what_is_mapped_is_what_cedar_accepts() {
    let tally = compare(0x5eed, 24, 200);
    // Neither side of the comparison may starve.
    assert!(tally.accepted > 1_000 && tally.refused > 500 && tally.not_applicable > 100, "{tally:?}");
}

#[test]
#[ignore = "a million requests: `make engine`"]
fn what_is_mapped_is_what_cedar_accepts_a_million_times() {
    let tally = compare(fastrand::u64(..), 2_000, 500);
    println!("{tally:?}");
    assert!(tally.accepted > 250_000 && tally.refused > 100_000, "{tally:?}");
}

#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    not_applicable: usize,
    refused: usize,
}

/// Compares over so many schemas, each with so many requests.
fn compare(seed: u64, worlds: u64, requests: usize) -> Tally {
    let mut tally = Tally::default();
    for number in 0..worlds {
        let mut rng = Rng::with_seed(seed.wrapping_add(number));
        let world = World::new(&mut rng);
        for at in 0..requests {
            let case =
                || format!("seed {seed:#x}, world {number}, request {at}\n{}\n{}", world.schema_text, world.config);
            let (request, flaws) = world.request(&mut rng);
            match world.court.query(&request) {
                Err(refusal) => {
                    assert!(!flaws.is_empty(), "refused without a flaw: {refusal}\n{request:?}\n{}", case());
                    tally.refused += 1;
                }
                Ok(query) => match world.strictly(&query) {
                    Ok(true) => tally.accepted += 1,
                    Ok(false) => tally.not_applicable += 1,
                    Err(why) => panic!("mapped, and Cedar refuses: {why}\n{flaws:?}\n{query:#?}\n{}", case()),
                },
            }
        }
    }
    tally
}

// === types ===

/// A type of an attribute, with what is needed to make values of it.
#[derive(Debug, Clone)]
enum Ty {
    Bool,
    Long,
    String,
    Extension(&'static str, &'static [&'static str]),
    /// A type of the schema; the ids, if it lists them.
    Entity(&'static str, Option<Vec<&'static str>>),
    Set(Box<Ty>),
    Record(Fields),
}

/// Name, type, and whether it is required.
type Fields = Vec<(String, Ty, bool)>;

const EXTENSIONS: [(&str, &[&str]); 4] = [
    ("ipaddr", &["10.0.0.1", "::1", "2001:db8::7"]),
    ("decimal", &["1.5", "-0.0001", "922337203685477.5807"]),
    ("datetime", &["2026-11-22", "2026-11-22T05:44:45.840Z", "2026-11-22T05:44:45+0100"]),
    ("duration", &["1d2h", "-3ms", "0s"]),
];

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool => f.write_str("Bool"),
            Self::Long => f.write_str("Long"),
            Self::String => f.write_str("String"),
            Self::Extension(name, _) | Self::Entity(name, _) => f.write_str(name),
            Self::Set(member) => write!(f, "Set<{member}>"),
            Self::Record(fields) => f.write_str(&declaration(fields)),
        }
    }
}

fn declaration(fields: &Fields) -> String {
    let mut text = "{ ".to_owned();
    for (name, ty, required) in fields {
        let _ = write!(text, "\"{name}\"{}: {ty}, ", if *required { "" } else { "?" });
    }
    text + "}"
}

/// A schema, and who answers under it.
struct World {
    schema_text: String,
    config: String,
    schema: Schema,
    court: Court,
    types: Vec<(&'static str, Option<Vec<&'static str>>)>,
    /// Attributes of `Person`, by claim.
    person: Fields,
    /// Fields by their root.
    roots: HashMap<&'static str, Fields>,
    /// The type of `params.id`.
    param: Ty,
    /// What `Person` can be in.
    groups: &'static str,
    group_type: &'static str,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let mut choices = |name, all: &[&[&'static str]]| {
            (name, rng.choice(all).map(|ids| ids.to_vec()).filter(|ids| !ids.is_empty()))
        };
        let types = vec![
            choices("Env", &[&["dev", "prod"]]),
            choices("Tier", &[&["gold", "Gold", ""], &["a"]]),
            choices("Doc", &[&[], &["1", "readme"]]),
            choices("Team", &[&[], &["staff", "admins"]]),
            choices("Org", &[&[]]),
            choices("Person", &[&[], &[], &["alice", "bob"]]),
        ];
        let person_is_open = types.iter().all(|(name, ids)| *name != "Person" || ids.is_none());
        let team_is_open = types.iter().all(|(name, ids)| *name != "Team" || ids.is_none());
        let groups =
            if person_is_open { *rng.choice(&["", " in [Team]", " in [Org]", " in [Team, Org]"]).unwrap() } else { "" };
        let group_type = *rng.choice(&["Team", "Team", "Org", "Env", "Nowhere"]).unwrap();
        let mut types_of = |prefix, texts, depth| fields(rng, &types, prefix, texts, depth);
        let person = if person_is_open { types_of("p", false, 2) } else { Vec::new() };
        let roots: HashMap<&'static str, Fields> = [
            ("body", types_of("b", false, 2)),
            ("claims", types_of("c", false, 2)),
            ("space", types_of("m", false, 2)),
            ("headers", types_of("h", true, 0)),
            ("query", types_of("q", true, 0)),
            ("extensions", types_of("e", true, 0)),
        ]
        .into();
        let param = scalar(rng, &types);
        let mut schema_text = String::new();
        for (name, ids) in &types {
            let rest = match (*name, ids) {
                (_, Some(ids)) => format!(" enum {ids:?}"),
                ("Team", None) if team_is_open => " in [Org]".to_owned(),
                ("Person", None) => format!("{groups} {}", declaration(&person)),
                _ => String::new(),
            };
            let _ = writeln!(schema_text, "entity {name}{rest};");
        }
        let required = |rng: &mut Rng| if rng.bool() { "" } else { "?" };
        let (of_body, of_claims) = (required(rng), required(rng));
        let _ = writeln!(
            schema_text,
            "action \"act\" appliesTo {{ principal: [Person, Env], resource: [Doc, Env], context: {{
                body{of_body}: {}, claims{of_claims}: {}, metadata: {{ ns?: {} }}, headers: {}, query: {}, extensions: {},
                params: {{ id: {param} }},
            }} }};\naction \"none\" appliesTo {{ principal: [Env], resource: [Tier], context: {{}} }};",
            declaration(&roots["body"]), declaration(&roots["claims"]), declaration(&roots["space"]),
            declaration(&roots["headers"]), declaration(&roots["query"]), declaration(&roots["extensions"]),
        );
        let config = format!(
            "service: shop\nidentity:\n- {{from: jwt_metadata, type: Person, group_type: {group_type}}}\n\
             - {{from: trusted_header, header: x-env, addresses: [192.0.2.7], type: Env}}\n- {{from: anonymous, type: {}, id: {}}}",
            rng.choice(["Env", "Env", "Ghost", "Org"]).unwrap(),
            rng.choice(["dev", "Dev"]).unwrap(),
        );
        let routes = "routes: [{match: 'POST /docs/{id}', action: act, resource: 'Doc::\"{id}\"'}, \
                      {match: 'POST /envs/{id}', action: act, resource: 'Env::\"{id}\"'}, \
                      {match: 'POST /tiers/{id}', action: none, resource: 'Tier::\"{id}\"'}]";
        let mut reads = String::from("forbid (principal is Person, action, resource) when { false");
        for (name, ..) in &person {
            let _ = write!(reads, " || principal has \"{name}\"");
        }
        reads.push_str(" };");
        let schema =
            Schema::from_cedarschema_str(&schema_text).unwrap_or_else(|error| panic!("{error:?}\n{schema_text}")).0;
        let bundle = files(
            "world",
            &[
                ("bundle.yaml", "name: world"),
                ("schema.cedarschema", &schema_text),
                ("routes.yaml", routes),
                ("policies/everything.cedar", EVERYTHING),
                ("policies/reads.cedar", &reads),
            ],
        );
        let court = Court::under(compile(&[bundle]), &config);
        Self { schema_text, config, schema, court, types, person, roots, param, groups, group_type }
    }

    fn ids(&self, name: &str) -> Option<&Vec<&'static str>> {
        self.types.iter().find(|(own, _)| *own == name).and_then(|(_, ids)| ids.as_ref())
    }

    /// A request, and what is wrong with it.
    fn request(&self, rng: &mut Rng) -> (CheckRequest, Vec<String>) {
        let mut maker = Maker { one_in: *rng.choice(&[usize::MAX, 30, 8]).unwrap(), rng, flaws: Vec::new() };
        let (at, resource) =
            *maker.rng.choice(&[("docs", "Doc"), ("docs", "Doc"), ("envs", "Env"), ("tiers", "Tier")]).unwrap();
        let is_act = at != "tiers";
        // The id is the resource and a parameter at once: it must be good as both.
        let mut id = maker.text(&Ty::Entity(resource, self.ids(resource).cloned()));
        if is_act && !fits(&self.param, &id) {
            id = maker.text(&self.param);
            if self.ids(resource).is_some_and(|ids| !ids.contains(&id.as_str())) {
                maker.flaws.push(format!("{id} is no {resource}"));
            }
        }
        if id.is_empty() || id.contains(['/', '\\']) {
            id = "none".to_owned();
            maker.flaws.push("no segment of a path".to_owned());
        }
        let by = maker.rng.usize(..10);
        let mut claims = Map::new();
        let mut is_person = false;
        let mut headers: Vec<(String, String)> = maker.lines(&self.roots["headers"]);
        if by < 7 {
            is_person = true;
            claims = maker.object(&[&self.person[..], &self.roots["claims"][..]].concat());
            claims.insert("sub".to_owned(), json!(maker.text(&Ty::Entity("Person", self.ids("Person").cloned()))));
            if claims["sub"] == "" {
                maker.flaws.push("an empty sub".to_owned());
            }
            let group = Ty::Entity(self.group_type, self.ids(self.group_type).cloned());
            let many = maker.rng.usize(..3);
            // Groups that the schema does not let a person be in are left out, so nothing is wrong with them.
            let (before, counted) = (maker.flaws.len(), self.groups.contains(self.group_type));
            let groups: Vec<String> = (0..many).map(|_| maker.text(&group)).collect();
            if !counted {
                maker.flaws.truncate(before);
            }
            claims.insert("groups".to_owned(), json!(groups));
        } else if by < 9 {
            let env = maker.text(&Ty::Entity("Env", self.ids("Env").cloned()));
            headers.push(("x-env".to_owned(), env));
        } else if self.config.contains("type: Env, id: Dev") {
            maker.flaws.push("anonymous is no Env".to_owned());
        }
        if is_act && !is_person && self.schema_text.contains("claims: {") {
            maker.flaws.push("no claims".to_owned());
        }
        let target = {
            let pairs = maker.lines(&self.roots["query"]);
            let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
            format!("/{at}/{}?{}", escaped(&id), query.join("&"))
        };
        let extensions = maker.lines_once(&self.roots["extensions"]);
        let space = maker.rng.bool().then(|| maker.object(&self.roots["space"]));
        let body = maker.object(&self.roots["body"]);
        headers.push(("content-type".to_owned(), "application/json".to_owned()));
        let flaws = maker.flaws;
        let request = with(|attributes| {
            let mut spaces = json!({});
            if is_person {
                spaces["envoy.filters.http.jwt_authn"] = json!({"jwt_payload": claims});
            }
            if let Some(space) = space {
                spaces["ns"] = Json::Object(space);
            }
            attributes.metadata_context = Some(metadata(&spaces));
            let extensions: Vec<(&str, &str)> = extensions.iter().map(|(name, value)| (&**name, &**value)).collect();
            attributes.context_extensions = pairs(&extensions);
            let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
            http.method = "POST".into();
            http.path = target.into();
            http.raw_body = Json::Object(body).to_string().into();
            let line = |(name, value): (String, String)| HeaderValue {
                key: name.into(),
                value: Bytes::new(),
                raw_value: value.into(),
            };
            http.header_map = Some(HeaderMap { headers: headers.into_iter().map(line).collect() });
        });
        (request, flaws)
    }

    /// What Cedar's strict checks say of a Query: whether it applies; an error where they refuse what we would decide.
    fn strictly(&self, query: &Query) -> Result<bool, String> {
        let reason = self.court.snapshot.decide(query)?.reason;
        let context = query.context.iter().map(|(name, value)| (name.to_string(), expression(value)));
        let context = Context::from_pairs(context).map_err(|error| error.to_string())?;
        let (principal, action, resource) = (&query.principal.uid, &query.action, &query.resource);
        let request = Request::new(principal.clone(), action.clone(), resource.clone(), context, Some(&self.schema));
        if reason == Reason::NotApplicable {
            return if request.is_err() { Ok(false) } else { Err("it applies".to_owned()) };
        }
        request.map_err(|error| error.to_string())?;
        let attributes =
            query.principal.attributes.iter().map(|(name, value)| (name.to_string(), expression(value))).collect();
        // Policies see those that the schema has; the others are there for overlays.
        let types = self.court.snapshot.types();
        let ancestors = types.ancestors(query.principal.uid.type_name()).unwrap_or_default();
        let parents = query.principal.parents.iter().filter(|parent| ancestors.contains(parent.type_name()));
        let parents: HashSet<_> = parents.cloned().collect();
        let entity = Entity::new(principal.clone(), attributes, parents).map_err(|error| error.to_string())?;
        let entities = Entities::from_entities([entity], Some(&self.schema));
        entities.map(|_| true).map_err(|error| format!("{error:?}"))
    }
}

/// A value as Cedar's own API makes it.
fn expression(value: &Value) -> RestrictedExpression {
    match value {
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Long(value) => RestrictedExpression::new_long(*value),
        Value::String(text) => RestrictedExpression::new_string(text.to_string()),
        Value::Entity(uid) => RestrictedExpression::new_entity_uid(uid.clone()),
        Value::Extension(Extension::Ipaddr, text) => RestrictedExpression::new_ip(text),
        Value::Extension(Extension::Decimal, text) => RestrictedExpression::new_decimal(text),
        Value::Extension(Extension::Datetime, text) => RestrictedExpression::new_datetime(text),
        Value::Extension(Extension::Duration, text) => RestrictedExpression::new_duration(text),
        Value::Set(members) => RestrictedExpression::new_set(members.iter().map(expression)),
        Value::Record(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.to_string(), expression(value)));
            RestrictedExpression::new_record(fields).expect("no name twice")
        }
    }
}

/// Everything that has a meaning in a target, escaped.
fn escaped(text: &str) -> String {
    const SET: percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC.remove(b'.').remove(b'-');
    percent_encoding::utf8_percent_encode(text, &SET).to_string()
}

// === random types ===

fn scalar(rng: &mut Rng, types: &[(&'static str, Option<Vec<&'static str>>)]) -> Ty {
    match rng.usize(..8) {
        0 => Ty::Bool,
        1 => Ty::Long,
        2 => Ty::String,
        3 => {
            let (name, values) = EXTENSIONS[rng.usize(..EXTENSIONS.len())];
            Ty::Extension(name, values)
        }
        _ => {
            let (name, ids) = &types[rng.usize(..types.len())];
            Ty::Entity(name, ids.clone())
        }
    }
}

/// Random fields; those of texts are scalars or sets of them.
fn fields(
    rng: &mut Rng,
    types: &[(&'static str, Option<Vec<&'static str>>)],
    prefix: &str,
    texts: bool,
    depth: usize,
) -> Fields {
    let count = rng.usize(..4);
    (0..count)
        .map(|at| {
            let ty = match rng.usize(..6) {
                0 if !texts && depth > 0 => Ty::Record(fields(rng, types, prefix, false, depth - 1)),
                1 if !texts && depth > 0 => Ty::Set(Box::new(Ty::Record(fields(rng, types, prefix, false, depth - 1)))),
                1 | 2 => Ty::Set(Box::new(scalar(rng, types))),
                _ => scalar(rng, types),
            };
            (format!("{prefix}{at}"), ty, rng.bool())
        })
        .collect()
}

/// Whether a text is one of a scalar type.
fn fits(ty: &Ty, text: &str) -> bool {
    match ty {
        Ty::Bool => text == "true" || text == "false",
        Ty::Long => text.parse::<i64>().is_ok_and(|number| number.to_string() == text),
        Ty::Extension(_, values) => values.contains(&text),
        Ty::Entity(_, Some(ids)) => ids.contains(&text),
        _ => true,
    }
}

// === random values ===

/// Makes values, and notes what is wrong with them.
struct Maker<'a> {
    rng: &'a mut Rng,
    /// A flaw in so many places.
    one_in: usize,
    flaws: Vec<String>,
}

impl Maker<'_> {
    fn errs(&mut self) -> bool {
        self.one_in != usize::MAX && self.rng.usize(..self.one_in) == 0
    }

    fn pick(&mut self, of: &[&str]) -> String {
        of[self.rng.usize(..of.len())].to_owned()
    }

    fn flaw(&mut self, what: &str, ty: &Ty) {
        self.flaws.push(format!("{what} for {ty}"));
    }

    /// A text for a scalar type.
    fn text(&mut self, ty: &Ty) -> String {
        if self.errs() {
            let bad: &[&str] = match ty {
                Ty::Bool => &["True", "1", "", "yes"],
                Ty::Long => &["1.0", "+1", "01", "", "9223372036854775808", "1e3", "-0"],
                Ty::Extension(..) => &["", "x", "1", "10.0.0.256", "1.23456", "tomorrow"],
                Ty::Entity(_, Some(ids)) => {
                    let bad: Vec<&str> = ["Dev", "PROD", "dev ", "GOLD", "c", "Staff", "Alice", "2", "zz"]
                        .into_iter()
                        .filter(|id| !ids.contains(id))
                        .collect();
                    let text = self.pick(&bad);
                    self.flaw(&text, ty);
                    return text;
                }
                // Any text will do.
                _ => &[],
            };
            // Some are good for one of the extension types.
            if !bad.is_empty() {
                let text = self.pick(bad);
                self.flaw(&text, ty);
                return text;
            }
        }
        match ty {
            Ty::Bool => self.pick(&["true", "false"]),
            Ty::Long => {
                let any = self.rng.i64(..).to_string();
                self.pick(&["0", "-1", "9223372036854775807", "-9223372036854775808", "9007199254740993", &any])
            }
            Ty::Extension(_, values) => self.pick(values),
            Ty::Entity(_, Some(ids)) => self.pick(ids),
            _ => self.pick(&["a", "b c", "ä\u{1f332}", "\"quoted\" \\", "dev", "0"]),
        }
    }

    /// Lines by name for texts; one for each value.
    fn lines(&mut self, fields: &Fields) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for (name, ty, required) in fields {
            match ty {
                Ty::Set(member) => {
                    let many = self.rng.usize(..3);
                    lines.extend((0..many).map(|_| (name.clone(), self.text(member))));
                }
                _ => {
                    if self.is_there(name, *required) {
                        lines.push((name.clone(), self.text(ty)));
                        if self.errs() {
                            lines.push((name.clone(), self.text(ty)));
                            self.flaw("two values", ty);
                        }
                    }
                }
            }
        }
        lines
    }

    fn lines_once(&mut self, fields: &Fields) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for (name, ty, required) in fields {
            let ty = if let Ty::Set(member) = ty { member } else { ty };
            if self.is_there(name, *required) {
                lines.push((name.clone(), self.text(ty)));
            }
        }
        lines
    }

    fn is_there(&mut self, name: &str, required: bool) -> bool {
        match required {
            true if self.errs() => {
                self.flaws.push(format!("{name} is missing"));
                false
            }
            true => true,
            false => self.rng.bool(),
        }
    }

    /// An object with these fields, and with others that nobody declared.
    fn object(&mut self, fields: &[(String, Ty, bool)]) -> Map<String, Json> {
        let mut object = Map::new();
        for (name, ty, required) in fields {
            if self.is_there(name, *required) {
                let value = self.value(ty);
                object.insert(name.clone(), value);
            } else if self.rng.bool() {
                object.insert(name.clone(), Json::Null);
            }
        }
        if self.rng.bool() {
            object.insert("undeclared".to_owned(), json!({"b0": [1.5, "x"]}));
        }
        object
    }

    fn value(&mut self, ty: &Ty) -> Json {
        if self.errs() {
            let bad = [
                json!(1.5),
                json!(9_007_199_254_740_992_u64),
                json!([[]]),
                json!({"x": 1}),
                json!(1e300),
                json!("zz"),
                json!(true),
            ];
            let value = bad[self.rng.usize(..bad.len())].clone();
            self.flaw(&value.to_string(), ty);
            return value;
        }
        match ty {
            Ty::Bool => json!(self.rng.bool()),
            Ty::Long => {
                let any = self.rng.i64(-(1 << 53) + 1..1 << 53);
                let all = [0, 1, -1, (1 << 53) - 1, -(1 << 53) + 1, any];
                json!(all[self.rng.usize(..all.len())])
            }
            Ty::Set(member) => {
                let many = self.rng.usize(..3);
                (0..many).map(|_| self.value(member)).collect()
            }
            Ty::Record(fields) => Json::Object(self.object(fields)),
            _ => json!(self.text(ty)),
        }
    }
}

/// The types of the tests are what they are meant to be.
#[test]
fn a_flaw_is_found() {
    let mut rng = Rng::with_seed(7);
    let world = World::new(&mut rng);
    let mut query = loop {
        if let Ok(query) = world.court.query(&world.request(&mut rng).0)
            && world.strictly(&query) == Ok(true)
        {
            break query;
        }
    };
    query.resource = "Env::\"Prod\"".parse().expect("a uid");
    assert!(world.strictly(&query).is_err(), "Cedar knows that there is no such Env");
}
