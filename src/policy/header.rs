//! `bundle.yaml`: what a bundle is called, and what holds for all of it.

use deserr::Deserr;
use serde::Serialize;

use super::Files;
use super::annotations::ListedAnnotation;
use super::vocabulary::Unrouted;
use crate::problem::SourceFile;
use crate::units::HumanDuration;
use crate::yaml::{self, Faults, Invalid, Table};

/// The file.
pub(super) const PATH: &str = "bundle.yaml";

/// What the ids of overlays begin with, before the `/`; no bundle may have this name.
pub(super) const OVERLAY: &str = "overlay";

/// `bundle.yaml`, as written.
#[derive(Debug, Clone, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct BundleHeader {
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
    pub annotations: Vec<ListedAnnotation>,
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
        if text == OVERLAY {
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

/// `ttl` of `bundle.yaml`: how long decisions may be remembered.
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

/// What a bundle says of itself in `bundle.yaml`.
#[derive(Debug, Clone, Serialize)]
pub struct BundleSummary {
    /// Its name, which prefixes the ids of its policies.
    pub name: String,
    /// Its version, if it gives one.
    pub version: Option<String>,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// The controls it serves, such as `PCI-7.1`.
    pub controls: Vec<String>,
    /// How long it lets decisions be remembered, if it says so.
    pub ttl: Option<Ttl>,
}

impl BundleHeader {
    /// What it says of the bundle, without what is in force because of it.
    pub(super) fn summary(&self) -> BundleSummary {
        let Self { name, version, owner, description, controls, ttl, .. } = self.clone();
        BundleSummary { name: name.0, version, owner, description, controls, ttl }
    }
}

/// `ignore` of a bundle; `None` if its `bundle.yaml` cannot be read.
pub(super) fn ignore(files: &Files) -> Option<Vec<Ignored>> {
    let Some(text) = files.files.get(PATH) else { return Some(Vec::new()) };
    yaml::parse(&SourceFile::new(PATH, text.as_str())).ok().map(|header: BundleHeader| header.ignore)
}
