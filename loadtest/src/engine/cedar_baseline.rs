//! Decisions without a wire: this engine's against plain Cedar's, in this process and on this core.
//!
//! Plain Cedar is `Authorizer::is_authorized` over all policies. Its request is made before the clock starts; the engine
//! is given a Query and makes of it what it needs, so what the comparison leaves out is on Cedar's side.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cedar_policy::{Authorizer, Context, Entities, PolicySet, Request};
use serde_json::json;
use stockade::model::{Attributes, Effect, EntityId, EntityUid, Extension, Principal, Proof, Query, Value};
use stockade::policy::{self, Snapshot};

use crate::request::Question;
use crate::workload::{Expect, Files};

/// What decisions cost, in microseconds each.
pub(crate) struct Costs {
    pub(crate) engine: f64,
    pub(crate) cedar: f64,
}

/// One bundle, in both forms, and what is asked of it.
pub(crate) struct Bench {
    snapshot: Snapshot,
    queries: Vec<Query>,
    policies: PolicySet,
    requests: Vec<Request>,
}

/// The snapshot of the bundle in these files.
pub(crate) fn compile(files: &Files) -> anyhow::Result<Snapshot> {
    let own = files.iter().filter_map(|(path, text)| Some((path.strip_prefix("bundle/")?.to_owned(), text.clone())));
    let bundle = policy::Files { root: "bundle".into(), files: own.collect(), changed: None };
    Snapshot::compile(&[bundle], None, &mut Default::default()).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the bundle is not good: {}", lines.join("; "))
    })
}

/// Fails if a snapshot's answer is not the right one.
pub(crate) fn answer(snapshot: &Snapshot, query: &Query, expect: Expect) -> anyhow::Result<()> {
    let evaluation = snapshot.evaluate(query, None).map_err(anyhow::Error::msg)?;
    ensure!(
        (evaluation.ruling.effect == Effect::Allow) == (expect == Expect::Allow),
        "the engine decides {:?} about {query:?}",
        evaluation.ruling
    );
    Ok(())
}

// === impl Bench ===

impl Bench {
    /// Prepares both sides and holds all their answers against what is expected. Entities of the bundle are left out on
    /// Cedar's side, so none of its policies may need them.
    pub(crate) fn new(files: &Files, questions: &[Question]) -> anyhow::Result<Self> {
        let policies = files.iter().filter(|(path, _)| path.ends_with(".cedar")).map(|(_, text)| text.as_str());
        let bench = Self {
            snapshot: compile(files)?,
            queries: questions.iter().map(Question::query).collect::<anyhow::Result<_>>()?,
            policies: policies.collect::<String>().parse().context("the policies do not parse")?,
            requests: questions.iter().map(Question::cedar_request).collect::<anyhow::Result<_>>()?,
        };
        let (authorizer, entities) = (Authorizer::new(), Entities::empty());
        for ((question, query), request) in questions.iter().zip(&bench.queries).zip(&bench.requests) {
            answer(&bench.snapshot, query, question.expect)?;
            let cedar = authorizer.is_authorized(request, &bench.policies, &entities).decision();
            ensure!(
                (cedar == cedar_policy::Decision::Allow) == (question.expect == Expect::Allow),
                "Cedar decides {cedar:?} about {query:?}"
            );
        }
        Ok(bench)
    }

    /// Decides for about this long on each side. `swapped` changes which is first.
    pub(crate) fn measure(&self, time: Duration, swapped: bool) -> anyhow::Result<Costs> {
        let (authorizer, entities) = (Authorizer::new(), Entities::empty());
        let engine = || {
            each(&self.queries, time, |query| {
                black_box(self.snapshot.evaluate(black_box(query), None).is_ok());
            })
        };
        let cedar = || {
            each(&self.requests, time, |request| {
                black_box(authorizer.is_authorized(black_box(request), &self.policies, &entities));
            })
        };
        let (engine, cedar) = if swapped {
            let cedar = cedar();
            (engine(), cedar)
        } else {
            (engine(), cedar())
        };
        Ok(Costs {
            engine: engine.context("there is nothing to decide")?,
            cedar: cedar.context("there is nothing to decide")?,
        })
    }
}

/// Does something with each in turn until the time is over; microseconds for one, of the processor's time that this
/// thread got.
fn each<T>(items: &[T], time: Duration, mut action: impl FnMut(&T)) -> Option<f64> {
    let started = Instant::now();
    let before = thread_time();
    let mut done = 0_u32;
    for item in items.iter().cycle() {
        action(item);
        done += 1;
        // Reading the clock costs more than some decisions.
        if done.is_multiple_of(16) && started.elapsed() >= time {
            break;
        }
    }
    let spent = thread_time().checked_sub(before)?;
    (done > 0).then(|| spent.as_secs_f64() * 1e6 / f64::from(done))
}

/// What this thread has had of the processor: a neighbour on the same core does not count.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

// === impl Question ===

impl Question {
    fn action(&self) -> &'static str {
        if self.method == "PUT" { "editFolder" } else { "viewFolder" }
    }

    /// What mapping makes of the request.
    pub(crate) fn query(&self) -> anyhow::Result<Query> {
        let text = |text: &str| Value::String(text.into());
        let mut query = Attributes::new();
        if let Some(session) = &self.session {
            query.insert("session".into(), text(session));
        }
        let address = Value::Extension(Extension::Ipaddr, self.address.as_str().into());
        let context = [
            ("headers", Attributes::from([("x-tenant".into(), text(&self.tenant))])),
            ("query", query),
            ("source", Attributes::from([("address".into(), address)])),
        ];
        Ok(Query {
            principal: Principal {
                uid: uid("User", &self.user)?,
                attributes: Attributes::new(),
                parents: vec![uid("Group", &self.team)?],
                proof: Proof::Jwt,
            },
            action: uid("Action", self.action())?,
            resource: uid("Folder", &self.folder)?,
            context: context.into_iter().map(|(name, fields)| (name.into(), Value::Record(fields))).collect(),
        })
    }

    /// The same for Cedar.
    fn cedar_request(&self) -> anyhow::Result<Request> {
        let context = json!({
            "headers": {"x-tenant": self.tenant},
            "query": self.session.as_ref().map_or_else(|| json!({}), |session| json!({"session": session})),
            "source": {"address": {"__extn": {"fn": "ip", "arg": self.address}}},
        });
        let context = Context::from_json_value(context, None)?;
        let (user, action) = (uid("User", &self.user)?, uid("Action", self.action())?);
        Ok(Request::new(user, action, uid("Folder", &self.folder)?, context, None)?)
    }
}

fn uid(entity_type: &str, id: &str) -> anyhow::Result<EntityUid> {
    let entity_type = entity_type.parse().with_context(|| format!("`{entity_type}` is no type"))?;
    Ok(EntityUid::from_type_name_and_id(entity_type, EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scaling_bundle::{policy_files, policy_question};

    #[test]
    fn both_sides_are_asked_the_same_and_timed() {
        let questions: Vec<_> = (0..40).map(|index| policy_question(20, index)).collect();
        let bench = Bench::new(&policy_files(20, "32MiB"), &questions).unwrap();
        let costs = bench.measure(Duration::from_millis(20), true).unwrap();
        assert!(costs.engine > 0.0 && costs.cedar > 0.0);
    }

    #[test]
    fn a_wrong_answer_is_no_measurement() {
        let question = Question { expect: Expect::Deny, ..policy_question(20, 0) };
        assert!(Bench::new(&policy_files(20, "32MiB"), &[question]).is_err());
    }
}
