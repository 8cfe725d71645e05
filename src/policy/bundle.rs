//! Bundles: from files to parsed policies, schema fragments, links, entities and routes.
//!
//! Loaded all or nothing, and every problem is reported, not the first. What stands in a bundle and where is described
//! in policies/README.md.

use std::sync::Arc;

use cedar_policy::{Policy, SchemaFragment, Template};
use deserr::Deserr;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::annotations::{self, Annotations, Shape};
use super::compile::with_causes;
use super::layout::{self, Form, Kind};
use super::memory::{FileKey, GoodFile, Memory};
use super::policy_file::{Contents, Reader};
use super::vocabulary::{self, Declared, Unrouted, Wanted};
use super::{Files, overlay};
use crate::model::{Denial, EntityUid, PolicyId};
use crate::problem::{Problem, SourceFile};
use crate::strict_json;
use crate::units::HumanDuration;
use crate::yaml::{self, Faults, Invalid, Table};

/// A bundle, parsed but not yet held against its schema.
#[derive(Debug)]
pub struct Bundle {
    /// `bundle.yaml`.
    pub manifest: Manifest,
    /// How denials look that no policy shapes.
    pub denial: Option<Denial>,
    /// The files of the schema.
    pub schemas: Vec<(Form, Arc<SourceFile>)>,
    /// What they declare. None, if the schema is known.
    pub fragments: Vec<Fragment>,
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
    /// What is worth a look in it.
    pub warnings: Vec<Problem>,
}

/// A file of the schema, parsed.
#[derive(Debug)]
pub struct Fragment {
    /// As Cedar has it.
    pub schema: SchemaFragment,
    /// The names that it declares.
    pub declared: Vec<Declared>,
    /// The file.
    pub source: Arc<SourceFile>,
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
    /// Annotations of the team's own, without effect: `jira`, or all that begin with `team_`.
    #[deserr(default)]
    pub annotations: Vec<annotations::Own>,
    /// Files beside the bundle's that nothing is to read: paths, and folders that end with `/`.
    #[deserr(default)]
    pub ignore: Vec<Ignored>,
}

/// An entry of `ignore` of `bundle.yaml`.
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, try_from(String) = Ignored::parse -> Invalid)]
pub struct Ignored(pub String);

impl Ignored {
    fn parse(text: String) -> Result<Self, Invalid> {
        let parts = text.strip_suffix('/').unwrap_or(&text).split('/');
        let is_plain = parts.into_iter().all(|part| !part.is_empty() && part != "." && part != "..");
        match is_plain && !text.contains(['*', '?', '[', '\\']) {
            true => Ok(Self(text)),
            false => Err(Invalid::new(format!("`{text}` is no path in the bundle"))
                .hint("like `kustomization.yaml`, or `docs/` with all that is in it; there are no wildcards")),
        }
    }
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
    pub allow: Option<HumanDuration>,
    /// For denials.
    #[deserr(default)]
    pub deny: Option<HumanDuration>,
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

/// Over the texts of all schema files, and what the bundles want of our names: any edit may change what a request is.
pub(super) fn schema_digest(bundles: &[Files], wanted: &Wanted) -> [u8; 32] {
    let is_schema = |path: &str| matches!(Kind::of(path), Ok(Kind::Schema(_)));
    let texts = bundles.iter().flat_map(|bundle| &bundle.files).filter(|(path, _)| is_schema(path));
    let hash = Sha256::new().chain_update(Sha256::digest(format!("{wanted:?}")));
    // The path decides how a text is read.
    let each = |hash: Sha256, (path, text): (&String, &String)| {
        hash.chain_update(Sha256::digest(path)).chain_update(Sha256::digest(text))
    };
    texts.fold(hash, each).finalize().into()
}

/// What bundles want of the names that Stockade brings. What is wrong with a `bundle.yaml` is reported when it is parsed.
pub(super) fn wanted(bundles: &[Files]) -> Wanted {
    let said = |bundle: &Files| {
        let text = bundle.files.get("bundle.yaml").filter(|text| text.contains("unrouted"))?;
        yaml::parse::<Manifest>(&SourceFile::new("bundle.yaml", text.as_str())).ok()?.unrouted
    };
    // Nobody opens what another bundle's routes leave out.
    let denies = |bundle: &Files| match said(bundle) {
        Some(unrouted) => unrouted == Unrouted::Deny,
        None => bundle.files.contains_key("routes.yaml"),
    };
    Wanted::by(bundles, if bundles.iter().any(denies) { Unrouted::Deny } else { Unrouted::Base })
}

/// Parses the files of a bundle. With what was compiled before under the same schema, only those that are new.
///
/// # Errors
/// All problems that can be found without the schema.
pub(super) fn parse(files: &Files, memory: Option<&Memory>) -> Result<Bundle, Vec<Problem>> {
    let mut problems = Vec::new();
    let source = |path: &str, text: &str| SourceFile::new(format!("{}/{path}", files.root.trim_end_matches('/')), text);
    problems.extend(layout::strays(files, &[]));
    let Some(text) = files.files.get(MANIFEST) else {
        let problem = Problem::error(format!("{}: there is no `bundle.yaml`", files.root));
        problems.push(problem.hint("a bundle needs one, with at least `name: <name>`"));
        return Err(problems);
    };
    let manifest_source = source(MANIFEST, text);
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
    let mut bundle = Bundle {
        manifest,
        denial,
        schemas: Vec::new(),
        fragments: Vec::new(),
        known: Vec::new(),
        fresh: Vec::new(),
        policies: Vec::new(),
        links: Vec::new(),
        entities: Vec::new(),
        routes: None,
        warnings: Vec::new(),
    };
    // Strays were reported above.
    for (path, text, kind) in files.files.iter().filter_map(|(path, text)| Some((path, text, Kind::of(path).ok()?))) {
        bundle.take(path, kind, source(path, text), memory, &mut problems);
    }
    if problems.is_empty() { Ok(bundle) } else { Err(problems) }
}

impl Bundle {
    /// Adds a file of the bundle.
    fn take(
        &mut self,
        path: &str,
        kind: Kind,
        source: Arc<SourceFile>,
        memory: Option<&Memory>,
        problems: &mut Vec<Problem>,
    ) {
        let Manifest { name, annotations, ignore, .. } = &self.manifest;
        if let Some(entry) = ignore.iter().find(|entry| layout::ignored(&entry.0, path)) {
            let message = format!("`ignore` in bundle.yaml has `{}`, and this file is read", entry.0);
            problems.push(Problem::error(message).hint("remove one of the two").in_file(&source));
        }
        let warnings = &mut self.warnings;
        let mut reader = Reader { bundle: &name.0, annotations, source: &source, problems, warnings };
        match kind {
            Kind::Manifest | Kind::Tests | Kind::Request | Kind::Foreign => {}
            Kind::Schema(form) => {
                self.schemas.push((form, Arc::clone(&source)));
                if memory.is_none() {
                    match Fragment::read(form, source) {
                        Ok(fragment) => self.fragments.push(fragment),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            Kind::Policies(form) => {
                // The list of annotations decides what is wrong with a file, so it is part of the key.
                let key = FileKey::of(&format!("{} {annotations:?}", name.0), path, &source.text);
                match memory.and_then(|memory| memory.file(&key)) {
                    Some(good) => self.known.push((key, Arc::clone(good), source)),
                    None => {
                        let Contents { policies, links } = reader.policies(path, form);
                        self.policies.extend(policies);
                        self.links.extend(links);
                        self.fresh.push((key, source));
                    }
                }
            }
            Kind::Links => self.links.extend(reader.links()),
            Kind::Entities => self.entities.push(source),
            Kind::Routes => self.routes = Some(source),
        }
    }
}

const MANIFEST: &str = "bundle.yaml";

/// `ignore` of the manifest, if it can be read.
pub(super) fn ignore(files: &Files) -> Option<Vec<Ignored>> {
    let Some(text) = files.files.get(MANIFEST) else { return Some(Vec::new()) };
    yaml::parse(&SourceFile::new(MANIFEST, text.as_str())).ok().map(|manifest: Manifest| manifest.ignore)
}

impl Fragment {
    fn read(form: Form, source: Arc<SourceFile>) -> Result<Self, Problem> {
        let schema = match form {
            Form::Cedar => SchemaFragment::from_cedarschema_str(&source.text)
                .map(|(fragment, _)| fragment)
                .map_err(|error| Problem::from_diagnostic(&error, &source))?,
            Form::Json => {
                strict_json::parse(&source)?;
                SchemaFragment::from_json_str(&source.text)
                    .map_err(|error| Problem::error(with_causes(&error)).in_file(&source))?
            }
        };
        let declared = vocabulary::declared(&schema).map_err(|why| {
            Problem::error(format!("what this schema declares cannot be read: {why}")).in_file(&source)
        })?;
        Ok(Self { schema, declared, source })
    }
}
