//! CheckRequests in protobuf JSON (<https://protobuf.dev/programming-guides/json/>), and answers as JSON, for
//! `stockade decide`. Fields that mapping does not read are skipped.

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

/// Reads a CheckRequest.
///
/// # Errors
/// What does not fit, with its path.
pub fn check_request(text: &str) -> Result<wire::CheckRequest, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let root = Reader { path: "request".to_owned(), value: &json };
    Ok(wire::CheckRequest { attributes: root.message("attributes", attributes)? })
}

fn attributes(own: &Reader<'_>) -> Result<wire::Attributes, String> {
    Ok(wire::Attributes {
        source: own.message("source", peer)?,
        destination: own.message("destination", peer)?,
        request: own.message("request", |own| {
            Ok(wire::Request { time: own.message("time", timestamp)?, http: own.message("http", http)? })
        })?,
        context_extensions: own.pairs("contextExtensions")?,
        metadata_context: own.message("metadataContext", metadata)?,
        route_metadata_context: own.message("routeMetadataContext", metadata)?,
        tls_session: own.message("tlsSession", |own| Ok(wire::TlsSession { sni: own.text("sni")? }))?,
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
        address: own
            .message("address", |own| Ok(wire::Address { socket_address: own.message("socketAddress", socket)? }))?,
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
        header_map: own.message("headerMap", |own| Ok(wire::HeaderMap { headers: own.list("headers", header)? }))?,
    })
}

fn metadata(own: &Reader<'_>) -> Result<wire::Metadata, String> {
    let spaces = own.message("filterMetadata", |own| match own.value {
        Value::Object(spaces) => Ok(spaces.iter().map(|(name, space)| (name.clone(), fields(space))).collect()),
        _ => Err(format!("`{}` is not an object", own.path)),
    })?;
    Ok(wire::Metadata { filter_metadata: spaces.unwrap_or_default() })
}

fn fields(json: &Value) -> wire::Struct {
    let fields = json.as_object().into_iter().flatten();
    wire::Struct { fields: fields.map(|(name, value)| (name.clone(), struct_value(value))).collect() }
}

fn struct_value(json: &Value) -> wire::StructValue {
    let kind = match json {
        Value::Null => wire::Kind::Null(0),
        Value::Bool(value) => wire::Kind::Bool(*value),
        Value::Number(number) => wire::Kind::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => wire::Kind::String(text.clone()),
        Value::Array(values) => wire::Kind::List(wire::ListValue { values: values.iter().map(struct_value).collect() }),
        Value::Object(_) => wire::Kind::Struct(fields(json)),
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

    fn message<T>(&self, name: &str, read: impl FnOnce(&Reader<'_>) -> Result<T, String>) -> Result<Option<T>, String> {
        self.get(name).map(|own| read(&own)).transpose()
    }

    fn list<T>(&self, name: &str, read: impl Fn(&Reader<'_>) -> Result<T, String>) -> Result<Vec<T>, String> {
        let Some(own) = self.get(name) else { return Ok(Vec::new()) };
        let items = own.value.as_array().ok_or_else(|| self.fault(name, "a list"))?;
        let item = |(at, value)| read(&Reader { path: format!("{}[{at}]", own.path), value });
        items.iter().enumerate().map(item).collect()
    }

    fn text(&self, name: &str) -> Result<Bytes, String> {
        let Some(own) = self.get(name) else { return Ok(Bytes::new()) };
        let text = own.value.as_str().ok_or_else(|| self.fault(name, "a text"))?;
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
            let value = entries.get(key).and_then(Value::as_str).ok_or_else(|| own.fault(key, "a text"))?;
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
