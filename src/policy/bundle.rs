//! Bundles: from files to parsed policies, schema fragments, links, entities and routes.
//!
//! Loaded all or nothing, and every problem is reported, not the first. What stands in a bundle and where is described
//! in policies/README.md.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::{Policy, PolicySet, SchemaFragment, Template};
use cedar_policy_core::ast;
use deserr::Deserr;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::annotations::{Annotations, Shape};
use super::memory::{FileKey, GoodFile, Memory};
use super::vocabulary::{Unrouted, Wanted};
use super::{Files, overlay};
use crate::model::{Denial, EntityUid, PolicyId};
use crate::problem::{Problem, SourceFile};
use crate::units::Span;
use crate::yaml::{self, Faults, Invalid, Table};

/// A bundle, parsed but not yet held against its schema.
#[derive(Debug)]
pub struct Bundle {
    /// `bundle.yaml`.
    pub manifest: Manifest,
    /// How denials look that no policy shapes.
    pub denial: Option<Denial>,
    /// Schema fragments with the files they come from. None, if the schema is known.
    pub fragments: Vec<(SchemaFragment, Arc<SourceFile>)>,
    /// Files of policies that are known, and known to be good.
    pub(super) known: Vec<(FileKey, Arc<GoodFile>, Arc<SourceFile>)>,
    /// The other files of policies.
    pub(super) fresh: Vec<(FileKey, Arc<SourceFile>)>,
    /// Static policies and templates of the files that are not known.
    pub policies: Vec<Parsed>,
    /// Links of templates.
    pub links: Vec<Link>,
    /// Files of entities.
    pub entities: Vec<Arc<SourceFile>>,
    /// `routes.yaml`.
    pub routes: Option<Arc<SourceFile>>,
}

/// `bundle.yaml`, as written.
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Manifest {
    /// Prefixes the ids of its policies: lower-case letters, digits, `-`, `_`, `.`.
    pub name: Name,
    /// Free text.
    #[deserr(default)]
    pub version: Option<String>,
    /// Whom to ask about it.
    #[deserr(default)]
    pub owner: Option<String>,
    /// What it is for.
    #[deserr(default)]
    pub description: Option<String>,
    /// The controls it serves, such as `PCI-7.1`.
    #[deserr(default)]
    pub controls: Vec<String>,
    /// How denials look that no policy shapes.
    #[deserr(default)]
    pub denial: Option<DenialEntry>,
    /// How long decisions may be remembered at most.
    #[deserr(default)]
    pub ttl: Option<Ttl>,
    /// What becomes of requests that no route names; default: `deny` if any bundle has routes, else `base`.
    #[deserr(default)]
    pub unrouted: Option<Unrouted>,
}

/// The name of a bundle.
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, try_from(String) = Name::parse -> Invalid)]
pub struct Name(pub String);

impl Name {
    fn parse(text: String) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if text.is_empty() || text.len() > 63 || !text.chars().all(good) {
            return Err(Invalid::new(format!("`{text}` is not a name for a bundle"))
                .hint("1 to 63 lower-case letters, digits, `-`, `_` or `.`"));
        }
        if text == overlay::NAME {
            return Err(Invalid::new(format!("the name `{text}` is reserved"))
                .hint("in logs it stands for overlays: emergency denials and time-boxed exceptions"));
        }
        Ok(Self(text))
    }
}

/// `denial` of `bundle.yaml`.
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct DenialEntry {
    /// HTTP status; default 403, or 302 with a location.
    #[deserr(default)]
    pub status: Option<u16>,
    /// Body; default `access denied`.
    #[deserr(default)]
    pub message: Option<String>,
    /// Response headers.
    #[deserr(default)]
    pub headers: Table<String, String>,
    /// Where a redirect leads.
    #[deserr(default)]
    pub location: Option<String>,
}

/// `ttl` of `bundle.yaml`: how long the decision cache may remember, once there is one.
#[derive(Debug, Clone, Copy, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Ttl {
    /// For allows.
    #[deserr(default)]
    pub allow: Option<Span>,
    /// For denials.
    #[deserr(default)]
    pub deny: Option<Span>,
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

/// One entry of `links.json`, in the form that the Cedar CLI writes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkEntry {
    template_id: String,
    link_id: String,
    args: BTreeMap<String, String>,
}

/// Over the texts of all schema files, and what the bundles want of our names: any edit may change what a request is.
pub(super) fn schema_digest(bundles: &[Files], wanted: &Wanted) -> [u8; 32] {
    let texts = bundles.iter().flat_map(|bundle| &bundle.files).filter(|(path, _)| matches!(kind(path), Kind::Schema));
    let hash = Sha256::new().chain_update(Sha256::digest(format!("{wanted:?}")));
    texts.fold(hash, |hash, (_, text)| hash.chain_update(Sha256::digest(text))).finalize().into()
}

/// What bundles want of the names that Stockade brings. What is wrong with a `bundle.yaml` is reported when it is parsed.
pub(super) fn wanted(bundles: &[Files]) -> Wanted {
    let said = bundles.iter().find_map(|bundle| {
        let text = bundle.files.get("bundle.yaml").filter(|text| text.contains("unrouted"))?;
        yaml::parse::<Manifest>(&SourceFile::new("bundle.yaml", text.as_str())).ok()?.unrouted
    });
    let routed = bundles.iter().any(|bundle| bundle.files.contains_key("routes.yaml"));
    Wanted::by(bundles, said.unwrap_or(if routed { Unrouted::Deny } else { Unrouted::Base }))
}

/// Parses the files of a bundle. With what was compiled before under the same schema, only those that are new.
///
/// # Errors
/// All problems that can be found without the schema.
pub(super) fn parse(files: &Files, memory: Option<&Memory>) -> Result<Bundle, Vec<Problem>> {
    let mut problems = Vec::new();
    let source = |path: &str, text: &str| SourceFile::new(format!("{}/{path}", files.root.trim_end_matches('/')), text);
    let Some(text) = files.files.get("bundle.yaml") else {
        return Err(vec![
            Problem::error(format!("{}: there is no `bundle.yaml`", files.root))
                .hint("a bundle needs one, with at least `name: <name>`"),
        ]);
    };
    let manifest_source = source("bundle.yaml", text);
    let manifest: Manifest = yaml::parse(&manifest_source)?;
    let denial = manifest.denial.clone().and_then(|entry| {
        let DenialEntry { status, message, headers, location } = entry;
        Shape { status, message, headers: headers.0.into_iter().collect(), location }
            .denial()
            .map_err(|(message, hint)| {
                problems.push(Problem::error(format!("`denial`: {message}")).hint(hint).in_file(&manifest_source));
            })
            .ok()
    });
    let name = manifest.name.0.clone();
    let mut bundle = Bundle {
        manifest,
        denial,
        fragments: Vec::new(),
        known: Vec::new(),
        fresh: Vec::new(),
        policies: Vec::new(),
        links: Vec::new(),
        entities: Vec::new(),
        routes: None,
    };
    for (path, text) in &files.files {
        let source = source(path, text);
        match kind(path) {
            Kind::Manifest | Kind::Other => {}
            Kind::Schema if memory.is_some() => {}
            Kind::Schema => match SchemaFragment::from_cedarschema_str(text) {
                Ok((fragment, _)) => bundle.fragments.push((fragment, source)),
                Err(error) => problems.push(Problem::from_diagnostic(&error, &source)),
            },
            Kind::Policies => {
                let key = FileKey::of(&name, path, text);
                match memory.and_then(|memory| memory.file(&key)) {
                    Some(good) => bundle.known.push((key, Arc::clone(good), source)),
                    None => {
                        bundle.policies.extend(policies(&name, path, &source, &mut problems));
                        bundle.fresh.push((key, source));
                    }
                }
            }
            Kind::Links => bundle.links.extend(links(&name, &source, &mut problems)),
            Kind::Entities => bundle.entities.push(source),
            Kind::Routes => bundle.routes = Some(source),
            Kind::Misplaced(hint) => {
                problems.push(Problem::error("a file in a place where nothing reads it").hint(hint).in_file(&source));
            }
        }
    }
    if problems.is_empty() { Ok(bundle) } else { Err(problems) }
}

/// What a file of a bundle is, by its path.
enum Kind {
    Manifest,
    Schema,
    Policies,
    Links,
    Entities,
    Routes,
    /// Something of the team's own: README, CI files.
    Other,
    /// A policy, or what looks like one, that would be silently ignored: a `forbid` that is not in force is a breach.
    Misplaced(&'static str),
}

fn kind(path: &str) -> Kind {
    let (folder, file) = path.split_once('/').map_or(("", path), |(folder, _)| (folder, path));
    let at_root = folder.is_empty();
    match (folder, file) {
        ("", "bundle.yaml") => Kind::Manifest,
        ("", "routes.yaml") => Kind::Routes,
        ("", "links.json") => Kind::Links,
        ("", "entities.json") => Kind::Entities,
        ("", "bundle.yml" | "routes.yml") => Kind::Misplaced("the ending is `.yaml`"),
        ("tests", _) => Kind::Other,
        ("entities", _) if path.ends_with(".json") => Kind::Entities,
        _ if path.ends_with(".cedarschema") && (at_root || folder == "schemas") => Kind::Schema,
        _ if path.ends_with(".cedarschema") => Kind::Misplaced("schemas stand in `schemas/` or beside `bundle.yaml`"),
        _ if path.ends_with(".cedar") && (at_root || folder == "policies") => Kind::Policies,
        _ if path.ends_with(".cedar") => Kind::Misplaced("policies stand in `policies/` or beside `bundle.yaml`"),
        _ if path.ends_with("links.json") && folder == "policies" => Kind::Links,
        _ => Kind::Other,
    }
}

/// The policies and templates of a file, under their full ids.
fn policies(bundle: &str, path: &str, source: &Arc<SourceFile>, problems: &mut Vec<Problem>) -> Vec<Parsed> {
    let set: PolicySet = match source.text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let errors: &cedar_policy::ParseErrors = &errors;
            problems.extend(errors.iter().map(|error| Problem::from_diagnostic(error, source)));
            return Vec::new();
        }
    };
    let alone = set.policies().count() + set.templates().count() == 1;
    let stem = path.rsplit('/').next().and_then(|file| file.strip_suffix(".cedar")).unwrap_or(path);
    let mut all = Vec::new();
    let mut add = |body: Body, problems: &mut Vec<Problem>| {
        let (effect, own_id, annotations, span) = match &body {
            Body::Static(policy) => {
                let loc = AsRef::<ast::Policy>::as_ref(policy.as_ref()).loc();
                let annotations = policy.annotations().collect::<Vec<_>>();
                (policy.effect(), policy.annotation("id"), annotations, loc)
            }
            Body::Template(template) => {
                let loc = AsRef::<ast::Template>::as_ref(template.as_ref()).loc();
                let annotations = template.annotations().collect::<Vec<_>>();
                (template.effect(), template.annotation("id"), annotations, loc)
            }
        };
        let span = span.map(|loc| (loc.start(), source.text.get(loc.start()..loc.end()).map_or(1, first_line)));
        let id = match own_id {
            Some("") => {
                problems.push(Problem::error("`@id` without an id").at(source, span));
                return;
            }
            Some(id) => id,
            None if alone => stem,
            None => {
                let hint = "give each its `@id(\"...\")`: positions change with every insertion";
                let problem = Problem::error("a policy without `@id` in a file of several").hint(hint);
                problems.push(problem.at(source, span));
                return;
            }
        };
        let id = PolicyId::new(format!("{bundle}/{id}"));
        match Annotations::read(effect, annotations.into_iter()) {
            Ok(annotations) => {
                let body = match body {
                    Body::Static(policy) => Body::Static(Box::new(policy.new_id(id))),
                    Body::Template(template) => Body::Template(Box::new(template.new_id(id))),
                };
                all.push(Parsed { body, annotations, source: Arc::clone(source), span });
            }
            Err(faults) => {
                let found =
                    faults.into_iter().map(|(message, hint)| Problem::error(message).hint(hint).at(source, span));
                problems.extend(found);
            }
        }
    };
    for policy in set.policies() {
        add(Body::Static(Box::new(policy.clone())), problems);
    }
    for template in set.templates() {
        add(Body::Template(Box::new(template.clone())), problems);
    }
    all
}

fn first_line(text: &str) -> usize {
    text.lines().next().map_or(1, str::len)
}

/// The links of a file, under full ids.
fn links(bundle: &str, source: &Arc<SourceFile>, problems: &mut Vec<Problem>) -> Vec<Link> {
    let entries: Vec<LinkEntry> = match serde_json::from_str(&source.text) {
        Ok(entries) => entries,
        Err(error) => {
            let hint = "a list of {\"template_id\", \"link_id\", \"args\": {\"?principal\": \"User::\\\"alice\\\"\"}}";
            problems.push(Problem::error(error.to_string()).hint(hint).in_file(source));
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    for LinkEntry { template_id, link_id, args } in entries {
        let full = |id: &str| PolicyId::new(format!("{bundle}/{id}"));
        let mut values = Vec::new();
        for (slot, text) in args {
            match text.parse() {
                Ok(uid) => values.push((slot, uid)),
                Err(_) => problems
                    .push(Problem::error(format!("link `{link_id}`: `{text}` is not an entity")).in_file(source)),
            }
        }
        let (template, id, source) = (full(&template_id), full(&link_id), Arc::clone(source));
        all.push(Link { template, id, values, source });
    }
    all
}
