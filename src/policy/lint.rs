//! Warnings about policies that are valid, and do not do what their author most likely thinks.
//!
//! Each lint is a pure function over a policy's syntax tree and the types of the actions that it is about. To add one: a
//! function like [`leans_on_optional`], and a line in [`Base::lint`].

use std::collections::BTreeSet;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, UnaryOp, Var};
use cedar_policy::{Effect, Policy};

use super::base::Base;
use super::compiled::Side;
use super::schema::ActionType;
use crate::model::{PolicyId, Root, Type};
use crate::problem::{Found, Problem};

/// What is wrong with a policy, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lint {
    message: String,
    hint: &'static str,
}

impl Base {
    /// Warnings about policies, one for each lint and policy. `origin` gives the file of a policy or template, and its place
    /// in that.
    pub(super) fn lint<'p>(&self, origin: impl Fn(&PolicyId) -> Option<Found<'p>>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut templates = BTreeSet::new();
        for policy in &self.policies {
            let lints = policy.effect == Effect::Forbid
                && !policy.footprint.context.is_empty()
                // All links of a template have its conditions.
                && policy.template.as_ref().is_none_or(|template| templates.insert(template.clone()));
            // A tree that Cedar cannot give was reported with the footprint.
            let Some(tree) = lints.then(|| policy.tree()).flatten() else { continue };
            let actions = self.entities.actions().map(Side::of).filter(|action| policy.is_about(*action));
            let actions =
                actions.filter_map(|action| self.types.action(&action.uid.clone().into())).collect::<Vec<_>>();
            let named = policy.template.as_ref().unwrap_or(&policy.id);
            problems.extend(leans_on_optional(&tree, &actions).map(|lint| {
                let problem = Problem::warning(format!("`{named}` {}", lint.message)).hint(lint.hint);
                problem.at_known(origin(named))
            }));
        }
        problems
    }
}

// === A forbid that does not apply to what is left out ===

/// What a client, or who issues its token, chooses to send.
const CHOSEN: [Root; 4] = [Root::Body, Root::Claims, Root::Headers, Root::Query];

/// A `forbid` whose condition asks whether something optional is there: for a request that leaves it out, it does not hold.
/// One that holds for such a request as well (`forbid .. unless { context has x && .. }`) is fine.
fn leans_on_optional(policy: &Policy, actions: &[&ActionType]) -> Option<Lint> {
    let tree = policy.to_pst().ok()?;
    let mut asked = BTreeSet::new();
    let mut holds = Some(true);
    for clause in tree.body().clauses() {
        let (condition, wanted) = match clause {
            Clause::When(condition) => (condition, true),
            Clause::Unless(condition) => (condition, false),
        };
        collect(condition, Sense::of(wanted), actions, &mut asked);
        holds = and(holds, not_if(!wanted, without(condition, actions)));
    }
    if asked.is_empty() || holds == Some(true) {
        return None;
    }
    let places: Vec<String> = asked.iter().map(|place| format!("`{place}`")).collect();
    Some(Lint {
        message: format!(
            "forbids by {}, which a request can leave out: it does not hold for such a request",
            places.join(", ")
        ),
        hint: "make it required in the schema, forbid what lacks it too (`unless { context has .. && .. }`), or make a `permit` ask for it",
    })
}

/// Whether a part of a condition makes it hold, or fail, by being true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sense {
    Holds,
    Fails,
    /// One or the other.
    Either,
}

impl Sense {
    fn of(wanted: bool) -> Self {
        if wanted { Self::Holds } else { Self::Fails }
    }

    fn reversed(self) -> Self {
        match self {
            Self::Holds => Self::Fails,
            Self::Fails => Self::Holds,
            Self::Either => Self::Either,
        }
    }
}

/// Collects the optional places whose presence a condition needs to hold.
fn collect(expr: &Expr, sense: Sense, actions: &[&ActionType], asked: &mut BTreeSet<String>) {
    match expr {
        Expr::HasAttr { expr, attrs } => {
            let place = path(expr).map(|above| [above, attrs.iter().map(|name| name.as_str()).collect()].concat());
            if let Some(place) = place
                && sense != Sense::Fails
                && actions.iter().any(|action| is_optional(action, &place))
            {
                asked.insert(format!("context.{}", place.join(".")));
            }
        }
        Expr::UnaryOp { op: UnaryOp::Not, expr } => collect(expr, sense.reversed(), actions, asked),
        Expr::BinaryOp { op: BinaryOp::And | BinaryOp::Or, left, right } => {
            collect(left, sense, actions, asked);
            collect(right, sense, actions, asked);
        }
        Expr::BinaryOp { left, right, .. } => {
            collect(left, Sense::Either, actions, asked);
            collect(right, Sense::Either, actions, asked);
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            collect(cond, Sense::Either, actions, asked);
            collect(then_expr, sense, actions, asked);
            collect(else_expr, sense, actions, asked);
        }
        _ => {}
    }
}

/// What a condition says of a request that has none of what is optional; `None` if it depends on more than that.
fn without(expr: &Expr, actions: &[&ActionType]) -> Option<bool> {
    match expr {
        Expr::Literal(Literal::Bool(value)) => Some(*value),
        Expr::HasAttr { expr, attrs } => {
            let place = [path(expr)?, attrs.iter().map(|name| name.as_str()).collect()].concat();
            actions.iter().any(|action| is_optional(action, &place)).then_some(false)
        }
        Expr::UnaryOp { op: UnaryOp::Not, expr } => not_if(true, without(expr, actions)),
        Expr::BinaryOp { op: BinaryOp::And, left, right } => and(without(left, actions), without(right, actions)),
        Expr::BinaryOp { op: BinaryOp::Or, left, right } => {
            not_if(true, and(not_if(true, without(left, actions)), not_if(true, without(right, actions))))
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => match without(cond, actions) {
            Some(true) => without(then_expr, actions),
            Some(false) => without(else_expr, actions),
            None => without(then_expr, actions).filter(|then| without(else_expr, actions) == Some(*then)),
        },
        _ => None,
    }
}

fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn not_if(reverse: bool, value: Option<bool>) -> Option<bool> {
    value.map(|value| value != reverse)
}

/// The names on the way from the context to a place.
fn path(expr: &Expr) -> Option<Vec<&str>> {
    match expr {
        Expr::Var(Var::Context) => Some(Vec::new()),
        Expr::GetAttr { expr, attr } => {
            let mut above = path(expr)?;
            above.push(attr);
            Some(above)
        }
        _ => None,
    }
}

/// Whether a request may lack a place of what clients choose, or something on the way there.
fn is_optional(action: &ActionType, place: &[&str]) -> bool {
    let Some((root, names)) = place.split_first() else { return false };
    let Some((_, attribute)) =
        action.declared.iter().find(|(known, _)| known.as_str() == *root && CHOSEN.contains(known))
    else {
        return false;
    };
    let (mut ty, mut optional) = (&attribute.ty, !attribute.required);
    for name in names {
        let Type::Record(fields) = ty else { return optional };
        let Some(field) = fields.get(*name) else { return optional };
        optional |= !field.required;
        ty = &field.ty;
    }
    optional
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Types;
    use crate::policy::vocabulary::Vocabulary;

    fn lint(condition: &str) -> Option<String> {
        let schema = r#"entity User, Thing { secret: Bool };
            action "a" appliesTo { principal: [User], resource: [Thing], context: {
                path: String, body?: { n?: Long, m: Long }, headers: { x?: String, y: String }, claims?: { mfa?: Bool },
                query: { q?: Long }, tls?: { sni: String },
            } };"#;
        let (schema, _) = cedar_policy::Schema::from_cedarschema_str(schema).expect("a schema");
        let types = Types::read(&schema, Vocabulary::default()).expect("types");
        let policy =
            Policy::parse(None, format!("forbid (principal, action, resource) {condition};")).expect("a policy");
        let actions: Vec<&ActionType> = types.action_ids().into_iter().filter_map(|uid| types.action(uid)).collect();
        leans_on_optional(&policy, &actions).map(|lint| lint.message)
    }

    #[test]
    fn a_forbid_that_needs_something_optional_is_told() {
        for (condition, places) in [
            ("when { context has body && context.body.m > 10 }", "`context.body`"),
            (
                "when { context has body && context.body has n && context.body.n > 10 }",
                "`context.body`, `context.body.n`",
            ),
            ("when { context has body.n && context.body.n > 10 }", "`context.body.n`"),
            ("when { context.headers has x && context.headers.x == \"a\" }", "`context.headers.x`"),
            ("when { resource.secret || (context.query has q && context.query.q > 1) }", "`context.query.q`"),
            (
                "when { if context has claims then context.claims has mfa else false }",
                "`context.claims`, `context.claims.mfa`",
            ),
            ("unless { !(context.query has q) || context.query.q < 1 }", "`context.query.q`"),
            ("when { (context has claims) == true }", "`context.claims`"),
        ] {
            let told = lint(condition).unwrap_or_else(|| panic!("nothing of {condition}"));
            assert!(told.contains(&format!("forbids by {places}, which")), "{condition}: {told}");
        }
    }

    #[test]
    fn a_forbid_that_holds_for_what_lacks_it_is_fine() {
        for condition in [
            "",
            "when { context.path == \"/\" }",
            "unless { context has claims && context.claims has mfa && context.claims.mfa }",
            "when { !(context.headers has x) }",
            "when { !(context has body) || context.body.m > 10 }",
            "when { if context.query has q then context.query.q > 1 else true }",
            "when { context.headers has y }",
            // Envoy's to say, not the client's.
            "when { context has tls && context.tls.sni == \"x\" }",
            "when { context.path == \"/\" } unless { context has claims }",
        ] {
            assert_eq!(lint(condition), None, "{condition}");
        }
    }
}
