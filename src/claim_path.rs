//! Paths to claims of a token, such as `realm_access.roles`: one syntax wherever a configuration names a claim or a part of
//! the context.
//!
//! ```text
//! path  = name *( "." name / "[" index "]" )
//! name  = bare / quoted      ; bare: no dots, slashes, brackets, quotes, spaces
//! quoted = a JSON string     ; "https://id.example/roles", "kubernetes.io"
//! ```

use std::fmt;
use std::str::FromStr;

use deserr::Deserr;
use serde::Serialize;
use smol_str::SmolStr;

use crate::yaml::{Faults, Invalid};

/// Where a claim is. A dot always leads into an object; a name that has dots itself is quoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserr)]
#[deserr(error = Faults, try_from(String) = ClaimPath::try_from_text -> Invalid)]
pub struct ClaimPath {
    /// The claim at the top.
    name: SmolStr,
    /// From there on.
    steps: Vec<Step>,
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Into an object.
    Name(SmolStr),
    /// Into a list; the first item is 0.
    Item(usize),
}

/// A value that paths lead through.
pub trait Node: Copy {
    /// What lies one step below.
    fn below(self, step: &Step) -> Below<Self>;
}

/// What lies one step below a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below<N> {
    /// This.
    There(N),
    /// Nothing: the object has no such field, the list is shorter, or there is `null`.
    Absent,
    /// The value is neither an object nor a list, or not the one that the path takes it for.
    Misfit,
}

/// Why a path leads nowhere although there is something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Astray {
    /// This part of the path is not an object, or not a list.
    Misfit(String),
    /// There is no such path, but a claim at the top whose own name is the text of it.
    Unquoted(String),
}

impl ClaimPath {
    /// The claim of exactly this name, whatever is in it.
    pub fn of(name: &str) -> Self {
        Self { name: name.into(), steps: Vec::new() }
    }

    /// The name of the claim at the top.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The steps from there on.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The name of the claim itself; `None` if it is an item of a list.
    pub fn last_name(&self) -> Option<&str> {
        match self.steps.last() {
            None => Some(&self.name),
            Some(Step::Name(name)) => Some(name),
            Some(Step::Item(_)) => None,
        }
    }

    /// The value at this path; `top` finds a value at the top by its name. `None` if nothing is there.
    ///
    /// # Errors
    /// If something is there that the path cannot lead through: what is unreadable is not absent.
    pub fn find<N: Node>(&self, top: impl Fn(&str) -> Option<N>) -> Result<Option<N>, Astray> {
        let Some(mut node) = top(&self.name) else { return self.nothing(top) };
        for (at, step) in self.steps.iter().enumerate() {
            node = match node.below(step) {
                Below::There(node) => node,
                Below::Absent => return self.nothing(top),
                Below::Misfit => {
                    let above = self.steps.get(..at).unwrap_or_default().to_vec();
                    return Err(Astray::Misfit(Self { name: self.name.clone(), steps: above }.to_string()));
                }
            };
        }
        Ok(Some(node))
    }

    /// Nothing is there; unless the claim was meant whose own name has the dots.
    fn nothing<N>(&self, top: impl Fn(&str) -> Option<N>) -> Result<Option<N>, Astray> {
        if self.steps.is_empty() {
            return Ok(None);
        }
        let text = self.to_string();
        if top(&text).is_some() { Err(Astray::Unquoted(text)) } else { Ok(None) }
    }

    fn try_from_text(text: String) -> Result<Self, Invalid> {
        let fault = |why: &str| Invalid::new(format!("`{text}` is not a path to a claim: {why}"));
        let hint = || {
            if text.contains(['"', '[', ']']) || text.is_empty() {
                return "like `realm_access.roles`, `groups[0]` or `\"https://id.example/roles\"`".to_owned();
            }
            if let Some(rest) = text.strip_prefix("$.") {
                return format!("paths begin with the name of a claim: `{rest}`");
            }
            format!("a claim whose own name is this is quoted: `'\"{text}\"'`; else like `realm_access.roles`")
        };
        read(&text).map_err(|why| fault(why).hint(hint()))
    }
}

fn read(text: &str) -> Result<ClaimPath, &'static str> {
    let (name, mut rest) = read_name(text)?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (index, after) = bracketed.split_once(']').ok_or("a bracket is not closed")?;
            let item: usize = index.parse().map_err(|_| "an index is a number")?;
            // `+1` and `01` are numbers as well.
            if item.to_string() != index {
                return Err("an index is a number");
            }
            steps.push(Step::Item(item));
            rest = after;
        } else if let Some(named) = rest.strip_prefix('.') {
            let (name, after) = read_name(named)?;
            steps.push(Step::Name(name));
            rest = after;
        } else {
            return Err("a name is followed by `.` or `[`");
        }
    }
    Ok(ClaimPath { name, steps })
}

fn read_name(text: &str) -> Result<(SmolStr, &str), &'static str> {
    if text.starts_with('"') {
        let mut escaped = false;
        let end = text.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (end, _) = end.ok_or("a quote is not closed")?;
        let (quoted, rest) = text.split_at_checked(end + 1).ok_or("a quote is not closed")?;
        let name: String = serde_json::from_str(quoted).map_err(|_| "what is quoted is not a JSON string")?;
        return if name.is_empty() { Err("a name is empty") } else { Ok((name.into(), rest)) };
    }
    let end = text.find(['.', '[']).unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end).ok_or("a name is empty")?;
    match name {
        "" => Err("a name is empty"),
        "$" => Err("`$` is not the name of a claim"),
        _ if !name.chars().all(is_bare) => Err("a name has a character that must be quoted"),
        _ => Ok((name.into(), rest)),
    }
}

/// Whether a character may stand in a name without quotes. A slash may not, so that a URL is never read as a path.
fn is_bare(c: char) -> bool {
    !(c.is_whitespace() || c.is_control() || matches!(c, '.' | '[' | ']' | '"' | '\'' | '/' | '\\' | '*' | ','))
}

impl FromStr for ClaimPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::try_from_text(text.to_owned())
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, &self.name)?;
        for step in &self.steps {
            match step {
                Step::Name(name) => {
                    f.write_str(".")?;
                    write_name(f, name)?;
                }
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        Ok(())
    }
}

fn write_name(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    if name != "$" && !name.is_empty() && name.chars().all(is_bare) {
        f.write_str(name)
    } else {
        // A JSON string.
        write!(f, "{}", serde_json::Value::from(name))
    }
}

impl Serialize for ClaimPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misfit(place) => write!(f, "`{place}` is not what the path leads through"),
            Self::Unquoted(name) => write!(f, "a claim is named `{name}`, dots and all: quote it as `\"{name}\"`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    impl Node for &Value {
        fn below(self, step: &Step) -> Below<Self> {
            let below = match (self, step) {
                (Value::Object(fields), Step::Name(name)) => fields.get(name.as_str()),
                (Value::Array(items), Step::Item(item)) => items.get(*item),
                _ => return Below::Misfit,
            };
            below.filter(|value| !value.is_null()).map_or(Below::Absent, Below::There)
        }
    }

    #[test]
    fn paths_lead_to_claims() {
        let token = json!({
            "sub": "ann", "groups": ["a", "b"], "cognito:groups": ["c"],
            "realm_access": {"roles": ["d"]}, "resource_access": {"my.shop": {"roles": ["e"]}, "shop": null},
            "https://id.example/roles": ["f"], "kubernetes.io": {"namespace": "g"}, "a\"b": "h", "0": "i",
        });
        for (path, expected) in [
            ("sub", Ok(json!("ann"))),
            ("groups[1]", Ok(json!("b"))),
            ("groups[2]", Ok(Value::Null)),
            ("cognito:groups", Ok(json!(["c"]))),
            ("realm_access.roles", Ok(json!(["d"]))),
            ("realm_access.roles[0]", Ok(json!("d"))),
            ("resource_access.\"my.shop\".roles", Ok(json!(["e"]))),
            ("resource_access.shop.roles", Ok(Value::Null)),
            ("resource_access.other.roles", Ok(Value::Null)),
            ("\"https://id.example/roles\"", Ok(json!(["f"]))),
            ("\"kubernetes.io\".namespace", Ok(json!("g"))),
            ("\"a\\\"b\"", Ok(json!("h"))),
            ("0", Ok(json!("i"))),
            // Something is there, and not what was meant.
            ("kubernetes.io", Err("a claim is named `kubernetes.io`, dots and all: quote it as `\"kubernetes.io\"`")),
            ("sub.name", Err("`sub` is not what the path leads through")),
            ("sub[0]", Err("`sub` is not what the path leads through")),
            ("groups.name", Err("`groups` is not what the path leads through")),
            ("realm_access[0]", Err("`realm_access` is not what the path leads through")),
            ("realm_access.roles.name", Err("`realm_access.roles` is not what the path leads through")),
        ] {
            let parsed: ClaimPath = path.parse().unwrap_or_else(|_| panic!("{path}"));
            let found = parsed.find(|name| token.get(name)).map(|found| found.cloned().unwrap_or_default());
            assert_eq!(
                found,
                expected.map_err(str::to_owned).map_err(|text| match text.split('`').nth(1) {
                    Some(name) if text.starts_with("a claim") => Astray::Unquoted(name.to_owned()),
                    Some(name) => Astray::Misfit(name.to_owned()),
                    None => panic!("{text}"),
                }),
                "{path}"
            );
            assert_eq!(parsed.to_string(), path);
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a[",
            "a[]",
            "a[x]",
            "a[-1]",
            "a[01]",
            "a[0]b",
            "a]",
            "[0]",
            "\"\"",
            "\"a",
            "\"a\"b",
            "\"\\x\"",
            "a b",
            " a",
            "a ",
            "https://id.example/roles",
            "/realm_access/roles",
            "$.realm_access.roles",
            "$",
            "groups[*]",
            "groups.*",
            "a,b",
            "a'b'",
            "a\nb",
            "a[99999999999999999999]",
        ] {
            assert!(text.parse::<ClaimPath>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_is_written_is_read_again(
            name in ".{1,8}", steps in proptest::collection::vec(prop_oneof![".{1,8}".prop_map(|n| Step::Name(n.into())),
                any::<usize>().prop_map(Step::Item)], 0..4)
        ) {
            let path = ClaimPath { name: name.into(), steps };
            prop_assert_eq!(path.to_string().parse::<ClaimPath>().map_err(|_| ()), Ok(path));
        }
    }
}
