//! `identity:` of the configuration: which proofs of identity count, and where they are.

use deserr::{Deserr, IntoValue, ValuePointerRef};
use ipnet::IpNet;
use serde::Serialize;

use crate::claim_path::ClaimPath;
use crate::model::EntityTypeName;
use crate::policy::{Snapshot, mapped_range};
use crate::problem::Problem;
use crate::yaml::{AtLeastOne, Faults, Invalid, Table};

/// The namespace of Envoy's filter, which a source reads unless it names another one.
pub const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";

/// Envoy's own name for `verification_status_header`.
const STATUS_HEADER: &str = "x-jwt-signature-verified";

/// One entry of `identity:` in the configuration, in the order in which proofs count.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, tag = "from", deny_unknown_fields, validate = IdentitySource::validate -> Faults)]
#[serde(tag = "from", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a configuration has a handful of them")]
pub enum IdentitySource {
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

impl IdentitySource {
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
pub fn default_sources() -> Vec<IdentitySource> {
    vec![
        IdentitySource::JwtMetadata {
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
        IdentitySource::Peer { entity_type: TypeName::of("Workload") },
        IdentitySource::Anonymous { entity_type: TypeName::of("Anonymous"), id: "anonymous".to_owned() },
    ]
}

impl IdentitySource {
    /// Whether this one counts wherever another one would: what comes after it never gets a turn.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous { .. }, _) | (Self::Peer { .. }, Self::Peer { .. }) => true,
            (
                Self::JwtMetadata { namespace, payload_key, .. },
                Self::JwtMetadata { namespace: other, payload_key: keys, .. },
            ) => namespace == other && keys.0.iter().all(|key| payload_key.0.contains(key)),
            (
                Self::TrustedHeader { header, peers, addresses, .. },
                Self::TrustedHeader { header: other, peers: other_peers, addresses: other_addresses, .. },
            ) => {
                header.eq_ignore_ascii_case(other)
                    && other_peers.iter().all(|peer| peers.contains(peer))
                    && other_addresses.iter().all(|own| addresses.iter().any(|wide| wide.0.contains(&own.0)))
            }
            _ => false,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::JwtMetadata { .. } => "jwt_metadata",
            Self::Peer { .. } => "peer",
            Self::TrustedHeader { .. } => "trusted_header",
            Self::Anonymous { .. } => "anonymous",
        }
    }
}

/// Reports sources that never get a turn, since one before them counts wherever they would.
pub fn out_of_turn(sources: &[IdentitySource]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        let before = sources.iter().take(at).position(|before| before.covers(source));
        if let Some((number, first)) = before.and_then(|number| Some((number, sources.get(number)?))) {
            let (own, first) = (source.name(), first.name());
            let message = format!(
                "`identity[{at}]`, `{own}`, never gets a turn: `identity[{number}]`, `{first}`, counts before it"
            );
            let hint = "the first source that finds something counts: put `anonymous` last, and what is narrower first";
            problems.push(Problem::error(message).hint(hint));
        }
    }
    problems
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = Network::parse -> Invalid)]
#[serde(transparent)]
pub struct Network(pub IpNet);

impl Network {
    fn parse(text: String) -> Result<Self, Invalid> {
        let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        // Addresses are held against these in their one form, which is that of IPv4.
        if let Some(mapped) = mapped_range(&text) {
            let invalid = Invalid::new(format!("no address is in `{text}`: addresses like these are IPv4"));
            return Err(invalid.hint(format!("`{mapped}`")));
        }
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
    pub(super) fn meant<'a>(&'a self, snapshot: &'a Snapshot) -> &'a EntityTypeName {
        snapshot.types().vocabulary().resolve(&self.0)
    }
}

impl Serialize for TypeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Names in the metadata of a namespace: one, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Keys(pub Vec<String>);

impl Default for Keys {
    /// Envoy's documentation writes the first one, Istio's RequestAuthentication the second.
    fn default() -> Self {
        Self(vec!["jwt_payload".to_owned(), "payload".to_owned()])
    }
}

impl Deserr<Faults> for Keys {
    fn deserialize_from_value<V: IntoValue>(
        value: deserr::Value<V>,
        location: ValuePointerRef<'_>,
    ) -> Result<Self, Faults> {
        if let deserr::Value::String(key) = value {
            return Ok(Self(vec![key]));
        }
        AtLeastOne::deserialize_from_value(value, location).map(|AtLeastOne(keys)| Self(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_what_the_configuration_reads() {
        let text = "- from: jwt_metadata\n- from: peer\n- from: anonymous\n";
        let source = crate::problem::SourceFile::new("identity", text);
        assert_eq!(crate::yaml::parse::<Vec<IdentitySource>>(&source).expect("good"), default_sources());
    }
}
