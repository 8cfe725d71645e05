//! What Cedar is asked.

use std::collections::BTreeMap;

use cedar_policy::EntityUid;
use smol_str::SmolStr;

/// What Cedar is asked: plain data, canonical, so that equal requests are equal Queries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Query {
    /// Who asks, with what the request itself proves about them.
    pub principal: Principal,
    /// What they want to do.
    pub action: EntityUid,
    /// What they want to do it to.
    pub resource: EntityUid,
    /// The context, built from the types that the schema gives for the action, and only from what it names.
    pub context: Attributes,
}

/// An entity that comes with the request: its id, and what the proof of identity says of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The entity's type and id.
    pub uid: EntityUid,
    /// Attributes proved by the request (claims of a token, parts of a SPIFFE id). A bundle that knows the entity
    /// has the last word: its attributes win.
    pub attributes: Attributes,
    /// Parents proved by the request (groups of a token), sorted. They add to those that the bundle knows.
    pub parents: Vec<EntityUid>,
    /// How the identity was proved, as policies see it in `context.identity`.
    pub proof: Proof,
}

/// How an identity was proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By a token that Envoy's `jwt_authn` verified.
    Jwt,
    /// By the certificate of the mTLS peer.
    Peer,
    /// By a request header that the operator declared trusted.
    TrustedHeader,
    /// Not at all.
    None,
}

impl Proof {
    /// The word for it in policies, logs and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Peer => "peer",
            Self::TrustedHeader => "trusted_header",
            Self::None => "none",
        }
    }
}

/// A Cedar record, sorted by name.
pub type Attributes = BTreeMap<SmolStr, Value>;

/// A Cedar value as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// `Bool`
    Bool(bool),
    /// `Long`
    Long(i64),
    /// `String`
    String(SmolStr),
    /// A reference to an entity.
    Entity(EntityUid),
    /// A value of an extension type, in Cedar's text form, known to be valid.
    Extension(Extension, SmolStr),
    /// `Set<T>`: sorted, without repetitions.
    Set(Vec<Value>),
    /// A record.
    Record(Attributes),
}

/// As JSON: entities as Cedar writes them, extension values as text.
impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Long(value) => serializer.serialize_i64(*value),
            Self::String(text) | Self::Extension(_, text) => serializer.serialize_str(text),
            Self::Entity(uid) => serializer.collect_str(uid),
            Self::Set(members) => serializer.collect_seq(members),
            Self::Record(fields) => serializer.collect_map(fields),
        }
    }
}

impl Value {
    /// A canonical set: sorted, without repetitions.
    pub fn set(mut members: Vec<Value>) -> Self {
        members.sort_unstable();
        members.dedup();
        Self::Set(members)
    }
}

/// The extension types of Cedar 4 (<https://docs.cedarpolicy.com/policies/syntax-datatypes.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extension {
    /// `ipaddr`: an address or a range.
    Ipaddr,
    /// `decimal`: up to four digits after the point.
    Decimal,
    /// `datetime`: an instant, to the millisecond.
    Datetime,
    /// `duration`: a length of time, to the millisecond.
    Duration,
}

impl Extension {
    /// The type's name in a Cedar schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipaddr => "ipaddr",
            Self::Decimal => "decimal",
            Self::Datetime => "datetime",
            Self::Duration => "duration",
        }
    }
}
