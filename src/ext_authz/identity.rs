//! Who asks. Principals are proved, not claimed (design, decision 6): the first proof in the configured order counts,
//! and a proof that is there but not usable is a refusal, never a reason to try the next.

use deserr::{Deserr, ValuePointerRef};
use ipnet::IpNet;
use serde::Serialize;
use smol_str::SmolStr;

use super::attributes::{self, Place};
use super::claims::{self, JWT_AUTHN, Keys, Tokens};
use super::headers::Headers;
use crate::claim_path::ClaimPath;
use crate::model::{
    Attributes, EntityId, EntityTypeName, EntityUid, Principal, Proof, RecordType, Unmapped, UnmappedKind, Value,
};
use crate::policy::{ActionType, Snapshot};
use crate::proto::view::{AttributeContext, Struct};
use crate::yaml::{Faults, Invalid, Table};

/// Envoy's own name for `verification_status_header`.
const STATUS_HEADER: &str = "x-jwt-signature-verified";

/// One entry of `identity:` in the configuration, in the order in which proofs count.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, tag = "from", deny_unknown_fields, validate = Source::validate -> Faults)]
#[serde(tag = "from", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a configuration has a handful of them")]
pub enum Source {
    /// A token that Envoy's `jwt_authn` verified and wrote into dynamic metadata.
    #[deserr(rename = "jwt_metadata")]
    JwtMetadata {
        /// Metadata namespace; default `envoy.filters.http.jwt_authn`.
        #[deserr(default = JWT_AUTHN.to_owned())]
        namespace: String,
        /// `payload_in_metadata` of the filter, one key or a list; default `jwt_payload`, as Envoy's documentation has it, and
        /// `payload`, as Istio has it.
        #[deserr(default)]
        payload_key: Keys,
        /// Keys of the namespace that say nothing about who asks, such as `header_in_metadata` of the filter; default
        /// `jwt_header`. Any other key may be a token that nobody reads, and is a refusal.
        #[deserr(default = vec!["jwt_header".to_owned()])]
        other_keys: Vec<String>,
        /// The header in which the filter's `extract_only_without_validation` says that a token was not verified; default
        /// `x-jwt-signature-verified`. A request that has it, with anything but `true`, is refused.
        #[deserr(default = STATUS_HEADER.to_owned())]
        verification_status_header: String,
        /// The claim that is the principal's id, as a path such as `sub` or `identity.id`; default `sub`.
        #[deserr(default = ClaimPath::of("sub"))]
        id_claim: ClaimPath,
        /// The claim that lists the principal's groups, as a path such as `realm_access.roles`; default `groups`.
        #[deserr(default = ClaimPath::of("groups"))]
        groups_claim: ClaimPath,
        /// The principal's entity type; default `User`.
        #[deserr(default = TypeName::of("User"), rename = "type")]
        #[serde(rename = "type")]
        entity_type: TypeName,
        /// The entity type of its groups; default `Group`.
        #[deserr(default = TypeName::of("Group"))]
        group_type: TypeName,
        /// Attributes of the entity type that are read from a claim of another name, as a path; default: none, each
        /// attribute that the schema declares is read from the claim of its name.
        #[deserr(default)]
        attributes: Table<String, ClaimPath>,
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
        let fault = |message: String, hint: &str| Err(Faults::new(message, Some(hint.to_owned()), location));
        if let Self::TrustedHeader { header, .. } | Self::JwtMetadata { verification_status_header: header, .. } = &self
            && http::HeaderName::from_bytes(header.as_bytes()).is_err()
        {
            return fault(format!("`{header}` is not a header name"), "letters, digits and `-`");
        }
        if let Self::TrustedHeader { header, .. } | Self::JwtMetadata { verification_status_header: header, .. } = &self
            && header.contains('_')
        {
            return fault(format!("the header `{header}` has a `_`"), "apps take it for `-`; name it with `-`");
        }
        let Self::TrustedHeader { header, peers, addresses, .. } = &self else { return Ok(self) };
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
            namespace: JWT_AUTHN.to_owned(),
            payload_key: Keys::default(),
            other_keys: vec!["jwt_header".to_owned()],
            verification_status_header: STATUS_HEADER.to_owned(),
            id_claim: ClaimPath::of("sub"),
            groups_claim: ClaimPath::of("groups"),
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

    /// What it means under a snapshot: `User` is the bundle's `PetShop::User` where no other is declared.
    fn meant<'a>(&'a self, snapshot: &'a Snapshot) -> &'a EntityTypeName {
        snapshot.types().vocabulary().resolve(&self.0)
    }
}

impl Serialize for TypeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

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

/// Finds the first proof.
///
/// # Errors
/// If a proof is there but not usable, or none is there and the configuration has no `anonymous`.
pub fn identify<'a>(
    sources: &[Source],
    attributes: &'a AttributeContext<'a>,
    headers: Headers<'_>,
    action: &ActionType,
    snapshot: &Snapshot,
    logged: &[SmolStr],
) -> Result<Identity<'a>, Unmapped> {
    // A source of tokens sees to that itself, and most configurations have one.
    if !sources.iter().any(|source| matches!(source, Source::JwtMetadata { .. })) {
        claims::unread(attributes, sources)?;
    }
    for source in sources {
        let found = match source {
            Source::JwtMetadata {
                namespace,
                payload_key,
                other_keys,
                verification_status_header,
                id_claim,
                groups_claim,
                entity_type,
                group_type,
                attributes: renamed,
            } => {
                let tokens = Tokens {
                    namespace,
                    payload: payload_key,
                    other: other_keys,
                    status_header: verification_status_header,
                };
                let Some(payload) = tokens.payload(attributes, headers, sources)? else { continue };
                let id = EntityId::new(claims::id(payload, id_claim)?);
                let uid = EntityUid::from_type_name_and_id(entity_type.meant(snapshot).clone(), id);
                let own = match action.principal(entity_type.meant(snapshot)) {
                    Some(fields) => claims::attributes(fields, payload, renamed, &PRINCIPAL)?,
                    None => Attributes::new(),
                };
                let logged = match logged {
                    [] => Attributes::new(),
                    _ => {
                        let declared = snapshot.types().entity(entity_type.meant(snapshot)).into_iter().flatten();
                        let declared = declared.filter(|(name, _)| logged.contains(name));
                        let declared = declared.map(|(name, field)| (name.clone(), field.clone())).collect();
                        // What is only logged may be misfit without anyone minding.
                        claims::attributes(&declared, payload, renamed, &PRINCIPAL).unwrap_or_default()
                    }
                };
                let parents = claims::groups(payload, groups_claim)?.into_iter().map(|group| {
                    EntityUid::from_type_name_and_id(group_type.meant(snapshot).clone(), EntityId::new(group))
                });
                let principal = principal(uid, own, parents.collect(), Proof::Jwt);
                Identity { principal, claims: Some(payload), logged, incomplete: None }
            }
            Source::Peer { entity_type } => {
                let peer = attributes.source.as_ref().map_or(b"".as_slice(), |source| source.principal);
                if peer.is_empty() {
                    continue;
                }
                let peer = attributes::unreplaced(peer, &PEER, UnmappedKind::Identity)?;
                let uid = EntityUid::from_type_name_and_id(entity_type.meant(snapshot).clone(), EntityId::new(peer));
                let parts = workload(peer)?;
                let own = action.principal(entity_type.meant(snapshot)).map(|fields| fitting(fields, &parts));
                let (own, mut told) = (own.transpose()?.unwrap_or_default(), parts);
                told.retain(|name, _| logged.contains(name));
                let principal = principal(uid, own, Vec::new(), Proof::Peer);
                Identity { principal, claims: None, logged: told, incomplete: None }
            }
            Source::TrustedHeader { header, peers, addresses, entity_type } => {
                if !trusted(attributes, peers, addresses)? {
                    continue;
                }
                match headers.one(header)? {
                    None => continue,
                    Some("") => return Err(unusable(format!("the trusted header `{header}` is empty"))),
                    Some(id) => {
                        let uid =
                            EntityUid::from_type_name_and_id(entity_type.meant(snapshot).clone(), EntityId::new(id));
                        Identity {
                            principal: principal(uid, Attributes::new(), Vec::new(), Proof::TrustedHeader),
                            claims: None,
                            logged: Attributes::new(),
                            incomplete: None,
                        }
                    }
                }
            }
            Source::Anonymous { entity_type, id } => {
                let uid = EntityUid::from_type_name_and_id(entity_type.meant(snapshot).clone(), EntityId::new(id));
                Identity {
                    principal: principal(uid, Attributes::new(), Vec::new(), Proof::None),
                    claims: None,
                    logged: Attributes::new(),
                    incomplete: None,
                }
            }
        };
        return Ok(complete(found, action, snapshot));
    }
    Err(unusable("the request proves no identity"))
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

    #[test]
    fn the_defaults_are_what_the_configuration_reads() {
        let text = "- from: jwt_metadata\n- from: peer\n- from: anonymous\n";
        let source = crate::problem::SourceFile::new("identity", text);
        assert_eq!(crate::yaml::parse::<Vec<Source>>(&source).expect("good"), default_sources());
    }
}
