//! The names that the files of a bundle use: entity types and entities, by the syntax that each file is written in. What stands in a
//! comment, in a string or in a description names nothing.

use std::collections::BTreeSet;

use cedar_policy_core::parser::unescape::to_unescaped_string;
use serde_json::Value as Json;

use super::Files;
use super::layout::{FileKind, Form};
use super::route_file::RoutesFile;
use crate::problem::SourceFile;
use crate::strict_json;
use crate::yaml;

/// The names that files use.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    /// Entity types and common types, in full.
    types: BTreeSet<String>,
    /// Entities: type and id.
    entities: BTreeSet<(String, String)>,
}

impl Mentions {
    /// Adds what a bundle uses. Files that cannot be read are reported when they are parsed.
    pub(super) fn add(&mut self, bundle: &Files) {
        // A name may be written with escapes, so what has some is read as well.
        let may_name = |text: &str| text.contains("Stockade") || text.contains("HEAD") || text.contains('\\');
        for (path, text) in bundle.files.iter().filter(|(_, text)| may_name(text)) {
            let json = || strict_json::parse(&SourceFile::new(path.as_str(), text.as_str())).ok();
            match FileKind::of(path) {
                Ok(FileKind::Policies(Form::Cedar) | FileKind::Schema(Form::Cedar)) => self.add_cedar(text),
                Ok(FileKind::Schema(Form::Json)) => json().iter().for_each(|json| self.add_schema(json)),
                Ok(FileKind::Policies(Form::Json) | FileKind::Entities) => {
                    json().iter().for_each(|json| self.add_json(json))
                }
                Ok(FileKind::Links) => json().iter().for_each(|json| self.add_links(json)),
                Ok(FileKind::Routes) => self.add_routes(text),
                Ok(FileKind::Header | FileKind::Tests | FileKind::Request | FileKind::Foreign) | Err(_) => {}
            }
        }
    }

    /// Whether a type is used, by its full name.
    pub(super) fn has_type(&self, name: &str) -> bool {
        self.types.contains(name)
    }

    /// Whether an entity is used, by the full name of its type.
    pub(super) fn has_entity(&self, entity_type: &str, id: &str) -> bool {
        self.entities.iter().any(|(own, name)| own == entity_type && name == id)
    }

    // === Cedar's own syntax ===

    fn add_cedar(&mut self, text: &str) {
        let mut tokens = Tokens(text).peekable();
        while let Some(token) = tokens.next() {
            let Token::Word(first) = token else { continue };
            let mut name = first.to_owned();
            while tokens.next_if_eq(&Token::Colons).is_some() {
                match tokens.next() {
                    Some(Token::Word(next)) => name = format!("{name}::{next}"),
                    Some(Token::Quoted(id)) => {
                        // Cedar reports escapes that do not exist.
                        let id = to_unescaped_string(id).map_or_else(|_| id.to_owned(), String::from);
                        self.entities.insert((name.clone(), id));
                        break;
                    }
                    _ => break,
                }
            }
            self.types.insert(name);
        }
    }

    // === JSON ===

    /// Entities and policies: an entity is an object of `type` and `id`, whatever it stands in.
    fn add_json(&mut self, json: &Json) {
        match json {
            Json::Array(items) => items.iter().for_each(|item| self.add_json(item)),
            Json::Object(members) => {
                let text = |name: &str| members.get(name).and_then(Json::as_str);
                if let (Some(entity_type), Some(id), 2) = (text("type"), text("id"), members.len()) {
                    self.types.insert(entity_type.to_owned());
                    self.entities.insert((entity_type.to_owned(), id.to_owned()));
                }
                // `is` of policies.
                self.types.extend(text("entity_type").map(str::to_owned));
                let below = members.iter().filter(|(name, _)| *name != "annotations");
                below.for_each(|(_, value)| self.add_json(value));
            }
            _ => {}
        }
    }

    /// A schema names types in other places, too.
    fn add_schema(&mut self, json: &Json) {
        self.add_json(json);
        match json {
            Json::Array(items) => items.iter().for_each(|item| self.add_schema(item)),
            Json::Object(members) => {
                let single = ["type", "name"].into_iter().filter_map(|key| members.get(key)?.as_str());
                let lists = ["memberOfTypes", "principalTypes", "resourceTypes"].into_iter();
                let lists = lists.filter_map(|key| members.get(key)?.as_array()).flatten().filter_map(Json::as_str);
                self.types.extend(single.chain(lists).map(str::to_owned));
                let below = members.iter().filter(|(name, _)| *name != "annotations");
                below.for_each(|(_, value)| self.add_schema(value));
            }
            _ => {}
        }
    }

    /// The slots of a link are in Cedar's own syntax.
    fn add_links(&mut self, json: &Json) {
        let links = json.as_array().into_iter().flatten().filter_map(|link| link.get("args")?.as_object());
        links.flat_map(|args| args.values()).filter_map(Json::as_str).for_each(|text| self.add_cedar(text));
    }

    // === routes ===

    fn add_routes(&mut self, text: &str) {
        let Ok(file) = yaml::parse::<RoutesFile>(&SourceFile::new("routes.yaml", text)) else { return };
        for route in file.routes {
            match route.action {
                Some(full) if full.ends_with('"') => self.add_cedar(&full),
                Some(id) => {
                    self.entities.insert(("Action".to_owned(), id));
                }
                None => {}
            }
            self.types.extend(route.resource.map(|resource| resource.entity_type().to_string()));
        }
    }
}

/// Where the declaration of an action, in Cedar's syntax, has this id: offset and length. One declaration may have several.
pub(super) fn declared_at(declaration: &str, id: &str) -> Option<(usize, usize)> {
    let mut tokens = Tokens(declaration);
    // Annotations come before it.
    tokens.by_ref().find(|token| *token == Token::Word("action"))?;
    loop {
        let token = tokens.next()?;
        let length = match token {
            Token::Word(name) if name == id => name.len(),
            Token::Quoted(text) if to_unescaped_string(text).is_ok_and(|text| text == id) => text.len() + 2,
            _ => continue,
        };
        return Some((declaration.len() - tokens.0.len() - length, length));
    }
}

/// What Cedar's policies and schemas are made of, as far as names need it: without spaces and comments.
struct Tokens<'a>(&'a str);

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// The text between the quotes, with its escapes.
    Quoted(&'a str),
    Colons,
    Other,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            self.0 = self.0.trim_start();
            let Some(comment) = self.0.strip_prefix("//") else { break };
            self.0 = comment.find('\n').and_then(|at| comment.get(at..)).unwrap_or("");
        }
        let first = self.0.chars().next()?;
        if let Some(rest) = self.0.strip_prefix("::") {
            self.0 = rest;
            return Some(Token::Colons);
        }
        if let Some(rest) = self.0.strip_prefix('"') {
            let mut is_escaped = false;
            let end = rest.find(|c| {
                let ends = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            });
            let end = end.unwrap_or(rest.len());
            self.0 = rest.get(end + 1..).unwrap_or("");
            return Some(Token::Quoted(rest.get(..end).unwrap_or(rest)));
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let end = match is_word(first) {
            true => self.0.find(|c| !is_word(c)).unwrap_or(self.0.len()),
            false => first.len_utf8(),
        };
        let (token, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        Some(if is_word(first) { Token::Word(token) } else { Token::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> Mentions {
        let files = [(path.to_owned(), text.to_owned())].into();
        let mut mentions = Mentions::default();
        mentions.add(&Files { root: "x".to_owned(), files, changed: None });
        mentions
    }

    /// `Stockade::User` and `Action::"HEAD"`, in everything that names them.
    #[test]
    fn names_are_found_in_every_syntax() {
        for (path, text) in [
            ("a.cedar", "permit (principal is Stockade::User, action == Action::\"HEAD\", resource);"),
            (
                "a.cedar",
                "permit (principal is Stockade :: User, action == Action\n:: // x\n \"\\u{48}EAD\", resource);",
            ),
            (
                "a.cedar",
                "@a(\"http://x\") permit (principal in Stockade::User::\"a\\\"//\", action == Action::\"HEAD\", resource);",
            ),
            ("s.cedarschema", "entity X { u: Set<Stockade::User> }; action a in [Action::\"HEAD\"];"),
            (
                "s.cedarschema.json",
                r#"{"": {"entityTypes": {"X": {"memberOfTypes": ["Stockade::User"]}}, "actions": {"a": {"memberOf": [{"type": "Action", "id": "HEAD"}]}}}}"#,
            ),
            (
                "s.cedarschema.json",
                r#"{"": {"entityTypes": {"X": {"shape": {"type": "Record", "attributes": {"u": {"type": "Entity", "name": "Stockade::User"}}}}}, "actions": {"a": {"memberOf": [{"id": "\u0048EAD", "type": "Action"}]}}}}"#,
            ),
            (
                "a.cedar.json",
                r#"{"principal": {"op": "is", "entity_type": "Stockade::User"}, "action": {"op": "==", "entity": {"type": "Action", "id": "HEAD"}}}"#,
            ),
            (
                "a.cedar.json",
                r#"{"x": [{"Value": {"__entity": {"type": "\u0053tockade::User", "id": "a"}}}, {"Value": {"__entity": {"type": "Action", "id": "HEAD"}}}]}"#,
            ),
            ("links.json", r#"[{"args": {"?principal": "Stockade::User::\"a\"", "?resource": "Action::\"HEAD\""}}]"#),
            ("routes.yaml", "routes: [{match: GET /a, action: HEAD, resource: 'Stockade::User::\"a\"'}]"),
            ("routes.yaml", "routes: [{match: GET /a, action: 'Action::\"HEAD\"', resource: 'Stockade::User::\"a\"'}]"),
        ] {
            let found = of(path, text);
            assert!(found.has_type("Stockade::User") && found.has_entity("Action", "HEAD"), "{text}: {found:?}");
        }
        let entities =
            of("entities.json", r#"[{"uid": {"type": "Stockade::User", "id": "a"}, "attrs": {}, "parents": []}]"#);
        assert!(entities.has_type("Stockade::User"));
    }

    #[test]
    fn what_only_looks_like_a_name_is_none() {
        for (path, text) in [
            ("a.cedar", "// Stockade::User, Action::\"HEAD\"\npermit (principal, action, resource);"),
            ("a.cedar", "@why(\"Stockade::User Action::\\\"HEAD\\\"\") permit (principal, action, resource);"),
            (
                "a.cedar",
                "permit (principal is My::Stockade::User, action == My::Action::\"HEAD\", resource is Stockade::UserX);",
            ),
            ("a.cedar", "permit (principal, action == Action::\"GET\", resource) when { context.path == \"HEAD\" };"),
            ("s.cedarschema", "entity HEAD, User; namespace Stockades { entity User; }"),
            (
                "s.cedarschema.json",
                r#"{"": {"annotations": {"x": "Stockade::User", "type": "Stockade::User"}, "entityTypes": {"Stockade::User": {"enum": ["Stockade::User"]}}}}"#,
            ),
            ("a.cedar.json", r#"{"annotations": {"type": "Action", "id": "HEAD", "entity_type": "Stockade::User"}}"#),
            (
                "a.cedar.json",
                r#"{"==": {"left": {"Value": "Stockade::User"}, "right": {"Value": "Action::\"HEAD\""}}}"#,
            ),
            ("entities.json", r#"[{"attrs": {"name": "Stockade::User"}}]"#),
            ("bundle.yaml", "name: x\ndescription: Stockade::User, Action::\"HEAD\""),
            ("tests/a.yaml", "tests: [{name: 'Stockade::User, Action::\"HEAD\"'}]"),
            ("tests/a.json", r#"{"type": "Action", "id": "HEAD", "entity_type": "Stockade::User"}"#),
        ] {
            let found = of(path, text);
            assert!(!found.has_type("Stockade::User") && !found.has_entity("Action", "HEAD"), "{text}: {found:?}");
        }
    }
}
