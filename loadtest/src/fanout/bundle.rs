//! What sidecars enforce, and what they are asked.

use std::collections::BTreeMap;

use stockade::policy::Files;

use crate::engine::bundle::{PUSHED, Settings, policy, tenant_is};
use crate::engine::scaling_bundle;
use crate::request::Question;
use crate::workload::{Ask, Expect};

/// The bundle of the engine's scenarios with so many policies, of which one, in a file of its own, is another one in each round. It has no entities.
pub(crate) fn files(policies: usize, round: usize) -> Files {
    let mut all = scaling_bundle::policies(policies);
    all.truncate(policies.saturating_sub(1));
    let scope = "principal == User::\"nobody\", action == Action::\"viewFolder\", resource";
    let pushed = policy("pushed", "permit", scope, &tenant_is(&format!("round-{round}")));
    let mut files = Settings::default().files(&all, &[]);
    files.push((PUSHED.to_owned(), pushed));
    let files: BTreeMap<_, _> =
        files.into_iter().filter_map(|(path, text)| Some((path.strip_prefix("bundle/")?.to_owned(), text))).collect();
    Files { root: "fanout".to_owned(), files, changed: None }
}

/// The user who is denied in a round, in Cedar's writing.
pub(crate) fn mallory(round: usize) -> String {
    format!("User::\"mallory-{round}\"")
}

/// What that user asks for, and is allowed while there is no denial: [`files`] lets the tenant see the first folder.
pub(crate) fn ask(round: usize, expect: Expect) -> Ask {
    let question = Question {
        user: format!("mallory-{round}"),
        team: "team-1".into(),
        method: "GET",
        folder: "folder-0".into(),
        session: None,
        tenant: "tenant-1".into(),
        address: "10.1.2.3".into(),
        expect,
    };
    Ask::new(&question.request(), expect)
}

#[cfg(test)]
mod tests {
    use stockade::policy::Snapshot;

    use super::*;

    #[test]
    fn each_round_has_its_own_bundle_and_all_are_good() {
        for policies in [10, 1_000] {
            let (one, two) = (files(policies, 1), files(policies, 2));
            assert_ne!(one.digest(), two.digest());
            let snapshot = Snapshot::compile(&[one], None, &mut Default::default()).unwrap();
            assert_eq!(snapshot.policy_count(), policies);
        }
    }
}
