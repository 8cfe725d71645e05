//! From Cedar's schema to the types that a request is mapped by.
//!
//! The schema decides what a request is (design, decision 5): for each action, which principals and resources it takes
//! and which attributes its context has. Cedar resolves common types and namespaces; this file reads the result and
//! refuses what a request cannot provide, so that a typo in a schema is found when the bundle is loaded.

use std::collections::{BTreeMap, HashSet};

use cedar_policy::Schema;
use cedar_policy_core::ast;
use cedar_policy_core::validator::types::{self, EntityKind};
use cedar_policy_core::validator::{ValidatorEntityTypeKind, ValidatorSchema};
use smol_str::SmolStr;

use super::HashMap;
use super::footprint::Footprint;
use super::vocabulary::Vocabulary;
use crate::model::{
    AttributeType, Choices, ContextType, EntityType, EntityTypeName, EntityUid, Extension, RecordType, Root, Type,
};
use crate::yaml::suggest;

/// What the schema says of each action and each entity type.
#[derive(Debug, Clone, Default)]
pub struct Types {
    actions: HashMap<EntityUid, ActionType>,
    entities: HashMap<EntityTypeName, RecordType>,
    /// What the names mean that Stockade brings.
    vocabulary: Vocabulary,
    /// The actions that a request can have: those that apply to something, and the groups that one of them is in.
    reached: HashSet<EntityUid>,
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
    pub fn read(schema: &Schema, vocabulary: Vocabulary) -> Result<Self, Vec<String>> {
        let schema: &ValidatorSchema = schema.as_ref();
        let mut types = Self { vocabulary, enums: enums(schema), ancestors: ancestors(schema), ..Self::default() };
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
        let applies = |uid: &EntityUid| types.actions.get(uid).is_some_and(ActionType::applies);
        for action in schema.action_ids() {
            let below = action.descendants().map(|uid| EntityUid::from(uid.clone()));
            let uid = EntityUid::from(action.name().clone());
            if std::iter::once(uid.clone()).chain(below).any(|uid| applies(&uid)) {
                types.reached.insert(uid);
            }
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

    /// What the names mean that Stockade brings.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Whether a request can have this action, or one in this group.
    pub fn is_reached(&self, action: &EntityUid) -> bool {
        self.reached.contains(action)
    }

    /// The attributes of an entity type; `None` if the schema does not declare it.
    pub fn entity(&self, name: &EntityTypeName) -> Option<&RecordType> {
        self.entities.get(name)
    }

    /// What each action declares of its context.
    pub fn contexts(&self) -> impl Iterator<Item = &ContextType> {
        self.actions.values().map(|action| &action.declared)
    }

    /// The attributes of every entity type that is a principal of an action.
    pub fn principal_attributes(&self) -> impl Iterator<Item = &str> {
        let principals = self.actions.values().flat_map(|action| &action.principals);
        principals.filter_map(|name| self.entities.get(name)).flatten().map(|(name, _)| name.as_str())
    }

    /// Whether an action takes principals of this type.
    pub fn is_principal(&self, name: &EntityTypeName) -> bool {
        self.actions.values().any(|action| action.principals.contains(name))
    }

    /// Whether there can be an entity with this id: those of an enum are listed.
    pub fn admits(&self, uid: &EntityUid) -> bool {
        // Most schemas have no enum, and then nothing is looked up.
        self.enums.is_empty()
            || self.enums.get(uid.type_name()).is_none_or(|choices| choices.contains(uid.id().unescaped()))
    }

    /// The ids that an enum lists; none for other types.
    pub fn choices(&self, name: &EntityTypeName) -> impl Iterator<Item = &SmolStr> {
        self.enums.get(name).into_iter().flat_map(|choices| choices.iter())
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
        let known = match suggest(name, &known) {
            near if near.starts_with("did you mean") => near,
            // An application that calls Cedar makes its context up; here something has to carry it.
            all => format!("say what it comes with, as `context.body.{name}` or `context.claims.{name}`; {all}"),
        };
        faults.push(format!("`{place}` of {action} is not something a request has; {known}"));
        return None;
    };
    let before = faults.len();
    provided(root, &place, &attribute.ty, faults);
    (faults.len() == before).then_some((root, attribute))
}

/// Reports where a type asks for something that the root cannot provide.
fn provided(root: Root, place: &str, ty: &Type, faults: &mut Vec<String>) {
    match (root.fixed(), ty) {
        (Some(Type::Record(mut known)), _) => {
            if root == Root::Destination {
                let own = ty.fields().and_then(|fields| fields.get("labels"));
                if let Some(labels) = own {
                    texts(&format!("{place}.labels"), &labels.ty, faults);
                }
                let labels = AttributeType { ty: Type::Record(RecordType::new()), required: false };
                known.insert("labels".into(), own.cloned().unwrap_or(labels));
            }
            return parts(&known, place, ty, faults);
        }
        (Some(fixed), _) => return exactly(&fixed, place, ty, faults),
        (None, _) => {}
    }
    match root {
        Root::Headers => {
            texts(place, ty, faults);
            header_names(place, ty, faults);
        }
        Root::Query | Root::Params | Root::Extensions => texts(place, ty, faults),
        Root::Metadata | Root::RouteMetadata => match ty {
            Type::Record(namespaces) if namespaces.values().all(|space| matches!(space.ty, Type::Record(_))) => {}
            _ => faults.push(format!("`{place}` must be a record of records: namespaces, and what they hold")),
        },
        // Bodies and claims; the others are fixed.
        _ => {
            if !matches!(ty, Type::Record(_)) {
                faults.push(format!("`{place}` must be a record, not `{ty}`"));
            }
        }
    }
}

/// Reports names of headers that no request has, or that are one header.
fn header_names(place: &str, ty: &Type, faults: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    for name in ty.fields().into_iter().flat_map(|fields| fields.keys()) {
        // These are in the context by themselves, in one form whatever the version of HTTP.
        let elsewhere = match name.to_ascii_lowercase().as_str() {
            ":path" => Some("path"),
            ":method" => Some("method"),
            ":scheme" => Some("scheme"),
            ":authority" | "host" => Some("host"),
            _ => None,
        };
        if let Some(elsewhere) = elsewhere {
            faults.push(format!("`{place}` has `{name}`, which is no header here; declare `context.{elsewhere}`"));
        } else if name.contains('_') {
            // Apps cannot tell the two, so Envoy and the mapping refuse the one with `_`.
            faults.push(format!(
                "`{place}.{name}` has a `_`, which apps take for `-`; name the header `{}`",
                name.replace('_', "-")
            ));
        } else if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            faults.push(format!("`{place}` has `{name}`, which no header can be called; letters, digits and `-`"));
        } else if let Some(other) = seen.insert(name.to_ascii_lowercase(), name) {
            faults.push(format!("`{place}` has `{other}` and `{name}`, which are one header; keep one of the two"));
        }
    }
}

fn exactly(expected: &Type, place: &str, ty: &Type, faults: &mut Vec<String>) {
    if ty != expected {
        faults.push(format!("`{place}` is a `{expected}`, not `{ty}`"));
    }
}

/// A record with these attributes and no others.
fn parts(known: &RecordType, place: &str, ty: &Type, faults: &mut Vec<String>) {
    let Type::Record(fields) = ty else {
        faults.push(format!("`{place}` must be a record, not `{ty}`"));
        return;
    };
    let names: Vec<&str> = known.keys().map(SmolStr::as_str).collect();
    for (name, field) in fields {
        match known.get(name) {
            Some(expected) => exactly(&expected.ty, &format!("{place}.{name}"), &field.ty, faults),
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
            faults.push(format!("`{place}.{name}` is a string on the wire and cannot become `{}`", field.ty));
        }
    }
}
