//! Footprints: the part of a Query that policies can read.
//!
//! An abstract interpretation of the policies' syntax (PST). An expression may *alias* places in the context; a place
//! whose value is used by anything but attribute access is read as a whole. Whatever this walk does not understand means
//! "the whole context", so a footprint may be too large and never too small. Contexts are cut down to it before
//! they are built, so that what no policy reads is neither mapped nor part of a cache key.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::Policy;
use cedar_policy::pst::{BinaryOp, Clause, Expr, Var};
use serde::Serialize;
use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use super::core::core_policy;
use crate::model::{AttributeType, ContextType, RecordType, Type};

/// What a set of policies can read of a Query beside its principal, action and resource, which are always part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// What of the context.
    pub context: Reads,
    /// Names of attributes that are read of any entity; the principal may be reached on many ways.
    pub attributes: BTreeSet<SmolStr>,
    /// Whether attributes of any name may be read.
    pub all_attributes: bool,
}

/// A place in the context: read as a whole, or in parts, or only looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// The value as a whole is used.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Its parts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<SmolStr, Reads>,
}

/// How a place in the context is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It is only looked for.
    Presence,
    /// Its value is used.
    Value,
    /// It is part of something that is used as a whole, so many names below the context.
    PartOf(usize),
}

/// A place in the context.
type AttributePath = Vec<SmolStr>;

impl Footprint {
    /// What one policy can read.
    ///
    /// # Errors
    /// If Cedar cannot give its syntax tree (some policies that parse have none); the footprint is then
    /// [`Footprint::everything`], and the message says why.
    pub fn of(policy: &Policy) -> Result<Self, String> {
        // From the tree that is evaluated: a policy that came as text would be parsed again, which is a third of a load.
        let evaluated = Policy::from(core_policy(policy).clone());
        let tree = evaluated.to_pst().map_err(|error| error.to_string())?;
        let mut own = Self::default();
        for clause in tree.body().clauses() {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            own.consume(condition);
        }
        Ok(own)
    }

    /// All there is.
    pub fn everything() -> Self {
        Self {
            context: Reads { whole: true, parts: BTreeMap::new() },
            attributes: BTreeSet::new(),
            all_attributes: true,
        }
    }

    /// Adds what others can read.
    pub fn merge(&mut self, other: &Self) {
        self.context.merge(&other.context);
        self.attributes.extend(other.attributes.iter().cloned());
        self.all_attributes |= other.all_attributes;
    }

    /// Identity of the footprint, for cache keys: entries made under another one are never hit.
    pub fn fingerprint(&self) -> [u8; 16] {
        // Sorted maps serialize one way only; a footprint that does not serialize does not exist.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(text);
        std::array::from_fn(|at| digest.get(at).copied().unwrap_or(0))
    }

    /// Which of these places are read, by their number: sorted paths that begin with `context` or `principal`.
    pub(super) fn places(&self, paths: &[&[&str]]) -> Vec<usize> {
        let mut found = Vec::new();
        self.context.places(&mut vec!["context"], paths, &mut found);
        if self.all_attributes {
            found.extend(below(paths, &["principal"]));
        } else {
            found.extend(self.attributes.iter().filter_map(|name| paths.binary_search(&&["principal", name][..]).ok()));
        }
        found
    }

    /// A context type without what no policy reads.
    pub fn cut_context(&self, context: &ContextType) -> ContextType {
        context
            .iter()
            .filter_map(|(root, attribute)| {
                let reads = self.context.part(root.as_str())?;
                Some((*root, AttributeType { ty: reads.cut(&attribute.ty), required: attribute.required }))
            })
            .collect()
    }

    /// The attributes of an entity type that are read of any entity.
    pub fn cut_entity(&self, fields: &RecordType) -> RecordType {
        let read = |name: &SmolStr| self.all_attributes || self.attributes.contains(name);
        fields.iter().filter(|(name, _)| read(name)).map(|(name, field)| (name.clone(), field.clone())).collect()
    }

    /// Uses the value of an expression.
    fn consume(&mut self, expr: &Expr) {
        for place in self.walk(expr) {
            self.context.at(&place).whole = true;
        }
    }

    /// The places that the value of an expression may be; what it reads on the way is noted.
    fn walk(&mut self, expr: &Expr) -> Vec<AttributePath> {
        match expr {
            Expr::Var(Var::Context) => vec![Vec::new()],
            Expr::Var(_) | Expr::Literal(_) | Expr::Slot(_) => Vec::new(),
            Expr::GetAttr { expr, attr } => {
                self.attributes.insert(attr.clone());
                let mut places = self.walk(expr);
                for place in &mut places {
                    place.push(attr.clone());
                    self.context.at(place);
                }
                places
            }
            Expr::HasAttr { expr, attrs } => {
                for place in self.walk(expr) {
                    self.context.at(&place.into_iter().chain(attrs.iter().cloned()).collect::<AttributePath>());
                }
                self.attributes.extend(attrs.iter().cloned());
                Vec::new()
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                self.consume(cond);
                let mut places = self.walk(then_expr);
                places.extend(self.walk(else_expr));
                places
            }
            Expr::UnaryOp { expr, .. } | Expr::Like { expr, .. } => {
                self.consume(expr);
                Vec::new()
            }
            Expr::BinaryOp { op, left, right } => {
                // Tags have names that are computed, so any of them may be read.
                self.all_attributes |= matches!(op, BinaryOp::GetTag | BinaryOp::HasTag);
                self.consume(left);
                self.consume(right);
                Vec::new()
            }
            Expr::Is { expr, in_expr, .. } => {
                self.consume(expr);
                in_expr.iter().for_each(|parent| self.consume(parent));
                Vec::new()
            }
            Expr::Set(members) => {
                members.iter().for_each(|member| self.consume(member));
                Vec::new()
            }
            Expr::Record(fields) => {
                fields.values().for_each(|field| self.consume(field));
                Vec::new()
            }
            // Kinds of expressions that Cedar may add.
            _ => {
                self.merge(&Self::everything());
                Vec::new()
            }
        }
    }
}

impl Reads {
    /// The node at a place, made if it was not there.
    fn at(&mut self, place: &[SmolStr]) -> &mut Self {
        place.iter().fold(self, |node, name| node.parts.entry(name.clone()).or_default())
    }

    fn merge(&mut self, other: &Self) {
        self.whole |= other.whole;
        for (name, part) in &other.parts {
            self.parts.entry(name.clone()).or_default().merge(part);
        }
    }

    /// Whether nothing is read.
    pub(super) fn is_empty(&self) -> bool {
        !self.whole && self.parts.is_empty()
    }

    /// How the place of these names is read; `None` if it is not.
    pub(super) fn access(&self, names: &[&str]) -> Option<Access> {
        let mut node = self;
        for (depth, name) in names.iter().enumerate() {
            if node.whole {
                return Some(Access::PartOf(depth));
            }
            node = node.parts.get(*name)?;
        }
        Some(if node.whole { Access::Value } else { Access::Presence })
    }

    /// Adds the places at this path and below it that are read.
    fn places<'a>(&'a self, path: &mut Vec<&'a str>, paths: &[&[&str]], found: &mut Vec<usize>) {
        if self.whole {
            return found.extend(below(paths, path));
        }
        found.extend(paths.binary_search(&path.as_slice()).ok());
        for (name, part) in &self.parts {
            path.push(name);
            part.places(path, paths, found);
            path.pop();
        }
    }

    /// What is read of a part; `None` if nothing.
    fn part(&self, name: &str) -> Option<Self> {
        if self.whole {
            return Some(Self { whole: true, parts: BTreeMap::new() });
        }
        self.parts.get(name).cloned()
    }

    /// A type without what is not read of it. A record that is only looked for keeps no fields; any other value is kept
    /// whole, since it has no parts.
    fn cut(&self, ty: &Type) -> Type {
        match ty {
            Type::Record(fields) if !self.whole => Type::Record(
                fields
                    .iter()
                    .filter_map(|(name, field)| {
                        let reads = self.part(name)?;
                        Some((name.clone(), AttributeType { ty: reads.cut(&field.ty), required: field.required }))
                    })
                    .collect(),
            ),
            other => other.clone(),
        }
    }
}

/// The numbers of those sorted paths that are this one, or go on from it.
fn below(paths: &[&[&str]], path: &[&str]) -> std::ops::Range<usize> {
    let first = paths.partition_point(|other| *other < path);
    let count = paths.iter().skip(first).take_while(|other| other.starts_with(path)).count();
    first..first + count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(condition: &str) -> String {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let policy = Policy::parse(None, text).expect("a policy");
        let footprint = Footprint::of(&policy).expect("a footprint");
        serde_json::to_string(&footprint.context).expect("JSON")
    }

    #[test]
    fn conditions_read_what_they_use() {
        let whole = |name: &str| format!(r#"{{"parts":{{"{name}":{{"whole":true}}}}}}"#);
        for (condition, expected) in [
            ("true", "{}".to_owned()),
            ("context.path like \"/a*\"", whole("path")),
            ("context has path", r#"{"parts":{"path":{}}}"#.to_owned()),
            ("context has claims.mfa", r#"{"parts":{"claims":{"parts":{"mfa":{}}}}}"#.to_owned()),
            ("context.claims has mfa && context.claims.mfa", r#"{"parts":{"claims":{"parts":{"mfa":{"whole":true}}}}}"#.to_owned()),
            ("(if context.a then context.b else context.c).d", r#"{"parts":{"a":{"whole":true},"b":{"parts":{"d":{"whole":true}}},"c":{"parts":{"d":{"whole":true}}}}}"#.to_owned()),
            ("context == {a: 1}", r#"{"whole":true}"#.to_owned()),
            ("[context.a].contains(1)", whole("a")),
            ("{x: context.a}.x == 1", whole("a")),
            ("context.ip.isInRange(ip(\"10.0.0.0/8\"))", whole("ip")),
            ("principal.x == resource.y", "{}".to_owned()),
        ] {
            assert_eq!(context(condition), expected, "{condition}");
        }
    }

    #[test]
    fn attributes_are_those_of_any_entity() {
        let text = "permit (principal, action, resource) when { resource.owner.level > 3 && principal has email };";
        let footprint = Footprint::of(&Policy::parse(None, text).expect("a policy")).expect("a footprint");
        let names: Vec<&str> = footprint.attributes.iter().map(SmolStr::as_str).collect();
        assert_eq!((names, footprint.all_attributes), (vec!["email", "level", "owner"], false));
        let tags = "permit (principal, action, resource) when { principal.hasTag(\"x\") };";
        assert!(Footprint::of(&Policy::parse(None, tags).expect("a policy")).expect("a footprint").all_attributes);
    }

    #[test]
    fn what_has_no_tree_reads_everything() {
        let text = "permit (principal, action, resource) when { duration(\"1d\", \"2d\") == context.x };";
        let policy = Policy::parse(None, text).expect("it parses");
        assert!(Footprint::of(&policy).is_err());
    }
}
