//! Policies that open the door: permits without a scope and without a condition. One of them makes every other permit pointless, and
//! is seldom meant for longer than a first try, so it is said when a bundle is checked, and publishing it has to be meant.

use cedar_policy::{Effect, PolicyId};
use cedar_policy_core::ast::{Expr, ExprKind, Literal, UnaryOp};

use super::compiled::Compiled;
use crate::problem::Problem;

/// Whether a policy permits everything to everybody. One in shadow mode permits nothing.
pub(super) fn is_open(policy: &Compiled) -> bool {
    let conditional = policy.condition().is_some_and(|(condition, _)| !is_true(condition));
    policy.effect == Effect::Permit && !policy.shadow && policy.is_unscoped() && !conditional
}

/// Whether a condition is just a longer way to have none, such as `when { true }`.
fn is_true(condition: &Expr) -> bool {
    match condition.expr_kind() {
        ExprKind::Lit(Literal::Bool(value)) => *value,
        ExprKind::And { left, right } => is_true(left) && is_true(right),
        ExprKind::UnaryApp { op: UnaryOp::Not, arg } => matches!(arg.expr_kind(), ExprKind::Lit(Literal::Bool(false))),
        _ => false,
    }
}

/// What is said of it.
pub(super) fn warning(id: &PolicyId) -> Problem {
    let message = format!("`{id}` permits everything to everybody: it has no scope and no condition");
    Problem::warning(message)
        .hint("say who may do what; `stockade publish` wants `--allow-open` for it once a bundle is in force")
}
