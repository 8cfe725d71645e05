//! Routes: from method and path, or gRPC method, to the action and the resource of a Query.
//!
//! `routes.yaml` of a bundle holds templates; `matchit` matches them. Actions are templates, not paths, so that their
//! number stays low (design, decision 7).

use std::sync::Arc;

use deserr::Deserr;
use smol_str::SmolStr;

use super::HashMap;
use super::schema::Types;
use crate::model::{EntityId, EntityTypeName, EntityUid, Root};
use crate::problem::{Problem, SourceFile};
use crate::yaml::{self, Faults, Invalid};

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
    /// `GET /books/{book_id}` or `grpc bookstore.v1.Books/GetBook`.
    #[deserr(rename = "match")]
    pub pattern: Pattern,
    /// The action's id, or its full name; default: the text of `match`.
    #[deserr(default)]
    pub action: Option<String>,
    /// The resource, such as `Book::"{book_id}"`; default: the service.
    #[deserr(default)]
    pub resource: Option<ResourceTemplate>,
}

/// What a route matches.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = Pattern::parse -> Invalid)]
pub enum Pattern {
    /// A method and a path template.
    Http {
        /// The method, in capitals.
        method: String,
        /// The template, in matchit's syntax: `{name}` for a segment, `{*name}` for the rest.
        path: String,
    },
    /// A gRPC method.
    Grpc {
        /// `package.Service`
        service: String,
        /// `Method`
        method: String,
    },
}

impl Pattern {
    fn parse(text: String) -> Result<Self, Invalid> {
        let invalid = || {
            Invalid::new(format!("`{text}` is not a route"))
                .hint("like `GET /books/{book_id}` or `grpc bookstore.v1.Books/GetBook`")
        };
        let (word, rest) = text.split_once(' ').ok_or_else(invalid)?;
        if word == "grpc" {
            let (service, method) = rest.split_once('/').ok_or_else(invalid)?;
            if service.is_empty() || method.is_empty() || method.contains('/') || rest.contains(char::is_whitespace) {
                return Err(invalid());
            }
            return Ok(Self::Grpc { service: service.to_owned(), method: method.to_owned() });
        }
        let is_method = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if !is_method || !rest.starts_with('/') || rest.contains(['?', '#', ' ']) {
            return Err(invalid());
        }
        Ok(Self::Http { method: word.to_owned(), path: rest.to_owned() })
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { method, path } => write!(f, "{method} {path}"),
            Self::Grpc { service, method } => write!(f, "grpc {service}/{method}"),
        }
    }
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
        Ok(Self { entity_type, pieces })
    }

    fn parameters(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The entity for these parameters. Parameters of a matched route are never missing: checked at load.
    fn fill(&self, parameters: &[(SmolStr, SmolStr)]) -> EntityUid {
        let mut id = String::new();
        for piece in &self.pieces {
            id.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Parameter(name) => {
                    parameters.iter().find(|(candidate, _)| candidate == name).map_or("", |(_, value)| value)
                }
            });
        }
        EntityUid::from_type_name_and_id(self.entity_type.clone(), EntityId::new(id))
    }
}

/// A compiled route.
#[derive(Debug)]
struct Route {
    pattern: Pattern,
    action: EntityUid,
    resource: Option<ResourceTemplate>,
    bundle: String,
}

/// All routes of a snapshot.
#[derive(Debug, Default)]
pub struct Routes {
    http: HashMap<String, matchit::Router<Arc<Route>>>,
    grpc: HashMap<(String, String), Arc<Route>>,
    /// The actions that routes lead to: whether the resource has every parameter of the path.
    pinned: HashMap<EntityUid, bool>,
    count: usize,
}

/// Where a request leads.
#[derive(Debug, PartialEq, Eq)]
pub struct Matched {
    /// What it does.
    pub action: EntityUid,
    /// To what; `None`: to the service.
    pub resource: Option<EntityUid>,
    /// The parameters of the template, in its order.
    pub parameters: Vec<(SmolStr, SmolStr)>,
}

impl Routes {
    /// Adds the routes of a bundle; reports every fault.
    pub fn add(&mut self, bundle: &str, source: &Arc<SourceFile>, types: &Types, problems: &mut Vec<Problem>) {
        let file: RoutesFile = match yaml::parse(source) {
            Ok(file) => file,
            Err(faults) => return problems.extend(faults),
        };
        for entry in file.routes {
            let span = source.text.find(&entry.pattern.to_string()).map(|at| (at, entry.pattern.to_string().len()));
            let mut report = |message: String, hint: Option<String>| {
                let problem = Problem::error(message).at(source, span);
                problems.push(if let Some(hint) = hint { problem.hint(hint) } else { problem });
            };
            match compile(bundle, entry, types) {
                Ok(route) => {
                    if let Err(message) = self.insert(route) {
                        report(message, Some("one of the two has to go: they match the same requests".to_owned()));
                    }
                }
                Err(faults) => faults.into_iter().for_each(|(message, hint)| report(message, hint)),
            }
        }
    }

    fn insert(&mut self, route: Route) -> Result<(), String> {
        let route = Arc::new(route);
        let conflict = |other: &Route| {
            format!(
                "route `{}` of bundle `{}` conflicts with `{}` of bundle `{}`",
                route.pattern, route.bundle, other.pattern, other.bundle
            )
        };
        match &route.pattern {
            Pattern::Grpc { service, method } => {
                let key = (service.clone(), method.clone());
                if let Some(other) = self.grpc.get(&key) {
                    return Err(conflict(other));
                }
                self.grpc.insert(key, Arc::clone(&route));
            }
            Pattern::Http { method, path } => {
                let router = self.http.entry(method.clone()).or_default();
                router.insert(path.clone(), Arc::clone(&route)).map_err(|error| match error {
                    matchit::InsertError::Conflict { with } => match router.at(&with) {
                        Ok(other) => conflict(other.value),
                        Err(_) => format!("route `{}` conflicts with `{method} {with}`", route.pattern),
                    },
                    other => format!("route `{}` is not a valid template: {other}", route.pattern),
                })?;
            }
        }
        let named: Vec<&str> = route.resource.iter().flat_map(ResourceTemplate::parameters).collect();
        let pins = parameters(&route.pattern).iter().all(|parameter| named.contains(&parameter.as_str()));
        *self.pinned.entry(route.action.clone()).or_insert(true) &= pins;
        self.count += 1;
        Ok(())
    }

    /// Whether action and resource of a request tell its path, so that the path adds nothing to a cache key that holds
    /// both. Methods are the actions of requests that no route matches, with any path at all.
    pub fn pin_path(&self, action: &EntityUid) -> bool {
        let is_method = action.id().unescaped().bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        !is_method && self.pinned.get(action).copied().unwrap_or(false)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The route of an HTTP request: method, and canonical path.
    pub fn http(&self, method: &str, path: &str) -> Option<Matched> {
        let matched = self.http.get(method)?.at(path).ok()?;
        let parameters = matched.params.iter().map(|(name, value)| (name.into(), decoded(value))).collect();
        Some(matched.value.lead(parameters))
    }

    /// The route of a gRPC call.
    pub fn grpc(&self, service: &str, method: &str) -> Option<Matched> {
        let route = self.grpc.get(&(service.to_owned(), method.to_owned()))?;
        Some(route.lead(Vec::new()))
    }
}

/// A parameter's value. The canonical path keeps those escapes that the operator allowed, so that they cannot be
/// mistaken for separators; inside a parameter they stand for themselves.
fn decoded(value: &str) -> SmolStr {
    percent_encoding::percent_decode_str(value).decode_utf8().map_or_else(|_| value.into(), SmolStr::new)
}

impl Route {
    fn lead(&self, parameters: Vec<(SmolStr, SmolStr)>) -> Matched {
        Matched {
            action: self.action.clone(),
            resource: self.resource.as_ref().map(|template| template.fill(&parameters)),
            parameters,
        }
    }
}

type Fault = (String, Option<String>);

fn compile(bundle: &str, entry: RouteEntry, types: &Types) -> Result<Route, Vec<Fault>> {
    let mut faults: Vec<Fault> = Vec::new();
    let own = parameters(&entry.pattern);
    let default = match &entry.pattern {
        Pattern::Http { .. } => entry.pattern.to_string(),
        Pattern::Grpc { service, method } => format!("{service}/{method}"),
    };
    let Some(action) = action_uid(&entry.action.unwrap_or(default), types) else {
        return Err(vec![(format!("the action of route `{}` is not an id", entry.pattern), None)]);
    };
    for parameter in entry.resource.iter().flat_map(ResourceTemplate::parameters) {
        if !own.contains(&parameter.to_owned()) {
            let hint = if own.is_empty() { "it has none".to_owned() } else { format!("it has {}", own.join(", ")) };
            faults.push((
                format!("the resource of route `{}` names `{{{parameter}}}`, which its path has not", entry.pattern),
                Some(hint),
            ));
        }
    }
    let service: Option<EntityTypeName> = "Service".parse().ok();
    let service = service.as_ref().map(|name| types.vocabulary().resolve(name));
    match types.action(&action) {
        None => faults.push((
            format!("route `{}` leads to {action}, which no schema declares", entry.pattern),
            Some(yaml::suggest(
                action.id().unescaped(),
                &types.action_ids().iter().map(|uid| uid.id().unescaped()).collect::<Vec<_>>(),
            )),
        )),
        Some(declared) => {
            // Without one, the resource is the service. What the action does not take would be denied for ever.
            let (resource, hint) = match &entry.resource {
                Some(resource) => {
                    (Some(&resource.entity_type), "add the type to `resource` of the action in the schema")
                }
                None => (service, "give the route a `resource`"),
            };
            if types.vocabulary().is_unreachable(&action) {
                let message =
                    format!("route `{}` leads to {action}, which is for requests that no route names", entry.pattern);
                let hint = "declare an action for it in the schema, or write `unrouted: base` into bundle.yaml";
                faults.push((message, Some(hint.to_owned())));
            } else if let Some(resource) = resource.filter(|resource| !declared.takes_resource(resource)) {
                let message = format!("route `{}` leads to {action}, which does not take `{resource}`", entry.pattern);
                faults.push((message, Some(hint.to_owned())));
            }
            for (root, attribute) in &declared.declared {
                if let (Root::Params, crate::model::Type::Record(fields)) = (root, &attribute.ty) {
                    let missing =
                        fields.iter().filter(|(name, field)| field.required && !own.contains(&name.to_string()));
                    faults.extend(missing.map(|(name, _)| {
                        (
                            format!("{action} needs `context.params.{name}`, which route `{}` has not", entry.pattern),
                            Some(format!("put `{{{name}}}` into the path, or make it optional in the schema")),
                        )
                    }));
                }
            }
        }
    }
    if faults.is_empty() {
        Ok(Route { pattern: entry.pattern, action, resource: entry.resource, bundle: bundle.to_owned() })
    } else {
        Err(faults)
    }
}

/// The action of a route: an id (`viewBook`), or a full name (`Shop::Action::"viewBook"`). An id is that of the one action
/// of that id, if no top-level one has it.
fn action_uid(text: &str, types: &Types) -> Option<EntityUid> {
    if text.ends_with('"')
        && let Ok(uid) = text.parse()
    {
        return Some(uid);
    }
    let action = EntityUid::from_type_name_and_id("Action".parse().ok()?, EntityId::new(text));
    let mut same = types.action_ids().into_iter().filter(|other| other.id() == action.id());
    match (types.action(&action), same.next(), same.next()) {
        (None, Some(alone), None) => Some(alone.clone()),
        _ => Some(action),
    }
}

/// The names of the parameters of a template.
fn parameters(pattern: &Pattern) -> Vec<String> {
    let Pattern::Http { path, .. } = pattern else { return Vec::new() };
    let unescaped = path.replace("{{", "").replace("}}", "");
    unescaped
        .split('{')
        .skip(1)
        .filter_map(|part| part.split_once('}'))
        .map(|(name, _)| name.trim_start_matches('*').to_owned())
        .collect()
}
