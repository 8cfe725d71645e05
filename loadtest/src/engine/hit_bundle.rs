//! The bundle that hits are measured with, 100,000 questions about it, and another bundle that answers them alike.
//!
//! A thousand policies, as teams write them: permits by team, action and project, forbids by folder, a guardrail over all.
//! Their conditions read a header and the caller's address, so that the footprint holds something.

use std::rc::Rc;

use super::bundle::{PUSHED, Settings, address_in, folder, policy, tenant_is};
use crate::request::Question;
use crate::workload::{Ask, Expect, Files};

/// So many questions, no two with the same cache key.
pub(crate) const KEYS: usize = 100_000;

const USERS: usize = 10_000;
const TEAMS: usize = 100;
const FOLDERS: usize = 1_000;

/// The skew of Zipf's law that most published cache traces show.
const SKEW: f64 = 1.0;
const SEED: u64 = 0x5107_4ade;

/// The question of this rank. Nine of ten are about folders of the team's own project; the tenth is not allowed.
pub(crate) fn question(rank: usize) -> Question {
    let (user, nth) = (rank % USERS, rank / USERS);
    let team = user % TEAMS;
    let allowed = (user + nth) % 10 != 4;
    let project = if allowed { team } else { (team + 1) % TEAMS };
    let network = if allowed { "10" } else { "172" };
    Question {
        user: format!("user-{user:05}"),
        team: format!("team-{team:02}"),
        method: if nth % 3 == 2 { "PUT" } else { "GET" },
        folder: format!("folder-{:03}", project + nth * TEAMS),
        session: None,
        tenant: format!("tenant-{team:02}"),
        address: format!("{network}.{nth}.{}.{}", user / 250, user % 250),
        expect: if allowed { Expect::Allow } else { Expect::Deny },
    }
}

/// The first questions, encoded.
pub(crate) fn asks(count: usize) -> Rc<[Ask]> {
    (0..count).map(question).map(|own| Ask::new(&own.request(), own.expect)).collect()
}

/// Ranks below `keys` as Zipf's law has them come, always the same ones.
pub(crate) fn zipf(keys: usize, count: usize) -> Rc<[u32]> {
    let mut total = 0.0;
    let cumulative: Vec<f64> = (1..=keys)
        .map(|rank| {
            total += (rank as f64).powf(-SKEW);
            total
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(SEED);
    let rank = |drawn: f64| cumulative.partition_point(|up_to| *up_to <= drawn).min(keys.saturating_sub(1));
    (0..count).map(|_| u32::try_from(rank(random.f64() * total)).unwrap_or_default()).collect()
}

/// 1,000 policies scoped by principal, resource and action, and the one that a push changes.
pub(crate) fn scoped(settings: &Settings) -> Files {
    let mut policies =
        vec![policy("blocked-network", "forbid", "principal, action, resource", &address_in("198.51.100.0/24"))];
    for team in 0..TEAMS {
        for (verb, action) in [("views", "viewFolder"), ("edits", "editFolder")] {
            let scope = format!(
                "principal in Group::\"team-{team:02}\", action == Action::\"{action}\", resource in Project::\"project-{team:02}\""
            );
            policies.push(policy(
                &format!("team-{team:02}-{verb}"),
                "permit",
                &scope,
                &tenant_is(&format!("tenant-{team:02}")),
            ));
        }
    }
    for own in 0..FOLDERS - policies.len() {
        let scope = format!("principal, action == Action::\"editFolder\", resource == Folder::\"folder-{own:03}\"");
        policies.push(policy(&format!("folder-{own:03}-frozen"), "forbid", &scope, &address_in("192.0.2.0/24")));
    }
    let folders =
        (0..FOLDERS).map(|own| folder(&format!("folder-{own:03}"), &format!("project-{:02}", own % TEAMS), None));
    let mut files = settings.files(&policies, &folders.collect::<Vec<_>>());
    files.push((PUSHED.into(), pushed(0)));
    files
}

/// 1,000 policies scoped by nothing but the actions, which permit the same by attributes alone: ten networks of each of
/// 100 tenants. All of them are candidates for every question.
pub(crate) fn attributes(settings: &Settings) -> Files {
    let each = (0..10 * TEAMS).map(|own| {
        let (network, team) = (own / TEAMS, own % TEAMS);
        let condition =
            format!("{} && {}", tenant_is(&format!("tenant-{team:02}")), address_in(&format!("10.{network}.0.0/16")));
        let scope = "principal, action in [Action::\"viewFolder\", Action::\"editFolder\"], resource";
        policy(&format!("tenant-{team:02}-network-{network}"), "permit", scope, &condition)
    });
    settings.files(&each.collect::<Vec<_>>(), &[])
}

/// A version of a policy that is about one user's views, and so about few questions. What it permits nobody asks for.
pub(crate) fn pushed(version: usize) -> String {
    let scope = "principal == User::\"user-00042\", action == Action::\"viewFolder\", resource";
    policy("pushed", "permit", scope, &tenant_is(&format!("version-{version}")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::engine::cedar_baseline;
    use crate::request::tests::assert_has_the_usual_size;

    #[test]
    fn questions_are_of_the_usual_size() {
        for rank in [0, KEYS - 1] {
            assert_has_the_usual_size(question(rank).request());
        }
    }

    #[test]
    fn no_two_questions_have_one_key() {
        let key = |question: Question| (question.user, question.method, question.folder);
        let keys: HashSet<_> = (0..KEYS).map(|rank| key(question(rank))).collect();
        assert_eq!(keys.len(), KEYS);
    }

    #[test]
    fn one_question_of_ten_is_denied_and_one_call_of_ten() {
        let denied = |rank: &usize| question(*rank).expect == Expect::Deny;
        assert_eq!((0..KEYS).filter(denied).count(), KEYS / 10);
        let drawn = zipf(KEYS, 100_000);
        let share = drawn.iter().filter(|rank| denied(&(**rank as usize))).count() as f64 / drawn.len() as f64;
        assert!((0.08..0.12).contains(&share), "{share}");
    }

    #[test]
    fn ranks_follow_the_law() {
        let drawn = zipf(1_000, 200_000);
        let count = |rank: u32| drawn.iter().filter(|own| **own == rank).count() as f64;
        assert!((1.9..2.1).contains(&(count(0) / count(1))), "{}", count(0) / count(1));
        assert!((8.0..12.0).contains(&(count(0) / count(9))), "{}", count(0) / count(9));
        assert!(drawn.iter().all(|rank| *rank < 1_000));
    }

    #[test]
    fn both_bundles_answer_as_expected() {
        for files in [scoped(&Settings::default()), attributes(&Settings::default())] {
            let snapshot = cedar_baseline::compile(&files).unwrap();
            assert!((1_000..=1_001).contains(&snapshot.policy_count()), "{}", snapshot.policy_count());
            let questions: Vec<_> = (0..KEYS).step_by(4_999).map(question).collect();
            assert!(questions.iter().any(|own| own.expect == Expect::Deny), "both answers are among them");
            for question in questions {
                cedar_baseline::answer(&snapshot, &question.query().unwrap(), question.expect).unwrap();
            }
        }
    }
}
