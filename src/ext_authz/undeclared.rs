//! What a configuration names and no bundle declares: it would never be logged or read, and nobody would know why.

use std::collections::BTreeSet;

use smol_str::SmolStr;

use super::identity_source::IdentitySource;
use crate::claim_path::{ClaimPath, Step};
use crate::model::{ContextType, EntityId, EntityUid, Root, Type};
use crate::observe::decision_log::{Attribute, Of};
use crate::policy::Types;
use crate::problem::Problem;
use crate::yaml;

/// A warning for each attribute that nothing declares. `known` are attributes of principals that are there without a schema.
pub(super) fn undeclared(attributes: &[Attribute], types: &Types, known: &[&str]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for attribute in attributes {
        let (declared, all) = match attribute.of() {
            // The configuration has been checked for these, which are the same for all.
            Of::Context if is_fixed(attribute.path()) => continue,
            Of::Context => (types.contexts().any(|context| declares(context, attribute.path())), contexts(types)),
            Of::Principal => {
                let mut all: BTreeSet<&str> = types.principal_attributes().collect();
                all.extend(known);
                let written = all.iter().map(|name| format!("principal.{}", ClaimPath::of(name))).collect();
                (all.contains(attribute.path().name()), written)
            }
        };
        if declared {
            continue;
        }
        let wanted = attribute.to_string();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let hint = match (yaml::nearest(&wanted, &all), attribute.of()) {
            (Some(nearest), _) => format!("did you mean `{nearest}`?"),
            (None, Of::Context) => "declare it in the `context` of an action, in the schema of a bundle".to_owned(),
            (None, Of::Principal) => {
                "declare it in the entity type of the principal, in the schema of a bundle".to_owned()
            }
        };
        let message = format!("`decision_log.attributes`: no bundle declares `{wanted}`, so it is never logged");
        problems.push(Problem::warning(message).hint(hint));
    }
    problems
}

/// A warning for each attribute that an identity source reads from a claim, and that no principal has.
pub(super) fn unread(sources: &[IdentitySource], types: &Types) -> Vec<Problem> {
    let known: BTreeSet<&str> = types.principal_attributes().collect();
    let known: Vec<&str> = known.into_iter().collect();
    let renamed = sources.iter().filter_map(|source| match source {
        IdentitySource::JwtMetadata { attributes, .. } => Some(&attributes.0),
        _ => None,
    });
    let unread = renamed.flatten().filter(|(name, _)| !known.contains(&name.as_str()));
    let warning = |(name, path): (&String, &ClaimPath)| {
        let message = format!("`identity`: no principal has an attribute `{name}`, so the claim `{path}` is not read");
        let hint = match yaml::nearest(name, &known) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "declare it in the entity type of the principal, in the schema of a bundle".to_owned(),
        };
        Problem::warning(message).hint(hint)
    };
    unread.map(warning).collect()
}

/// A warning for each type of principal that no action takes, so that all its requests are denied, and for each type of groups
/// that principals cannot be in, so that the groups of tokens are left out.
pub(super) fn untaken(sources: &[IdentitySource], types: &Types) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources {
        let (IdentitySource::JwtMetadata { entity_type, .. } | IdentitySource::TrustedHeader { entity_type, .. }) =
            source
        else {
            continue;
        };
        let ty = types.vocabulary().resolve(&entity_type.0);
        if !types.is_principal(ty) {
            let message = format!("`identity`: no action takes `{ty}` for a principal, so all its requests are denied");
            let hint = "name the entity type of the bundle's principals: `type: ...` of the source";
            problems.push(Problem::warning(message).hint(hint));
        } else if let IdentitySource::JwtMetadata { group_type, .. } = source {
            let group = types.vocabulary().resolve(&group_type.0);
            let ancestors = types.ancestors(ty).unwrap_or_default();
            if !ancestors.is_empty() && !ancestors.contains(group) {
                let all: Vec<String> = ancestors.iter().map(|name| format!("`{name}`")).collect();
                let message =
                    format!("`identity`: a `{ty}` cannot be in a `{group}`, so the groups of tokens are left out");
                let hint =
                    format!("`group_type: ...` of the source names another type; it can be in {}", all.join(", "));
                problems.push(Problem::warning(message).hint(hint));
            }
        }
    }
    problems
}

/// A warning for each id of the configuration that an enum of the schema does not list, so that what has it is refused.
pub(super) fn unlisted(sources: &[IdentitySource], service: &EntityUid, types: &Types) -> Vec<Problem> {
    let anonymous = sources.iter().filter_map(|source| match source {
        IdentitySource::Anonymous { entity_type, id } => {
            let ty = types.vocabulary().resolve(&entity_type.0).clone();
            Some(("identity", EntityUid::from_type_name_and_id(ty, EntityId::new(id)), "requests without a proof"))
        }
        _ => None,
    });
    let service = std::iter::once(("service", service.clone(), "requests without a resource of their own"));
    let unlisted = anonymous.chain(service).filter(|(_, uid, _)| !types.admits(uid));
    let warning = |(key, uid, what): (&str, EntityUid, &str)| {
        let known: Vec<&str> = types.choices(uid.type_name()).map(SmolStr::as_str).collect();
        let message = format!("`{key}`: {uid} is not one of the ids that the schema lists, so {what} are refused");
        Problem::warning(message).hint(yaml::suggest(uid.id().unescaped(), &known))
    };
    unlisted.map(warning).collect()
}

fn is_fixed(path: &ClaimPath) -> bool {
    // Labels of a destination are declared.
    let labels = path.steps().first() == Some(&Step::Name("labels".into()));
    !labels && Root::ALL.iter().any(|root| root.as_str() == path.name() && root.fixed().is_some())
}

/// Whether a context has this path.
fn declares(context: &ContextType, path: &ClaimPath) -> bool {
    let root = context.iter().find(|(root, _)| root.as_str() == path.name());
    root.is_some_and(|(_, attribute)| {
        let mut ty = &attribute.ty;
        path.steps().iter().all(|step| match (ty, step) {
            (Type::Record(fields), Step::Name(name)) => fields.get(name).map(|field| ty = &field.ty).is_some(),
            _ => false,
        })
    })
}

/// Every path of every context.
fn contexts(types: &Types) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (root, attribute) in types.contexts().flatten() {
        paths(&format!("context.{}", root.as_str()), &attribute.ty, &mut all);
    }
    all
}

fn paths(above: &str, ty: &Type, all: &mut BTreeSet<String>) {
    all.insert(above.to_owned());
    if let Type::Record(fields) = ty {
        for (name, field) in fields {
            paths(&format!("{above}.{}", ClaimPath::of(name)), &field.ty, all);
        }
    }
}
