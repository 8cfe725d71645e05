//! Bundles that grow, by policies or by entities, and questions that each of them answers with as many candidates.

use std::rc::Rc;

use super::bundle::{Settings, folder, policy, tenant_is};
use crate::request::Question;
use crate::workload::{Ask, Expect, Files, STAMP};

/// So many different questions are asked in turn, before each gets its number. They are spread over the whole bundle, so
/// that a large one is not measured by the part of it that the processor's caches hold.
pub(crate) const QUESTIONS: usize = 5_000;

/// A condition that needs what each question has another one of: what is asked was never asked before.
const SESSION: &str = "context.query has session && context.query.session != \"revoked\"";

/// `count` policies, half of them scoped by principal, the other half by resource. One of each meets every question.
pub(crate) fn policies(count: usize) -> Vec<String> {
    let scope = |principal: &str, resource: &str| {
        format!("principal{principal}, action == Action::\"viewFolder\", resource{resource}")
    };
    let by_principal = (0..count / 2).map(|own| {
        let scope = scope(&format!(" == User::\"user-{own}\""), "");
        policy(&format!("user-{own}"), "permit", &scope, SESSION)
    });
    let by_resource = (0..count / 2).map(|own| {
        let (effect, condition) =
            if is_forbidden(own) { ("forbid", SESSION.into()) } else { ("permit", tenant_is("tenant-1")) };
        let scope = scope("", &format!(" == Folder::\"folder-{own}\""));
        policy(&format!("folder-{own}"), effect, &scope, &condition)
    });
    by_principal.chain(by_resource).collect()
}

pub(crate) fn policy_files(count: usize, cache_size: &'static str) -> Files {
    Settings { cache_size, ..Settings::default() }.files(&policies(count), &[])
}

/// One of the questions about [`policies`].
pub(crate) fn policy_question(count: usize, index: usize) -> Question {
    // The folder goes round slower than the user, so that they do not stay together.
    let half = count / 2;
    let (user, folder) = (index % half, (index + index / half) % half);
    ask(user, folder, !is_forbidden(folder))
}

fn is_forbidden(folder: usize) -> bool {
    folder % 5 == 4
}

/// `count` folders in ten projects, each with an owner. Ten policies: a folder's owner may view it.
pub(crate) fn entity_files(count: usize, cache_size: &'static str) -> Files {
    let policies: Vec<_> = (0..10)
        .map(|project| {
            let scope =
                format!("principal, action == Action::\"viewFolder\", resource in Project::\"project-{project}\"");
            let condition = format!("resource has owner && resource.owner == principal && {SESSION}");
            policy(&format!("project-{project}"), "permit", &scope, &condition)
        })
        .collect();
    let folders: Vec<_> = (0..count)
        .map(|own| folder(&format!("folder-{own}"), &format!("project-{}", own % 10), Some(&format!("user-{own}"))))
        .collect();
    Settings { cache_size, ..Settings::default() }.files(&policies, &folders)
}

/// One of the questions about [`entity_files`]: each tenth user is not the owner.
pub(crate) fn entity_question(count: usize, index: usize) -> Question {
    let folder = (index * (count / QUESTIONS).max(1)) % count;
    let is_owner = index % 10 != 9;
    ask(if is_owner { folder } else { count }, folder, is_owner)
}

fn ask(user: usize, folder: usize, allowed: bool) -> Question {
    Question {
        user: format!("user-{user}"),
        team: "team-1".into(),
        method: "GET",
        folder: format!("folder-{folder}"),
        session: Some(STAMP.into()),
        tenant: "tenant-1".into(),
        address: "10.1.2.3".into(),
        expect: if allowed { Expect::Allow } else { Expect::Deny },
    }
}

/// All of the questions, encoded.
pub(crate) fn asks(question: impl Fn(usize) -> Question) -> Rc<[Ask]> {
    (0..QUESTIONS).map(question).map(|own| Ask::new(&own.request(), own.expect)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cedar_baseline;

    #[test]
    fn bundles_of_every_size_answer_as_expected() {
        type Ask = fn(usize, usize) -> Question;
        let cases: [(fn(usize, &'static str) -> Files, Ask, usize, usize); 4] = [
            (policy_files, policy_question, 10, 2),
            (policy_files, policy_question, 100, 2),
            (entity_files, entity_question, 10, 1),
            (entity_files, entity_question, 6_000, 1),
        ];
        for (files, question, count, candidates) in cases {
            let snapshot = cedar_baseline::compile(&files(count, "32MiB")).unwrap();
            for index in (0..QUESTIONS).step_by(61) {
                let question = question(count, index);
                let query = question.query().unwrap();
                assert_eq!(snapshot.evaluate(&query, None).unwrap().candidates, candidates, "{query:?}");
                cedar_baseline::answer(&snapshot, &query, question.expect).unwrap();
            }
        }
    }
}
