//! What a bundle says and no request can meet: policies about actions that nothing leads to, parameters that no route has, forbids
//! whose requests have the action of their route.

use std::collections::BTreeSet;

use cedar_policy::{Effect, Schema};

use super::base::Base;
use super::bundle::Bundle;
use super::compiled;
use super::origin::{declaration, origin};
use super::routes::Routes;
use super::schema::Types;
use crate::model::{EntityUid, PolicyId};
use crate::problem::Problem;

/// The policies that no request can meet, because their actions are those of requests that no route names, or groups
/// without actions. A permit among them is a fault: whoever wrote it expects it to allow something. Of a forbid there is a warning; if
/// it is about requests that no route names, they are denied already, and [`taken_by_routes`] says where that is not enough.
///
/// All of this follows from the schema, so that it holds for files that are known as well.
pub(super) fn policies(bundles: &[Bundle], types: &Types) -> (Vec<PolicyId>, Vec<Problem>) {
    let (mut unreached, mut problems) = (Vec::new(), Vec::new());
    for own in bundles.iter().flat_map(|bundle| &bundle.policies) {
        let (effect, constraint) = own.scope_of_actions();
        let actions = compiled::named(&constraint);
        let unrouted = actions.iter().find(|action| types.vocabulary().is_unreachable(action));
        // What no schema declares is for the validator to report.
        let idle = |action: &EntityUid| !types.is_reached(action) && types.action(action).is_some();
        let all_idle = !actions.is_empty() && actions.iter().all(idle);
        if all_idle {
            unreached.push(own.id().clone());
        }
        let problem = match (effect, unrouted, actions.first().filter(|_| all_idle)) {
            (Effect::Permit, Some(action), _) => Problem::error(format!(
                "`{}` permits {action}, which no request has: there are routes, and what no route names is denied",
                own.id()
            ))
            .hint("give the requests that it is for a route, or write `unrouted: base` into bundle.yaml"),
            (Effect::Forbid, None, Some(action)) => {
                let message =
                    format!("`{}` forbids {action}, a group without any action that a request can have", own.id());
                Problem::warning(message).hint("put actions into the group in the schema, or name them")
            }
            (Effect::Permit, None, Some(action)) => {
                let message =
                    format!("`{}` permits {action}, a group without any action that a request can have", own.id());
                Problem::error(message).hint(
                    "put actions into the group in the schema; `unrouted: base` in bundle.yaml makes methods actions",
                )
            }
            _ => continue,
        };
        problems.push(problem.at(&own.source, own.span));
    }
    (unreached, problems)
}

/// Parameters that a schema declares, and that no route has.
pub(super) fn parameters(bundles: &[Bundle], routes: &Routes, types: &Types, schema: &Schema) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (action, name, known) in routes.missing_parameters(types) {
        let message =
            format!("no route that leads to {action} has `{{{name}}}`, so `context.params.{name}` is never there");
        let hint = match known.is_empty() {
            true => "put it into the path of a route, or remove it from the schema".to_owned(),
            false => crate::yaml::suggest(name, &known),
        };
        let problem = Problem::error(message).hint(hint);
        problems.push(problem.at_known(declaration(bundles, schema, action)));
    }
    problems
}

/// Forbids about a method whose requests routes give other actions. Routes change without the files of policies, so this
/// looks at those that are known as well.
pub(super) fn taken_by_routes(bundles: &[Bundle], base: &Base) -> Vec<Problem> {
    let Base { types, routes, policies, .. } = base;
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for own in policies.iter().filter(|own| own.effect == Effect::Forbid) {
        let mut actions =
            compiled::named(own.actions()).iter().filter(|action| types.vocabulary().is_unreachable(action));
        let Some(action) = actions.find(|action| routes.has_method(action.id().unescaped())) else { continue };
        let id = own.template.as_ref().unwrap_or(&own.id);
        if !seen.insert(id) {
            continue;
        }
        let message = format!("`{id}` forbids {action}, and requests of that method have the action of their route");
        let problem = Problem::warning(message)
            .hint("name the actions, or a group that they are in: `action in Action::\"write\"`");
        problems.push(problem.at_known(origin(bundles, id)));
    }
    problems
}
