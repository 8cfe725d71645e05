//! The report on footprints: what the cache keys of each action hold, which policy put it there, and what that does to
//! the cache's hits. Made when somebody asks; a snapshot keeps nothing for it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::base::Base;
use super::compiled::{Compiled, Side};
use super::footprint::Access;
use super::schema::ActionType;
use crate::model::{EntityUid, PolicyId, Type};
use crate::problem::{Found, Problem};

/// What every key holds, whatever policies read: `decision::key` encodes it.
pub const ALWAYS: [&str; 5] = ["principal", "how it was proved", "its groups", "action", "resource"];

/// Actions whose keys hold the same places.
#[derive(Debug, Clone, Serialize)]
pub struct FootprintSummary {
    /// The actions, sorted.
    pub actions: Vec<String>,
    /// What the cache can do for them: the worst that one of the places does.
    pub hits: Hits,
    /// What their keys hold beside [`ALWAYS`].
    pub places: Vec<PlaceSummary>,
}

/// What the decision cache can do for requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hits {
    /// Nothing is known that stands in the way.
    Usual,
    /// Clients choose the values, and a policy about them cannot do without.
    Fewer,
    /// Nearly every request has another key.
    Few,
    /// Decisions are not remembered.
    None,
}

/// A place that is part of the keys.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceSummary {
    /// Such as `context.headers.x-tenant` or `principal.email`.
    pub place: String,
    /// The type that the schema gives it.
    #[serde(rename = "type")]
    pub ty: String,
    /// What policies want of it.
    pub read: Read,
    /// What it does to the hits.
    pub hits: Hits,
    /// In words, if it does something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
    /// The policies that put it there, by id.
    pub policies: Vec<PolicyRead>,
}

/// What is read of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// Only whether it is there (`has`). The value of anything but a record is part of the key all the same.
    Presence,
    /// What it is.
    Value,
}

/// A policy that reads a place.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyRead {
    /// `bundle/id`
    pub id: String,
    /// The file it stands in.
    pub file: String,
    /// What it wants of the place.
    pub read: Read,
    /// What it reads as a whole, if the place is only part of that, such as `context`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_part_of: Option<String>,
    /// Whether its scope names no action, so that it does this to the keys of all of them.
    pub all_actions: bool,
    /// The actions of this footprint that it is about, if it is not about each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_for: Vec<String>,
}

// === The rules ===

/// What a place does to the hits, and what to do about it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    /// Places, and all that is below them. `*` is any one name, and `x*` any name that starts with `x`.
    places: &'static [&'static str],
    hits: Hits,
    why: &'static str,
    advice: &'static str,
}

/// The first one counts.
static RULES: [Rule; 8] = [
    Rule {
        places: &["context.time"],
        hits: Hits::None,
        why: "the clock, which differs on every request",
        advice: "name the actions in the policy's scope that cannot do without: all others are remembered then",
    },
    Rule {
        places: &["context.path"],
        hits: Hits::Few,
        why: "the raw path, with the ids that are in it",
        advice: "match the path in routes.yaml, and read `context.params` or the resource instead",
    },
    Rule {
        places: &["context.query"],
        hits: Hits::Few,
        why: "a parameter that clients choose, often an id or a search",
        advice: "ids belong into the path, where a route makes a resource of them; declare flags as Bool",
    },
    Rule {
        places: &[
            "context.headers.x-request-id",
            "context.headers.request-id",
            "context.headers.x-correlation-id",
            "context.headers.correlation-id",
            "context.headers.idempotency-key",
            "context.headers.traceparent",
            "context.headers.tracestate",
            "context.headers.grpc-trace-bin",
            "context.headers.b3",
            "context.headers.x-b3-*",
            "context.headers.x-amzn-trace-id",
            "context.headers.x-cloud-trace-context",
            "context.headers.x-datadog-*",
            "context.headers.uber-trace-id",
            "context.headers.dpop",
            "context.headers.date",
        ],
        hits: Hits::Few,
        why: "another value with every request",
        advice: "no policy should need it; records can have it by `decision_log.attributes`",
    },
    Rule {
        places: &["context.headers.authorization", "context.headers.proxy-authorization", "context.headers.cookie"],
        hits: Hits::Few,
        why: "a credential, which is another one after each renewal and stays in memory with the key",
        advice: "let Envoy verify it, and read claims or attributes of the principal instead",
    },
    Rule {
        places: &[
            "context.claims.jti",
            "context.claims.iat",
            "context.claims.nbf",
            "context.claims.exp",
            "context.claims.nonce",
            "context.metadata.*.*.jti",
            "context.metadata.*.*.iat",
            "context.metadata.*.*.nbf",
            "context.metadata.*.*.exp",
            "context.metadata.*.*.nonce",
            "principal.jti",
            "principal.iat",
            "principal.nbf",
            "principal.exp",
            "principal.nonce",
        ],
        hits: Hits::Few,
        why: "another value in each token",
        advice: "Envoy has checked the token's times, and what is remembered expires with the token anyway",
    },
    Rule {
        places: &["context.source.port"],
        hits: Hits::Few,
        why: "the client's port, which is another one with every connection",
        advice: "read `context.source.address`, or the principal",
    },
    Rule {
        // No other way leads to what is in a body, so this is less than `Few`, and nobody is warned.
        places: &["context.body", "context.body_size", "context.headers.content-length"],
        hits: Hits::Fewer,
        why: "what clients send in the body",
        advice: "nothing, if the rule is about the body; but read no more of it than decides",
    },
];

impl Rule {
    /// The rule about a place of this type, if there is one.
    fn about(place: &[&str], ty: &Type) -> Option<&'static Self> {
        // Two values make two entries, whatever they stand for; of an empty record there is only whether it is there.
        let few_values = match ty {
            Type::Bool => true,
            Type::Record(fields) => fields.is_empty(),
            _ => false,
        };
        if few_values {
            return None;
        }
        RULES.iter().find(|rule| rule.places.iter().any(|pattern| covers(pattern, place)))
    }
}

/// Whether a pattern of a rule names a place, or something that the place is in.
fn covers(pattern: &str, place: &[&str]) -> bool {
    let mut names = place.iter();
    pattern.split('.').all(|part| match (part.strip_suffix('*'), names.next()) {
        (Some(start), Some(name)) => name.starts_with(start),
        (None, Some(name)) => *name == part,
        (_, None) => false,
    })
}

// === The places in the keys of an action ===

/// A place in the keys of an action.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KeyAttribute<'a> {
    /// Its name and those of what it is in, from `context` or `principal` on.
    path: Vec<&'a str>,
    ty: String,
    rule: Option<&'static Rule>,
}

impl<'a> KeyAttribute<'a> {
    /// All of an action: what its policies read, as far as the schema has it.
    fn all(action: &'a ActionType, pins_path: bool) -> Vec<Self> {
        let mut found = Vec::new();
        for (root, attribute) in &action.context {
            Self::leaves(vec!["context", root.as_str()], &attribute.ty, &mut found);
        }
        for (name, attribute) in action.attributes() {
            found.push(Self::new(vec!["principal", name.as_str()], &attribute.ty));
        }
        if pins_path {
            found.iter_mut().filter(|place| place.path == ["context", "path"]).for_each(|place| place.rule = None);
        }
        found.sort_unstable();
        // Types of principals may have attributes of one name.
        found.dedup_by(|a, b| a.path == b.path);
        found
    }

    fn leaves(path: Vec<&'a str>, ty: &'a Type, found: &mut Vec<Self>) {
        match ty {
            Type::Record(fields) if !fields.is_empty() => {
                for (name, field) in fields {
                    Self::leaves(path.iter().copied().chain([name.as_str()]).collect(), &field.ty, found);
                }
            }
            _ => found.push(Self::new(path, ty)),
        }
    }

    fn new(path: Vec<&'a str>, ty: &Type) -> Self {
        Self { rule: Rule::about(&path, ty), ty: ty.to_string(), path }
    }

    fn name(&self) -> String {
        self.path.join(".")
    }

    /// How a policy reads it, and as a part of what; `None` if it does not.
    fn access(&self, policy: &Compiled) -> Option<(Read, Option<String>)> {
        match self.path.split_first()? {
            (&"context", names) => match policy.footprint.context.access(names)? {
                Access::Presence => Some((Read::Presence, None)),
                Access::Value => Some((Read::Value, None)),
                Access::PartOf(depth) => Some((Read::Value, Some(self.path.get(..=depth)?.join(".")))),
            },
            (_, names) => {
                let own = &policy.footprint;
                let named = names.first().is_some_and(|name| own.attributes.contains(*name));
                match (named, own.all_attributes) {
                    (true, _) => Some((Read::Value, None)),
                    (false, true) => Some((Read::Value, Some("principal".to_owned()))),
                    (false, false) => None,
                }
            }
        }
    }
}

// === The report ===

/// Actions with the same places, while they are collected.
#[derive(Default)]
struct Group<'a> {
    actions: Vec<&'a EntityUid>,
    /// For each place: the policies, by their number in the list, with the actions that they are about.
    readers: Vec<BTreeMap<usize, Vec<&'a EntityUid>>>,
}

impl Base {
    /// As [`Snapshot::footprints`](super::Snapshot::footprints) says.
    pub(super) fn footprints(&self) -> Vec<FootprintSummary> {
        let mut groups: BTreeMap<Vec<KeyAttribute<'_>>, Group<'_>> = BTreeMap::new();
        for (uid, side, action) in self.reported() {
            let places = KeyAttribute::all(action, self.routes.pin_path(uid, self.types.vocabulary()));
            let readers = self.readers(side, &places);
            let group = groups.entry(places).or_default();
            group.actions.push(uid);
            group.readers.resize_with(readers.len(), BTreeMap::new);
            for (known, own) in group.readers.iter_mut().zip(readers) {
                own.into_iter().for_each(|at| known.entry(at).or_default().push(uid));
            }
        }
        let mut all: Vec<FootprintSummary> =
            groups.into_iter().map(|(places, group)| self.summarize(places, group)).collect();
        // Stable, so that equals stay in the order of their places.
        all.sort_by_key(|footprint| std::cmp::Reverse(footprint.hits));
        all
    }

    /// Warnings of places that keep the cache from being of use: one for each place, at the first policy that reads it.
    /// `origin` gives the file of a policy or template, and its place in that.
    pub(super) fn warn_of_keys<'p>(&self, origin: impl Fn(&PolicyId) -> Option<Found<'p>>) -> Vec<Problem> {
        let mut found: BTreeMap<KeyAttribute<'_>, (Vec<&EntityUid>, BTreeSet<usize>)> = BTreeMap::new();
        for (uid, side, action) in self.reported() {
            let mut places = KeyAttribute::all(action, self.routes.pin_path(uid, self.types.vocabulary()));
            places.retain(|place| place.rule.is_some_and(|rule| rule.hits >= Hits::Few));
            let readers = self.readers(side, &places);
            for (place, readers) in places.into_iter().zip(readers) {
                let (actions, known) = found.entry(place).or_default();
                actions.push(uid);
                known.extend(readers);
            }
        }
        let problems = found.into_iter().filter_map(|(place, (actions, readers))| {
            let (rule, first) = (place.rule?, self.policies.get(*readers.first()?)?);
            let message = format!(
                "{} {} `{}`, {}: decisions about {} are {}",
                and_more(&format!("`{}`", first.id), readers.len(), "policy", "policies"),
                if readers.len() > 1 { "read" } else { "reads" },
                place.name(),
                rule.why,
                and_more(&actions.first()?.to_string(), actions.len(), "action", "actions"),
                if rule.hits == Hits::None { "not remembered" } else { "hardly ever found in the cache" },
            );
            let problem =
                Problem::warning(message).hint(format!("{}; `stockade footprint` shows all keys", rule.advice));
            Some(problem.at_known(origin(first.template.as_ref().unwrap_or(&first.id))))
        });
        problems.collect()
    }

    /// Actions that no route leads to, and routes that lead to actions that no policy is about, if there are routes.
    /// Methods are the actions of requests that no route matches.
    pub(super) fn warn_of_routes<'p>(&self, declared: impl Fn(&EntityUid) -> Option<Found<'p>>) -> Vec<Problem> {
        if self.routes.is_empty() {
            return Vec::new();
        }
        let problem = |(uid, side, _)| match self.routes.lead(uid) {
            // A request that no route names may have it.
            None if self.types.vocabulary().is_fallback(uid) => None,
            None => {
                let problem = Problem::warning(format!("no route leads to {uid}, so no request has it"))
                    .hint("add a route to routes.yaml, or remove the action from the schema");
                Some(problem.at_known(declared(uid)))
            }
            Some(_) if self.policies.iter().any(|policy| policy.is_about(side)) => None,
            Some(first) => Some(Problem::info(format!(
                "no policy is about {uid}: the requests of route `{}` of bundle `{}` are denied",
                first.pattern, first.bundle
            ))),
        };
        self.reported().filter_map(problem).collect()
    }

    /// The actions that a request can have, sorted.
    fn reported(&self) -> impl Iterator<Item = (&EntityUid, Side<'_>, &ActionType)> {
        let sides: BTreeMap<_, Side<'_>> = self.entities.actions().map(Side::of).map(|side| (side.uid, side)).collect();
        self.types.action_ids().into_iter().filter_map(move |uid| {
            let action = self.types.action(uid).filter(|action| action.applies())?;
            Some((uid, *sides.get(uid.as_ref())?, action))
        })
    }

    /// For each of an action's places, which are sorted: the policies about the action that read it, by their number in
    /// the list. Asks each policy what it reads, not each place who reads it: most policies read few places.
    fn readers(&self, action: Side<'_>, places: &[KeyAttribute<'_>]) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); places.len()];
        if places.is_empty() {
            return readers;
        }
        let paths: Vec<&[&str]> = places.iter().map(|place| place.path.as_slice()).collect();
        for (at, policy) in self.policies.iter().enumerate().filter(|(_, policy)| policy.is_about(action)) {
            for read in policy.footprint.places(&paths) {
                readers.get_mut(read).into_iter().for_each(|known| known.push(at));
            }
        }
        readers
    }

    fn summarize(&self, places: Vec<KeyAttribute<'_>>, group: Group<'_>) -> FootprintSummary {
        let Group { actions, readers } = group;
        let places: Vec<PlaceSummary> = places
            .iter()
            .zip(readers)
            .map(|(place, readers)| {
                let policies: Vec<PolicyRead> = readers
                    .into_iter()
                    .filter_map(|(at, about)| {
                        let policy = self.policies.get(at)?;
                        let (read, as_part_of) = place.access(policy)?;
                        let only_for = if about.len() < actions.len() { about } else { Vec::new() };
                        Some(PolicyRead {
                            id: policy.id.to_string(),
                            file: policy.file.clone(),
                            read,
                            as_part_of,
                            all_actions: policy.is_about_all_actions(),
                            only_for: only_for.iter().map(ToString::to_string).collect(),
                        })
                    })
                    .collect();
                PlaceSummary {
                    place: place.name(),
                    ty: place.ty.clone(),
                    read: policies.iter().map(|reader| reader.read).max().unwrap_or(Read::Presence),
                    hits: place.rule.map_or(Hits::Usual, |rule| rule.hits),
                    why: place.rule.map(|rule| rule.why),
                    advice: place.rule.map(|rule| rule.advice),
                    policies,
                }
            })
            .collect();
        FootprintSummary {
            hits: places.iter().map(|place| place.hits).max().unwrap_or(Hits::Usual),
            actions: actions.iter().map(ToString::to_string).collect(),
            places,
        }
    }
}

impl Hits {
    /// The words for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usual => "as usual",
            Self::Fewer => "fewer",
            Self::Few => "few",
            Self::None => "none: its decisions are not remembered",
        }
    }
}

/// `a`, `a and 1 more thing`, or `a and 2 more things`.
fn and_more(first: &str, count: usize, one: &str, many: &str) -> String {
    match count.saturating_sub(1) {
        0 => first.to_owned(),
        1 => format!("{first} and 1 more {one}"),
        more => format!("{first} and {more} more {many}"),
    }
}
