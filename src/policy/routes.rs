//! Routes: from method and path, or gRPC method, to the action and the resource of a Query.
//!
//! `routes.yaml` of a bundle holds templates; `matchit` matches them. Actions are templates, not paths, so that their
//! number stays low (design, decision 7).

use std::collections::BTreeSet;
use std::sync::Arc;

use smol_str::SmolStr;

use super::HashMap;
use super::pattern::Pattern;
use super::route_file::{ResourceTemplate, RouteEntry, RoutesFile};
use super::schema::Types;
use super::vocabulary::Vocabulary;
use crate::model::{EntityId, EntityTypeName, EntityUid, Root};
use crate::problem::{Problem, SourceFile};
use crate::yaml;

/// A compiled route.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) pattern: Pattern,
    action: EntityUid,
    resource: Option<ResourceTemplate>,
    pub(super) bundle: String,
}

/// All routes of a snapshot.
#[derive(Debug, Default)]
pub struct Routes {
    http: HashMap<String, matchit::Router<Arc<Route>>>,
    grpc: HashMap<(String, String), Arc<Route>>,
    /// The actions that routes lead to.
    leads: HashMap<EntityUid, Lead>,
    count: usize,
}

/// What is known of the routes that lead to an action.
#[derive(Debug)]
struct Lead {
    /// Whether the resource of each has every parameter of its path.
    pins: bool,
    /// The first of them.
    first: Arc<Route>,
    /// The parameters of their paths.
    parameters: BTreeSet<String>,
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
            let doubt = entry.pattern.doubt();
            match compile(bundle, entry, types) {
                Ok(route) => {
                    if let Err((message, hint)) = self.insert(route) {
                        report(message, hint);
                    }
                }
                Err(faults) => faults.into_iter().for_each(|(message, hint)| report(message, hint)),
            }
            problems.extend(doubt.map(|(message, hint)| Problem::warning(message).hint(hint).at(source, span)));
        }
    }

    fn insert(&mut self, route: Route) -> Result<(), Fault> {
        let route = Arc::new(route);
        let conflict = |other: &Route| {
            let message = format!(
                "route `{}` of bundle `{}` conflicts with `{}` of bundle `{}`",
                route.pattern, route.bundle, other.pattern, other.bundle
            );
            let hint = match route.pattern.shape() == other.pattern.shape() {
                true => "one of the two has to go: they match the same requests",
                false => "some requests match both, and nothing tells which of the two counts",
            };
            (message, Some(hint.to_owned()))
        };
        match &route.pattern {
            Pattern::Grpc { service, method } => {
                let key = (service.clone(), method.clone());
                if let Some(other) = self.grpc.get(&key).or_else(|| self.literal_post(&route.pattern.shape())) {
                    return Err(conflict(other));
                }
                self.grpc.insert(key, Arc::clone(&route));
            }
            Pattern::Http { methods, path, .. } => {
                let is_post = methods.iter().any(|method| method == "POST");
                let shadowed = self.grpc.values().find(|other| is_post && other.pattern.shape() == *path);
                if let Some(other) = shadowed {
                    return Err(conflict(other));
                }
                for method in methods {
                    let router = self.http.entry(method.clone()).or_default();
                    router.insert(path.clone(), Arc::clone(&route)).map_err(|error| match error {
                        matchit::InsertError::Conflict { with } => match router.at(&with) {
                            Ok(other) => conflict(other.value),
                            Err(_) => (format!("route `{}` conflicts with `{method} {with}`", route.pattern), None),
                        },
                        other => (format!("route `{}` is not a valid template: {other}", route.pattern), None),
                    })?;
                }
            }
        }
        let named: Vec<&str> = route.resource.iter().flat_map(ResourceTemplate::parameters).collect();
        let pins = route.pattern.parameters().iter().all(|parameter| named.contains(&parameter.name.as_str()));
        let first = || Lead { pins, first: Arc::clone(&route), parameters: BTreeSet::new() };
        let lead = self.leads.entry(route.action.clone()).or_insert_with(first);
        lead.pins &= pins;
        lead.parameters.extend(route.pattern.parameters().iter().map(|parameter| parameter.name.clone()));
        self.count += 1;
        Ok(())
    }

    /// The route whose path has no parameters and is this one, of POST. A gRPC method of that path would win over it,
    /// always.
    fn literal_post(&self, path: &str) -> Option<&Arc<Route>> {
        let found = self.http.get("POST")?.at(path).ok()?;
        found.params.is_empty().then_some(found.value)
    }

    /// The first route that leads to this action.
    pub(super) fn lead(&self, action: &EntityUid) -> Option<&Route> {
        self.leads.get(action).map(|lead| lead.first.as_ref())
    }

    /// Whether action and resource of a request tell its path, so that the path adds nothing to a cache key that holds
    /// both. An action that requests without a route may have comes with any path at all.
    pub fn pin_path(&self, action: &EntityUid, vocabulary: &Vocabulary) -> bool {
        !vocabulary.is_fallback(action) && self.leads.get(action).is_some_and(|lead| lead.pins)
    }

    /// Parameters that actions declare as optional, and that no route to the action has: they are never there, so a policy that asks for
    /// one never hears of it. Each with the parameters that there are. Those that are required are reported with their route.
    pub(super) fn missing_parameters<'a>(&'a self, types: &'a Types) -> Vec<(&'a EntityUid, &'a str, Vec<&'a str>)> {
        let mut missing = Vec::new();
        for action in types.action_ids() {
            let (Some(lead), Some(declared)) = (self.leads.get(action), types.action(action)) else { continue };
            let params = declared.declared.iter().filter(|(root, _)| *root == Root::Params);
            for name in params.filter_map(|(_, attribute)| attribute.ty.fields()).flat_map(|fields| fields.keys()) {
                if !lead.parameters.contains(name.as_str()) {
                    missing.push((action, name.as_str(), lead.parameters.iter().map(String::as_str).collect()));
                }
            }
        }
        missing
    }

    /// Whether requests of this method can match a route.
    pub(super) fn has_method(&self, method: &str) -> bool {
        let is_there = |method: &str| self.http.contains_key(method) || (method == "POST" && !self.grpc.is_empty());
        is_there(method) || (method == "HEAD" && is_there("GET"))
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
    ///
    /// HEAD is GET without the body (RFC 9110, 9.3.2): where no route of HEAD matches, that of GET does.
    pub fn http(&self, method: &str, path: &str) -> Option<Matched> {
        let at = |method: &str| self.http.get(method)?.at(path).ok();
        let matched = at(method).or_else(|| if method == "HEAD" { at("GET") } else { None })?;
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
    let own: Vec<&str> = entry.pattern.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    let default = match &entry.pattern {
        Pattern::Http { .. } => entry.pattern.to_string(),
        Pattern::Grpc { service, method } => format!("{service}/{method}"),
    };
    let Some(action) = action_uid(entry.action.as_ref().unwrap_or(&default), types) else {
        return Err(vec![(format!("the action of route `{}` is not an id", entry.pattern), None)]);
    };
    for parameter in entry.resource.iter().flat_map(ResourceTemplate::parameters) {
        if !own.contains(&parameter) {
            let hint = if own.is_empty() { "it has none".to_owned() } else { format!("it has {}", own.join(", ")) };
            faults.push((
                format!("the resource of route `{}` names `{{{parameter}}}`, which its path has not", entry.pattern),
                Some(hint),
            ));
        }
    }
    faults.extend(entry.resource.iter().flat_map(|resource| resource_faults(&entry.pattern, resource, types)));
    let service: Option<EntityTypeName> = "Service".parse().ok();
    let service = service.as_ref().map(|name| types.vocabulary().resolve(name));
    match types.action(&action) {
        None => faults.push((
            format!("route `{}` leads to {action}, which no schema declares", entry.pattern),
            Some(declared_actions(&action, types)),
        )),
        Some(declared) => {
            // Without one, the resource is the service. What the action does not take would be denied for ever.
            let (resource, hint) = match &entry.resource {
                Some(resource) => {
                    (Some(resource.entity_type()), "add the type to `resource` of the action in the schema")
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
                    let missing = fields.iter().filter(|(name, field)| field.required && !own.contains(&name.as_str()));
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

/// What to write in place of an action that is not declared.
fn declared_actions(action: &EntityUid, types: &Types) -> String {
    let all = types.action_ids();
    let same: Vec<String> = all.iter().filter(|own| own.id() == action.id()).map(|own| format!("`{own}`")).collect();
    if same.is_empty() {
        return yaml::suggest(action.id().unescaped(), &all.iter().map(|own| own.id().unescaped()).collect::<Vec<_>>());
    }
    format!("write it in full: {}", same.join(" or "))
}

/// What is wrong with the resource of a route, whatever its action.
fn resource_faults(pattern: &Pattern, resource: &ResourceTemplate, types: &Types) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let path = pattern.parameters();
    if let Some((form, name)) = resource.foreign(path) {
        let message = format!("`{form}` in the resource of route `{pattern}` is a literal, the same for every request");
        faults.push((message, Some(format!("`{{{name}}}`"))));
    }
    if let Some((one, other)) = resource.run_together(path) {
        let message = format!(
            "`{{{one}}}` and `{{{other}}}` run together in the resource of route `{pattern}`: different requests would \
             name the same entity"
        );
        let hint = "put a `/` between them, such as `{a}/{b}`, and `{*rest}` last";
        faults.push((message, Some(hint.to_owned())));
    }
    if let Some(uid) = resource.constant()
        && !types.admits(&uid)
    {
        let message = format!("the resource of route `{pattern}` is {uid}, which its enum does not have");
        let known: Vec<&str> = types.choices(uid.type_name()).map(SmolStr::as_str).collect();
        faults.push((message, Some(yaml::suggest(uid.id().unescaped(), &known))));
    }
    faults
}
