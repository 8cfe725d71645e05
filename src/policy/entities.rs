//! The entities of the bundles, and the slice of them that one request needs.
//!
//! Cedar looks entities up in a map that owns them, and cloning or changing a large one costs milliseconds
//! (cedar-facts, 1.4). So each evaluation gets a small map of shared entities: those that its policies can reach.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{self, EntityUID, PartialValue, ValueKind};
use cedar_policy_core::entities::{Entities as CoreEntities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;

use super::core::core;
use super::value;
use crate::model::{EntityUid, Principal};

/// All entities of a snapshot, each with its ancestors in full.
#[derive(Debug, Default)]
pub struct Entities {
    entities: super::HashMap<EntityUID, Arc<ast::Entity>>,
    reach: Reach,
}

/// What policies can reach from the entities of a request.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// How many dereferences deep (Cedar's validation levels, RFC 76); `None`: without a bound.
    pub depth: Option<usize>,
    /// Entities that policies name and may dereference.
    pub literals: Vec<EntityUid>,
}

impl Entities {
    /// Takes over entities whose transitive closure is computed.
    pub fn new(entities: &cedar_policy::Entities, reach: Reach) -> Self {
        let entities: &CoreEntities = entities.as_ref();
        let entities = entities.iter().map(|entity| (entity.uid().clone(), Arc::new(entity.clone()))).collect();
        Self { entities, reach }
    }

    /// How many there are, without actions.
    pub fn len(&self) -> usize {
        self.entities.keys().filter(|uid| !uid.is_action()).count()
    }

    /// Whether the bundles know this entity.
    pub fn contains(&self, uid: &EntityUid) -> bool {
        self.entities.contains_key(core(uid))
    }

    /// The entity with this id, for a request with this principal: what is below the principal is below the groups, too,
    /// that only the request proves.
    pub fn get(&self, uid: &EntityUID, principal: &Principal, own: Option<&ast::Entity>) -> Option<Arc<ast::Entity>> {
        let mut entity = Arc::clone(self.entities.get(uid)?);
        if let Some(own) = own.filter(|own| !principal.parents.is_empty() && entity.is_descendant_of(own.uid())) {
            let raised = Arc::make_mut(&mut entity);
            own.ancestors().for_each(|ancestor| raised.add_indirect_ancestor(ancestor.clone()));
        }
        Some(entity)
    }

    /// Whether policies look at the entities that a request names, and no further.
    pub fn is_level_1(&self) -> bool {
        self.reach.depth == Some(1)
    }

    /// The entities that are in one of the two only, or differ in attributes, tags or ancestors.
    pub fn differences(&self, other: &Self) -> HashSet<EntityUID> {
        let differs = |uid: &EntityUID| match (self.entities.get(uid), other.entities.get(uid)) {
            (Some(own), Some(other)) => !Arc::ptr_eq(own, other) && !same(own, other),
            _ => true,
        };
        self.entities.keys().chain(other.entities.keys()).filter(|uid| differs(uid)).cloned().collect()
    }

    /// All actions, with their groups.
    pub fn actions(&self) -> impl Iterator<Item = &ast::Entity> {
        self.entities.values().map(Arc::as_ref).filter(|entity| entity.uid().is_action())
    }

    /// The entities that policies can reach for a request: `own` is the principal as [`Self::principal`] gave it,
    /// `frontier` is everything else that the request names.
    ///
    /// # Errors
    /// If Cedar does not take them, which would be a fault of ours.
    pub fn slice(
        &self,
        principal: &Principal,
        own: Option<Arc<ast::Entity>>,
        mut frontier: Vec<EntityUID>,
    ) -> Result<CoreEntities, String> {
        let mut slice: HashMap<EntityUID, Arc<ast::Entity>> = HashMap::new();
        frontier.extend(self.reach.literals.iter().map(|uid| core(uid).clone()));
        // At depth 1 the entities of the request are there; each step adds what their attributes refer to.
        let mut depth = 1;
        let goes_deeper = |depth: usize| self.reach.depth.is_none_or(|most| depth < most);
        if let Some(own) = &own
            && goes_deeper(depth)
        {
            frontier.extend(referred(own));
        }
        let own_uid: &EntityUID = principal.uid.as_ref();
        while !frontier.is_empty() {
            let mut next = Vec::new();
            for uid in frontier {
                if &uid == own_uid {
                    continue;
                }
                let Some(entity) = self.get(&uid, principal, own.as_deref()) else { continue };
                if goes_deeper(depth) && !slice.contains_key(&uid) {
                    next.extend(referred(&entity));
                }
                slice.insert(uid, entity);
            }
            frontier = next;
            depth += 1;
        }
        // Ancestors are part of each entity and were computed at load: nothing else is left to compute or check here.
        let all = slice.into_values().chain(own);
        CoreEntities::new()
            .add_entities(
                all,
                None::<&NoEntitiesSchema>,
                TCComputation::AssumeAlreadyComputed,
                Extensions::all_available(),
            )
            .map_err(|error| error.to_string())
    }

    /// The principal as the request proves it, merged with what the bundles know: their attributes win, parents add up.
    ///
    /// # Errors
    /// If an attribute of the principal is not a value of its type; the message says which.
    pub fn principal(&self, principal: &Principal) -> Result<Option<Arc<ast::Entity>>, String> {
        let uid: &EntityUID = principal.uid.as_ref();
        let known = self.entities.get(uid);
        if principal.attributes.is_empty() && principal.parents.is_empty() {
            return Ok(known.cloned());
        }
        let mut attributes: HashMap<_, PartialValue> = HashMap::new();
        for (name, own) in &principal.attributes {
            attributes.insert(name.clone(), PartialValue::Value(value::to_cedar(own)?));
        }
        let mut parents: HashSet<EntityUID> = principal.parents.iter().map(|parent| core(parent).clone()).collect();
        let mut ancestors: HashSet<EntityUID> = HashSet::new();
        for parent in &parents {
            ancestors.extend(self.entities.get(parent).into_iter().flat_map(|parent| parent.ancestors().cloned()));
        }
        let mut tags = Vec::new();
        if let Some(known) = known {
            attributes.extend(known.attrs().map(|(name, value)| (name.clone(), value.clone())));
            parents.extend(known.parents().cloned());
            ancestors.extend(known.indirect_ancestors().cloned());
            tags.extend(known.tags().map(|(name, value)| (name.clone(), value.clone())));
        }
        ancestors.retain(|ancestor| !parents.contains(ancestor));
        let entity = ast::Entity::new_with_attr_partial_value(uid.clone(), attributes, ancestors, parents, tags);
        Ok(Some(Arc::new(entity)))
    }
}

/// Whether an evaluation cannot tell two versions of an entity apart.
fn same(own: &ast::Entity, other: &ast::Entity) -> bool {
    let ancestors = |entity: &ast::Entity| entity.ancestors().cloned().collect::<HashSet<EntityUID>>();
    own.attrs().eq(other.attrs()) && own.tags().eq(other.tags()) && ancestors(own) == ancestors(other)
}

/// The entities that the attributes and tags of an entity refer to.
fn referred(entity: &ast::Entity) -> Vec<EntityUID> {
    let mut found = Vec::new();
    for (_, value) in entity.attrs().chain(entity.tags()) {
        if let PartialValue::Value(value) = value {
            collect(&value.value, &mut found);
        }
    }
    found
}

/// The entities that a value refers to.
pub fn collect(value: &ValueKind, found: &mut Vec<EntityUID>) {
    match value {
        ValueKind::Lit(ast::Literal::EntityUID(uid)) => found.push(uid.as_ref().clone()),
        ValueKind::Lit(_) | ValueKind::ExtensionValue(_) => {}
        ValueKind::Set(members) => members.iter().for_each(|member| collect(&member.value, found)),
        ValueKind::Record(fields) => fields.values().for_each(|field| collect(&field.value, found)),
    }
}
