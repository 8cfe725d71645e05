//! Between the two crates of Cedar: what its API gives as its core has it, and its errors with their causes.

use cedar_policy::{Policy, Template};
use cedar_policy_core::ast::{self, EntityType, EntityUID};

use crate::model::{EntityTypeName, EntityUid};

/// The id of an entity.
pub(super) fn core(uid: &EntityUid) -> &EntityUID {
    uid.as_ref()
}

/// The name of an entity type.
pub(super) fn core_type(name: &EntityTypeName) -> &EntityType {
    name.as_ref()
}

/// A policy.
pub(super) fn core_policy(policy: &Policy) -> &ast::Policy {
    policy.as_ref()
}

/// A template.
pub(super) fn core_template(template: &Template) -> &ast::Template {
    template.as_ref()
}

/// The message of an error with those of its causes: Cedar's errors say little, and their causes say which entity, attribute or slot.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    message
}
