//! `routes.yaml` of a bundle, as written: patterns, actions, and templates of resources.

use deserr::Deserr;
use smol_str::SmolStr;

use super::pattern::{Parameter, Pattern};
use crate::model::{EntityId, EntityTypeName, EntityUid};
use crate::yaml::{Faults, Invalid};

/// `routes.yaml`, as written.
#[derive(Debug, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct RoutesFile {
    /// The routes, in any order: a literal segment wins over a parameter, as everywhere.
    pub routes: Vec<RouteEntry>,
}

/// One route, as written.
#[derive(Debug, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct RouteEntry {
    /// `GET /books/{book_id}`, `GET|POST /books` or `grpc bookstore.v1.Books/GetBook`.
    #[deserr(rename = "match")]
    pub pattern: Pattern,
    /// The action's id, or its full name; default: the text of `match`.
    #[deserr(default)]
    pub action: Option<String>,
    /// The resource, such as `Book::"{book_id}"`; default: the service.
    #[deserr(default)]
    pub resource: Option<ResourceTemplate>,
}

/// `Type::"text {parameter} text"`
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, try_from(String) = ResourceTemplate::parse -> Invalid)]
pub struct ResourceTemplate {
    entity_type: EntityTypeName,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Parameter(String),
}

impl ResourceTemplate {
    fn parse(text: String) -> Result<Self, Invalid> {
        let invalid =
            || Invalid::new(format!("`{text}` is not a resource")).hint("like `Book::\"{book_id}\"`, in single quotes");
        let (entity_type, quoted) = text.trim().split_once("::\"").ok_or_else(invalid)?;
        let mut rest = quoted.strip_suffix('"').filter(|id| !id.contains(['"', '\\'])).ok_or_else(invalid)?;
        let entity_type = entity_type.parse().map_err(|_| invalid())?;
        let mut pieces = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            let (parameter, after) = after.split_once('}').ok_or_else(invalid)?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Parameter(parameter.to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        if pieces.iter().any(|piece| matches!(piece, Piece::Text(text) if text.contains('}'))) {
            return Err(invalid());
        }
        Ok(Self { entity_type, pieces })
    }

    /// The type of its entities.
    pub(super) fn entity_type(&self) -> &EntityTypeName {
        &self.entity_type
    }

    /// The entity, if it is the same for every request.
    pub(super) fn constant(&self) -> Option<EntityUid> {
        self.parameters().next().is_none().then(|| self.fill(&[]))
    }

    /// The names of its parameters.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The entity for these parameters. Parameters of a matched route are never missing: checked at load.
    ///
    /// Two requests of one route name one entity only if their parameters are equal: see [`Self::run_together`]. A
    /// slash within a parameter, which `paths.allow: [encoded_slash]` lets through, is no separator, so it is escaped in
    /// all parameters but the last, and `%` with it.
    pub(super) fn fill(&self, parameters: &[(SmolStr, SmolStr)]) -> EntityUid {
        let mut id = String::new();
        let mut left = self.parameters().count();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => id.push_str(text),
                Piece::Parameter(name) => {
                    left = left.saturating_sub(1);
                    let value =
                        parameters.iter().find(|(candidate, _)| candidate == name).map_or("", |(_, value)| value);
                    match left > 0 && value.contains(['/', '%']) {
                        true => id.push_str(&value.replace('%', "%25").replace('/', "%2F")),
                        false => id.push_str(value),
                    }
                }
            }
        }
        EntityUid::from_type_name_and_id(self.entity_type.clone(), EntityId::new(id))
    }

    /// Two parameters that can run together, so that `a-b` and `c` would name the same entity as `a` and `b-c`. What
    /// keeps them apart is a slash, which no parameter of one segment has.
    pub(super) fn run_together(&self, path: &[Parameter]) -> Option<(&str, &str)> {
        let is_rest = |name: &str| path.iter().any(|own| own.is_rest && own.name == name);
        let mut before: Option<&str> = None;
        let mut is_apart = true;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => is_apart |= text.contains('/'),
                Piece::Parameter(name) => {
                    if let Some(before) = before.filter(|before| !is_apart || is_rest(before)) {
                        return Some((before, name));
                    }
                    (before, is_apart) = (Some(name.as_str()), false);
                }
            }
        }
        None
    }

    /// A parameter in the form of another language, which would be a literal, and the same entity for every request.
    pub(super) fn foreign<'p>(&self, path: &'p [Parameter]) -> Option<(String, &'p str)> {
        let texts = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text),
            Piece::Parameter(_) => None,
        });
        let forms = |name: &str| [":{}", "${}", "<{}>", "[{}]", "*{}", "({})"].map(|form| form.replace("{}", name));
        let found = |text: &String| {
            path.iter().find_map(|own| {
                let form = forms(&own.name).into_iter().find(|form| text.contains(form.as_str()))?;
                Some((form, own.name.as_str()))
            })
        };
        texts.into_iter().find_map(found)
    }
}
