//! From Cedar's schema to the types that a request is mapped by.
//!
//! The schema decides what a request is (design, decision 5): for each action, which principals and resources it takes
//! and which attributes its context has. Cedar resolves common types and namespaces; this file reads the result and
//! refuses what a request cannot provide, so that a typo in a schema is found when the bundle is loaded.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use cedar_policy::{Schema, SchemaFragment};
use cedar_policy_core::ast;
use cedar_policy_core::validator::types::{self, EntityKind};
use cedar_policy_core::validator::{ValidatorEntityTypeKind, ValidatorSchema};
use serde_json::{Map, Value as Json};
use smol_str::SmolStr;

use super::HashMap;
use super::footprint::Footprint;
use crate::model::{
    AttributeType, Choices, ContextType, EntityType, EntityTypeName, EntityUid, Extension, RecordType, Root, Type,
};
use crate::yaml::suggest;

/// The base schema, which every bundle builds on.
pub const BASE: &str = include_str!("../../policies/base.cedarschema");

/// What the schema says of each action and each entity type.
#[derive(Debug, Clone, Default)]
pub struct Types {
    actions: HashMap<EntityUid, ActionType>,
    entities: HashMap<EntityTypeName, RecordType>,
    enums: Enums,
    /// What entities of a type can be in, directly or through others.
    ancestors: HashMap<EntityTypeName, Vec<EntityTypeName>>,
}

/// The entity types that list their ids.
type Enums = HashMap<EntityTypeName, Choices>;

/// What an action takes, and what its policies can read of it.
#[derive(Debug, Clone, Default)]
pub struct ActionType {
    principals: Vec<EntityTypeName>,
    resources: Vec<EntityTypeName>,
    /// What its context is made of, as declared.
    pub declared: ContextType,
    /// What its context is made of, cut down to the footprint: what is mapped, evaluated and remembered.
    pub context: ContextType,
    /// The attributes that are read of its types of principals, likewise cut down.
    attributes: HashMap<EntityTypeName, RecordType>,
    /// What its policies can read.
    pub footprint: Footprint,
    /// Identity of the footprint.
    pub fingerprint: [u8; 16],
}

impl ActionType {
    fn new(principals: Vec<EntityTypeName>, resources: Vec<EntityTypeName>, declared: ContextType) -> Self {
        Self { principals, resources, declared, ..Self::default() }
    }

    fn narrow(&mut self, footprint: Footprint, entities: &HashMap<EntityTypeName, RecordType>) {
        let cut = |name: &EntityTypeName| {
            let fields = entities.get(name).map(|fields| footprint.cut_entity(fields)).unwrap_or_default();
            (name.clone(), fields)
        };
        self.attributes = self.principals.iter().map(cut).collect();
        self.context = footprint.cut_context(&self.declared);
        self.fingerprint = footprint.fingerprint();
        self.footprint = footprint;
    }

    /// Whether the action is declared for these types of principal and resource.
    pub fn applies_to(&self, principal: &EntityTypeName, resource: &EntityTypeName) -> bool {
        self.principals.contains(principal) && self.takes_resource(resource)
    }

    /// The attributes of a type of principal that the action's policies can read; `None` if it does not take that type.
    pub fn principal(&self, name: &EntityTypeName) -> Option<&RecordType> {
        self.attributes.get(name)
    }

    /// The attributes of all its types of principals that the action's policies can read.
    pub fn attributes(&self) -> impl Iterator<Item = (&SmolStr, &AttributeType)> {
        self.attributes.values().flatten()
    }

    /// Whether the action applies to anything; one that does not is a group of others.
    pub fn applies(&self) -> bool {
        !self.principals.is_empty() && !self.resources.is_empty()
    }

    /// Whether the action is declared for this type of resource.
    pub fn takes_resource(&self, resource: &EntityTypeName) -> bool {
        self.resources.contains(resource)
    }
}

impl Types {
    /// Reads a complete schema.
    ///
    /// # Errors
    /// One message for each attribute that a request cannot provide.
    pub fn read(schema: &Schema) -> Result<Self, Vec<String>> {
        let schema: &ValidatorSchema = schema.as_ref();
        let mut types = Self { enums: enums(schema), ancestors: ancestors(schema), ..Self::default() };
        let mut faults = Vec::new();
        for action in schema.action_ids() {
            let uid = EntityUid::from(action.name().clone());
            let attributes = match action.context_type() {
                Some(ty) => record(ty, &types.enums, &format!("context of {uid}"), &mut faults),
                None => RecordType::new(),
            };
            let context = attributes
                .into_iter()
                .filter_map(|(name, attribute)| root(&uid, &name, attribute, &mut faults))
                .collect();
            let principals = action.applies_to_principals().cloned().map(EntityTypeName::from).collect();
            let resources = action.applies_to_resources().cloned().map(EntityTypeName::from).collect();
            types.actions.insert(uid, ActionType::new(principals, resources, context));
        }
        for entity in schema.entity_types() {
            let name = EntityTypeName::from(entity.name().clone());
            let attributes = attributes(entity.attributes(), &types.enums, &name.to_string(), &mut faults);
            types.entities.insert(name, attributes);
        }
        faults.sort();
        faults.dedup();
        if faults.is_empty() { Ok(types) } else { Err(faults) }
    }

    /// Cuts each action's types down to what `footprint` says of it.
    pub(super) fn narrow(&mut self, footprint: impl Fn(&EntityUid) -> Footprint) {
        for (uid, action) in &mut self.actions {
            action.narrow(footprint(uid), &self.entities);
        }
    }

    /// What an action takes; `None` if the schema does not declare it.
    pub fn action(&self, uid: &EntityUid) -> Option<&ActionType> {
        self.actions.get(uid)
    }

    /// The attributes of an entity type; `None` if the schema does not declare it.
    pub fn entity(&self, name: &EntityTypeName) -> Option<&RecordType> {
        self.entities.get(name)
    }

    /// Whether there can be an entity with this id: those of an enum are listed.
    pub fn admits(&self, uid: &EntityUid) -> bool {
        // Most schemas have no enum, and then nothing is looked up.
        self.enums.is_empty()
            || self.enums.get(uid.type_name()).is_none_or(|choices| choices.contains(uid.id().unescaped()))
    }

    /// What entities of a type can be in; `None` if the schema does not declare the type.
    pub fn ancestors(&self, name: &EntityTypeName) -> Option<&[EntityTypeName]> {
        self.ancestors.get(name).map(Vec::as_slice)
    }

    /// All actions, sorted, for hints.
    pub fn action_ids(&self) -> Vec<&EntityUid> {
        let mut ids: Vec<&EntityUid> = self.actions.keys().collect();
        ids.sort_unstable();
        ids
    }
}

// === Merging with the base schema ===

/// The names that a fragment declares: entity types, common types and actions, each with its namespace.
pub fn declared(fragment: &SchemaFragment) -> Vec<Declared> {
    let Ok(Json::Object(namespaces)) = fragment.clone().to_json_value() else { return Vec::new() };
    let mut all = Vec::new();
    for (namespace, body) in &namespaces {
        for (section, kind) in SECTIONS {
            let names = body.get(section).and_then(Json::as_object).into_iter().flat_map(Map::keys);
            all.extend(names.map(|name| Declared { namespace: namespace.clone(), kind, name: name.clone() }));
        }
    }
    all
}

/// A name that a schema fragment declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Declared {
    namespace: String,
    kind: &'static str,
    name: String,
}

impl std::fmt::Display for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.namespace.is_empty() { "" } else { "::" };
        write!(f, "{} `{}{separator}{}`", self.kind, self.namespace, self.name)
    }
}

const SECTIONS: [(&str, &str); 3] =
    [("entityTypes", "entity type"), ("commonTypes", "common type"), ("actions", "action")];

/// The base schema without the names that a bundle declares itself.
///
/// # Errors
/// If the base schema that this program was built with is broken.
pub fn base_without(own: &[Declared]) -> Result<SchemaFragment, String> {
    static JSON: LazyLock<Result<Json, String>> = LazyLock::new(|| {
        let (base, _) = SchemaFragment::from_cedarschema_str(BASE).map_err(|error| error.to_string())?;
        base.to_json_value().map_err(|error| error.to_string())
    });
    let mut json = JSON.clone()?;
    for Declared { namespace, kind, name } in own {
        let section = SECTIONS.iter().find(|(_, candidate)| candidate == kind).map(|(section, _)| *section);
        let names = section.and_then(|section| json.get_mut(namespace)?.get_mut(section)).and_then(Json::as_object_mut);
        if let Some(names) = names {
            names.remove(name);
        }
    }
    SchemaFragment::from_json_value(json).map_err(|error| error.to_string())
}

// === Reading Cedar's types ===

fn enums(schema: &ValidatorSchema) -> Enums {
    let listed = schema.entity_types().filter_map(|entity| match &entity.kind {
        ValidatorEntityTypeKind::Enum(choices) => {
            let choices = choices.iter().map(|id| SmolStr::new(AsRef::<str>::as_ref(id))).collect();
            Some((EntityTypeName::from(entity.name().clone()), Choices::new(choices)))
        }
        _ => None,
    });
    listed.collect()
}

/// Cedar keeps, for each type, what can be in it; a request needs what its principal can be in.
fn ancestors(schema: &ValidatorSchema) -> HashMap<EntityTypeName, Vec<EntityTypeName>> {
    let name = |name: &ast::EntityType| EntityTypeName::from(name.clone());
    let mut all: HashMap<_, Vec<_>> = schema.entity_types().map(|own| (name(own.name()), Vec::new())).collect();
    for group in schema.entity_types() {
        for member in &group.descendants {
            all.entry(name(member)).or_default().push(name(group.name()));
        }
    }
    all
}

fn record(ty: &types::Type, enums: &Enums, place: &str, faults: &mut Vec<String>) -> RecordType {
    match ty {
        types::Type::Record { attrs, .. } => attributes(attrs, enums, place, faults),
        _ => RecordType::new(),
    }
}

fn attributes(attributes: &types::Attributes, enums: &Enums, place: &str, faults: &mut Vec<String>) -> RecordType {
    let mut record = BTreeMap::new();
    for (name, attribute) in attributes.iter() {
        if let Some(ty) = read(&attribute.attr_type, enums, &format!("{place}.{name}"), faults) {
            record.insert(name.clone(), AttributeType { ty, required: attribute.is_required });
        }
    }
    record
}

fn read(ty: &types::Type, enums: &Enums, place: &str, faults: &mut Vec<String>) -> Option<Type> {
    match ty {
        types::Type::Bool(_) => Some(Type::Bool),
        types::Type::Long => Some(Type::Long),
        types::Type::String => Some(Type::String),
        types::Type::Set { element_type: Some(member) } => {
            read(member, enums, place, faults).map(|member| Type::Set(Box::new(member)))
        }
        types::Type::Record { attrs, .. } => Some(Type::Record(attributes(attrs, enums, place, faults))),
        types::Type::Entity(EntityKind::Entity(lub)) => {
            let single: Option<&ast::EntityType> = lub.get_single_entity();
            single.map(|name| {
                let name = EntityTypeName::from(name.clone());
                Type::Entity(EntityType { choices: enums.get(&name).cloned(), name })
            })
        }
        types::Type::ExtensionType { name } => {
            let known = [Extension::Ipaddr, Extension::Decimal, Extension::Datetime, Extension::Duration];
            known.into_iter().find(|extension| extension.as_str() == name.to_string()).map(Type::Extension)
        }
        _ => None,
    }
    .or_else(|| {
        faults.push(format!("`{place}` has a type that Stockade does not know"));
        None
    })
}

// === What a context can be built from ===

/// The root that an attribute of a context stands for, if a request can provide it in this type.
fn root(
    action: &EntityUid,
    name: &str,
    attribute: AttributeType,
    faults: &mut Vec<String>,
) -> Option<(Root, AttributeType)> {
    let place = format!("context.{name}");
    let Some(root) = Root::ALL.into_iter().find(|root| root.as_str() == name) else {
        let known: Vec<&str> = Root::ALL.iter().map(|root| root.as_str()).collect();
        faults.push(format!("`{place}` of {action} is not something a request has; {}", suggest(name, &known)));
        return None;
    };
    let before = faults.len();
    provided(root, &place, &attribute.ty, faults);
    (faults.len() == before).then_some((root, attribute))
}

const PEER: [(&str, &str); 4] =
    [("address", "ipaddr"), ("certificate", "String"), ("port", "Long"), ("principal", "String")];

/// Reports where a type asks for something that the root cannot provide.
fn provided(root: Root, place: &str, ty: &Type, faults: &mut Vec<String>) {
    match root {
        Root::Method | Root::Path | Root::Host | Root::Scheme | Root::Protocol | Root::Identity => {
            exactly("String", place, ty, faults);
        }
        Root::BodyPartial => exactly("Bool", place, ty, faults),
        Root::BodySize => exactly("Long", place, ty, faults),
        Root::Time => exactly("datetime", place, ty, faults),
        Root::Source => parts(&PEER, place, ty, faults),
        Root::Destination => {
            let own = [PEER.as_slice(), &[("labels", "record")]].concat();
            parts(&own, place, ty, faults);
            if let Type::Record(fields) = ty
                && let Some(labels) = fields.get("labels")
            {
                texts(&format!("{place}.labels"), &labels.ty, faults);
            }
        }
        Root::Tls => parts(&[("sni", "String")], place, ty, faults),
        Root::Grpc => parts(&[("method", "String"), ("service", "String")], place, ty, faults),
        Root::Headers => {
            texts(place, ty, faults);
            if let Type::Record(fields) = ty {
                // Apps cannot tell the two, so Envoy and the mapping refuse the one with `_`.
                let doubles = fields.keys().filter(|name| name.contains('_'));
                faults.extend(doubles.map(|name| {
                    format!(
                        "`{place}.{name}` has a `_`, which apps take for `-`; name the header `{}`",
                        name.replace('_', "-")
                    )
                }));
            }
        }
        Root::Query | Root::Params | Root::Extensions => texts(place, ty, faults),
        Root::Metadata | Root::RouteMetadata => match ty {
            Type::Record(namespaces) if namespaces.values().all(|space| matches!(space.ty, Type::Record(_))) => {}
            _ => faults.push(format!("`{place}` must be a record of records: namespaces, and what they hold")),
        },
        Root::Body | Root::Claims => {
            if !matches!(ty, Type::Record(_)) {
                faults.push(format!("`{place}` must be a record, not `{ty}`"));
            }
        }
    }
}

fn exactly(expected: &str, place: &str, ty: &Type, faults: &mut Vec<String>) {
    if ty.to_string() != expected {
        faults.push(format!("`{place}` is a `{expected}`, not `{ty}`"));
    }
}

/// A record with these attributes and no others.
fn parts(known: &[(&str, &str)], place: &str, ty: &Type, faults: &mut Vec<String>) {
    let Type::Record(fields) = ty else {
        faults.push(format!("`{place}` must be a record, not `{ty}`"));
        return;
    };
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    for (name, field) in fields {
        match known.iter().find(|(candidate, _)| candidate == name) {
            Some((_, expected)) => exactly(expected, &format!("{place}.{name}"), &field.ty, faults),
            None => faults.push(format!("`{place}.{name}` does not exist; {}", suggest(name, &names))),
        }
    }
}

/// A record of values that can be read from a text, or of sets of them.
fn texts(place: &str, ty: &Type, faults: &mut Vec<String>) {
    let Type::Record(fields) = ty else {
        faults.push(format!("`{place}` must be a record, not `{ty}`"));
        return;
    };
    for (name, field) in fields {
        let member = if let Type::Set(member) = &field.ty { member } else { &field.ty };
        if matches!(member, Type::Set(_) | Type::Record(_)) {
            faults.push(format!("`{place}.{name}` is a text on the wire and cannot become `{}`", field.ty));
        }
    }
}
