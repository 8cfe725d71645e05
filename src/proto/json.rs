//! CheckRequests in protobuf JSON (<https://protobuf.dev/programming-guides/json/>), and answers as JSON, for
//! `stockade decide` and for tests of bundles. Fields of Envoy's protocol that mapping does not read are skipped; others
//! are errors.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse};
use envoy_types::pb::google::protobuf as pb;
use serde_json::{Map, Value, json};

use super::wire;
use crate::model::Query;
use crate::strict_json;
use crate::yaml::suggest;

/// The fields of each message, as Envoy's protocol has them: those that mapping reads, and the others that Envoy may send.
const CHECK_REQUEST: &[&str] = &["attributes"];
const ATTRIBUTES: &[&str] =
    &["source", "destination", "request", "contextExtensions", "metadataContext", "routeMetadataContext", "tlsSession"];
const PEER: &[&str] = &["address", "service", "labels", "principal", "certificate"];
const ADDRESS: &[&str] = &["socketAddress", "pipe", "envoyInternalAddress"];
const SOCKET_ADDRESS: &[&str] =
    &["protocol", "address", "portValue", "namedPort", "resolverName", "ipv4Compat", "networkNamespaceFilepath"];
const REQUEST: &[&str] = &["time", "http"];
const HTTP: &[&str] = &[
    "id",
    "method",
    "headers",
    "headerMap",
    "path",
    "host",
    "scheme",
    "query",
    "fragment",
    "size",
    "protocol",
    "body",
    "rawBody",
];
const HEADER_MAP: &[&str] = &["headers"];
const HEADER: &[&str] = &["key", "value", "rawValue"];
const METADATA: &[&str] = &["filterMetadata", "typedFilterMetadata"];
const TLS_SESSION: &[&str] = &["sni"];

/// Where the fields are that people put in the wrong place.
const PLACES: [(&str, &[&str]); 3] =
    [("attributes.request.http", HTTP), ("attributes.request", REQUEST), ("attributes", ATTRIBUTES)];

/// Reads a CheckRequest.
///
/// # Errors
/// What does not fit, with its path.
pub fn check_request(text: &str) -> Result<wire::CheckRequest, String> {
    let json = strict_json::value(text).map_err(|error| format!("not JSON: {error}"))?;
    let root = Reader { path: "request".to_owned(), value: &json };
    root.has_only(CHECK_REQUEST)?;
    Ok(wire::CheckRequest { attributes: root.message("attributes", ATTRIBUTES, attributes)? })
}

fn attributes(own: &Reader<'_>) -> Result<wire::AttributeContext, String> {
    Ok(wire::AttributeContext {
        source: own.message("source", PEER, peer)?,
        destination: own.message("destination", PEER, peer)?,
        request: own.message("request", REQUEST, |own| {
            Ok(wire::Request { time: own.scalar("time", timestamp)?, http: own.message("http", HTTP, http)? })
        })?,
        context_extensions: own.pairs("contextExtensions")?,
        metadata_context: own.message("metadataContext", METADATA, metadata)?,
        route_metadata_context: own.message("routeMetadataContext", METADATA, metadata)?,
        tls_session: own.message("tlsSession", TLS_SESSION, |own| Ok(wire::TlsSession { sni: own.text("sni")? }))?,
    })
}

fn peer(own: &Reader<'_>) -> Result<wire::Peer, String> {
    let socket = |own: &Reader<'_>| {
        Ok(wire::SocketAddress {
            address: own.text("address")?,
            port_value: u32::try_from(own.integer("portValue")?).map_err(|_| own.fault("portValue", "a port"))?,
        })
    };
    Ok(wire::Peer {
        address: own.message("address", ADDRESS, |own| {
            Ok(wire::Address { socket_address: own.message("socketAddress", SOCKET_ADDRESS, socket)? })
        })?,
        labels: own.pairs("labels")?,
        principal: own.text("principal")?,
        certificate: own.text("certificate")?,
    })
}

fn timestamp(own: &Reader<'_>) -> Result<wire::Timestamp, String> {
    let fault = || format!("`{}` is not a timestamp", own.path);
    let at = own.value.as_str().and_then(|text| humantime::parse_rfc3339(text).ok()).ok_or_else(fault)?;
    let since = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| fault())?;
    Ok(wire::Timestamp {
        seconds: i64::try_from(since.as_secs()).map_err(|_| fault())?,
        nanos: i32::try_from(since.subsec_nanos()).map_err(|_| fault())?,
    })
}

fn http(own: &Reader<'_>) -> Result<wire::HttpRequest, String> {
    let header = |own: &Reader<'_>| {
        Ok(wire::HeaderValue { key: own.text("key")?, value: own.text("value")?, raw_value: own.base64("rawValue")? })
    };
    Ok(wire::HttpRequest {
        method: own.text("method")?,
        headers: own.pairs("headers")?,
        path: own.text("path")?,
        host: own.text("host")?,
        scheme: own.text("scheme")?,
        size: own.integer("size")?,
        protocol: own.text("protocol")?,
        body: own.text("body")?,
        raw_body: own.base64("rawBody")?,
        header_map: own.message("headerMap", HEADER_MAP, |own| {
            Ok(wire::HeaderMap { headers: own.list("headers", HEADER, header)? })
        })?,
    })
}

fn metadata(own: &Reader<'_>) -> Result<wire::Metadata, String> {
    let space = |own: &Reader<'_>, (name, value): (&String, &Value)| match value {
        Value::Object(space) => Ok((name.clone(), fields(space))),
        _ => Err(own.fault(name, "an object")),
    };
    let spaces = own.scalar("filterMetadata", |own| match own.value {
        Value::Object(spaces) => spaces.iter().map(|entry| space(own, entry)).collect(),
        _ => Err(format!("`{}` is not an object", own.path)),
    })?;
    Ok(wire::Metadata { filter_metadata: spaces.unwrap_or_default() })
}

fn fields(fields: &Map<String, Value>) -> wire::Struct {
    wire::Struct { fields: fields.iter().map(|(name, value)| (name.clone(), struct_value(value))).collect() }
}

fn struct_value(json: &Value) -> wire::StructValue {
    let kind = match json {
        Value::Null => wire::Kind::Null(0),
        Value::Bool(value) => wire::Kind::Bool(*value),
        Value::Number(number) => wire::Kind::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => wire::Kind::String(text.clone()),
        Value::Array(values) => wire::Kind::List(wire::ListValue { values: values.iter().map(struct_value).collect() }),
        Value::Object(own) => wire::Kind::Struct(fields(own)),
    };
    wire::StructValue { kind: Some(kind) }
}

/// A place in the JSON. Absent and `null` are the default value, as protobuf JSON has it; names are taken in camelCase
/// and as they stand in the .proto file.
struct Reader<'a> {
    path: String,
    value: &'a Value,
}

impl Reader<'_> {
    fn get(&self, name: &str) -> Option<Reader<'_>> {
        let value = self.value.get(name).or_else(|| self.value.get(snake_case(name)))?;
        (!value.is_null()).then(|| Reader { path: format!("{}.{name}", self.path), value })
    }

    fn fault(&self, name: &str, expected: &str) -> String {
        format!("`{}.{name}` is not {expected}", self.path)
    }

    /// That it is an object with no fields but these, none of them in both of its spellings.
    fn has_only(&self, known: &[&str]) -> Result<(), String> {
        let members = self.value.as_object().ok_or_else(|| format!("`{}` is not an object", self.path))?;
        for key in members.keys() {
            let spelling = known.iter().find(|name| **name == key || snake_case(name) == *key);
            let Some(name) = spelling else {
                let elsewhere = PLACES.iter().find(|(_, names)| names.iter().any(|name| name == key));
                let hint = match elsewhere {
                    Some((place, _)) => format!("it belongs to `{place}`"),
                    None => suggest(key, known),
                };
                return Err(format!("`{}` has no field `{key}`; {hint}", self.path));
            };
            if key == name && snake_case(name) != *name && members.contains_key(&snake_case(name)) {
                return Err(format!("`{}.{name}` is there twice, as `{}` too", self.path, snake_case(name)));
            }
        }
        Ok(())
    }

    /// A message with these fields.
    fn message<T>(
        &self,
        name: &str,
        known: &[&str],
        read: impl FnOnce(&Reader<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        self.scalar(name, |own| {
            own.has_only(known)?;
            read(own)
        })
    }

    fn scalar<T>(&self, name: &str, read: impl FnOnce(&Reader<'_>) -> Result<T, String>) -> Result<Option<T>, String> {
        self.get(name).map(|own| read(&own)).transpose()
    }

    /// A list of messages with these fields.
    fn list<T>(
        &self,
        name: &str,
        known: &[&str],
        read: impl Fn(&Reader<'_>) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let Some(own) = self.get(name) else { return Ok(Vec::new()) };
        let items = own.value.as_array().ok_or_else(|| self.fault(name, "a list"))?;
        let item = |(at, value)| {
            let own = Reader { path: format!("{}[{at}]", own.path), value };
            own.has_only(known)?;
            read(&own)
        };
        items.iter().enumerate().map(item).collect()
    }

    fn text(&self, name: &str) -> Result<Bytes, String> {
        let Some(own) = self.get(name) else { return Ok(Bytes::new()) };
        let text = own.value.as_str().ok_or_else(|| self.fault(name, "a string"))?;
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn base64(&self, name: &str) -> Result<Bytes, String> {
        let text = self.text(name)?;
        BASE64_STANDARD.decode(&text).map(Bytes::from).map_err(|_| self.fault(name, "base64"))
    }

    /// 64-bit integers are texts in protobuf JSON; numbers are taken as well.
    fn integer(&self, name: &str) -> Result<i64, String> {
        let Some(own) = self.get(name) else { return Ok(0) };
        let integer = own.value.as_i64().or_else(|| own.value.as_str()?.parse().ok());
        integer.ok_or_else(|| self.fault(name, "an integer"))
    }

    fn pairs(&self, name: &str) -> Result<Vec<wire::Pair>, String> {
        let Some(own) = self.get(name) else { return Ok(Vec::new()) };
        let entries = own.value.as_object().ok_or_else(|| self.fault(name, "an object"))?;
        let pair = |key: &String| {
            // Not through `text`: keys of a map are data, not field names.
            let value = entries.get(key).and_then(Value::as_str).ok_or_else(|| own.fault(key, "a string"))?;
            Ok(wire::Pair {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
            })
        };
        entries.keys().map(pair).collect()
    }
}

fn snake_case(name: &str) -> String {
    name.chars()
        .flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()]))
        .collect()
}

/// A Query as JSON, for people.
pub fn query(query: &Query) -> Value {
    json!({
        "principal": query.principal.uid.to_string(),
        "principal_attributes": query.principal.attributes,
        "principal_parents": query.principal.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "identity": query.principal.proof.as_str(),
        "action": query.action.to_string(),
        "resource": query.resource.to_string(),
        "context": query.context,
    })
}

/// An answer as JSON: what Envoy would get.
pub fn check_response(response: &CheckResponse) -> Value {
    let denied = |kind: &str, denied: &DeniedHttpResponse| {
        json!({
            kind: {
                "status": denied.status.as_ref().map(|status| status.code),
                "headers": headers(&denied.headers),
                "body": denied.body,
            }
        })
    };
    let mut json = match &response.http_response {
        Some(HttpResponse::OkResponse(ok)) => {
            json!({"ok_response": {"headers": headers(&ok.headers), "headers_to_remove": ok.headers_to_remove}})
        }
        Some(HttpResponse::DeniedResponse(response)) => denied("denied_response", response),
        Some(HttpResponse::ErrorResponse(response)) => denied("error_response", response),
        None => json!({}),
    };
    if let Value::Object(fields) = &mut json {
        fields.insert("status".to_owned(), json!({"code": response.status.as_ref().map(|status| status.code)}));
        let metadata = response.dynamic_metadata.as_ref().map(struct_json);
        fields.insert("dynamic_metadata".to_owned(), metadata.unwrap_or(Value::Null));
    }
    json
}

/// By name, as the wire carries them: a list where several lines have one name.
fn headers(options: &[HeaderValueOption]) -> Map<String, Value> {
    let mut headers = Map::new();
    for header in options.iter().filter_map(|option| option.header.as_ref()) {
        let line = Value::from(header.value.clone());
        match headers.get_mut(&header.key) {
            None => {
                headers.insert(header.key.clone(), line);
            }
            Some(Value::Array(lines)) => lines.push(line),
            Some(first) => *first = Value::Array(vec![first.take(), line]),
        }
    }
    headers
}

fn struct_json(own: &pb::Struct) -> Value {
    Value::Object(own.fields.iter().map(|(name, value)| (name.clone(), value_json(value))).collect())
}

fn value_json(value: &pb::Value) -> Value {
    match &value.kind {
        None | Some(pb::value::Kind::NullValue(_)) => Value::Null,
        Some(pb::value::Kind::NumberValue(number)) => json!(number),
        Some(pb::value::Kind::StringValue(text)) => json!(text),
        Some(pb::value::Kind::BoolValue(value)) => json!(value),
        Some(pb::value::Kind::StructValue(own)) => struct_json(own),
        Some(pb::value::Kind::ListValue(list)) => list.values.iter().map(value_json).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of every message, at its place.
    const FIELDS: [(&str, &[&str]); 11] = [
        ("", CHECK_REQUEST),
        ("attributes", ATTRIBUTES),
        ("attributes.source", PEER),
        ("attributes.source.address", ADDRESS),
        ("attributes.source.address.socketAddress", SOCKET_ADDRESS),
        ("attributes.request", REQUEST),
        ("attributes.request.http", HTTP),
        ("attributes.request.http.headerMap", HEADER_MAP),
        ("attributes.request.http.headerMap.headers", HEADER),
        ("attributes.metadataContext", METADATA),
        ("attributes.tlsSession", TLS_SESSION),
    ];

    /// A request with this member at this place.
    fn request(place: &str, name: &str, value: &Value) -> String {
        let mut json = json!({name: value});
        for part in place.split('.').rev().filter(|part| !part.is_empty()) {
            json = if part == "headers" { json!({part: [json]}) } else { json!({part: json}) };
        }
        json.to_string()
    }

    #[test]
    fn a_field_is_known_or_an_error_that_names_the_nearest() {
        for (place, names) in FIELDS {
            for name in names {
                for spelling in [(*name).to_owned(), snake_case(name)] {
                    let read = check_request(&request(place, &spelling, &Value::Null));
                    assert!(read.is_ok(), "{place} {spelling}: {read:?}");
                }
                for at in 0..name.len() {
                    let dropped = format!("{}{}", &name[..at], &name[at + 1..]);
                    let doubled = format!("{}{}{}", &name[..at], &name[at..=at], &name[at..]);
                    let upper = format!("{}{}{}", &name[..at], name[at..=at].to_uppercase(), &name[at + 1..]);
                    for slip in [dropped, doubled, upper].into_iter().filter(|slip| slip != name && !slip.is_empty()) {
                        let error = check_request(&request(place, &slip, &Value::Null)).expect_err(&slip);
                        assert!(error.contains(&format!("has no field `{slip}`; did you mean `")), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_of_another_shape_is_an_error() {
        for (text, expected) in [
            (r#"{"method": "GET"}"#, "`request` has no field `method`; it belongs to `attributes.request.http`"),
            (r#"{"attributes": []}"#, "`request.attributes` is not an object"),
            ("[]", "`request` is not an object"),
            (
                r#"{"attributes": {"metadataContext": {"filterMetadata": {"a": 1}}}}"#,
                "`request.attributes.metadataContext.filterMetadata.a` is not an object",
            ),
            (
                r#"{"attributes": {"tlsSession": {}, "tls_session": {}}}"#,
                "`request.attributes.tlsSession` is there twice, as `tls_session` too",
            ),
            (r#"{"attributes": {}, "attributes": {}}"#, "not JSON: `attributes` is there twice at line 1 column 31"),
        ] {
            assert_eq!(check_request(text), Err(expected.to_owned()), "{text}");
        }
    }
}
