//! CheckRequests in protobuf JSON (<https://protobuf.dev/programming-guides/json/>), and responses as JSON, for
//! `stockade decide` and for tests of bundles. What Envoy's protocol does not have is an error.

use std::sync::LazyLock;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse};
use envoy_types::pb::google::protobuf as pb;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::DESCRIPTORS;
use crate::model::Query;
use crate::strict_json;
use crate::yaml::suggest;

/// Envoy's message.
const CHECK_REQUEST: &str = "envoy.service.auth.v3.CheckRequest";

/// The messages whose fields people put in the wrong place, and where they belong.
const PLACES: [(&str, &str); 3] = [
    ("attributes.request.http", "envoy.service.auth.v3.AttributeContext.HttpRequest"),
    ("attributes.request", "envoy.service.auth.v3.AttributeContext.Request"),
    ("attributes", "envoy.service.auth.v3.AttributeContext"),
];

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).map_err(|error| error.to_string()));

/// Reads a CheckRequest, and returns it as it comes over the wire.
///
/// # Errors
/// What does not fit, with its path.
pub fn check_request(text: &str) -> Result<Bytes, String> {
    let json = strict_json::value(text).map_err(|error| format!("not JSON: {error}"))?;
    let message = message(CHECK_REQUEST)?;
    has_only(&json, &message, "request")?;
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&json, &mut track);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    match DynamicMessage::deserialize_with_options(message, deserializer, &options) {
        Ok(request) => Ok(request.encode_to_vec().into()),
        Err(error) => Err(format!("`request.{}`: {error}", track.path())),
    }
}

fn message(name: &str) -> Result<MessageDescriptor, String> {
    let pool = POOL.as_ref().map_err(Clone::clone)?;
    pool.get_message_by_name(name)
        .ok_or_else(|| format!("there is no descriptor of `{name}`; this is a bug in stockade"))
}

/// That an object has no fields but those of its message, at any depth, and none of them in both of its spellings. The
/// reader of messages says neither which fields there are nor which one was meant.
fn has_only(json: &Value, message: &MessageDescriptor, path: &str) -> Result<(), String> {
    // Their JSON has another shape than their fields.
    if message.package_name() == "google.protobuf" {
        return Ok(());
    }
    let members = json.as_object().ok_or_else(|| format!("`{path}` is not an object"))?;
    for (key, value) in members {
        let Some(field) = message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key)) else {
            return Err(format!("`{path}` has no field `{key}`; {}", hint(key, message)));
        };
        if key == field.json_name() && key != field.name() && members.contains_key(field.name()) {
            return Err(format!("`{path}.{key}` is there twice, as `{}` too", field.name()));
        }
        below(value, &field, &format!("{path}.{}", field.json_name()))?;
    }
    Ok(())
}

fn below(value: &Value, field: &FieldDescriptor, path: &str) -> Result<(), String> {
    let Kind::Message(message) = field.kind() else { return Ok(()) };
    match value {
        Value::Null => Ok(()),
        Value::Object(entries) if field.is_map() => {
            let Kind::Message(message) = message.map_entry_value_field().kind() else { return Ok(()) };
            entries.iter().try_for_each(|(name, value)| has_only(value, &message, &format!("{path}.{name}")))
        }
        Value::Array(items) if field.is_list() => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(at, item)| has_only(item, &message, &format!("{path}[{at}]")))
        }
        // What has another shape is for the reader of messages to say.
        _ if field.is_map() || field.is_list() => Ok(()),
        _ => has_only(value, &message, path),
    }
}

/// Where a field belongs that a message does not have, or which one may have been meant.
fn hint(key: &str, found_in: &MessageDescriptor) -> String {
    let elsewhere = PLACES.iter().find(|(_, name)| {
        message(name).is_ok_and(|message| {
            message.get_field_by_json_name(key).is_some() || message.get_field_by_name(key).is_some()
        })
    });
    if let Some((place, _)) = elsewhere {
        return format!("it belongs to `{place}`");
    }
    let names: Vec<String> = found_in.fields().map(|field| field.json_name().to_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    suggest(key, &names)
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

    /// The messages of a request, at their places.
    const MESSAGES: [&str; 11] = [
        "",
        "attributes",
        "attributes.source",
        "attributes.source.address",
        "attributes.source.address.socketAddress",
        "attributes.request",
        "attributes.request.http",
        "attributes.request.http.headerMap",
        "attributes.request.http.headerMap.headers",
        "attributes.metadataContext",
        "attributes.tlsSession",
    ];

    /// The names of the fields at a place, in both spellings.
    fn names(place: &str) -> Vec<(String, String)> {
        let mut message = message(CHECK_REQUEST).expect("a message");
        for part in place.split('.').filter(|part| !part.is_empty()) {
            let Kind::Message(below) = message.get_field_by_json_name(part).expect(part).kind() else {
                panic!("{part}")
            };
            message = below;
        }
        message.fields().map(|field| (field.json_name().to_owned(), field.name().to_owned())).collect()
    }

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
        for place in MESSAGES {
            for (name, proto) in names(place) {
                for spelling in [&name, &proto] {
                    let read = check_request(&request(place, spelling, &Value::Null));
                    assert!(read.is_ok(), "{place} {spelling}: {read:?}");
                }
                for at in 0..name.len() {
                    let dropped = format!("{}{}", &name[..at], &name[at + 1..]);
                    let doubled = format!("{}{}{}", &name[..at], &name[at..=at], &name[at..]);
                    let upper = format!("{}{}{}", &name[..at], name[at..=at].to_uppercase(), &name[at + 1..]);
                    for slip in [dropped, doubled, upper].into_iter().filter(|slip| *slip != name && !slip.is_empty()) {
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
                "`request.attributes.metadataContext.filterMetadata.a`: invalid type: integer `1`, expected a map",
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
