//! The names that Stockade brings along, and what they mean beside those of the bundles (docs/decisions/0007-names.md).
//!
//! Cedar does not let a namespace declare a name that stands at the top level as well, and most schemas declare a `User`
//! of their own. So a name of ours is there only where no bundle declares it, and what a bundle declares is the bundle's
//! alone: nothing of ours becomes a member of it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use cedar_policy::SchemaFragment;
use deserr::Deserr;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::Files;
use super::core::with_causes;
use super::mentions::Mentions;
use super::pattern::METHODS;
use crate::model::{EntityId, EntityTypeName, EntityUid};
use crate::problem::Problem;
use crate::yaml::Faults;

/// The schema of our names, all in the namespace `Stockade`.
pub const BASE: &str = include_str!("../../policies/base.cedarschema");

/// The namespace that is ours, in which no bundle may declare anything.
const NAMESPACE: &str = "Stockade";

/// What becomes of requests that no route names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum Unrouted {
    /// They are denied.
    Deny,
    /// Their action is their method, on the service.
    Base,
}

/// What our names mean in one snapshot.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Our names of entity types that mean another one here.
    moved: Vec<(EntityTypeName, EntityTypeName)>,
    /// The action of each method, for requests that no route names; empty if they are denied.
    methods: Vec<(&'static str, EntityUid)>,
    /// Our actions of methods that apply to nothing, since such requests are denied.
    unreachable: Vec<EntityUid>,
    /// Whether HEAD has the action of GET, as no bundle speaks of HEAD (RFC 9110, 9.3.2: it is GET without the body).
    head_is_get: bool,
}

impl Vocabulary {
    /// The entity type that a name stands for: itself, unless it is one of ours that means another one here.
    pub fn resolve<'a>(&'a self, name: &'a EntityTypeName) -> &'a EntityTypeName {
        self.moved.iter().find(|(short, _)| short == name).map_or(name, |(_, meant)| meant)
    }

    /// Our names that mean another type here, each with that.
    pub(super) fn moved(&self) -> impl Iterator<Item = &(EntityTypeName, EntityTypeName)> {
        self.moved.iter()
    }

    /// The action of a request that no route names; `None` if it is denied.
    pub fn method(&self, method: &str) -> Option<&EntityUid> {
        let method = if method == "HEAD" && self.head_is_get { "GET" } else { method };
        self.methods.iter().find(|(candidate, _)| *candidate == method).map(|(_, action)| action)
    }

    /// The action that a denial of this one is about: that of GET for HEAD, where no request has an action of HEAD.
    pub(super) fn denied<'a>(&'a self, action: &'a EntityUid) -> &'a EntityUid {
        let own = self.methods.iter().find(|(_, own)| own == action).map(|(method, _)| *method);
        own.and_then(|method| self.method(method)).unwrap_or(action)
    }

    /// Whether requests that no route names may have this action.
    pub fn is_fallback(&self, action: &EntityUid) -> bool {
        self.methods.iter().any(|(_, own)| own == action)
    }

    /// Whether this is an action of ours that no request has, because requests that no route names are denied.
    pub fn is_unreachable(&self, action: &EntityUid) -> bool {
        self.unreachable.contains(action)
    }
}

// === What bundles say ===

/// A name that a schema fragment declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Declared {
    namespace: String,
    kind: NameKind,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameKind {
    EntityType,
    CommonType,
    Action,
}

/// The parts of a schema in Cedar's JSON form.
const SECTIONS: [(&str, NameKind); 3] =
    [("entityTypes", NameKind::EntityType), ("commonTypes", NameKind::CommonType), ("actions", NameKind::Action)];

impl std::fmt::Display for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            NameKind::EntityType => "entity type",
            NameKind::CommonType => "common type",
            NameKind::Action => "action",
        };
        let separator = if self.namespace.is_empty() { "" } else { "::" };
        write!(f, "{kind} `{}{separator}{}`", self.namespace, self.name)
    }
}

/// The names that a fragment declares: entity types, common types and actions, each with its namespace.
///
/// # Errors
/// If Cedar cannot give the fragment in its JSON form, in which these are read.
pub fn declared(fragment: &SchemaFragment) -> Result<Vec<Declared>, String> {
    let json = fragment.clone().to_json_value().map_err(|error| with_causes(&error))?;
    let namespaces = json.as_object().ok_or("it is not an object of namespaces in Cedar's JSON form")?;
    let mut all = Vec::new();
    for (namespace, body) in namespaces {
        for (section, kind) in SECTIONS {
            let names = body.get(section).and_then(Json::as_object).into_iter().flat_map(Map::keys);
            all.extend(names.map(|name| Declared { namespace: namespace.clone(), kind, name: name.clone() }));
        }
    }
    Ok(all)
}

impl Declared {
    /// What is wrong with declaring this, if anything.
    pub fn reserved(&self) -> Option<Problem> {
        let first = self.namespace.split("::").next().unwrap_or_default();
        (first == NAMESPACE).then(|| {
            Problem::error(format!("{self} is declared in the namespace `{NAMESPACE}`, which is Stockade's own"))
                .hint("declare it at the top level, or in a namespace of yours")
        })
    }
}

/// What bundles want of our names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Names that a bundle writes in full, such as `Stockade::User`: types by name, actions by id.
    full: BTreeSet<String>,
    /// Whether a bundle speaks of HEAD as an action of its own.
    head: bool,
    /// What becomes of requests that no route names.
    pub unrouted: Unrouted,
}

impl Wanted {
    /// What these bundles want: a name of ours in full, wherever one of them uses it, means that it is wanted there.
    pub fn by(bundles: &[Files], unrouted: Unrouted) -> Self {
        let mut mentions = Mentions::default();
        bundles.iter().for_each(|bundle| mentions.add(bundle));
        let action = |namespace: &str| qualified(namespace, "Action");
        let is_full = |kind: NameKind, name: &str| match kind {
            NameKind::Action => mentions.has_entity(&action(NAMESPACE), name),
            NameKind::EntityType | NameKind::CommonType => mentions.has_type(&qualified(NAMESPACE, name)),
        };
        let full = ours().filter(|(_, kind, name)| is_full(*kind, name)).map(|(_, _, name)| name.to_owned());
        let head = ["", NAMESPACE].iter().any(|namespace| mentions.has_entity(&action(namespace), "HEAD"));
        Self { full: full.collect(), head, unrouted }
    }

    /// Names of ours that one bundle writes in full while another declares them at the top level, where Cedar lets only
    /// one of the two stand.
    pub fn conflicts(&self, declared: &[Declared]) -> Vec<Problem> {
        let top = declared.iter().filter(|own| own.namespace.is_empty() && self.full.contains(&own.name));
        let problem = |own: &Declared| {
            Problem::error(format!("{own} is declared, and `{NAMESPACE}::{}` is used beside it", own.name))
                .hint("declare yours in a namespace, or use yours alone")
        };
        top.map(problem).collect()
    }
}

/// The base schema in Cedar's JSON form.
static JSON: LazyLock<Json> = LazyLock::new(|| {
    let parsed = SchemaFragment::from_cedarschema_str(BASE).ok();
    let json = parsed.and_then(|(base, _)| base.to_json_value().ok());
    json.and_then(|mut json| json.get_mut(NAMESPACE).map(Json::take)).unwrap_or(Json::Null)
});

/// Our names.
fn ours() -> impl Iterator<Item = (&'static str, NameKind, &'static str)> {
    SECTIONS.into_iter().flat_map(|(section, kind)| {
        let names = JSON.get(section).and_then(Json::as_object).into_iter().flat_map(Map::keys);
        names.map(move |name| (section, kind, name.as_str()))
    })
}

// === Where each name stands ===

/// Where a name of ours stands in a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Home {
    /// In this namespace, declared by us.
    Ours(&'static str),
    /// In this namespace, declared by a bundle.
    Theirs(String),
    /// Nowhere: a bundle uses it for something else.
    Nowhere,
}

struct Homes<'a> {
    declared: &'a [Declared],
    wanted: &'a Wanted,
}

impl Homes<'_> {
    fn of(&self, kind: NameKind, name: &str) -> Home {
        if self.wanted.full.contains(name) {
            return Home::Ours(NAMESPACE);
        }
        let is_action = kind == NameKind::Action;
        let same: Vec<&Declared> = self
            .declared
            .iter()
            .filter(|own| own.name == name && (own.kind == NameKind::Action) == is_action)
            .collect();
        let top = same.iter().find(|own| own.namespace.is_empty());
        match (top, same.as_slice()) {
            (Some(own), _) if own.kind == kind => Home::Theirs(String::new()),
            // A type of another kind has the name, and Cedar would call ours its shadow.
            (Some(_), _) => Home::Nowhere,
            (None, []) => Home::Ours(""),
            // The one entity type of that name is what people mean by it. An action of a bundle needs a route.
            (None, [own]) if own.kind == kind && kind == NameKind::EntityType => Home::Theirs(own.namespace.clone()),
            // At the top level, ours would be shadowed.
            (None, _) => Home::Ours(NAMESPACE),
        }
    }

    /// The full name of a type of ours, as it is to be written in the schema.
    fn full_name(&self, kind: NameKind, name: &str) -> Option<String> {
        match self.of(kind, name) {
            Home::Ours(namespace) => Some(qualified(namespace, name)),
            Home::Theirs(namespace) => Some(qualified(&namespace, name)),
            Home::Nowhere => None,
        }
    }

    /// The full names of those types in a list that are there; with `ours`, without those of bundles.
    fn types(&self, names: Option<&Json>, ours: bool) -> Json {
        let names = names.and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        let kept = names.filter(|name| !ours || matches!(self.of(NameKind::EntityType, name), Home::Ours(_)));
        kept.filter_map(|name| self.full_name(NameKind::EntityType, name)).collect()
    }

    /// A declaration of ours, with the names in it as they are here.
    fn declaration(&self, kind: NameKind, body: &Json) -> Json {
        let mut body = body.clone();
        match kind {
            NameKind::CommonType => {}
            NameKind::EntityType => {
                if let Some(parents) = body.get_mut("memberOfTypes") {
                    *parents = self.types(Some(parents), true);
                }
            }
            NameKind::Action => self.action(&mut body),
        }
        body
    }

    fn action(&self, body: &mut Json) {
        if let Some(groups) = body.get_mut("memberOf") {
            let ids =
                groups.as_array().into_iter().flatten().filter_map(|group| group.get("id").and_then(Json::as_str));
            let kept = ids.filter_map(|id| match self.of(NameKind::Action, id) {
                Home::Ours(namespace) => Some(json!({"id": id, "type": qualified(namespace, "Action")})),
                Home::Theirs(_) | Home::Nowhere => None,
            });
            *groups = kept.collect();
        }
        if let Some(applies) = body.get_mut("appliesTo") {
            *applies = match self.wanted.unrouted {
                Unrouted::Base => json!({
                    "principalTypes": self.types(applies.get("principalTypes"), false),
                    "resourceTypes": self.types(applies.get("resourceTypes"), false),
                    // Written out, since a bundle may use the name of the type for something else.
                    "context": JSON.pointer("/commonTypes/Http"),
                }),
                Unrouted::Deny => json!({"principalTypes": [], "resourceTypes": []}),
            };
        }
    }
}

fn qualified(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}::{name}") }
}

/// Our part of the schema beside what bundles declare, and what our names mean with it.
///
/// # Errors
/// If the base schema that this program was built with is broken.
pub fn beside(declared: &[Declared], wanted: &Wanted) -> Result<(SchemaFragment, Vocabulary), String> {
    let homes = Homes { declared, wanted };
    let mut schema = Map::new();
    let mut vocabulary = Vocabulary::default();
    for (section, kind, name) in ours() {
        let home = homes.of(kind, name);
        if let (Home::Ours(namespace), Some(own)) = (&home, JSON.get(section).and_then(|names| names.get(name))) {
            let space = schema
                .entry(*namespace)
                .or_insert_with(|| json!({"entityTypes": {}, "actions": {}, "commonTypes": {}}));
            if let Some(names) = space.get_mut(section).and_then(Json::as_object_mut) {
                names.insert(name.to_owned(), homes.declaration(kind, own));
            }
        }
        match kind {
            NameKind::EntityType => {
                let meant = homes.full_name(kind, name).filter(|meant| meant != name);
                if let Some(meant) = meant {
                    let short = name.parse().map_err(|error| format!("{name}: {error}"))?;
                    let meant = meant.parse().map_err(|error| format!("{meant}: {error}"))?;
                    vocabulary.moved.push((short, meant));
                }
            }
            NameKind::Action => {
                vocabulary.add_action(name, &home, wanted.unrouted)?;
                let is_theirs = matches!(home, Home::Theirs(_));
                vocabulary.head_is_get |= name == "HEAD" && !is_theirs && !wanted.head;
            }
            NameKind::CommonType => {}
        }
    }
    let fragment = SchemaFragment::from_json_value(Json::Object(schema)).map_err(|error| error.to_string())?;
    Ok((fragment, vocabulary))
}

impl Vocabulary {
    fn add_action(&mut self, name: &str, home: &Home, unrouted: Unrouted) -> Result<(), String> {
        let Some(method) = METHODS.into_iter().find(|method| *method == name) else { return Ok(()) };
        let namespace = match home {
            Home::Ours(namespace) => namespace,
            Home::Theirs(namespace) => namespace.as_str(),
            Home::Nowhere => return Ok(()),
        };
        let kind = qualified(namespace, "Action").parse().map_err(|error| format!("{namespace}: {error}"))?;
        let action = EntityUid::from_type_name_and_id(kind, EntityId::new(name));
        match (unrouted, home) {
            (Unrouted::Base, _) => self.methods.push((method, action)),
            (Unrouted::Deny, Home::Ours(_)) => self.unreachable.push(action),
            (Unrouted::Deny, _) => {}
        }
        Ok(())
    }
}

/// The action under which a request that no route names is denied and recorded: in our namespace, where no action
/// applies to anything as long as such requests are denied.
#[expect(clippy::expect_used, reason = "a literal that is a name; every test of unrouted requests would fail")]
pub fn unrouted(method: &str) -> EntityUid {
    static ACTION: LazyLock<EntityTypeName> =
        LazyLock::new(|| format!("{NAMESPACE}::Action").parse().expect("an entity type"));
    EntityUid::from_type_name_and_id(ACTION.clone(), EntityId::new(method))
}
