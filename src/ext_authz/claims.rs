//! Claims of a verified token: where Envoy's `jwt_authn` leaves the token, and what is read of it.
//!
//! What `jwt_authn` leaves under another name than the configured ones may be a token, and a token that nobody reads must
//! never turn its bearer into somebody else. So everything in its metadata is either understood or a refusal.

use super::attributes::{self, Place};
use super::headers::Headers;
use super::identity_source::{IdentitySource, JWT_AUTHN, Keys};
use crate::claim_path::{Astray, Below, ClaimPath, Node, Step};
use crate::model::{AttributeType, Attributes, RecordType, Unmapped, UnmappedKind, Value};
use crate::proto::view::{AttributeContext, Kind, Struct, StructValue};
use crate::yaml::Table;

fn unusable(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Identity, detail)
}

// === finding the token ===

/// The namespace in which Istio's own filter repeats what it knows of a token, up to Istio 1.22, as `request.auth.*`.
const ISTIO_AUTHN: &str = "istio_authn";

/// What a source says of the metadata that tokens are in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'s> {
    /// The namespace.
    pub(super) namespace: &'s str,
    /// The keys that a payload may be under.
    pub(super) payload: &'s Keys,
    /// Keys that say nothing about who asks.
    pub(super) other: &'s [String],
    /// The header that says that a token was not verified.
    pub(super) status_header: &'s str,
}

impl<'s> Tokens<'s> {
    /// What a source says of tokens, if it reads them.
    pub(super) fn of(source: &'s IdentitySource) -> Option<Self> {
        let IdentitySource::JwtMetadata { namespace, payload_key, other_keys, verification_status_header, .. } = source
        else {
            return None;
        };
        Some(Self { namespace, payload: payload_key, other: other_keys, status_header: verification_status_header })
    }

    fn knows(self, key: &str) -> bool {
        self.payload.0.iter().chain(self.other).any(|known| known == key)
    }

    /// The payload of the token that was verified; `None` if there is no token. `all` are the sources of the configuration.
    ///
    /// # Errors
    /// If there is a token that was not verified, that failed, or that no source reads; or two that do not agree.
    pub(super) fn payload<'a>(
        self,
        attributes: &'a AttributeContext<'a>,
        headers: Headers<'_>,
        all: &[IdentitySource],
    ) -> Result<Option<&'a Struct<'a>>, Unmapped> {
        self.verified(headers)?;
        let spaces = attributes.metadata_context.as_ref().map(|context| &context.filter_metadata);
        let space = spaces.and_then(|spaces| spaces.get(self.namespace));
        if let Some(space) = space {
            if let Some((key, payload)) = self.configured(space)? {
                self.alone(space, key, payload)?;
                return Ok(Some(payload));
            }
            let known =
                |key: &str| all.iter().filter_map(Tokens::of).any(|t| t.namespace == self.namespace && t.knows(key));
            nothing_else(self.namespace, space, known)?;
        }
        unread(attributes, all)?;
        Ok(None)
    }

    /// Refuses what `extract_only_without_validation` of `jwt_authn` extracted: it says so in a header of the request.
    fn verified(self, headers: Headers<'_>) -> Result<(), Unmapped> {
        let mut lines = headers.lines(self.status_header);
        if lines.any(|line| !line.trim_ascii().eq_ignore_ascii_case(b"true")) {
            return Err(unusable(format!("`{}` says that the token was not verified", self.status_header)));
        }
        Ok(())
    }

    /// What is under the keys of this source.
    fn configured<'a>(self, space: &'a Struct<'a>) -> Result<Option<(&'s str, &'a Struct<'a>)>, Unmapped> {
        let mut found: Option<(&str, &Struct<'_>)> = None;
        for key in &self.payload.0 {
            let payload = match space.fields.get(key).and_then(|value| value.kind.as_ref()) {
                None => continue,
                Some(Kind::Struct(payload)) => payload,
                Some(_) => {
                    let namespace = self.namespace;
                    return Err(unusable(format!("`{key}` in the metadata of `{namespace}` is not a token's payload")));
                }
            };
            match found {
                None => found = Some((key, payload)),
                Some((_, first)) if same_fields(first, payload) => {}
                Some((first, _)) => return Err(self.two(first, key)),
            }
        }
        Ok(found)
    }

    /// Refuses a second token beside the one under `key`, whoever would read it.
    fn alone(self, space: &Struct<'_>, key: &str, payload: &Struct<'_>) -> Result<(), Unmapped> {
        for (other, _) in space.fields.iter().filter(|(other, _)| !self.knows(other)) {
            match space.fields.get(other).and_then(|value| value.kind.as_ref()) {
                Some(Kind::Struct(second)) if same_fields(payload, second) => {}
                // With `requires_any`, a provider fails at the token that another one verifies.
                Some(kind) if failure(kind).is_some() => {}
                _ => return Err(self.two(key, other)),
            }
        }
        Ok(())
    }

    fn two(self, first: &str, second: &str) -> Unmapped {
        let namespace = self.namespace;
        unusable(format!(
            "the metadata of `{namespace}` has `{second}` beside the token under `{first}`, and they differ; `other_keys` \
             names what says nothing about who asks"
        ))
    }
}

/// Refuses tokens in the namespaces of Envoy's and Istio's filters, where no source of the configuration reads these: whoever
/// a token speaks of must not be taken for the gateway that passed it on.
///
/// # Errors
/// If there is one.
pub(super) fn unread(attributes: &AttributeContext<'_>, all: &[IdentitySource]) -> Result<(), Unmapped> {
    let Some(context) = attributes.metadata_context.as_ref() else { return Ok(()) };
    for namespace in [JWT_AUTHN, ISTIO_AUTHN] {
        let configured = all.iter().filter_map(Tokens::of).any(|tokens| tokens.namespace == namespace);
        if let Some(space) = context.filter_metadata.get(namespace).filter(|_| !configured) {
            // Istio's filter also says there what it knows of the peer.
            nothing_else(namespace, space, |key| namespace == ISTIO_AUTHN && !key.starts_with("request.auth."))?;
        }
    }
    Ok(())
}

/// Refuses a namespace in which anything is that nobody knows.
fn nothing_else(namespace: &str, space: &Struct<'_>, known: impl Fn(&str) -> bool) -> Result<(), Unmapped> {
    for (key, _) in space.fields.iter().filter(|(key, _)| !known(key)) {
        match space.fields.get(key).and_then(|value| value.kind.as_ref()).and_then(failure) {
            Some(MISSING) => {}
            Some(code) => {
                return Err(unusable(format!("a token failed: `{key}` of `{namespace}` has the code {code}")));
            }
            None => {
                return Err(unusable(format!(
                    "the metadata of `{namespace}` has `{key}`, which no identity source reads; in a source `jwt_metadata`, \
                     `payload_key` names where tokens are, `other_keys` what says nothing about who asks"
                )));
            }
        }
    }
    Ok(())
}

/// The code with which verification failed, if this is what `failed_status_in_metadata` of `jwt_authn` writes.
fn failure(kind: &Kind<'_>) -> Option<i64> {
    let Kind::Struct(status) = kind else { return None };
    let kind = |name: &str| status.fields.get(name).and_then(|value| value.kind.as_ref());
    match (kind("code"), kind("message"), status.fields.iter().count()) {
        (Some(Kind::Number(code)), Some(Kind::String(_)), 2) => attributes::integral(*code),
        _ => None,
    }
}

/// `JwtMissed`: there was no token, which is no failure.
const MISSING: i64 = 1;

/// Whether two structs hold the same, whatever the order: the order of a map on the wire says nothing.
fn same_fields(a: &Struct<'_>, b: &Struct<'_>) -> bool {
    let within = |a: &Struct<'_>, b: &Struct<'_>| {
        a.fields.iter().all(|(name, _)| match (a.fields.get(name), b.fields.get(name)) {
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        })
    };
    within(a, b) && b.fields.iter().all(|(name, _)| a.fields.get(name).is_some())
}

fn same(a: &StructValue<'_>, b: &StructValue<'_>) -> bool {
    match (&a.kind, &b.kind) {
        (Some(Kind::Struct(a)), Some(Kind::Struct(b))) => same_fields(a, b),
        (Some(Kind::List(a)), Some(Kind::List(b))) => {
            a.values.len() == b.values.len() && a.values.iter().zip(&b.values).all(|(a, b)| same(a, b))
        }
        (a, b) => a == b,
    }
}

// === reading it ===

impl<'a> Node for &'a StructValue<'a> {
    fn below(self, step: &Step) -> Below<Self> {
        let below = match (&self.kind, step) {
            (Some(Kind::Struct(own)), Step::Name(name)) => own.fields.get(name),
            (Some(Kind::List(own)), Step::Item(item)) => own.values.get(*item),
            (None | Some(Kind::Null), _) => None,
            _ => return Below::Misfit,
        };
        below.map_or(Below::Absent, Below::There)
    }
}

/// The claim at a path; `None` if it is not there, or null.
///
/// # Errors
/// If something else is there than what the path leads through.
pub(super) fn claim<'a>(payload: &'a Struct<'a>, path: &ClaimPath) -> Result<Option<&'a Kind<'a>>, Astray> {
    let found = path.find(|name| payload.fields.get(name))?.and_then(|value| value.kind.as_ref());
    Ok(found.filter(|kind| !matches!(kind, Kind::Null)))
}

/// The principal's id.
///
/// # Errors
/// If the claim is not a string, or empty.
pub(super) fn id<'a>(payload: &'a Struct<'a>, path: &ClaimPath) -> Result<&'a str, Unmapped> {
    match claim(payload, path).map_err(|astray| unusable(format!("the token has no claim `{path}`: {astray}")))? {
        Some(Kind::String(id)) if !id.is_empty() => Ok(id),
        _ => Err(unusable(format!("the token has no claim `{path}` that is a string"))),
    }
}

/// The groups of a token: a list of strings, or one string; the words of a `scope`.
///
/// # Errors
/// If the claim is anything else.
pub(super) fn groups<'a>(payload: &'a Struct<'a>, path: &ClaimPath) -> Result<Vec<&'a str>, Unmapped> {
    let refuse = || unusable(format!("the claim `{path}` is not a list of strings"));
    let found =
        claim(payload, path).map_err(|astray| unusable(format!("the token has no claim `{path}`: {astray}")))?;
    match found {
        None => Ok(Vec::new()),
        Some(Kind::String(scope)) if path.last_name().is_some_and(attributes::is_words) => {
            Ok(attributes::words(scope).collect())
        }
        Some(Kind::String(group)) => Ok(vec![group]),
        Some(Kind::List(list)) => list
            .values
            .iter()
            .map(|value| match &value.kind {
                Some(Kind::String(group)) => Ok(*group),
                _ => Err(refuse()),
            })
            .collect(),
        Some(_) => Err(refuse()),
    }
}

/// Attributes of a principal from claims, by the schema of its type. Those that are not there are left out, also where the
/// schema requires them: they may come from a bundle.
///
/// # Errors
/// If a claim does not fit its type.
pub(super) fn attributes(
    fields: &RecordType,
    payload: &Struct<'_>,
    renamed: &Table<String, ClaimPath>,
    place: &Place<'_>,
) -> Result<Attributes, Unmapped> {
    let mut record = Attributes::new();
    for (name, field) in fields {
        if let Some(value) = attribute(name, field, payload, renamed, place)? {
            record.insert(name.clone(), value);
        }
    }
    Ok(record)
}

/// One of them.
///
/// # Errors
/// If its claim does not fit its type.
pub(super) fn attribute(
    name: &str,
    field: &AttributeType,
    payload: &Struct<'_>,
    renamed: &Table<String, ClaimPath>,
    place: &Place<'_>,
) -> Result<Option<Value>, Unmapped> {
    let place = place.of(name);
    let value = match renamed.0.get(name) {
        None => payload.fields.get(name).map(|value| (Some(name), value)),
        Some(path) => {
            let found = path.find(|name| payload.fields.get(name)).map_err(|astray| {
                Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is read from the claim `{path}`: {astray}"))
            })?;
            found.map(|value| (path.last_name(), value))
        }
    };
    let Some((claim, value)) = value else { return Ok(None) };
    attributes::metadata(&field.ty, claim, value, &place)
}
