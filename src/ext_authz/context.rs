//! The context of a request, by the types that its action declares.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use smol_str::SmolStr;

use super::attributes::{self, Place};
use super::body::{self, Body, Content, Unreadable};
use super::identity::Identity;
use super::json_body;
use super::pairs::Pairs;
use super::request_line::RequestLine;
use crate::model::{AttributeType, Attributes, Extension, RecordType, Root, Type, Unmapped, UnmappedKind, Value};
use crate::policy::{ActionType, Matched};
use crate::proto::view::{AttributeContext, HttpRequest, Metadata, Peer, Timestamp};

/// Where attributes of the context are.
const CONTEXT: Place<'static> = Place::new("context");

/// Reads the context of one request.
pub(super) struct ContextReader<'a, 'b> {
    pub(super) attributes: &'a AttributeContext<'a>,
    pub(super) http: &'a HttpRequest<'a>,
    pub(super) line: &'b RequestLine<'a>,
    pub(super) matched: &'b Matched,
    pub(super) identity: &'b Identity<'a>,
    pub(super) unreadable: Unreadable,
}

impl ContextReader<'_, '_> {
    /// What the action declares.
    ///
    /// # Errors
    /// If a value does not fit its type, or a required one is missing.
    pub(super) fn context(&self, action: &ActionType) -> Result<Attributes, Unmapped> {
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

    /// One attribute at the top of the context; `None` if the request does not have it.
    ///
    /// # Errors
    /// If it does not fit its type.
    pub(super) fn root(
        &self,
        root: Root,
        attribute: &AttributeType,
        place: &Place<'_>,
    ) -> Result<Option<Value>, Unmapped> {
        let (http, line) = (self.http, self.line);
        let string = |text: &str| Some(Value::String(text.into()));
        let peer =
            |peer: Option<&Peer>| peer.map(|peer| self.peer(peer, record_type(&attribute.ty), place)).transpose();
        Ok(match root {
            Root::Method => string(line.method),
            Root::Path => string(&line.path),
            Root::Host => string(&line.host).filter(|_| !line.host.is_empty()),
            Root::Scheme => non_empty(&http.scheme.to_ascii_lowercase(), place)?,
            Root::Protocol => non_empty(http.protocol, place)?,
            Root::Identity => string(self.identity.principal.proof.as_str()),
            Root::Time => self.time(place)?,
            Root::Source => peer(self.attributes.source.as_ref())?,
            Root::Destination => peer(self.attributes.destination.as_ref())?,
            Root::BodyPartial => Some(Value::Bool(body::is_partial(http, line.headers))),
            Root::BodySize => body::size(http, line.headers).map(Value::Long),
            _ => self.record(root, record_type(&attribute.ty), place)?.map(Value::Record),
        })
    }

    /// An attribute that is a record of what the request names.
    fn record(&self, root: Root, fields: &RecordType, place: &Place<'_>) -> Result<Option<Attributes>, Unmapped> {
        let (attributes, line) = (self.attributes, self.line);
        Ok(match root {
            Root::Grpc => line.grpc(place)?.map(|(service, method)| {
                let all = [("method", method), ("service", service)];
                let named = all.into_iter().filter(|(name, _)| fields.contains_key(*name));
                named.map(|(name, value)| (name.into(), Value::String(value.into()))).collect()
            }),
            Root::Tls => self.tls(fields, place)?,
            Root::Headers => Some(attributes::texts(
                fields,
                place,
                |name| Ok(line.headers.one(name)?.map(Cow::Borrowed)),
                |name| Ok(line.headers.list(name)?.into_iter().map(Cow::Borrowed).collect()),
            )?),
            Root::Query => {
                let query = Pairs::new(Content { bytes: line.query.unwrap_or(b""), replaced: line.replaced });
                Some(query.record(fields, place)?)
            }
            Root::Params => {
                let parameter = |name: &str| {
                    let found = self.matched.parameters.iter().find(|(candidate, _)| candidate == name);
                    found.map(|(_, value)| Cow::Borrowed(value.as_str()))
                };
                let all = |name: &str| Ok(parameter(name).into_iter().collect());
                Some(attributes::texts(fields, place, |name| Ok(parameter(name)), all)?)
            }
            Root::Extensions => {
                let all: Vec<_> = attributes.context_extensions.iter().map(|pair| (pair.key, pair.value)).collect();
                Some(named_texts(fields, &all, place)?)
            }
            Root::Metadata => Some(metadata(fields, attributes.metadata_context.as_ref(), place)?),
            Root::RouteMetadata => Some(metadata(fields, attributes.route_metadata_context.as_ref(), place)?),
            Root::Claims => {
                let claims = self.identity.claims;
                claims.map(|claims| attributes::metadata_record(fields, claims, place)).transpose()?
            }
            Root::Body => self.body(fields, place)?,
            // These are no records.
            Root::Method | Root::Path | Root::Host | Root::Scheme | Root::Protocol | Root::Identity | Root::Time => {
                None
            }
            Root::Source | Root::Destination | Root::BodyPartial | Root::BodySize => None,
        })
    }

    fn tls(&self, fields: &RecordType, place: &Place<'_>) -> Result<Option<Attributes>, Unmapped> {
        let session = self.attributes.tls_session.as_ref().filter(|session| !session.sni.is_empty());
        let Some(session) = session else { return Ok(None) };
        attributes::unreplaced(session.sni, &place.of("sni"), UnmappedKind::Attribute)?;
        named_texts(fields, &[(b"sni", session.sni)], place).map(Some)
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
            // It is there: no policy must take it for absent.
            Some(bytes) => ip_address(bytes)
                .map(Some)
                .ok_or_else(|| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not an IP address"))),
        };
        let mut record = Attributes::new();
        for (name, field) in fields {
            let place = place.of(name);
            let value = match name.as_str() {
                "address" => address(&place)?.map(|text| Value::Extension(Extension::Ipaddr, text)),
                "port" => socket.map(|socket| Value::Long(i64::from(socket.port_value))),
                "principal" => {
                    attributes::unreplaced(peer.principal, &place, UnmappedKind::Attribute)?;
                    non_empty(peer.principal, &place)?
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
                    Some(Value::Record(named_texts(record_type(&field.ty), &all, &place)?))
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
    fn body(&self, fields: &RecordType, place: &Place<'_>) -> Result<Option<Attributes>, Unmapped> {
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
        match body {
            Body::Absent => Ok(None),
            Body::Unreadable(_) if self.unreadable == Unreadable::Absent => Ok(None),
            Body::Unreadable(why) | Body::Contradictory(why) => refuse(why),
            Body::Json(content) => json_body::read(fields, content, place).map(Some),
            Body::Form(content) => Pairs::new(content).record(fields, place).map(Some),
        }
    }
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

/// The fields of a record type. Other types were refused when the schema was read.
pub(super) fn record_type(ty: &Type) -> &RecordType {
    static NONE: RecordType = RecordType::new();
    match ty {
        Type::Record(fields) => fields,
        _ => &NONE,
    }
}

/// A string, if it is not empty.
fn non_empty(bytes: &[u8], place: &Place<'_>) -> Result<Option<Value>, Unmapped> {
    let text = utf8(bytes, place)?.filter(|text| !text.is_empty());
    Ok(text.map(|text| Value::String(text.into())))
}

fn utf8<'a>(bytes: &'a [u8], place: &Place<'_>) -> Result<Option<&'a str>, Unmapped> {
    std::str::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not UTF-8")))
}

/// A record from a protobuf map of strings.
fn named_texts(fields: &RecordType, all: &[(&[u8], &[u8])], place: &Place<'_>) -> Result<Attributes, Unmapped> {
    let values = |name: &str| {
        let found = all.iter().filter(|(key, _)| *key == name.as_bytes());
        found.map(|(_, value)| Ok(Cow::Borrowed(utf8(value, place)?.unwrap_or("")))).collect::<Result<Vec<_>, _>>()
    };
    // A protobuf map has each key once; where the wire repeats one, the last counts.
    attributes::texts(fields, place, |name| Ok(values(name)?.pop()), |name| values(name))
}

fn metadata(fields: &RecordType, all: Option<&Metadata>, place: &Place<'_>) -> Result<Attributes, Unmapped> {
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
    Ok(record)
}
