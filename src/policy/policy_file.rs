//! A file of policies: from its text, in either of Cedar's two forms, to policies, templates and links under their full ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::{ActionConstraint, Effect, Policy, PolicySet, Template};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::annotations::{self, Annotations, ListedAnnotation};
use super::core::{core_policy, core_template, with_causes};
use super::layout::Form;
use crate::model::{EntityUid, PolicyId};
use crate::problem::{Problem, SourceFile};
use crate::strict_json;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Static policies and templates.
    pub(super) policies: Vec<Parsed>,
    /// Links; only the JSON form has some.
    pub(super) links: Vec<Link>,
}

/// A static policy or a template, with what its annotations say.
#[derive(Debug)]
pub struct Parsed {
    /// Under its full id.
    pub body: Body,
    /// What its annotations say.
    pub annotations: Annotations,
    /// The file it stands in.
    pub source: Arc<SourceFile>,
    /// Where in the file.
    pub span: Option<(usize, usize)>,
}

/// What was parsed.
#[derive(Debug)]
pub enum Body {
    /// A static policy.
    Static(Box<Policy>),
    /// A template.
    Template(Box<Template>),
}

impl Parsed {
    /// Its effect, and what its scope says of actions.
    pub(super) fn scope_of_actions(&self) -> (Effect, ActionConstraint) {
        match &self.body {
            Body::Static(policy) => (policy.effect(), policy.action_constraint()),
            Body::Template(template) => (template.effect(), template.action_constraint()),
        }
    }

    /// Its full id: `bundle/id`.
    pub fn id(&self) -> &PolicyId {
        match &self.body {
            Body::Static(policy) => policy.id(),
            Body::Template(template) => template.id(),
        }
    }
}

/// A link of a template, under full ids.
#[derive(Debug)]
pub struct Link {
    /// The template's id.
    pub template: PolicyId,
    /// The new policy's id.
    pub id: PolicyId,
    /// What its slots stand for.
    pub values: Vec<(String, EntityUid)>,
    /// The file it stands in.
    pub source: Arc<SourceFile>,
}

/// A policy or template as it was found.
struct Found {
    body: Body,
    /// Its key in a policy set in JSON, which is its id unless `@id` says otherwise.
    key: Option<String>,
    span: Option<(usize, usize)>,
}

/// One of `templateLinks` of a policy set in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct JsonLink {
    template_id: String,
    new_id: String,
    values: BTreeMap<String, Json>,
}

/// One entry of `links.json`, in the form that the Cedar CLI writes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkEntry {
    template_id: String,
    link_id: String,
    args: BTreeMap<String, String>,
}

/// What reads one file of a bundle.
pub(super) struct PolicyReader<'a> {
    /// The bundle's name.
    pub(super) bundle: &'a str,
    /// The annotations that it lists as its own.
    pub(super) annotations: &'a [ListedAnnotation],
    /// The file.
    pub(super) source: &'a Arc<SourceFile>,
    /// What is wrong with it.
    pub(super) problems: &'a mut Vec<Problem>,
    /// What is worth a look.
    pub(super) warnings: &'a mut Vec<Problem>,
}

impl PolicyReader<'_> {
    /// Reads a file of policies. `path` is where it stands in its bundle: a policy that is alone in a file has its name.
    pub(super) fn policies(&mut self, path: &str, form: Form) -> Contents {
        let (found, links) = match form {
            Form::Cedar => (self.cedar(), Vec::new()),
            Form::Json => self.json(),
        };
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = [".cedar.json", ".json", ".cedar"].into_iter().find_map(|ending| file.strip_suffix(ending));
        let stem = stem.filter(|_| found.len() == 1);
        // By their keys, which links of the file use, to their ids.
        let mut templates = BTreeMap::new();
        let mut policies = Vec::new();
        for own in found {
            let (key, is_template) = (own.key.clone(), matches!(own.body, Body::Template(_)));
            let Some(parsed) = self.parsed(own, stem) else { continue };
            if let (Some(key), true) = (key, is_template) {
                templates.insert(key, parsed.id().clone());
            }
            policies.push(parsed);
        }
        self.warn_of_annotations(&policies);
        let links = links.into_iter().filter_map(|link| self.link(link, &templates)).collect();
        Contents { policies, links }
    }

    fn full(&self, id: &str) -> PolicyId {
        PolicyId::new(format!("{}/{id}", self.bundle))
    }

    // === Cedar's own syntax ===

    fn cedar(&mut self) -> Vec<Found> {
        let text = &self.source.text;
        let set: PolicySet = match text.parse() {
            Ok(set) => set,
            Err(errors) => {
                let errors: &cedar_policy::ParseErrors = &errors;
                self.problems.extend(errors.iter().map(|error| Problem::from_diagnostic(error, self.source)));
                return Vec::new();
            }
        };
        let span = |loc: Option<&cedar_policy_core::parser::Loc>| {
            loc.map(|loc| (loc.start(), text.get(loc.start()..loc.end()).map_or(1, first_line)))
        };
        let policies = set.policies().map(|policy| Found {
            span: span(core_policy(policy).loc()),
            body: Body::Static(Box::new(policy.clone())),
            key: None,
        });
        let templates = set.templates().map(|template| Found {
            span: span(core_template(template).loc()),
            body: Body::Template(Box::new(template.clone())),
            key: None,
        });
        policies.chain(templates).collect()
    }

    // === Cedar's JSON ===

    /// A policy set, or one policy or template.
    fn json(&mut self) -> (Vec<Found>, Vec<JsonLink>) {
        let read = strict_json::parse(self.source).map(|json| match json {
            Json::Object(members) => Some(members),
            _ => None,
        });
        let members = match read {
            Ok(Some(members)) => members,
            Ok(None) => {
                let hint =
                    "an object: a policy set with `staticPolicies`, `templates` and `templateLinks`, or one policy";
                let message = "no policies in Cedar's JSON form";
                self.problems.push(Problem::error(message).hint(hint).in_file(self.source));
                return Default::default();
            }
            Err(problem) => {
                self.problems.push(problem);
                return Default::default();
            }
        };
        const SECTIONS: [&str; 3] = ["staticPolicies", "templates", "templateLinks"];
        if members.contains_key("effect") {
            return (self.json_policy(None, Json::Object(members), None).into_iter().collect(), Vec::new());
        }
        for name in members.keys().filter(|name| !SECTIONS.contains(&name.as_str())) {
            let problem = Problem::error(format!("unknown key `{name}` of a policy set"));
            let span = strict_json::member(self.source, name);
            self.problems.push(problem.hint(crate::yaml::suggest(name, &SECTIONS)).at(self.source, span));
        }
        self.json_set(members)
    }

    fn json_set(&mut self, mut members: Map<String, Json>) -> (Vec<Found>, Vec<JsonLink>) {
        let mut found = Vec::new();
        for (section, is_template) in [("staticPolicies", false), ("templates", true)] {
            match members.remove(section) {
                None => {}
                Some(Json::Object(policies)) => {
                    for (key, policy) in policies {
                        found.extend(self.json_policy(Some(key), policy, Some(is_template)));
                    }
                }
                Some(_) => self.json_fault(section, format!("`{section}` is no object of policies by their ids")),
            }
        }
        let links = members.remove("templateLinks").map(serde_json::from_value::<Vec<JsonLink>>);
        let links = links.transpose().unwrap_or_else(|error| {
            self.json_fault("templateLinks", format!("`templateLinks`: {error}"));
            None
        });
        (found, links.unwrap_or_default())
    }

    fn json_fault(&mut self, member: &str, message: String) {
        let span = strict_json::member(self.source, member);
        self.problems.push(Problem::error(message).at(self.source, span));
    }

    fn json_policy(&mut self, key: Option<String>, json: Json, is_template: Option<bool>) -> Option<Found> {
        let span = key.as_ref().and_then(|key| strict_json::member(self.source, key));
        let is_template = is_template.unwrap_or_else(|| has_slot(&json));
        if let Some(message) = scope_fault(&json) {
            let which = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
            self.problems.push(Problem::error(format!("{which}{message}")).at(self.source, span));
            return None;
        }
        // Its id is given when all is read; this one is for Cedar's messages.
        let id = key.as_ref().map(PolicyId::new);
        let body = match is_template {
            true => Template::from_json(id, json).map(|template| Body::Template(Box::new(template))),
            false => Policy::from_json(id, json).map(|policy| Body::Static(Box::new(policy))),
        };
        match body {
            Ok(body) => Some(Found { body, key, span }),
            Err(error) => {
                let which = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
                let message = format!("{which}{}", with_causes(&error));
                self.problems.push(Problem::error(message).at(self.source, span));
                None
            }
        }
    }

    // === both ===

    /// Under its full id, and with its annotations read.
    fn parsed(&mut self, found: Found, stem: Option<&str>) -> Option<Parsed> {
        let Found { body, key, span } = found;
        let (effect, own_id, annotations) = match &body {
            Body::Static(own) => (own.effect(), own.annotation("id"), own.annotations().collect::<Vec<_>>()),
            Body::Template(own) => (own.effect(), own.annotation("id"), own.annotations().collect::<Vec<_>>()),
        };
        let id = match own_id.or(key.as_deref()) {
            Some("") => {
                self.problems.push(Problem::error("`@id` without an id").at(self.source, span));
                return None;
            }
            Some(id) => id,
            None => match stem {
                Some(stem) => stem,
                None => {
                    let hint = "give each its `@id(\"...\")`: positions change with every insertion";
                    let problem = Problem::error("a policy without `@id` in a file of several").hint(hint);
                    self.problems.push(problem.at(self.source, span));
                    return None;
                }
            },
        };
        let id = self.full(id);
        match Annotations::read(effect, annotations.into_iter(), self.annotations) {
            Ok(annotations) => {
                let body = match body {
                    Body::Static(policy) => Body::Static(Box::new(policy.new_id(id))),
                    Body::Template(template) => Body::Template(Box::new(template.new_id(id))),
                };
                Some(Parsed { body, annotations, source: Arc::clone(self.source), span })
            }
            Err(faults) => {
                let found = faults.into_iter().map(|(message, hint)| Problem::error(message).hint(hint));
                self.problems.extend(found.map(|problem| problem.at(self.source, span)));
                None
            }
        }
    }

    /// Once for each annotation in a file, at the first policy that has it.
    fn warn_of_annotations(&mut self, policies: &[Parsed]) {
        let mut seen = BTreeSet::new();
        for own in policies {
            let names: Vec<&str> = match &own.body {
                Body::Static(policy) => policy.annotations().map(|(name, _)| name).collect(),
                Body::Template(template) => template.annotations().map(|(name, _)| name).collect(),
            };
            for name in names.into_iter().filter(|name| annotations::is_idle(name, self.annotations)) {
                if seen.insert(name.to_owned()) {
                    let problem = Problem::warning(format!("`@{name}` has no effect"));
                    let hint = format!("if it is yours, list it in bundle.yaml: `annotations: [{name}]`");
                    self.warnings.push(problem.hint(hint).at(self.source, own.span));
                }
            }
        }
    }

    // === links ===

    /// A link of a policy set in JSON.
    fn link(&mut self, link: JsonLink, templates: &BTreeMap<String, PolicyId>) -> Option<Link> {
        let JsonLink { template_id, new_id, values } = link;
        let span = strict_json::member(self.source, "templateLinks");
        let Some(template) = templates.get(&template_id) else {
            let message = format!("link `{new_id}` names the template `{template_id}`, which is not in this file");
            self.problems.push(Problem::error(message).at(self.source, span));
            return None;
        };
        let mut read = Vec::new();
        for (slot, json) in values {
            match EntityUid::from_json(json) {
                Ok(uid) => read.push((slot, uid)),
                Err(error) => {
                    let message = format!("link `{new_id}`: `{slot}`: {}", with_causes(&error));
                    self.problems.push(Problem::error(message).at(self.source, span));
                }
            }
        }
        Some(Link { template: template.clone(), id: self.full(&new_id), values: read, source: Arc::clone(self.source) })
    }

    /// The links of a `links.json`.
    pub(super) fn links(&mut self) -> Vec<Link> {
        let entries: Vec<LinkEntry> = match strict_json::typed(self.source) {
            Ok(entries) => entries,
            Err(problem) => {
                let hint =
                    "a list of {\"template_id\", \"link_id\", \"args\": {\"?principal\": \"User::\\\"alice\\\"\"}}";
                self.problems.push(problem.hint(hint));
                return Vec::new();
            }
        };
        let mut all = Vec::new();
        for LinkEntry { template_id, link_id, args } in entries {
            let mut values = Vec::new();
            for (slot, text) in args {
                match text.parse() {
                    Ok(uid) => values.push((slot, uid)),
                    Err(_) => {
                        let message = format!("link `{link_id}`: `{text}` is not an entity");
                        self.problems.push(Problem::error(message).in_file(self.source));
                    }
                }
            }
            let (template, id, source) = (self.full(&template_id), self.full(&link_id), Arc::clone(self.source));
            all.push(Link { template, id, values, source });
        }
        all
    }
}

/// A member of a scope that Cedar passes over, which may be the very one that was to narrow it.
fn scope_fault(policy: &Json) -> Option<String> {
    for scope in ["principal", "action", "resource"] {
        let Some(members) = policy.get(scope).and_then(Json::as_object) else { continue };
        let known: &[&str] = match members.get("op").and_then(Json::as_str) {
            Some("All") => &["op"],
            Some("==") => &["op", "entity", "slot"],
            Some("in") => &["op", "entity", "entities", "slot"],
            Some("is") => &["op", "entity_type", "in"],
            // Cedar says what is wrong with the others.
            _ => continue,
        };
        if let Some(unknown) = members.keys().find(|name| !known.contains(&name.as_str())) {
            return Some(format!(
                "`{scope}` has `{unknown}`, which its `op` has no use for; it has {}",
                known.join(", ")
            ));
        }
    }
    None
}

/// Whether a policy in JSON is a template: a slot is in its scope or nowhere.
fn has_slot(json: &Json) -> bool {
    let scopes = ["principal", "resource"].into_iter().filter_map(|name| json.get(name));
    scopes.into_iter().any(|scope| scope.get("slot").or_else(|| scope.get("in")?.get("slot")).is_some())
}

fn first_line(text: &str) -> usize {
    text.lines().next().map_or(1, str::len)
}
