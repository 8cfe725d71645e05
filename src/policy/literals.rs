//! Literals in conditions that no request has: what they are compared with comes in one canonical form, so that a condition with another
//! form never holds, and a `forbid` with one never forbids.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Literal, Var};
use ipnet::IpNet;

use super::base::Base;
use super::pattern::METHODS;
use crate::model::{PolicyId, Proof, Root};
use crate::problem::{Found, Problem};

impl Base {
    /// A warning for each literal that no request has. `origin` gives the file of a policy or template, and its place in that.
    pub(super) fn warn_of_literals<'p>(&self, origin: impl Fn(&PolicyId) -> Option<Found<'p>>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for policy in &self.policies {
            let Some((condition, _)) = policy.condition() else { continue };
            // All links of a template have its conditions.
            let named = policy.template.as_ref().unwrap_or(&policy.id);
            for (message, hint) in never(condition) {
                if seen.insert((named, message.clone())) {
                    let problem = Problem::warning(format!("`{named}` {message}")).hint(hint);
                    problems.push(problem.at_known(origin(named)));
                }
            }
        }
        problems
    }
}

/// What a condition compares with a literal that no request has, each with what to write.
fn never(condition: &Expr) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for expr in condition.subexpressions() {
        match expr.expr_kind() {
            ExprKind::BinaryApp { op: BinaryOp::Eq, arg1, arg2 } => {
                found.extend(compared(arg1, arg2).or_else(|| compared(arg2, arg1)));
            }
            ExprKind::BinaryApp { op: BinaryOp::Contains, arg1, arg2 } => {
                if let ExprKind::Set(members) = arg1.expr_kind() {
                    found.extend(members.iter().filter_map(|member| compared(arg2, member)));
                }
            }
            ExprKind::ExtensionFunctionApp { fn_name, args } if fn_name.to_string() == "ip" => {
                let text = args.first().and_then(literal);
                found.extend(text.and_then(|text| {
                    let message = format!("has `ip(\"{text}\")`, which no address of a request is in: those are IPv4");
                    Some((message, format!("`ip(\"{}\")`", mapped(text)?)))
                }));
            }
            _ => {}
        }
    }
    found
}

fn compared(place: &Expr, value: &Expr) -> Option<(String, String)> {
    let ExprKind::GetAttr { expr, attr } = place.expr_kind() else { return None };
    let ExprKind::Var(Var::Context) = expr.expr_kind() else { return None };
    let root = Root::ALL.into_iter().find(|root| root.as_str() == attr.as_str())?;
    let text = literal(value)?;
    let meant = meant(root, text)?;
    Some((format!("compares `context.{attr}` with `{text}`, which it never is"), meant))
}

fn literal(expr: &Expr) -> Option<&str> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::String(text)) => Some(text),
        _ => None,
    }
}

/// What to write, if no request has this string there.
fn meant(root: Root, text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    match root {
        Root::Method => {
            let upper = text.to_ascii_uppercase();
            (text != upper && METHODS.contains(&upper.as_str())).then(|| format!("`{upper}`"))
        }
        Root::Scheme => (text != lower).then(|| format!("`{lower}`")),
        Root::Identity => {
            let known = [Proof::Jwt, Proof::Peer, Proof::TrustedHeader, Proof::None].map(Proof::as_str);
            (!known.contains(&text)).then(|| crate::yaml::suggest(text, &known))
        }
        Root::Host => {
            let name = lower.rsplit_once(':').filter(|(name, port)| {
                !name.is_empty() && !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit())
            });
            let name = name.map_or(lower.as_str(), |(name, _)| name);
            let name = name.strip_suffix('.').unwrap_or(name);
            (name != text).then(|| format!("`{name}`: lower case, without a port and a dot at the end"))
        }
        Root::Path => {
            let is_canonical = text.is_empty() || text == "*" || (text.starts_with('/') && !text.contains(['?', '#']));
            (!is_canonical).then(|| "a path begins with `/`, and the query is in `context.query`".to_owned())
        }
        _ => None,
    }
}

/// The range of IPv4 that a range of IPv6 stands for (`::ffff:10.0.0.0/104`). Addresses of requests are mapped to IPv4, so that no address is
/// in the one of IPv6.
pub fn mapped(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).ok()?;
    let IpNet::V6(net) = net else { return None };
    let address = net.addr().to_ipv4_mapped()?;
    let length = net.prefix_len().checked_sub(96)?;
    IpNet::new(address.into(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(condition: &str) -> Vec<String> {
        let policy = format!("forbid (principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy::Policy::parse(None, policy).expect("a policy");
        let policy: &cedar_policy_core::ast::Policy = policy.as_ref();
        let condition = policy.non_scope_constraints().expect("a condition");
        never(condition).into_iter().map(|(_, hint)| hint).collect()
    }

    #[test]
    fn literals_that_no_request_has_are_found() {
        for (condition, hint) in [
            (r#"context.method == "delete""#, "`DELETE`"),
            (r#""Delete" == context.method"#, "`DELETE`"),
            (r#"["GET", "post"].contains(context.method)"#, "`POST`"),
            (r#"!(context has method) || !(context.method == "get")"#, "`GET`"),
            (r#"context.scheme != "HTTPS""#, "`https`"),
            (r#"context.identity == "JWT""#, "did you mean `jwt`?"),
            (r#"context.identity == "mtls""#, "known here: `jwt`, `peer`, `trusted_header`, `none`"),
            (r#"context.host == "Shop.example""#, "`shop.example`"),
            (r#"context.host == "shop.example:8080""#, "`shop.example`"),
            (r#"context.host == "shop.example.""#, "`shop.example`"),
            (r#"context.path == "admin""#, "begins with `/`"),
            (r#"context.path == "/admin?x=1""#, "begins with `/`"),
            (r#"context.source.address.isInRange(ip("::ffff:10.0.0.0/104"))"#, "`ip(\"10.0.0.0/8\")`"),
            (r#"context.source.address == ip("::ffff:10.0.0.1")"#, "`ip(\"10.0.0.1/32\")`"),
        ] {
            let found = found(condition);
            assert!(found.len() == 1 && found[0].contains(hint), "{condition}: {found:?}");
        }
        for condition in [
            r#"context.method == "DELETE" || context.method == "purge""#,
            r#"context.scheme == "https" && context.identity == "trusted_header" && context.host == "[::1]""#,
            r#"context.path == "/" || context.path == "*" || context.path == "" || context.path like "admin*""#,
            r#"context.source.address.isInRange(ip("::/0")) || context.source.address == ip("10.0.0.1")"#,
            r#"context.headers.method == "delete" || context.body.scheme == "HTTPS""#,
        ] {
            assert_eq!(found(condition), [""; 0], "{condition}");
        }
    }
}
