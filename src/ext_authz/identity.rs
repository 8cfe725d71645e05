//! Who asks. Principals are proved, not claimed (design, decision 6): the first proof in the configured order counts,
//! and a proof that is there but not usable is a refusal, never a reason to try the next.

use smol_str::SmolStr;

use super::attributes::{self, Place};
use super::claims::{self, Tokens};
use super::headers::Headers;
use super::identity_source::{IdentitySource, Network, TypeName};
use crate::model::{Attributes, EntityId, EntityUid, Principal, Proof, RecordType, Unmapped, UnmappedKind, Value};
use crate::policy::{ActionType, Snapshot};
use crate::proto::view::{AttributeContext, Struct};

/// Where attributes of the principal are.
const PRINCIPAL: Place<'static> = Place::new("principal");

/// Where the peer's authenticated identity is.
const PEER: Place<'static> = Place::new("source.principal");

/// Who asks, and the claims that say so, if it was a token.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The principal.
    pub principal: Principal,
    /// The token's payload.
    pub claims: Option<&'a Struct<'a>>,
    /// Those of its attributes that may be logged.
    pub logged: Attributes,
    /// An attribute that its type requires, and that neither the proof nor a bundle says.
    pub incomplete: Option<SmolStr>,
}

/// What proofs of identity are looked for in.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a, 'b> {
    /// What Envoy says.
    pub attributes: &'a AttributeContext<'a>,
    /// The request's headers.
    pub headers: Headers<'a>,
    /// What is asked for.
    pub action: &'b ActionType,
    /// The snapshot that is in force.
    pub snapshot: &'b Snapshot,
    /// Attributes of the principal that may be logged.
    pub logged: &'b [SmolStr],
}

/// Finds the first proof, in the order of these sources.
///
/// # Errors
/// If a proof is there but not usable, or none is there and the configuration has no `anonymous`.
pub fn identify<'a>(sources: &[IdentitySource], evidence: Evidence<'a, '_>) -> Result<Identity<'a>, Unmapped> {
    // A source of tokens sees to that itself, and most configurations have one.
    if !sources.iter().any(|source| matches!(source, IdentitySource::JwtMetadata { .. })) {
        claims::unread(evidence.attributes, sources)?;
    }
    for source in sources {
        let found = match source {
            IdentitySource::JwtMetadata { .. } => evidence.token(source, sources)?,
            IdentitySource::Peer { entity_type } => evidence.peer(entity_type)?,
            IdentitySource::TrustedHeader { header, peers, addresses, entity_type } => {
                let trusted = trusted(evidence.attributes, peers, addresses)?;
                if trusted { evidence.trusted_header(header, entity_type)? } else { None }
            }
            IdentitySource::Anonymous { entity_type, id } => Some(evidence.bare(entity_type, id, Proof::None)),
        };
        if let Some(found) = found {
            return Ok(complete(found, evidence.action, evidence.snapshot));
        }
    }
    Err(unusable("the request proves no identity"))
}

impl<'a> Evidence<'a, '_> {
    fn uid(&self, ty: &TypeName, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(ty.meant(self.snapshot).clone(), EntityId::new(id))
    }

    /// Who is known by an id alone.
    fn bare(&self, ty: &TypeName, id: &str, proof: Proof) -> Identity<'a> {
        Identity {
            principal: principal(self.uid(ty, id), Attributes::new(), Vec::new(), proof),
            claims: None,
            logged: Attributes::new(),
            incomplete: None,
        }
    }

    fn token(&self, source: &IdentitySource, all: &[IdentitySource]) -> Result<Option<Identity<'a>>, Unmapped> {
        let IdentitySource::JwtMetadata {
            id_claim, groups_claim, entity_type, group_type, attributes: renamed, ..
        } = source
        else {
            return Ok(None);
        };
        let Some(tokens) = Tokens::of(source) else { return Ok(None) };
        let Some(payload) = tokens.payload(self.attributes, self.headers, all)? else { return Ok(None) };
        let uid = self.uid(entity_type, claims::id(payload, id_claim)?);
        let read = match self.action.principal(uid.type_name()) {
            Some(fields) => claims::attributes(fields, payload, renamed, &PRINCIPAL)?,
            None => Attributes::new(),
        };
        let declared = self.snapshot.types().entity(uid.type_name()).into_iter().flatten();
        let declared = declared.filter(|(name, _)| self.logged.contains(name));
        // What is only logged may be misfit, and then it alone is left out.
        let fitting = declared.filter_map(|(name, field)| {
            let value = claims::attribute(name, field, payload, renamed, &PRINCIPAL).inspect_err(|misfit| {
                tracing::debug!(%misfit, "an attribute that is to be logged does not fit, and is left out");
            });
            Some((name.clone(), value.ok()??))
        });
        let logged = fitting.collect();
        let groups = claims::groups(payload, groups_claim)?;
        let parents = groups.into_iter().map(|group| self.uid(group_type, group)).collect();
        let principal = principal(uid, read, parents, Proof::Jwt);
        Ok(Some(Identity { principal, claims: Some(payload), logged, incomplete: None }))
    }

    fn peer(&self, ty: &TypeName) -> Result<Option<Identity<'a>>, Unmapped> {
        let peer = self.attributes.source.as_ref().map_or(b"".as_slice(), |source| source.principal);
        if peer.is_empty() {
            return Ok(None);
        }
        let peer = attributes::unreplaced(peer, &PEER, UnmappedKind::Identity)?;
        let uid = self.uid(ty, peer);
        let parts = workload(peer)?;
        let read = self.action.principal(uid.type_name()).map(|fields| fitting(fields, &parts)).transpose()?;
        let mut logged = parts;
        logged.retain(|name, _| self.logged.contains(name));
        let principal = principal(uid, read.unwrap_or_default(), Vec::new(), Proof::Peer);
        Ok(Some(Identity { principal, claims: None, logged, incomplete: None }))
    }

    fn trusted_header(&self, header: &str, ty: &TypeName) -> Result<Option<Identity<'a>>, Unmapped> {
        match self.headers.one(header)? {
            None => Ok(None),
            Some("") => Err(unusable(format!("the trusted header `{header}` is empty"))),
            Some(id) => Ok(Some(self.bare(ty, id, Proof::TrustedHeader))),
        }
    }
}

fn principal(uid: EntityUid, attributes: Attributes, mut parents: Vec<EntityUid>, proof: Proof) -> Principal {
    parents.sort_unstable();
    parents.dedup();
    Principal { uid, attributes, parents, proof }
}

/// Holds a principal against its schema: what strict validation of policies relies on must be there. Where it is not, a
/// bundle has yet to say it: that is no fault of the request, and nothing is evaluated.
fn complete<'a>(identity: Identity<'a>, action: &ActionType, snapshot: &Snapshot) -> Identity<'a> {
    let principal = &identity.principal;
    let fields = action.principal(principal.uid.type_name()).into_iter().flatten();
    let mut missing = fields
        .filter(|(name, field)| field.required && !principal.attributes.contains_key(*name))
        .map(|(name, _)| name);
    let incomplete = match missing.next() {
        // An entity of a bundle was validated when the bundle was loaded.
        Some(name) if !snapshot.knows(&principal.uid) => Some(name.clone()),
        _ => None,
    };
    Identity { incomplete, ..identity }
}

fn unusable(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Identity, detail)
}

/// The attributes that a SPIFFE id can say of a workload.
pub(super) const WORKLOAD: [&str; 3] = ["namespace", "service_account", "trust_domain"];

/// Attributes of a workload from its SPIFFE id (<https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/>); none for other
/// identities. Namespace and service account are Istio's and SPIRE's convention `/ns/<namespace>/sa/<account>`.
fn workload(peer: &str) -> Result<Attributes, Unmapped> {
    let mut record = Attributes::new();
    let Some(rest) = peer.strip_prefix("spiffe://") else { return Ok(record) };
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let bad_segment = |part: &str| matches!(part, "" | "." | "..");
    if domain.is_empty() || !domain.chars().all(good) || path.is_some_and(|path| path.split('/').any(bad_segment)) {
        return Err(unusable("the peer's SPIFFE id is malformed"));
    }
    record.insert("trust_domain".into(), Value::String(domain.into()));
    if let ["ns", namespace, "sa", account] = path.unwrap_or("").split('/').collect::<Vec<_>>().as_slice() {
        record.insert("namespace".into(), Value::String((*namespace).into()));
        record.insert("service_account".into(), Value::String((*account).into()));
    }
    Ok(record)
}

/// Of the parts of an id those that the schema names, as the types that it gives them: a bundle may declare the type of the
/// peers itself.
fn fitting(fields: &RecordType, parts: &Attributes) -> Result<Attributes, Unmapped> {
    let named = fields.iter().filter_map(|(name, field)| match parts.get(name) {
        Some(Value::String(text)) => {
            Some(attributes::text(&field.ty, text, &PRINCIPAL.of(name)).map(|value| (name.clone(), value)))
        }
        _ => None,
    });
    named.collect()
}

/// Whether the connection is one from which a trusted header is believed.
///
/// # Errors
/// If the peer's identity may not be the one of its certificate.
fn trusted(attributes: &AttributeContext<'_>, peers: &[String], addresses: &[Network]) -> Result<bool, Unmapped> {
    let Some(source) = &attributes.source else { return Ok(false) };
    if !source.principal.is_empty() && peers.iter().any(|peer| peer.as_bytes() == source.principal) {
        return attributes::unreplaced(source.principal, &PEER, UnmappedKind::Identity).map(|_| true);
    }
    let address = source.address.as_ref().and_then(|address| address.socket_address.as_ref());
    let address = address.and_then(|address| std::str::from_utf8(address.address).ok()?.parse().ok());
    Ok(address.is_some_and(|address: std::net::IpAddr| {
        let address = address.to_canonical();
        addresses.iter().any(|network| network.0.contains(&address))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_become_attributes() {
        let parts = |peer| {
            let text = |value: &Value| if let Value::String(text) = value { text.to_string() } else { String::new() };
            workload(peer).map(|record| record.values().map(text).collect::<Vec<_>>().join(" ")).map_err(|_| ())
        };
        for (peer, expected) in [
            ("spiffe://cluster.local/ns/shop/sa/cart", Ok("shop cart cluster.local")),
            ("spiffe://cluster.local/other/path", Ok("cluster.local")),
            ("spiffe://cluster.local", Ok("cluster.local")),
            ("cart.shop.svc", Ok("")),
            ("spiffe:///ns/shop/sa/cart", Err(())),
            ("spiffe://Cluster/ns/shop/sa/cart", Err(())),
            ("spiffe://cluster.local/ns/../sa/cart", Err(())),
            ("spiffe://cluster.local/ns//sa/cart", Err(())),
            ("spiffe://cluster.local/", Err(())),
        ] {
            assert_eq!(parts(peer).as_deref(), expected.as_ref().map(|text| *text), "{peer}");
        }
    }
}
