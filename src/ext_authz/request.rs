//! From CheckRequest to Query: pure and total. What cannot be mapped is refused with a named reason; nothing is dropped
//! or guessed, and no message, however broken, panics.
//!
//! The schema decides what a request is (design, decision 5): the context is built from the types that the action
//! declares, and only from what they name.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deserr::Deserr;
use serde::Serialize;
use smol_str::SmolStr;

use super::body;
use super::context::{ContextReader, record_type};
use super::headers;
use super::identity::{self, Evidence};
use super::identity_source::IdentitySource;
use super::logged::Logged;
use super::path;
use super::request_line::{RequestLine, grpc_method, incomplete};
use super::undeclared;
use crate::model::{Attributes, EntityId, EntityUid, Principal, Query, Root, Unmapped, UnmappedKind, Value};
use crate::observe::decision_log::Attribute;
use crate::policy::{self, ActionType, Matched, Snapshot, Types};
use crate::problem::Problem;
use crate::proto::view::{CheckRequest, Kind, Struct};
use crate::yaml::{Faults, Invalid};

/// How requests are mapped, from the configuration.
#[derive(Debug, Clone)]
pub struct Mapping {
    service: EntityUid,
    paths: path::Config,
    identity: Vec<IdentitySource>,
    logged: Logged,
    bodies: body::Config,
    /// Headers that are ours: set, removed or trusted, in lower case.
    own_headers: Vec<String>,
}

/// `service:` of the configuration: the resource of requests that no route gives another one.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = ServiceName::parse -> Invalid)]
#[serde(transparent)]
pub struct ServiceName(pub String);

impl ServiceName {
    fn parse(text: String) -> Result<Self, Invalid> {
        if text.is_empty() { Err(Invalid::new("the service has no name")) } else { Ok(Self(text)) }
    }
}

/// An action that no schema declares, which has no context and is denied.
static UNDECLARED: LazyLock<ActionType> = LazyLock::new(ActionType::default);

/// A mapped request.
#[derive(Debug)]
pub struct Mapped<'a> {
    /// What Cedar is asked.
    pub query: Query,
    /// The claims of the token that proved the principal, for headers to the upstream.
    pub claims: Option<&'a Struct<'a>>,
    /// What may be logged, under `principal` and `context`.
    pub logged: Attributes,
    /// An attribute that the type of the principal requires and nobody says of it: nothing may be evaluated.
    pub incomplete: Option<SmolStr>,
    /// Until when the token is good that proved the principal; `None` if it does not say, or there is none.
    pub token: Option<SystemTime>,
}

impl Mapping {
    /// A mapping for this service.
    #[expect(clippy::expect_used, reason = "a literal that is a name; every test of this module would fail")]
    pub fn new(
        service: &ServiceName,
        paths: path::Config,
        identity: Vec<IdentitySource>,
        logged: &[Attribute],
    ) -> Self {
        let service_type = "Service".parse().expect("an entity type");
        let service = EntityUid::from_type_name_and_id(service_type, EntityId::new(&service.0));
        let logged = Logged::new(logged);
        let believed = identity.iter().filter_map(|source| match source {
            IdentitySource::TrustedHeader { header, .. } => Some(header.to_ascii_lowercase()),
            IdentitySource::JwtMetadata { verification_status_header, .. } => {
                Some(verification_status_header.to_ascii_lowercase())
            }
            IdentitySource::Peer { .. } | IdentitySource::Anonymous { .. } => None,
        });
        Self { service, paths, logged, bodies: body::Config::default(), own_headers: believed.collect(), identity }
    }

    /// With what the configuration says of bodies.
    #[must_use]
    pub fn with_bodies(self, bodies: body::Config) -> Self {
        Self { bodies, ..self }
    }

    /// With these headers, which Stockade sets or removes.
    #[must_use]
    pub fn owning<'a>(mut self, headers: impl IntoIterator<Item = &'a str>) -> Self {
        self.own_headers.extend(headers.into_iter().map(str::to_ascii_lowercase));
        self
    }

    /// What of `decision_log.attributes` would never be logged under a snapshot, and what of `identity` never read, since no bundle
    /// declares it.
    pub fn undeclared(&self, snapshot: &Snapshot) -> Vec<Problem> {
        let peers = self.identity.iter().any(|source| matches!(source, IdentitySource::Peer { .. }));
        let known: &[&str] = if peers { &identity::WORKLOAD } else { &[] };
        let mut problems = undeclared::undeclared(&self.logged.all, snapshot.types(), known);
        problems.extend(undeclared::unread(&self.identity, snapshot.types()));
        problems.extend(undeclared::untaken(&self.identity, snapshot.types()));
        problems.extend(undeclared::unlisted(&self.identity, &self.service(snapshot), snapshot.types()));
        problems
    }

    /// Maps a request under the schema and the routes of a snapshot.
    ///
    /// # Errors
    /// Why it cannot be mapped.
    pub fn map<'a>(&self, request: &'a CheckRequest<'a>, snapshot: &Snapshot) -> Result<Mapped<'a>, Unmapped> {
        let attributes = request.attributes.as_ref().ok_or_else(|| incomplete("there are no attributes"))?;
        let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        let http = http.ok_or_else(|| incomplete("there is no HTTP request"))?;
        let line = RequestLine::read(http, &self.paths)?;
        let mut matched = Self::route(&line, snapshot);
        let action = snapshot.types().action(&matched.action).unwrap_or(&UNDECLARED);
        line.headers.without_doubles(|name| {
            self.own_headers.iter().any(|own| own == name)
                || headers::is_read_by_all(name)
                || reads_header(action, name)
        })?;
        let (headers, logged) = (line.headers, &self.logged.principal);
        let evidence = Evidence { attributes, headers, action, snapshot, logged };
        let mut identity = identity::identify(&self.identity, evidence)?;
        let resource = matched.resource.take().unwrap_or_else(|| self.service(snapshot));
        admit(snapshot.types(), &identity.principal, &resource)?;
        let reader = ContextReader {
            attributes,
            http,
            line: &line,
            matched: &matched,
            identity: &identity,
            unreadable: self.bodies.unreadable,
        };
        let context = reader.context(action)?;
        let mut logged = Attributes::new();
        if self.logged.has_context() {
            logged.insert("context".into(), Value::Record(self.logged.of_context(&reader, action)));
        }
        if !identity.logged.is_empty() {
            logged.insert("principal".into(), Value::Record(std::mem::take(&mut identity.logged)));
        }
        Ok(Mapped {
            incomplete: identity.incomplete,
            token: identity.claims.and_then(token_end),
            logged,
            query: Query { principal: identity.principal, context, resource, action: matched.action },
            claims: identity.claims,
        })
    }

    /// The route of the request, else the action of its method, where the bundles want that (`unrouted: base`). gRPC routes
    /// match by path whatever the content type is: servers that speak several protocols on one path would be reached
    /// around them otherwise.
    ///
    /// Method tokens are the client's to choose, so those that HTTP does not define lead nowhere without a route.
    fn route(line: &RequestLine<'_>, snapshot: &Snapshot) -> Matched {
        let routes = snapshot.routes();
        let grpc = (line.method == "POST").then(|| grpc_method(&line.path)).flatten();
        let routed = grpc.and_then(|(service, method)| routes.grpc(service, method));
        routed.or_else(|| routes.http(line.method, &line.path)).unwrap_or_else(|| {
            let fallback = snapshot.types().vocabulary().method(line.method).cloned();
            let action = fallback.unwrap_or_else(|| policy::unrouted(line.method));
            Matched { action, resource: None, parameters: Vec::new() }
        })
    }

    /// The resource of requests that no route gives another one.
    fn service(&self, snapshot: &Snapshot) -> EntityUid {
        let name = self.service.type_name();
        match snapshot.types().vocabulary().resolve(name) {
            same if same == name => self.service.clone(),
            meant => EntityUid::from_type_name_and_id(meant.clone(), self.service.id().clone()),
        }
    }
}

/// Holds the entities that a request is about against the schema, whatever they were made from: as Cedar's own strict checks
/// of requests and entities would, which cost more than a remembered decision. Values of the context and of the
/// principal's attributes are held against their types when they are made.
fn admit(types: &Types, principal: &Principal, resource: &EntityUid) -> Result<(), Unmapped> {
    let check = |uid: &EntityUid, what: &str, kind| {
        let ty = uid.type_name();
        let refuse =
            || Unmapped::new(kind, format!("the {what} is not one of the ids that the schema lists for `{ty}`"));
        types.admits(uid).then_some(()).ok_or_else(refuse)
    };
    check(&principal.uid, "principal", UnmappedKind::Identity)?;
    // Those that the schema does not let it be in are left to overlays, which are about any group.
    let ancestors = types.ancestors(principal.uid.type_name()).unwrap_or_default();
    let listed = principal.parents.iter().filter(|parent| ancestors.contains(parent.type_name()));
    listed.into_iter().try_for_each(|parent| check(parent, "principal's group", UnmappedKind::Identity))?;
    check(resource, "resource", UnmappedKind::Attribute)
}

/// The end of a token's life, by its `exp` claim (RFC 7519, 4.1.4).
fn token_end(claims: &Struct<'_>) -> Option<SystemTime> {
    let Some(Kind::Number(expires)) = claims.fields.get("exp")?.kind else { return None };
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(expires).ok()?)
}

/// Whether a policy of the action reads this header.
fn reads_header(action: &ActionType, name: &str) -> bool {
    let headers = action.context.iter().filter(|(root, _)| *root == Root::Headers);
    headers.flat_map(|(_, attribute)| record_type(&attribute.ty).keys()).any(|own| own.eq_ignore_ascii_case(name))
}
