//! Plain values to Cedar's, without a detour through JSON or expressions.

use std::sync::{Arc, LazyLock};

use cedar_policy_core::ast::{self, EntityUID, Literal};
use cedar_policy_core::evaluator::RestrictedEvaluator;
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use crate::model::{Extension, Value};

/// The Cedar value of a plain one.
///
/// # Errors
/// If the text of an extension value is not valid; mapped values are checked with [`check`], so this is a fault of ours.
pub fn to_cedar(value: &Value) -> Result<ast::Value, String> {
    Ok(match value {
        Value::Bool(value) => ast::Value::new(Literal::Bool(*value), None),
        Value::Long(value) => ast::Value::new(Literal::Long(*value), None),
        Value::String(value) => ast::Value::new(Literal::String(value.clone()), None),
        Value::Entity(uid) => {
            let uid: &EntityUID = uid.as_ref();
            ast::Value::new(Literal::EntityUID(Arc::new(uid.clone())), None)
        }
        Value::Extension(extension, text) => self::extension(*extension, text)?,
        Value::Set(members) => ast::Value::set(members.iter().map(to_cedar).collect::<Result<Vec<_>, _>>()?, None),
        Value::Record(fields) => ast::Value::record_arc(
            Arc::new(
                fields
                    .iter()
                    .map(|(name, field)| Ok((name.clone(), to_cedar(field)?)))
                    .collect::<Result<_, String>>()?,
            ),
            None,
        ),
    })
}

/// Whether a text is a value of an extension type, as Cedar itself sees it.
///
/// # Errors
/// Cedar's own words for what is wrong.
pub fn check(extension: Extension, text: &SmolStr) -> Result<(), String> {
    self::extension(extension, text).map(|_| ())
}

fn extension(extension: Extension, text: &SmolStr) -> Result<ast::Value, String> {
    let argument = ast::RestrictedExpr::val(text.clone());
    let expression = ast::RestrictedExpr::call_extension_fn(constructor(extension), [argument]);
    RestrictedEvaluator::new(Extensions::all_available())
        .interpret(expression.as_borrowed())
        .map_err(|error| error.to_string())
}

/// The function that makes a value of the type. Kept, because Cedar parses a name with the parser that it has for
/// policies, which costs 3 us, and the public constructors do so on every call.
fn constructor(extension: Extension) -> ast::Name {
    static NAMES: LazyLock<[ast::Name; 4]> =
        LazyLock::new(|| ["ip", "decimal", "datetime", "duration"].map(function_name));
    let [ip, decimal, datetime, duration] = &*NAMES;
    match extension {
        Extension::Ipaddr => ip,
        Extension::Decimal => decimal,
        Extension::Datetime => datetime,
        Extension::Duration => duration,
    }
    .clone()
}

#[expect(clippy::expect_used, reason = "called with four literals that every evaluation test goes through")]
fn function_name(name: &str) -> ast::Name {
    ast::Name::unqualified_name(name.parse().expect("an identifier"))
}
