//! Who asks. Principals are proved, not claimed (design, decision 6): the first proof in the configured order counts,
//! and a proof that is there but not usable is a refusal, never a reason to try the next.

use std::collections::BTreeMap;

use deserr::{Deserr, ValuePointerRef};
use ipnet::IpNet;
use serde::Serialize;
use smol_str::SmolStr;

use super::convert::{self, Place};
use super::headers::Headers;
use super::view::{Attributes, Kind, Struct};
use crate::model::{
    EntityId, EntityTypeName, EntityUid, Principal, Proof, Record, RecordType, Unmapped, UnmappedKind, Value,
};
use crate::policy::{ActionType, Snapshot};
use crate::yaml::{Faults, Invalid, Table};

/// One entry of `identity:` in the configuration, in the order in which proofs count.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, tag = "from", deny_unknown_fields, validate = Source::validate -> Faults)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Source {
    /// A token that Envoy's `jwt_authn` verified and wrote into dynamic metadata.
    #[deserr(rename = "jwt_metadata")]
    JwtMetadata {
        /// Metadata namespace; default `envoy.filters.http.jwt_authn`.
        #[deserr(default = "envoy.filters.http.jwt_authn".to_owned())]
        namespace: String,
        /// `payload_in_metadata` of the filter; default `jwt_payload`.
        #[deserr(default = "jwt_payload".to_owned())]
        payload_key: String,
        /// The claim that is the principal's id; default `sub`.
        #[deserr(default = "sub".to_owned())]
        id_claim: String,
        /// The claim that lists the principal's groups; default `groups`.
        #[deserr(default = "groups".to_owned())]
        groups_claim: String,
        /// The principal's entity type; default `User`.
        #[deserr(default = TypeName::of("User"), rename = "type")]
        #[serde(rename = "type")]
        entity_type: TypeName,
        /// The entity type of its groups; default `Group`.
        #[deserr(default = TypeName::of("Group"))]
        group_type: TypeName,
        /// Attributes of the entity type that are read from a claim of another name; default: none, each attribute that
        /// the schema declares is read from the claim of its name.
        #[deserr(default)]
        attributes: Table<String, String>,
    },
    /// The certificate of the mTLS peer, as Envoy verified it.
    #[deserr(rename = "peer")]
    Peer {
        /// The principal's entity type; default `Workload`.
        #[deserr(default = TypeName::of("Workload"), rename = "type")]
        #[serde(rename = "type")]
        entity_type: TypeName,
    },
    /// A request header, believed only when it comes from one of these. Whoever can reach Envoy as one of them can be
    /// anyone.
    #[deserr(rename = "trusted_header")]
    TrustedHeader {
        /// The header.
        header: String,
        /// Peers by authenticated identity, such as `spiffe://cluster.local/ns/edge/sa/gateway`; default: none.
        #[deserr(default)]
        peers: Vec<String>,
        /// Peers by the address of the connection, such as `10.1.0.0/16`; default: none.
        #[deserr(default)]
        addresses: Vec<Network>,
        /// The principal's entity type; default `User`.
        #[deserr(default = TypeName::of("User"), rename = "type")]
        #[serde(rename = "type")]
        entity_type: TypeName,
    },
    /// No proof: `Anonymous::"anonymous"`, so that policies can speak about it. Without this entry, requests without a
    /// proof are refused.
    #[deserr(rename = "anonymous")]
    Anonymous {
        /// The principal's entity type; default `Anonymous`.
        #[deserr(default = TypeName::of("Anonymous"), rename = "type")]
        #[serde(rename = "type")]
        entity_type: TypeName,
        /// Its id; default `anonymous`.
        #[deserr(default = "anonymous".to_owned())]
        id: String,
    },
}

impl Source {
    /// What a field cannot see alone.
    fn validate(self, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let Self::TrustedHeader { header, peers, addresses, .. } = &self else { return Ok(self) };
        let fault = |message: String, hint: &str| Err(Faults::new(message, Some(hint.to_owned()), location));
        if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
            return fault(format!("`{header}` is not a header name"), "letters, digits and `-`");
        }
        if header.contains('_') {
            return fault(format!("the header `{header}` has a `_`"), "apps take it for `-`; name it with `-`");
        }
        if peers.is_empty() && addresses.is_empty() {
            let message = format!("the header `{header}` is trusted from nobody");
            return fault(message, "list `peers` or `addresses` that set it, and no others");
        }
        Ok(self)
    }
}

/// `identity:` as it is without configuration: a token, else the mTLS peer, else anonymous.
pub fn default_sources() -> Vec<Source> {
    vec![
        Source::JwtMetadata {
            namespace: "envoy.filters.http.jwt_authn".to_owned(),
            payload_key: "jwt_payload".to_owned(),
            id_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            entity_type: TypeName::of("User"),
            group_type: TypeName::of("Group"),
            attributes: Table::default(),
        },
        Source::Peer { entity_type: TypeName::of("Workload") },
        Source::Anonymous { entity_type: TypeName::of("Anonymous"), id: "anonymous".to_owned() },
    ]
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = Network::parse -> Invalid)]
#[serde(transparent)]
pub struct Network(pub IpNet);

impl Network {
    fn parse(text: String) -> Result<Self, Invalid> {
        let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        text.parse()
            .or_else(|_| single())
            .map(Self)
            .map_err(|_| Invalid::new(format!("`{text}` is not an address range")).hint("like `10.1.0.0/16` or `::1`"))
    }
}

/// An entity type's name, in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = TypeName::parse -> Invalid)]
pub struct TypeName(pub EntityTypeName);

impl TypeName {
    fn parse(text: String) -> Result<Self, Invalid> {
        text.parse().map(Self).map_err(|_| {
            Invalid::new(format!("`{text}` is not an entity type")).hint("like `User` or `Shop::Customer`")
        })
    }

    #[expect(clippy::expect_used, reason = "called with the literals of the defaults only, which a test covers")]
    fn of(name: &str) -> Self {
        Self(name.parse().expect("an entity type"))
    }
}

impl Serialize for TypeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Where attributes of the principal are.
const PRINCIPAL: Place<'static> = Place::new("principal");

/// Who asks, and the claims that say so, if it was a token.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The principal.
    pub principal: Principal,
    /// The token's payload.
    pub claims: Option<&'a Struct<'a>>,
    /// Those of its attributes that may be logged.
    pub logged: Record,
}

/// Finds the first proof.
///
/// # Errors
/// If a proof is there but not usable, or none is there and the configuration has no `anonymous`.
pub fn identify<'a>(
    sources: &[Source],
    attributes: &'a Attributes<'a>,
    headers: Headers<'_>,
    action: &ActionType,
    snapshot: &Snapshot,
    logged: &[SmolStr],
) -> Result<Identity<'a>, Unmapped> {
    for source in sources {
        let found = match source {
            Source::JwtMetadata {
                namespace,
                payload_key,
                id_claim,
                groups_claim,
                entity_type,
                group_type,
                attributes: renamed,
            } => {
                let Some(payload) = payload(attributes, namespace, payload_key)? else { continue };
                let id = match payload.fields.get(id_claim.as_str()).and_then(|value| value.kind.as_ref()) {
                    Some(Kind::String(id)) if !id.is_empty() => id,
                    _ => return Err(unusable(format!("the token has no claim `{id_claim}` that is a text"))),
                };
                let uid = EntityUid::from_type_name_and_id(entity_type.0.clone(), EntityId::new(id));
                let own = match action.principal(&entity_type.0) {
                    Some(fields) => claims(fields, payload, &renamed.0, snapshot.knows(&uid))?,
                    None => Record::new(),
                };
                let logged = match logged {
                    [] => Record::new(),
                    _ => {
                        let declared = snapshot.types().entity(&entity_type.0).into_iter().flatten();
                        let declared = declared.filter(|(name, _)| logged.contains(name));
                        let declared = declared.map(|(name, field)| (name.clone(), field.clone())).collect();
                        // What is only logged may be missing or misfit without anyone minding.
                        claims(&declared, payload, &renamed.0, true).unwrap_or_default()
                    }
                };
                let parents = groups(payload, groups_claim)?
                    .into_iter()
                    .map(|group| EntityUid::from_type_name_and_id(group_type.0.clone(), EntityId::new(group)));
                let principal = principal(uid, own, parents.collect(), Proof::Jwt);
                Identity { principal, claims: Some(payload), logged }
            }
            Source::Peer { entity_type } => {
                let peer = attributes.source.as_ref().map_or(b"".as_slice(), |source| source.principal);
                if peer.is_empty() {
                    continue;
                }
                let peer = std::str::from_utf8(peer).map_err(|_| unusable("the peer's identity is not UTF-8"))?;
                let uid = EntityUid::from_type_name_and_id(entity_type.0.clone(), EntityId::new(peer));
                let parts = workload(peer)?;
                let own = action.principal(&entity_type.0).map(|fields| fitting(fields, &parts)).transpose()?;
                let (own, mut told) = (own.unwrap_or_default(), parts);
                told.retain(|name, _| logged.contains(name));
                Identity { principal: principal(uid, own, Vec::new(), Proof::Peer), claims: None, logged: told }
            }
            Source::TrustedHeader { header, peers, addresses, entity_type } => {
                if !trusted(attributes, peers, addresses) {
                    continue;
                }
                match headers.one(header)? {
                    None => continue,
                    Some("") => return Err(unusable(format!("the trusted header `{header}` is empty"))),
                    Some(id) => {
                        let uid = EntityUid::from_type_name_and_id(entity_type.0.clone(), EntityId::new(id));
                        Identity {
                            principal: principal(uid, Record::new(), Vec::new(), Proof::TrustedHeader),
                            claims: None,
                            logged: Record::new(),
                        }
                    }
                }
            }
            Source::Anonymous { entity_type, id } => {
                let uid = EntityUid::from_type_name_and_id(entity_type.0.clone(), EntityId::new(id));
                Identity {
                    principal: principal(uid, Record::new(), Vec::new(), Proof::None),
                    claims: None,
                    logged: Record::new(),
                }
            }
        };
        return complete(found, action, snapshot);
    }
    Err(unusable("the request proves no identity"))
}

fn principal(uid: EntityUid, attributes: Record, mut parents: Vec<EntityUid>, proof: Proof) -> Principal {
    parents.sort_unstable();
    parents.dedup();
    Principal { uid, attributes, parents, proof }
}

/// Holds a principal against its schema: what strict validation of policies relies on must be there.
fn complete<'a>(identity: Identity<'a>, action: &ActionType, snapshot: &Snapshot) -> Result<Identity<'a>, Unmapped> {
    let principal = &identity.principal;
    // An entity of a bundle was validated when the bundle was loaded.
    if let Some(fields) = action.principal(principal.uid.type_name())
        && !snapshot.knows(&principal.uid)
    {
        let missing = fields.iter().find(|(name, field)| field.required && !principal.attributes.contains_key(*name));
        if let Some((name, _)) = missing {
            return Err(convert::missing(&PRINCIPAL.of(name)));
        }
    }
    Ok(identity)
}

fn unusable(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Identity, detail)
}

/// The payload of the token that `jwt_authn` verified; `None` if it verified none.
fn payload<'a>(attributes: &'a Attributes<'a>, namespace: &str, key: &str) -> Result<Option<&'a Struct<'a>>, Unmapped> {
    let space = attributes.metadata_context.as_ref().and_then(|all| all.filter_metadata.get(namespace));
    match space.and_then(|space| space.fields.get(key)?.kind.as_ref()) {
        None => Ok(None),
        Some(Kind::Struct(payload)) => Ok(Some(payload)),
        Some(_) => Err(unusable(format!("`{key}` in the metadata of `{namespace}` is not a token's payload"))),
    }
}

/// Attributes of the principal from claims, by the schema of its type. Those that are required may come from the bundle.
fn claims(
    fields: &RecordType,
    payload: &Struct<'_>,
    renamed: &BTreeMap<String, String>,
    known: bool,
) -> Result<Record, Unmapped> {
    let mut record = Record::new();
    for (name, field) in fields {
        let claim = renamed.get(name.as_str()).map_or(name.as_str(), String::as_str);
        let place = PRINCIPAL.of(name);
        let value = payload.fields.get(claim).map(|value| convert::metadata(&field.ty, value, &place)).transpose()?;
        match value.flatten() {
            Some(value) => {
                record.insert(name.clone(), value);
            }
            None if field.required && !known => return Err(convert::missing(&place)),
            None => {}
        }
    }
    Ok(record)
}

/// The groups of a token: a list of texts, or one text.
fn groups<'a>(payload: &'a Struct<'a>, claim: &str) -> Result<Vec<&'a str>, Unmapped> {
    let refuse = || unusable(format!("the claim `{claim}` is not a list of texts"));
    match payload.fields.get(claim).and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::Null) => Ok(Vec::new()),
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

/// Attributes of a workload from its SPIFFE id (<https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/>); none for other
/// identities. Namespace and service account are Istio's and SPIRE's convention `/ns/<namespace>/sa/<account>`.
fn workload(peer: &str) -> Result<Record, Unmapped> {
    let mut record = Record::new();
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
fn fitting(fields: &RecordType, parts: &Record) -> Result<Record, Unmapped> {
    let named = fields.iter().filter_map(|(name, field)| match parts.get(name) {
        Some(Value::String(text)) => {
            Some(convert::text(&field.ty, text, &PRINCIPAL.of(name)).map(|value| (name.clone(), value)))
        }
        _ => None,
    });
    named.collect()
}

/// Whether the connection is one from which a trusted header is believed.
fn trusted(attributes: &Attributes<'_>, peers: &[String], addresses: &[Network]) -> bool {
    let Some(source) = &attributes.source else { return false };
    if !source.principal.is_empty() && peers.iter().any(|peer| peer.as_bytes() == source.principal) {
        return true;
    }
    let address = source.address.as_ref().and_then(|address| address.socket_address.as_ref());
    let address = address.and_then(|address| std::str::from_utf8(address.address).ok()?.parse().ok());
    address.is_some_and(|address: std::net::IpAddr| {
        let address = address.to_canonical();
        addresses.iter().any(|network| network.0.contains(&address))
    })
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

    #[test]
    fn the_defaults_are_what_the_configuration_reads() {
        let text = "- from: jwt_metadata\n- from: peer\n- from: anonymous\n";
        let source = crate::problem::SourceFile::new("identity", text);
        assert_eq!(crate::yaml::parse::<Vec<Source>>(&source).expect("good"), default_sources());
    }
}
