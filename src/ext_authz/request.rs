//! From CheckRequest to Query: pure and total. What cannot be mapped is refused with a named reason; nothing is dropped
//! or guessed, and no message, however broken, panics.
//!
//! The schema decides what a request is (design, decision 5): the context is built from the types that the action
//! declares, and only from what they name.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deserr::Deserr;
use serde::Serialize;
use smol_str::SmolStr;

use super::attributes::{self, Pairs, Place};
use super::body::{self, Body, Content, Unreadable};
use super::headers::{self, Headers};
use super::identity::{self, Identity, Source};
use super::path;
use super::undeclared;
use crate::claim_path::{ClaimPath, Step};
use crate::model::{
    AttributeType, Attributes, EntityId, EntityUid, Extension, Principal, Query, RecordType, Root, Type, Unmapped,
    UnmappedKind, Value,
};
use crate::observe::decision_log::{Attribute, Of};
use crate::policy::{self, ActionType, Matched, Snapshot, Types};
use crate::problem::Problem;
use crate::proto::view::{AttributeContext, CheckRequest, HttpRequest, Kind, Metadata, Peer, Struct, Timestamp};
use crate::yaml::{Faults, Invalid};

/// How requests are mapped, from the configuration.
#[derive(Debug, Clone)]
pub struct Mapping {
    service: EntityUid,
    paths: path::Config,
    identity: Vec<Source>,
    logged: Logged,
    bodies: body::Config,
    /// Headers that are ours: set, removed or trusted, in lower case.
    own_headers: Vec<String>,
}

/// What of a request may be logged, beside what policies read.
#[derive(Debug, Clone, Default)]
struct Logged {
    /// All of it, as the configuration has it.
    all: Vec<Attribute>,
    /// Attributes of the principal.
    principal: Vec<SmolStr>,
    /// Places in the context whose types a schema says.
    context: Vec<ClaimPath>,
    /// The others, cut down to what is named.
    fixed: Vec<(Root, AttributeType)>,
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

/// Where attributes of the context are.
const CONTEXT: Place<'static> = Place::new("context");

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
    pub fn new(service: &ServiceName, paths: path::Config, identity: Vec<Source>, logged: &[Attribute]) -> Self {
        let service_type = "Service".parse().expect("an entity type");
        let service = EntityUid::from_type_name_and_id(service_type, EntityId::new(&service.0));
        let under = |root: Of| logged.iter().filter(move |attribute| attribute.of() == root).map(Attribute::path);
        let principal = under(Of::Principal).map(|path| path.name().into()).collect();
        let context: Vec<ClaimPath> = under(Of::Context).cloned().collect();
        let fixed = Root::ALL.into_iter().filter_map(|root| {
            let ty = narrow(&root.fixed()?, &below(root, &context))?;
            Some((root, AttributeType { ty, required: false }))
        });
        let logged = Logged { all: logged.to_vec(), principal, fixed: fixed.collect(), context };
        let believed = identity.iter().filter_map(|source| match source {
            Source::TrustedHeader { header, .. } => Some(header.to_ascii_lowercase()),
            Source::JwtMetadata { verification_status_header, .. } => {
                Some(verification_status_header.to_ascii_lowercase())
            }
            Source::Peer { .. } | Source::Anonymous { .. } => None,
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
        let peers = self.identity.iter().any(|source| matches!(source, Source::Peer { .. }));
        let known: &[&str] = if peers { &identity::WORKLOAD } else { &[] };
        let mut problems = undeclared::undeclared(&self.logged.all, snapshot.types(), known);
        problems.extend(undeclared::unread(&self.identity, snapshot.types()));
        problems.extend(undeclared::untaken(&self.identity, snapshot.types()));
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
        let told = &self.logged.principal;
        let mut identity = identity::identify(&self.identity, attributes, line.headers, action, snapshot, told)?;
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
        if !self.logged.context.is_empty() {
            logged.insert("context".into(), Value::Record(reader.logged(action, &self.logged)));
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

fn incomplete(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Incomplete, detail)
}

/// Method, path, query, host and headers: what every request has, in canonical form.
struct RequestLine<'a> {
    method: &'a str,
    path: Cow<'a, str>,
    query: Option<&'a [u8]>,
    /// Whether a `!` in the target may be a byte that is not UTF-8.
    replaced: bool,
    host: Cow<'a, str>,
    headers: Headers<'a>,
}

impl<'a> RequestLine<'a> {
    fn read(http: &'a HttpRequest<'a>, paths: &path::Config) -> Result<Self, Unmapped> {
        let headers = Headers::of(http)?;
        let method = field(http.method, headers, ":method")?;
        let method = std::str::from_utf8(method).ok().filter(|method| {
            // A token, RFC 9110, 9.1; anything else would be a strange entity id.
            body::is_token(method)
        });
        let method = method.ok_or_else(|| incomplete("the method is missing or not a method"))?;
        let target = field(http.path, headers, ":path")?;
        let replaced = target.contains(&b'!') && headers.may_replace(":path");
        let (path, query) = path::split_query(target);
        if replaced && path.contains(&b'!') {
            let detail = format!("the path {}", headers::REPLACED);
            return Err(Unmapped::new(UnmappedKind::Path, detail));
        }
        let path = match (method, path) {
            // CONNECT has no path, and OPTIONS may ask about the server as a whole (RFC 9110, 7.1).
            ("CONNECT", b"") => "".into(),
            ("OPTIONS", b"*") => "*".into(),
            _ => path::canonical(path, paths)
                .map_err(|refused| Unmapped::new(UnmappedKind::Path, refused.to_string()))?,
        };
        let host = canonical_host(field(http.host, headers, ":authority")?)?;
        Ok(Self { method, path, query, replaced, host, headers })
    }

    /// Service and method, if this is a gRPC call.
    fn grpc(&self, place: &Place<'_>) -> Result<Option<(&str, &str)>, Unmapped> {
        if self.headers.lines("content-type").nth(1).is_some() {
            let detail = format!("`{place}` cannot be told: `content-type` is repeated");
            return Err(Unmapped::new(UnmappedKind::Attribute, detail));
        }
        Ok(self.headers.starts_with("content-type", "application/grpc").then(|| grpc_method(&self.path)).flatten())
    }
}

/// A field of the HTTP request, held against the pseudo header that says the same.
fn field<'a>(field: &'a [u8], headers: Headers<'a>, pseudo: &str) -> Result<&'a [u8], Unmapped> {
    let mut lines = headers.lines(pseudo);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(field),
        (Some(header), None) if field.is_empty() || field == header => Ok(header),
        _ => Err(incomplete(format!("`{pseudo}` contradicts the request or is repeated"))),
    }
}

/// `/package.Service/Method`
fn grpc_method(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// The host in lower case, without port and trailing dot: Envoy leaves all three as the client chose them.
fn canonical_host(host: &[u8]) -> Result<Cow<'_, str>, Unmapped> {
    let refuse = || Unmapped::new(UnmappedKind::Host, "the host is not a host");
    let host = std::str::from_utf8(host).map_err(|_| refuse())?;
    let (name, port): (Cow<'_, str>, &str) = if let Some(bracketed) = host.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']').ok_or_else(refuse)?;
        // Written anew: `::1` has other spellings.
        let address: std::net::Ipv6Addr = address.parse().map_err(|_| refuse())?;
        (format!("[{address}]").into(), port)
    } else {
        let at = host.find(':').unwrap_or(host.len());
        let (name, port) = host.split_at_checked(at).ok_or_else(refuse)?;
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(refuse());
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        (if is_lower { name.into() } else { name.to_ascii_lowercase().into() }, port)
    };
    let port_is_good = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    if port_is_good { Ok(name) } else { Err(refuse()) }
}

// === The context ===

struct ContextReader<'a, 'b> {
    attributes: &'a AttributeContext<'a>,
    http: &'a HttpRequest<'a>,
    line: &'b RequestLine<'a>,
    matched: &'b Matched,
    identity: &'b Identity<'a>,
    unreadable: Unreadable,
}

impl ContextReader<'_, '_> {
    fn context(&self, action: &ActionType) -> Result<Attributes, Unmapped> {
        let mut context = Attributes::new();
        for (root, attribute) in &action.context {
            let place = CONTEXT.of(root.as_str());
            match self.root(*root, attribute, &place)? {
                Some(value) => {
                    context.insert(root.as_str().into(), value);
                }
                None if attribute.required => return Err(attributes::missing(&place)),
                None => {}
            }
        }
        Ok(context)
    }

    /// What may be logged of the context, by the types that the schema declares, or that are the same for all. What does not fit is
    /// left out: the log is no reason to refuse a request.
    fn logged(&self, action: &ActionType, logged: &Logged) -> Attributes {
        let mut record = Attributes::new();
        let mut add = |root: Root, narrowed: &AttributeType| {
            if let Ok(Some(value)) = self.root(root, narrowed, &Place::new(root.as_str())) {
                record.insert(root.as_str().into(), value);
            }
        };
        logged.fixed.iter().for_each(|(root, narrowed)| add(*root, narrowed));
        for (root, attribute) in &action.declared {
            if logged.fixed.iter().any(|(fixed, _)| fixed == root) {
                continue;
            }
            if let Some(ty) = narrow(&attribute.ty, &below(*root, &logged.context)) {
                add(*root, &AttributeType { ty, required: false });
            }
        }
        record
    }

    fn root(&self, root: Root, attribute: &AttributeType, place: &Place<'_>) -> Result<Option<Value>, Unmapped> {
        let line = self.line;
        let string = |text: &str| Some(Value::String(text.into()));
        let bytes = |bytes: &[u8]| utf8(bytes, place).map(|text| text.filter(|text| !text.is_empty()).and_then(string));
        let fields = record_type(&attribute.ty);
        Ok(match root {
            Root::Method => string(line.method),
            Root::Path => string(&line.path),
            Root::Host => string(&line.host).filter(|_| !line.host.is_empty()),
            Root::Scheme => bytes(&self.http.scheme.to_ascii_lowercase())?,
            Root::Protocol => bytes(self.http.protocol)?,
            Root::Identity => string(self.identity.principal.proof.as_str()),
            Root::Time => self.time(place)?,
            Root::Grpc => line.grpc(place)?.map(|(service, method)| {
                let all = [("method", method), ("service", service)];
                let named = all.into_iter().filter(|(name, _)| fields.contains_key(*name));
                Value::Record(named.map(|(name, value)| (name.into(), Value::String(value.into()))).collect())
            }),
            Root::Source => self.attributes.source.as_ref().map(|peer| self.peer(peer, fields, place)).transpose()?,
            Root::Destination => {
                self.attributes.destination.as_ref().map(|peer| self.peer(peer, fields, place)).transpose()?
            }
            Root::Tls => self
                .attributes
                .tls_session
                .as_ref()
                .filter(|session| !session.sni.is_empty())
                .map(|session| {
                    attributes::unreplaced(session.sni, &place.of("sni"), UnmappedKind::Attribute)?;
                    pairs(fields, &[("sni", session.sni)], place)
                })
                .transpose()?,
            Root::Headers => Some(Value::Record(attributes::texts(
                fields,
                place,
                |name| Ok(line.headers.one(name)?.map(Cow::Borrowed)),
                |name| Ok(line.headers.list(name)?.into_iter().map(Cow::Borrowed).collect()),
            )?)),
            Root::Query => {
                let query = Pairs::new(Content { bytes: line.query.unwrap_or(b""), replaced: line.replaced });
                Some(Value::Record(attributes::texts(
                    fields,
                    place,
                    |name| query.one(name, place),
                    |name| query.values(name, place),
                )?))
            }
            Root::Params => {
                let parameter = |name: &str| {
                    let found = self.matched.parameters.iter().find(|(candidate, _)| candidate == name);
                    found.map(|(_, value)| Cow::Borrowed(value.as_str()))
                };
                Some(Value::Record(attributes::texts(
                    fields,
                    place,
                    |name| Ok(parameter(name)),
                    |name| Ok(parameter(name).into_iter().collect()),
                )?))
            }
            Root::Extensions => {
                let all: Vec<(&[u8], &[u8])> =
                    self.attributes.context_extensions.iter().map(|pair| (pair.key, pair.value)).collect();
                Some(named_texts(fields, &all, place)?)
            }
            Root::Metadata => Some(metadata(fields, self.attributes.metadata_context.as_ref(), place)?),
            Root::RouteMetadata => Some(metadata(fields, self.attributes.route_metadata_context.as_ref(), place)?),
            Root::Claims => self
                .identity
                .claims
                .map(|claims| attributes::metadata_record(fields, claims, place))
                .transpose()?
                .map(Value::Record),
            Root::Body => self.body(fields, place)?,
            Root::BodyPartial => Some(Value::Bool(body::is_partial(self.http, line.headers))),
            Root::BodySize => body::size(self.http, line.headers).map(Value::Long),
        })
    }

    fn time(&self, place: &Place<'_>) -> Result<Option<Value>, Unmapped> {
        let time = self.attributes.request.as_ref().and_then(|request| request.time.as_ref());
        let refuse = || Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not a time that Cedar has"));
        time.map(|time| instant(*time).ok_or_else(refuse)).transpose()
    }

    fn peer(&self, peer: &Peer, fields: &RecordType, place: &Place<'_>) -> Result<Value, Unmapped> {
        let socket = peer.address.as_ref().and_then(|address| address.socket_address.as_ref());
        let socket_address = socket.map(|socket| socket.address).filter(|bytes| !bytes.is_empty());
        let address = |place: &Place<'_>| match socket_address {
            None => Ok(None),
            // It is there: whoever reads it must not take it for absent.
            Some(bytes) => ip_address(bytes)
                .map(Some)
                .ok_or_else(|| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not an IP address"))),
        };
        let mut record = Attributes::new();
        for (name, field) in fields {
            let place = place.of(name);
            let text = |bytes: &[u8]| {
                let text = utf8(bytes, &place)?.filter(|text| !text.is_empty());
                Ok(text.map(|text| Value::String(text.into())))
            };
            let value = match name.as_str() {
                "address" => address(&place)?.map(|text| Value::Extension(Extension::Ipaddr, text)),
                "port" => socket.map(|socket| Value::Long(i64::from(socket.port_value))),
                "principal" => {
                    attributes::unreplaced(peer.principal, &place, UnmappedKind::Attribute)?;
                    text(peer.principal)?
                }
                "certificate" => match utf8(peer.certificate, &place)?.filter(|pem| !pem.is_empty()) {
                    Some(pem) => {
                        let pem = percent_encoding::percent_decode_str(pem)
                            .decode_utf8()
                            .map_err(|_| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not UTF-8")))?;
                        Some(Value::String(pem.as_ref().into()))
                    }
                    None => None,
                },
                "labels" => {
                    let all: Vec<(&[u8], &[u8])> = peer.labels.iter().map(|pair| (pair.key, pair.value)).collect();
                    Some(named_texts(record_type(&field.ty), &all, &place)?)
                }
                _ => None,
            };
            match value {
                Some(value) => {
                    record.insert(name.clone(), value);
                }
                None if field.required => return Err(attributes::missing(&place)),
                None => {}
            }
        }
        Ok(Value::Record(record))
    }

    /// The body's fields; `None` if there is no body.
    fn body(&self, fields: &RecordType, place: &Place<'_>) -> Result<Option<Value>, Unmapped> {
        let refuse = |why: &str| {
            Err(Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is there and cannot be read: {why}")))
        };
        // How a form writes what is within a field, every framework has its own way.
        let nested = |field: &AttributeType| match &field.ty {
            Type::Record(_) => true,
            Type::Set(member) => matches!(**member, Type::Record(_)),
            _ => false,
        };
        let body = match Body::of(self.http, self.line.headers) {
            Body::Form(_) if fields.values().any(nested) => Body::Unreadable("a form has no fields within fields"),
            body => body,
        };
        let record = match body {
            Body::Absent => return Ok(None),
            Body::Unreadable(_) if self.unreadable == Unreadable::Absent => return Ok(None),
            Body::Unreadable(why) | Body::Contradictory(why) => return refuse(why),
            Body::Json(content) => attributes::json(fields, content, place)?,
            Body::Form(content) => {
                let pairs = Pairs::new(content);
                attributes::texts(fields, place, |name| pairs.one(name, place), |name| pairs.values(name, place))?
            }
        };
        Ok(Some(Value::Record(record)))
    }
}

/// What is left of the paths that lead through a root.
fn below(root: Root, paths: &[ClaimPath]) -> Vec<&[Step]> {
    paths.iter().filter(|path| path.name() == root.as_str()).map(ClaimPath::steps).collect()
}

/// Whether a policy of the action reads this header.
fn reads_header(action: &ActionType, name: &str) -> bool {
    let headers = action.context.iter().filter(|(root, _)| *root == Root::Headers);
    headers.flat_map(|(_, attribute)| record_type(&attribute.ty).keys()).any(|own| own.eq_ignore_ascii_case(name))
}

/// An IP address as Cedar has it; `None` if it is none. An IPv4 address in IPv6 clothes is the IPv4 address; ranges are written
/// for that one.
fn ip_address(bytes: &[u8]) -> Option<SmolStr> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(match text.parse().ok()? {
        // What is read as an IPv4 address is written as one already.
        std::net::IpAddr::V4(_) => text.into(),
        address @ std::net::IpAddr::V6(_) => address.to_canonical().to_string().into(),
    })
}

/// A timestamp as Cedar has it; `None` if it is none.
fn instant(time: Timestamp) -> Option<Value> {
    let millis = u64::try_from(time.seconds).ok()?.checked_mul(1000)?;
    let millis = millis.checked_add(u64::try_from(time.nanos).ok()? / 1_000_000)?;
    // Cedar's datetime ends with the year 9999, and so does this format: it panics beyond. Nanoseconds of more than a
    // second count into it, too.
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(millis))?;
    let latest = 253_402_300_799_999;
    let text = (millis <= latest).then(|| humantime::format_rfc3339_millis(at).to_string())?;
    Some(Value::Extension(Extension::Datetime, text.into()))
}

/// A type cut down to these paths, with nothing required; `None` if nothing is left.
fn narrow(ty: &Type, paths: &[&[Step]]) -> Option<Type> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(ty.clone());
    }
    let Type::Record(fields) = ty else { return None };
    let narrowed: RecordType = fields
        .iter()
        .filter_map(|(name, field)| {
            let rests = paths.iter().filter_map(|path| match path.split_first() {
                Some((Step::Name(first), rest)) if first == name => Some(rest),
                _ => None,
            });
            let ty = narrow(&field.ty, &rests.collect::<Vec<_>>())?;
            Some((name.clone(), AttributeType { ty, required: false }))
        })
        .collect();
    (!narrowed.is_empty()).then_some(Type::Record(narrowed))
}

/// The fields of a record type. Other types were refused when the schema was read.
fn record_type(ty: &Type) -> &RecordType {
    static NONE: RecordType = RecordType::new();
    match ty {
        Type::Record(fields) => fields,
        _ => &NONE,
    }
}

fn utf8<'a>(bytes: &'a [u8], place: &Place<'_>) -> Result<Option<&'a str>, Unmapped> {
    std::str::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not UTF-8")))
}

/// A record of named byte strings.
fn pairs(fields: &RecordType, all: &[(&str, &[u8])], place: &Place<'_>) -> Result<Value, Unmapped> {
    let all: Vec<(&[u8], &[u8])> = all.iter().map(|(name, value)| (name.as_bytes(), *value)).collect();
    named_texts(fields, &all, place)
}

/// A record from a protobuf map of strings.
fn named_texts(fields: &RecordType, all: &[(&[u8], &[u8])], place: &Place<'_>) -> Result<Value, Unmapped> {
    let values = |name: &str| {
        let found = all.iter().filter(|(key, _)| *key == name.as_bytes());
        found.map(|(_, value)| Ok(Cow::Borrowed(utf8(value, place)?.unwrap_or("")))).collect::<Result<Vec<_>, _>>()
    };
    // A protobuf map has each key once; where the wire repeats one, the last counts.
    attributes::texts(fields, place, |name| Ok(values(name)?.pop()), |name| values(name)).map(Value::Record)
}

fn metadata(fields: &RecordType, all: Option<&Metadata>, place: &Place<'_>) -> Result<Value, Unmapped> {
    let mut record = Attributes::new();
    for (namespace, field) in fields {
        let place = place.of(namespace);
        match all.and_then(|all| all.filter_metadata.get(namespace.as_str())) {
            Some(space) => {
                let space = attributes::metadata_record(record_type(&field.ty), space, &place)?;
                record.insert(namespace.clone(), Value::Record(space));
            }
            None if field.required => return Err(attributes::missing(&place)),
            None => {}
        }
    }
    Ok(Value::Record(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_form() {
        for (host, expected) in [
            ("Shop.Example", Some("shop.example")),
            ("shop.example.:8080", Some("shop.example")),
            ("shop.example:443", Some("shop.example")),
            ("[::1]:8080", Some("[::1]")),
            ("[0:0::0001]", Some("[::1]")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("", Some("")),
            ("good,evil", None),
            ("good evil", None),
            ("user@evil", None),
            ("evil/path", None),
            ("shop:80:80", None),
            ("shop:x", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[zz]", None),
            ("[[::1]", None),
            ("shøp", None),
        ] {
            assert_eq!(canonical_host(host.as_bytes()).ok().as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn grpc_paths_have_two_parts() {
        assert_eq!(grpc_method("/svc.Foo/Bar"), Some(("svc.Foo", "Bar")));
        for path in ["/svc.Foo", "/svc.Foo/", "//Bar", "/a/b/c", "svc.Foo/Bar", ""] {
            assert_eq!(grpc_method(path), None, "{path}");
        }
    }
}
