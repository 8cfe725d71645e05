//! What differs between two snapshots, for those who are about to put the newer one in force.

use serde::Serialize;

use super::compiled::Compiled;
use super::snapshot::Snapshot;

/// What differs, by name. A policy that only reads otherwise, in its formatting or in annotations that decide nothing, does not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyDiff {
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

impl PolicyDiff {
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
        let mut diff = Self { schema: old.base.schema_digest != new.base.schema_digest, ..Self::default() };
        for policy in &new.base.policies {
            match find(old, policy) {
                None => diff.added.push(policy.id.to_string()),
                Some(false) => diff.modified.push(policy.id.to_string()),
                Some(true) => {}
            }
        }
        let gone = old.base.policies.iter().filter(|policy| find(new, policy).is_none());
        diff.removed = gone.map(|policy| policy.id.to_string()).collect();
        let entities = old.base.entities.differences(&new.base.entities).into_iter().filter(|uid| !uid.is_action());
        diff.entities = entities.map(|uid| uid.to_string()).collect();
        diff.entities.sort();
        diff
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Files, Memory};
    use super::*;

    fn snapshot(policies: &str) -> Snapshot {
        let texts = [("bundle.yaml", "name: shop"), ("a.cedar", policies)];
        let files = texts.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let files = Files { root: "test".to_owned(), files: files.into(), changed: None };
        Snapshot::compile(&[files], None, &mut Memory::default()).expect("a good bundle")
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
        let diff = PolicyDiff::between(&old, &new);
        assert_eq!(diff.added, ["shop/new"]);
        assert_eq!(diff.removed, ["shop/gone"]);
        assert_eq!(diff.modified, ["shop/other"]);
        assert!(!diff.schema && diff.entities.is_empty());
        assert_eq!(PolicyDiff::between(&old, &old), PolicyDiff::default());
    }
}
