//! The nouns that the whole program speaks in. No I/O, no Envoy, no tonic.
//!
//! A [`Query`] is what Cedar is asked; an [`Outcome`] is what became of it: a [`Decision`], a refusal to map the
//! request ([`Unmapped`]), or the reason why *we* could not decide ([`Undecided`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use cedar_policy::{EntityId, EntityTypeName, EntityUid, PolicyId};
use smol_str::SmolStr;

// === What is asked ===

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

/// The type of a [`Value`], as a schema declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// `Bool`
    Bool,
    /// `Long`
    Long,
    /// `String`
    String,
    /// An entity type.
    Entity(EntityType),
    /// An extension type.
    Extension(Extension),
    /// `Set<T>`
    Set(Box<Type>),
    /// A closed record.
    Record(RecordType),
}

/// An entity type, and which ids its entities can have: the one place where an id from outside becomes an entity of a
/// declared type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityType {
    /// Its name.
    pub name: EntityTypeName,
    /// The ids of an enum; `None` if any id will do.
    pub choices: Option<Choices>,
}

/// The ids that an enum of entities has (`entity Env enum ["dev", "prod"]`).
pub type Choices = Arc<BTreeSet<SmolStr>>;

impl EntityType {
    /// The entity with this id; `None` if the type has no such entity.
    pub fn entity(&self, id: &str) -> Option<EntityUid> {
        let exists = self.choices.as_ref().is_none_or(|choices| choices.contains(id));
        exists.then(|| EntityUid::from_type_name_and_id(self.name.clone(), EntityId::new(id)))
    }
}

/// The attributes of a record or an entity, sorted by name.
pub type RecordType = BTreeMap<SmolStr, AttributeType>;

/// One attribute of a record or an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeType {
    /// What it holds.
    pub ty: Type,
    /// Whether it must be there.
    pub required: bool,
}

impl Type {
    /// Its attributes, if it is a record.
    pub fn fields(&self) -> Option<&RecordType> {
        if let Self::Record(fields) = self { Some(fields) } else { None }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("Bool"),
            Self::Long => f.write_str("Long"),
            Self::String => f.write_str("String"),
            Self::Entity(ty) => write!(f, "{}", ty.name),
            Self::Extension(extension) => f.write_str(extension.as_str()),
            Self::Set(member) => write!(f, "Set<{member}>"),
            Self::Record(_) => f.write_str("record"),
        }
    }
}

/// What an action's context is built from: one typed attribute for each [`Root`] that the schema names.
pub type ContextType = Vec<(Root, AttributeType)>;

/// The attributes that a context can have at its top. `docs/context.md` describes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Root {
    /// JSON or form fields of the request's body.
    Body,
    /// Whether Envoy sent only the beginning of the body.
    BodyPartial,
    /// The size of the whole body in bytes, if known.
    BodySize,
    /// Claims of the token that proved the principal.
    Claims,
    /// The service's side of the connection.
    Destination,
    /// `context_extensions` of the route, as the operator set them.
    Extensions,
    /// Service and method of a gRPC call.
    Grpc,
    /// Request headers.
    Headers,
    /// The host, in lower case, without a trailing dot; with its port, if there is one.
    Host,
    /// How the principal was proved: see [`Proof`].
    Identity,
    /// `metadata_context.filter_metadata`, by namespace.
    Metadata,
    /// The HTTP method.
    Method,
    /// Parameters of the route's path template.
    Params,
    /// The path in its one canonical form, without the query.
    Path,
    /// The HTTP protocol, such as `HTTP/1.1`.
    Protocol,
    /// Query parameters.
    Query,
    /// `route_metadata_context.filter_metadata`, by namespace.
    RouteMetadata,
    /// The URL scheme.
    Scheme,
    /// The caller's side of the connection.
    Source,
    /// When Envoy received the request.
    Time,
    /// The TLS session.
    Tls,
}

impl Root {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Body,
        Self::BodyPartial,
        Self::BodySize,
        Self::Claims,
        Self::Destination,
        Self::Extensions,
        Self::Grpc,
        Self::Headers,
        Self::Host,
        Self::Identity,
        Self::Metadata,
        Self::Method,
        Self::Params,
        Self::Path,
        Self::Protocol,
        Self::Query,
        Self::RouteMetadata,
        Self::Scheme,
        Self::Source,
        Self::Time,
        Self::Tls,
    ];

    /// Its name in a context.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::BodyPartial => "body_partial",
            Self::BodySize => "body_size",
            Self::Claims => "claims",
            Self::Destination => "destination",
            Self::Extensions => "extensions",
            Self::Grpc => "grpc",
            Self::Headers => "headers",
            Self::Host => "host",
            Self::Identity => "identity",
            Self::Metadata => "metadata",
            Self::Method => "method",
            Self::Params => "params",
            Self::Path => "path",
            Self::Protocol => "protocol",
            Self::Query => "query",
            Self::RouteMetadata => "route_metadata",
            Self::Scheme => "scheme",
            Self::Source => "source",
            Self::Time => "time",
            Self::Tls => "tls",
        }
    }
}

impl Root {
    /// The type of what it holds, where that is the same for every request; `None` where a schema has to say it.
    pub fn fixed(self) -> Option<Type> {
        let record = |fields: &[(&str, Type)]| {
            let field = |(name, ty): &(&str, Type)| ((*name).into(), AttributeType { ty: ty.clone(), required: false });
            Type::Record(fields.iter().map(field).collect())
        };
        let peer = [
            ("address", Type::Extension(Extension::Ipaddr)),
            ("certificate", Type::String),
            ("port", Type::Long),
            ("principal", Type::String),
        ];
        match self {
            Self::Method | Self::Path | Self::Host | Self::Scheme | Self::Protocol | Self::Identity => {
                Some(Type::String)
            }
            Self::BodyPartial => Some(Type::Bool),
            Self::BodySize => Some(Type::Long),
            Self::Time => Some(Type::Extension(Extension::Datetime)),
            // What `labels` a destination has is the operator's to say.
            Self::Source | Self::Destination => Some(record(&peer)),
            Self::Tls => Some(record(&[("sni", Type::String)])),
            Self::Grpc => Some(record(&[("method", Type::String), ("service", Type::String)])),
            Self::Headers | Self::Query | Self::Params | Self::Extensions => None,
            Self::Metadata | Self::RouteMetadata | Self::Body | Self::Claims => None,
        }
    }
}

// === What became of it ===

/// Everything that can become of a request. There is no fourth case: an answer is built from this and nothing else.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The policies decided.
    Decided(Decision),
    /// The request cannot be understood: the client's doing, denied with 400.
    Unmapped(Unmapped),
    /// *We* could not decide: never the client's doing, never cached. The operator's fail-open switch governs it.
    Undecided(Undecided),
}

/// Allow or deny, and the revision it stands under.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What the policies say: shared by all decisions that came out alike.
    pub ruling: Arc<Ruling>,
    /// The snapshot it was made under, or still stands under.
    pub revision: Arc<Revision>,
    /// The local count of that snapshot.
    pub generation: u64,
    /// Whether it was made for this request or remembered.
    pub cache: CacheState,
    /// How current the snapshot was known to be; `None` if it comes from directories.
    pub freshness: Option<Freshness>,
}

#[cfg(test)]
impl Decision {
    /// A ruling, decided under some snapshot.
    pub fn of(ruling: Ruling) -> Self {
        let revision = Revision { id: "0123456789ab".into(), digest: "0123456789ab".into(), number: None };
        let (ruling, revision) = (Arc::new(ruling), Arc::new(revision));
        Self { ruling, revision, generation: 1, cache: CacheState::Off, freshness: None }
    }
}

impl std::ops::Deref for Decision {
    type Target = Ruling;

    fn deref(&self) -> &Ruling {
        &self.ruling
    }
}

/// What the policies say of a Query: all of a [`Decision`] that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Allow or deny.
    pub effect: Effect,
    /// Why, in a word of bounded number.
    pub reason: Reason,
    /// The policies that determined it, sorted. Empty for a default denial.
    pub determining: Vec<PolicyId>,
    /// Evaluation errors; an erring `permit` is skipped as Cedar does, an erring `forbid` denies.
    pub errors: Vec<PolicyError>,
    /// What the `@mode("shadow")` policies would have done, if there are any.
    pub shadow: Option<Shadow>,
    /// How the policies want a denial to look; `None` on allow.
    pub denial: Option<Arc<Denial>>,
}

impl Ruling {
    /// Whether an evaluation error had a part in it, in force or in shadow.
    pub fn erred(&self) -> bool {
        !self.errors.is_empty() || self.shadow.as_ref().is_some_and(|shadow| !shadow.errors.is_empty())
    }
}

/// What the decision cache had to do with a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It was not asked.
    Off,
    /// It remembered the decision, for this long.
    Hit(Duration),
    /// The decision was made.
    Miss(MissReason),
}

/// Why the decision cache had no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissReason {
    /// It never had one, or had to make room.
    Absent,
    /// What it had was too old.
    Expired,
    /// A Change since may have altered what it had.
    Changed,
    /// The policies of the action read the clock.
    Uncacheable,
}

impl CacheState {
    /// The word for it in records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Hit(_) => "hit",
            Self::Miss(_) => "miss",
        }
    }
}

impl MissReason {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Expired, Self::Changed, Self::Uncacheable];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Changed => "changed",
            Self::Uncacheable => "uncacheable",
        }
    }
}

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The request may proceed.
    Allow,
    /// It may not.
    Deny,
}

impl Effect {
    /// The word for it everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Why a [`Decision`] came out as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// At least one policy determined it.
    Policy,
    /// No policy spoke: denied.
    DefaultDeny,
    /// The schema does not let this type of principal do this action to this type of resource: denied.
    NotApplicable,
    /// No route names the request, and the bundles have routes: denied.
    Unrouted,
    /// Its type requires attributes, and neither the proof of identity nor a bundle says them of this principal: denied,
    /// and nothing is evaluated.
    UnknownPrincipal,
    /// A `forbid` in scope could not be evaluated. Cedar skips it, which would open access: denied.
    PolicyError,
}

impl Reason {
    /// All reasons for which something is denied, for metrics that exist from the start.
    pub const DENIALS: [Self; 6] = [
        Self::Policy,
        Self::DefaultDeny,
        Self::NotApplicable,
        Self::Unrouted,
        Self::UnknownPrincipal,
        Self::PolicyError,
    ];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::DefaultDeny => "default_deny",
            Self::NotApplicable => "not_applicable",
            Self::Unrouted => "unrouted",
            Self::UnknownPrincipal => "unknown_principal",
            Self::PolicyError => "policy_error",
        }
    }
}

/// A policy that could not be evaluated for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The policy.
    pub policy: PolicyId,
    /// What Cedar says.
    pub message: String,
}

/// What the policies would have decided if those in shadow mode were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The decision with the shadow policies counted in.
    pub effect: Effect,
    /// The shadow policies that were satisfied, sorted.
    pub determining: Vec<PolicyId>,
    /// Their evaluation errors.
    pub errors: Vec<PolicyError>,
}

/// How a denial looks to the client. Built from annotations or `bundle.yaml`, checked when the bundle is loaded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Denial {
    /// HTTP status: 4xx or 5xx, or 3xx with a `location`.
    pub status: u16,
    /// Body, as `text/plain`; for gRPC callers the `grpc-message`.
    pub message: String,
    /// Response headers, lower-case names.
    pub headers: Vec<(String, String)>,
}

/// Why a request could not be mapped to a [`Query`]. The client's doing: denied with 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// The kind, of bounded number, for metrics and the client.
    pub kind: UnmappedKind,
    /// What exactly, for the log and the client: names the attribute or the form, never a secret value.
    pub detail: String,
}

/// The kinds of [`Unmapped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnmappedKind {
    /// The message is not a CheckRequest.
    Malformed,
    /// The message is larger than the limit.
    TooLarge,
    /// Something without which a request cannot be understood is missing, or contradicts itself.
    Incomplete,
    /// The path is in a form that the path contract refuses.
    Path,
    /// The host is not a host.
    Host,
    /// A proof of identity is there but not usable.
    Identity,
    /// An attribute that the schema declares is missing or does not fit its type.
    Attribute,
}

impl UnmappedKind {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 7] =
        [Self::Malformed, Self::TooLarge, Self::Incomplete, Self::Path, Self::Host, Self::Identity, Self::Attribute];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Path => "path",
            Self::Host => "host",
            Self::Identity => "identity",
            Self::Attribute => "attribute",
        }
    }
}

impl Unmapped {
    /// A refusal of this kind, with what exactly was wrong.
    pub fn new(kind: UnmappedKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.detail)
    }
}

/// Why we could not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Undecided {
    /// No snapshot is in force yet.
    NotReady,
    /// Too many checks are in flight.
    Overloaded,
    /// The caller's deadline passed before we could decide.
    Deadline,
    /// What is in force was not proved to be current for too long, and the operator chose not to decide by it.
    Stale,
    /// The decision log is full or cannot be written, and the operator chose not to decide unlogged.
    LogFull,
    /// A fault of ours.
    Internal,
}

impl Undecided {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 6] =
        [Self::NotReady, Self::Overloaded, Self::Deadline, Self::Stale, Self::LogFull, Self::Internal];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::Deadline => "deadline",
            Self::Stale => "stale",
            Self::LogFull => "log_full",
            Self::Internal => "internal",
        }
    }
}

// === What it was decided under ===

/// The identity of what is in force: the bundles it was compiled from, by digest, and the store's number for it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Revision {
    /// Short text that names it in headers, records and metadata: the first twelve hex digits of `digest`.
    pub id: String,
    /// SHA-256 over the content of all bundles, in hex.
    pub digest: String,
    /// `EPOCH.GENERATION` of what the store published; `None` if the bundles come from directories.
    pub number: Option<String>,
}

/// What the store says of what it published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its number, as a [`Revision`] has it.
    pub number: String,
    /// When it was published.
    pub at: SystemTime,
}

/// When a snapshot came to be, for ages and lead times. One that differs only by an overlay that began or ended by itself
/// has that of the one before: nothing was published.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// When it was published by the store; else when the newest file of its bundles was changed, as the file system says.
    pub changed: Option<SystemTime>,
    /// When it was put in force.
    pub enforced: SystemTime,
}

impl Timeline {
    /// From the change to its enforcement; `None` if the clock of the store or the file system says nothing useful.
    pub fn lead_time(&self) -> Option<Duration> {
        self.enforced.duration_since(self.changed?).ok()
    }
}

/// How long ago a beacon of the store proved what is in force to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Freshness {
    /// Within `stale_after`.
    Fresh,
    /// Longer ago than that.
    Stale,
    /// Longer ago than `expired_after`, or never.
    Expired,
}

impl Freshness {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Stale, Self::Expired];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Expired => "expired",
        }
    }
}

// === Overlays ===

/// An emergency denial or a time-boxed exception, in force beside the bundles until it expires: one policy with a scope and no
/// condition, so that putting it in force costs nothing and it can never err.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Names it in the decision log: its policy is `overlay/<id>`.
    pub id: String,
    /// What it does. A grant is a `permit`, so any `forbid` wins over it.
    pub effect: Effect,
    /// Whom it is about: this principal and all that are in it; `None`: everyone.
    pub principal: Option<EntityUid>,
    /// Which actions: this one and all that are in it; `None`: all.
    pub action: Option<EntityUid>,
    /// Which resources: this one and all that are in it; `None`: all.
    pub resource: Option<EntityUid>,
    /// When it begins.
    pub from: SystemTime,
    /// When it ends: at this instant it is not in force any more.
    pub until: SystemTime,
    /// Why, in words for those who read the log.
    pub reason: String,
}

impl Overlay {
    /// Whether it is in force at an instant.
    pub fn is_in_force(&self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }
}
