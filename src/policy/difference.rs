//! What differs between two snapshots, for those who are about to put the newer one in force.

use serde::Serialize;

use super::index::Compiled;
use super::snapshot::Snapshot;

/// What differs, by name. A policy that only reads otherwise, in its formatting or in annotations that decide nothing, does not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Policies that only the newer one has.
    pub added: Vec<String>,
    /// Policies that only the older one has.
    pub removed: Vec<String>,
    /// Policies that decide otherwise.
    pub modified: Vec<String>,
    /// Whether the text of a schema differs.
    pub schema: bool,
    /// Entities that are new, gone, or other, without actions.
    pub entities: Vec<String>,
}

impl Difference {
    /// From the older to the newer one.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let find = |snapshot: &'_ Snapshot, own: &Compiled| {
            snapshot
                .base
                .policies
                .binary_search_by(|policy| policy.id.cmp(&own.id))
                .ok()
                .and_then(|at| snapshot.base.policies.get(at).map(|policy| policy.decides_like(own)))
        };
        let mut difference = Self { schema: old.base.schema_digest != new.base.schema_digest, ..Self::default() };
        for policy in &new.base.policies {
            match find(old, policy) {
                None => difference.added.push(policy.id.to_string()),
                Some(false) => difference.modified.push(policy.id.to_string()),
                Some(true) => {}
            }
        }
        let gone = old.base.policies.iter().filter(|policy| find(new, policy).is_none());
        difference.removed = gone.map(|policy| policy.id.to_string()).collect();
        let entities = old.base.entities.differences(&new.base.entities).into_iter().filter(|uid| !uid.is_action());
        difference.entities = entities.map(|uid| uid.to_string()).collect();
        difference.entities.sort();
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::super::Files;
    use super::*;

    fn snapshot(policies: &str) -> Snapshot {
        let texts = [("bundle.yaml", "name: shop"), ("a.cedar", policies)];
        let files = texts.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let files = Files { root: "test".to_owned(), files: files.into(), changed: None };
        Snapshot::compile(&[files], 1).expect("a good bundle")
    }

    #[test]
    fn policies_are_compared_by_what_they_decide() {
        let old = snapshot(
            "@id(\"same\") permit (principal, action, resource);\n@id(\"gone\") forbid (principal, action, resource);\n\
             @id(\"other\") permit (principal, action, resource);",
        );
        let new = snapshot(
            "@id(\"same\")\npermit (principal,\n action, resource);\n@id(\"new\") forbid (principal, action, resource);\n\
             @id(\"other\") forbid (principal, action, resource);",
        );
        let difference = Difference::between(&old, &new);
        assert_eq!(difference.added, ["shop/new"]);
        assert_eq!(difference.removed, ["shop/gone"]);
        assert_eq!(difference.modified, ["shop/other"]);
        assert!(!difference.schema && difference.entities.is_empty());
        assert_eq!(Difference::between(&old, &old), Difference::default());
    }
}
