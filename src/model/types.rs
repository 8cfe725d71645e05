//! The types that a schema declares, of what Cedar is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use cedar_policy::{EntityId, EntityTypeName, EntityUid};
use smol_str::SmolStr;

use super::query::Extension;

/// The type of a [`Value`](super::Value), as a schema declares it.
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
    /// The host, in lower case, without its port and a trailing dot.
    Host,
    /// How the principal was proved: see [`Proof`](super::Proof).
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
