//! Nine CheckRequests recorded from Envoy 1.40.0 (`tests/recordings`, as protobuf and as protobuf JSON), each held
//! against the Query that it maps to, or the reason why it is refused.

use prost::Message;
use serde_json::{Value as Json, json};
use stockade::policy::Files;
use stockade::proto::json::check_request;
use stockade::proto::wire::CheckRequest;

use crate::fixture::{Court, EVERYTHING, shop, shown};
use testkit::repository;

/// Everything that the recordings have, in the types that fit them.
const ALL: &str = r#"
    entity Team;
    action "GET", "POST" appliesTo {
        principal: [Anonymous],
        resource: [Service],
        context: {
            method: String, path: String, host: String, scheme: String, protocol: String, identity: String,
            time: datetime,
            source: { address: ipaddr, port: Long, principal?: String, certificate?: String },
            destination: { address: ipaddr, port: Long, labels: { app?: String, version?: String } },
            headers: {
                "authorization"?: String, "accept": Set<String>, "cookie"?: String, "content-length"?: Long,
                "user-agent": String, "x-dup"?: Set<String>, "x-mixed-case"?: String, "x-joined"?: String,
            },
            query: { lang?: String, id?: Set<Long> },
            extensions: { policy: String, route: String, missing?: String },
            metadata: { "envoy.filters.http.jwt_authn"?: { jwt_payload?: { sub?: String } } },
            route_metadata: { "route.ns"?: { team: Team } },
            tls?: { sni?: String },
            grpc?: { service: String, method: String },
            body?: { a?: Long, b?: String, firstname?: String },
            body_partial: Bool,
            body_size?: Long,
        },
    };
"#;

/// Two headers as lone values, which some recordings do not have.
const LONE: &str = r#"
    action "GET", "POST" appliesTo {
        principal: [Anonymous], resource: [Service], context: { headers: { "x-dup"?: String, "x-bin"?: String } },
    };
"#;

pub fn recording(number: u32, ending: &str) -> Vec<u8> {
    let path = repository(&format!("tests/recordings/{number:02}.{ending}"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bundle(schema: &str) -> Files {
    shop(&[("schema.cedarschema", schema), ("a.cedar", EVERYTHING)])
}

fn mapped(schema: &str, number: u32) -> Result<Json, String> {
    let court = Court::new(&[bundle(schema)], "service: shop");
    let request = CheckRequest::decode(recording(number, "bin").as_slice()).expect("a CheckRequest");
    court.query(&request).map(|query| shown(&query))
}

/// The Query of a recording: what all of them have in common, with this context added.
fn query(action: &str, context: Json) -> Json {
    let mut all = json!({
        "scheme": "http", "protocol": "HTTP/1.1", "identity": "none", "host": "127.0.0.1",
        "extensions": {"record": {"policy": "payments-v1", "route": "catch-all"}},
        "metadata": {"record": {}}, "route_metadata": {"record": {}}, "query": {"record": {}},
        "body_partial": false, "body_size": 0,
    });
    for (name, value) in context.as_object().unwrap() {
        all[name] = value.clone();
    }
    // What a request does not have is left out.
    all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    json!({
        "principal": "Anonymous::\"anonymous\"", "attributes": {}, "parents": [], "proof": "none",
        "action": format!("Action::\"{action}\""), "resource": "Service::\"shop\"", "context": all,
    })
}

fn side(address: &str, port: u16) -> Json {
    json!({"record": {"address": {"ipaddr": address}, "port": port}})
}

fn destination(port: u16, labels: Json) -> Json {
    json!({"record": {"address": {"ipaddr": "127.0.0.1"}, "port": port, "labels": {"record": labels}}})
}

/// The number of a recording, the schema, and the query that it maps to or the reason why there is none.
fn mappings() -> Vec<(u32, String, Result<Json, String>)> {
    let curl = |more: Json| {
        let mut headers = json!({"accept": ["*/*"], "user-agent": "curl/7.88.1"});
        for (name, value) in more.as_object().unwrap() {
            headers[name] = value.clone();
        }
        json!({"record": headers})
    };
    let refused = |kind_and_detail: &str| Err(kind_and_detail.to_owned());
    vec![
        // Repeated headers and query parameters are sets where the schema says so.
        (
            1,
            ALL.to_owned(),
            Ok(query(
                "GET",
                json!({
                    "method": "GET", "path": "/api/v1/products", "time": {"datetime": "2026-11-22T05:44:45.840Z"},
                    "source": side("127.0.0.1", 39012), "destination": destination(18991, json!({})),
                    "headers": curl(json!({
                        "authorization": "Bearer abc", "cookie": "s=1; t=2", "x-dup": ["a", "b"], "x-mixed-case": "Hello",
                    })),
                    "query": {"record": {"lang": "en", "id": [1, 2]}},
                }),
            )),
        ),
        // The same header as one value: `a,b` is neither of the two that the client sent.
        (
            1,
            LONE.to_owned(),
            refused(
                "attribute: the header `x-dup` has a comma, so it may have been repeated; Envoy's \
                 `encode_raw_headers: true` tells",
            ),
        ),
        // `//admin/people` slipped past a prefix rule of Envoy's own RBAC filter.
        (2, ALL.to_owned(), refused("path: the path is in a form that is refused: double_slash")),
        // `/a/../b/%2Fadmin%2fsecret/./;v=1`
        (3, ALL.to_owned(), refused("path: the path is in a form that is refused: encoded_slash")),
        // A body as text.
        (
            4,
            ALL.to_owned(),
            Ok(query(
                "POST",
                json!({
                    "method": "POST", "path": "/people", "time": {"datetime": "2026-11-22T05:44:45.881Z"},
                    "source": side("127.0.0.1", 38390), "destination": destination(18992, json!({})),
                    "headers": curl(json!({"content-length": 15})),
                    "route_metadata": {"record": {"route.ns": {"record": {"team": {"entity": "Team::\"payments\""}}}}},
                    "body": {"record": {"a": 1, "b": "x"}}, "body_size": 15,
                }),
            )),
        ),
        // Only the beginning of a body: it is there, and nobody can read it.
        (
            5,
            ALL.to_owned(),
            Err("attribute: `context.body` is there and cannot be read: only its beginning is here; it is larger than \
                 Envoy's `max_request_bytes`"
                .to_owned()),
        ),
        // A body as bytes (`pack_as_bytes`).
        (
            6,
            ALL.to_owned(),
            Ok(query(
                "POST",
                json!({
                    "method": "POST", "path": "/people", "time": {"datetime": "2026-11-22T05:44:45.907Z"},
                    "source": side("127.0.0.1", 53012), "destination": destination(18993, json!({})),
                    "headers": curl(json!({"content-length": 15})),
                    "body": {"record": {"a": 1, "b": "x"}}, "body_size": 15,
                }),
            )),
        ),
        // Headers one by one (`encode_raw_headers`), labels of the destination. There is a TLS session, and it says
        // nothing.
        (
            7,
            ALL.to_owned(),
            Ok(query(
                "GET",
                json!({
                    "method": "GET", "path": "/h", "time": {"datetime": "2026-11-22T05:44:45.918Z"},
                    "source": side("127.0.0.1", 59676),
                    "destination": destination(18994, json!({"app": "httpbin", "version": "v1"})),
                    "headers": curl(json!({"x-dup": ["a", "b"]})),
                }),
            )),
        ),
        // `caf\xe9`, as the client sent it.
        (7, LONE.to_owned(), refused("attribute: the header `x-bin` is not UTF-8")),
        // The same header without `encode_raw_headers`: Envoy has replaced the byte, and nothing can tell.
        (
            8,
            LONE.to_owned(),
            Err("attribute: the header `x-bin` has a `!`, so it may not have been UTF-8; Envoy's `encode_raw_headers: true` \
                 tells"
                .to_owned()),
        ),
        // A gRPC call over HTTP/2, whose body Envoy has not sent along.
        (9, ALL.to_owned(), Err("attribute: `context.body` is there and cannot be read: Envoy has not sent it along; it does with `with_request_body`".to_owned())),
        (
            9,
            ALL.replace("body?: { a?: Long, b?: String, firstname?: String },", ""),
            Ok(query(
                "POST",
                json!({
                    "method": "POST", "path": "/svc.Foo/Bar", "time": {"datetime": "2026-11-22T05:44:45.941Z"},
                    "source": side("127.0.0.1", 39062), "destination": destination(18991, json!({})),
                    "headers": curl(json!({})), "protocol": "HTTP/2", "body_partial": true, "body_size": null,
                    "grpc": {"record": {"service": "svc.Foo", "method": "Bar"}},
                }),
            )),
        ),
    ]
}

#[test]
fn every_recording_maps_to_its_query_or_is_refused_by_name() {
    for (number, schema, expected) in mappings() {
        assert_eq!(mapped(&schema, number), expected, "recording {number:02}");
    }
}

#[test]
fn a_header_that_came_twice_is_refused_where_it_is_declared_as_one_value() {
    let schema = LONE.replace(", \"x-bin\"?: String", "");
    let expected = "attribute: the header `x-dup` is repeated, but declared as one value";
    assert_eq!(mapped(&schema, 7), Err(expected.to_owned()));
}

#[test]
fn the_json_of_a_recording_says_what_its_protobuf_says() {
    for number in 1..=9 {
        let text = String::from_utf8(recording(number, "json")).expect("text");
        let json = check_request(&text).unwrap_or_else(|error| panic!("recording {number:02}: {error}"));
        let mut json = CheckRequest::decode(json).expect("a CheckRequest");
        let mut protobuf = CheckRequest::decode(recording(number, "bin").as_slice()).expect("a CheckRequest");
        // Maps have no order, on the wire or in JSON.
        sort(&mut json);
        sort(&mut protobuf);
        assert_eq!(json, protobuf, "recording {number:02}");
    }
}

/// Sorts what protobuf calls maps.
pub fn sort(request: &mut CheckRequest) {
    let Some(attributes) = &mut request.attributes else { return };
    let http = attributes.request.as_mut().and_then(|request| request.http.as_mut());
    let peers = attributes.source.iter_mut().chain(&mut attributes.destination).map(|peer| &mut peer.labels);
    let maps = peers.chain(http.map(|http| &mut http.headers)).chain([&mut attributes.context_extensions]);
    maps.for_each(|map| map.sort_by(|a, b| a.key.cmp(&b.key)));
}
