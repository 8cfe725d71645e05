//! Bundles: from files to parsed policies, schema fragments, links, entities and routes.
//!
//! Loaded all or nothing, and every problem is reported, not the first. What stands in a bundle and where is described
//! in policies/README.md.

use std::sync::Arc;

use cedar_policy::SchemaFragment;
use sha2::{Digest, Sha256};

use super::Files;
use super::annotations::Shape;
use super::core::with_causes;
use super::header::{self, BundleHeader, DenialEntry};
use super::layout::{FileKind, Form};
use super::memory::{FileKey, GoodFile, Memory};
use super::policy_file::{Contents, Link, Parsed, PolicyReader};
use super::strays::{ignored, strays};
use super::vocabulary::{self, Declared, Unrouted, Wanted};
use crate::model::Denial;
use crate::problem::{Problem, SourceFile};
use crate::strict_json;
use crate::yaml;

/// A bundle, parsed but not yet held against its schema.
#[derive(Debug)]
pub struct Bundle {
    /// `bundle.yaml`.
    pub header: BundleHeader,
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

/// Over the texts of all schema files, and what the bundles want of our names: any edit may change what a request is.
pub(super) fn schema_digest(bundles: &[Files], wanted: &Wanted) -> [u8; 32] {
    let is_schema = |path: &str| matches!(FileKind::of(path), Ok(FileKind::Schema(_)));
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
        let text = bundle.files.get(header::PATH).filter(|text| text.contains("unrouted"))?;
        yaml::parse::<BundleHeader>(&SourceFile::new(header::PATH, text.as_str())).ok()?.unrouted
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
    problems.extend(strays(files, &[]));
    let Some(text) = files.files.get(header::PATH) else {
        let problem = Problem::error(format!("{}: there is no `bundle.yaml`", files.root));
        problems.push(problem.hint("a bundle needs one, with at least `name: <name>`"));
        return Err(problems);
    };
    let header_source = source(header::PATH, text);
    let header: BundleHeader = yaml::parse(&header_source)?;
    let denial = header.denial.clone().and_then(|entry| {
        let DenialEntry { status, message, headers, location } = entry;
        Shape { status, message, headers: headers.0.into_iter().collect(), location }
            .denial()
            .map_err(|(message, hint)| {
                problems.push(Problem::error(format!("`denial`: {message}")).hint(hint).in_file(&header_source));
            })
            .ok()
    });
    let mut bundle = Bundle {
        header,
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
    for (path, text, kind) in files.files.iter().filter_map(|(path, text)| Some((path, text, FileKind::of(path).ok()?)))
    {
        bundle.take(path, kind, source(path, text), memory, &mut problems);
    }
    if problems.is_empty() { Ok(bundle) } else { Err(problems) }
}

impl Bundle {
    /// Adds a file of the bundle.
    fn take(
        &mut self,
        path: &str,
        kind: FileKind,
        source: Arc<SourceFile>,
        memory: Option<&Memory>,
        problems: &mut Vec<Problem>,
    ) {
        let BundleHeader { name, annotations, ignore, .. } = &self.header;
        if let Some(entry) = ignore.iter().find(|entry| ignored(&entry.0, path)) {
            let message = format!("`ignore` in bundle.yaml has `{}`, and this file is read", entry.0);
            problems.push(Problem::error(message).hint("remove one of the two").in_file(&source));
        }
        let warnings = &mut self.warnings;
        let mut reader = PolicyReader { bundle: &name.0, annotations, source: &source, problems, warnings };
        match kind {
            FileKind::Header | FileKind::Tests | FileKind::Request | FileKind::Foreign => {}
            FileKind::Schema(form) => {
                self.schemas.push((form, Arc::clone(&source)));
                if memory.is_none() {
                    match Fragment::read(form, source) {
                        Ok(fragment) => self.fragments.push(fragment),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            FileKind::Policies(form) => {
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
            FileKind::Links => self.links.extend(reader.links()),
            FileKind::Entities => self.entities.push(source),
            FileKind::Routes => self.routes = Some(source),
        }
    }
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
