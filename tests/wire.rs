//! What holds for every message: our decoding says what envoy-types' says, and whatever comes in, an answer goes out
//! that Envoy cannot misread.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::envoy::service::auth::v3::attribute_context;
use envoy_types::pb::google::protobuf as google;
use proptest::collection::{hash_map, vec};
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use prost::Message;
use stockade::feed::{Limits, read};
use stockade::proto::{view, wire};

use crate::fixture::{Court, holds, sound};
use crate::recordings::{recording, sort};
use testkit::repository;

// === both decode alike ===

/// A message of envoy-types, put into our types by hand.
fn expected(request: &auth::CheckRequest) -> wire::CheckRequest {
    wire::CheckRequest {
        attributes: request.attributes.as_ref().map(|own| wire::AttributeContext {
            source: own.source.as_ref().map(peer),
            destination: own.destination.as_ref().map(peer),
            request: own.request.as_ref().map(|own| wire::Request {
                time: own.time.as_ref().map(|time| wire::Timestamp { seconds: time.seconds, nanos: time.nanos }),
                http: own.http.as_ref().map(http),
            }),
            context_extensions: pairs(&own.context_extensions),
            metadata_context: own.metadata_context.as_ref().map(metadata),
            route_metadata_context: own.route_metadata_context.as_ref().map(metadata),
            tls_session: own.tls_session.as_ref().map(|tls| wire::TlsSession { sni: text(&tls.sni) }),
        }),
    }
}

fn peer(own: &attribute_context::Peer) -> wire::Peer {
    wire::Peer {
        address: own.address.as_ref().map(|address| wire::Address {
            socket_address: match &address.address {
                Some(AddressKind::SocketAddress(socket)) => Some(wire::SocketAddress {
                    address: text(&socket.address),
                    port_value: match socket.port_specifier {
                        Some(PortSpecifier::PortValue(port)) => port,
                        _ => 0,
                    },
                }),
                _ => None,
            },
        }),
        labels: pairs(&own.labels),
        principal: text(&own.principal),
        certificate: text(&own.certificate),
    }
}

fn http(own: &attribute_context::HttpRequest) -> wire::HttpRequest {
    let header = |own: &core::HeaderValue| wire::HeaderValue {
        key: text(&own.key),
        value: text(&own.value),
        raw_value: own.raw_value.clone().into(),
    };
    wire::HttpRequest {
        method: text(&own.method),
        headers: pairs(&own.headers),
        path: text(&own.path),
        host: text(&own.host),
        scheme: text(&own.scheme),
        size: own.size,
        protocol: text(&own.protocol),
        body: text(&own.body),
        raw_body: own.raw_body.clone().into(),
        header_map: own
            .header_map
            .as_ref()
            .map(|map| wire::HeaderMap { headers: map.headers.iter().map(header).collect() }),
    }
}

fn metadata(own: &core::Metadata) -> wire::Metadata {
    wire::Metadata {
        filter_metadata: own.filter_metadata.iter().map(|(name, space)| (name.clone(), fields(space))).collect(),
    }
}

fn fields(own: &google::Struct) -> wire::Struct {
    wire::Struct { fields: own.fields.iter().map(|(name, value)| (name.clone(), struct_value(value))).collect() }
}

fn struct_value(own: &google::Value) -> wire::StructValue {
    use google::value::Kind;
    wire::StructValue {
        kind: own.kind.as_ref().map(|kind| match kind {
            Kind::NullValue(value) => wire::Kind::Null(*value),
            Kind::NumberValue(value) => wire::Kind::Number(*value),
            Kind::StringValue(value) => wire::Kind::String(value.clone()),
            Kind::BoolValue(value) => wire::Kind::Bool(*value),
            Kind::StructValue(value) => wire::Kind::Struct(fields(value)),
            Kind::ListValue(list) => {
                wire::Kind::List(wire::ListValue { values: list.values.iter().map(struct_value).collect() })
            }
        }),
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn pairs(map: &HashMap<String, String>) -> Vec<wire::Pair> {
    map.iter().map(|(key, value)| wire::Pair { key: text(key), value: text(value) }).collect()
}

/// A view, copied into the messages that prost decodes.
fn owned(view: &view::CheckRequest<'_>) -> wire::CheckRequest {
    let bytes = Bytes::copy_from_slice;
    let pairs = |pairs: &[view::Pair<'_>]| -> Vec<wire::Pair> {
        pairs.iter().map(|pair| wire::Pair { key: bytes(pair.key), value: bytes(pair.value) }).collect()
    };
    let peer = |peer: &view::Peer<'_>| wire::Peer {
        address: peer.address.as_ref().map(|address| wire::Address {
            socket_address: address
                .socket_address
                .as_ref()
                .map(|socket| wire::SocketAddress { address: bytes(socket.address), port_value: socket.port_value }),
        }),
        labels: pairs(&peer.labels),
        principal: bytes(peer.principal),
        certificate: bytes(peer.certificate),
    };
    let header = |header: &view::HeaderValue<'_>| wire::HeaderValue {
        key: bytes(header.key),
        value: bytes(header.value),
        raw_value: bytes(header.raw_value),
    };
    let http = |http: &view::HttpRequest<'_>| wire::HttpRequest {
        method: bytes(http.method),
        headers: pairs(&http.headers),
        path: bytes(http.path),
        host: bytes(http.host),
        scheme: bytes(http.scheme),
        size: http.size,
        protocol: bytes(http.protocol),
        body: bytes(http.body),
        raw_body: bytes(http.raw_body),
        header_map: http
            .header_map
            .as_ref()
            .map(|map| wire::HeaderMap { headers: map.headers.iter().map(header).collect() }),
    };
    fn fields(own: &view::Struct<'_>) -> wire::Struct {
        wire::Struct { fields: own.fields.iter().map(|(name, value)| (name.to_owned(), struct_value(value))).collect() }
    }
    fn struct_value(own: &view::StructValue<'_>) -> wire::StructValue {
        let kind = own.kind.as_ref().map(|kind| match kind {
            view::Kind::Null => wire::Kind::Null(0),
            view::Kind::Number(number) => wire::Kind::Number(*number),
            view::Kind::String(text) => wire::Kind::String((*text).to_owned()),
            view::Kind::Bool(value) => wire::Kind::Bool(*value),
            view::Kind::Struct(own) => wire::Kind::Struct(fields(own)),
            view::Kind::List(list) => {
                wire::Kind::List(wire::ListValue { values: list.values.iter().map(struct_value).collect() })
            }
        });
        wire::StructValue { kind }
    }
    let metadata = |own: &view::Metadata<'_>| wire::Metadata {
        filter_metadata: own.filter_metadata.iter().map(|(name, space)| (name.to_owned(), fields(space))).collect(),
    };
    wire::CheckRequest {
        attributes: view.attributes.as_ref().map(|own| wire::AttributeContext {
            source: own.source.as_ref().map(peer),
            destination: own.destination.as_ref().map(peer),
            request: own.request.as_ref().map(|own| wire::Request {
                time: own.time.map(|time| wire::Timestamp { seconds: time.seconds, nanos: time.nanos }),
                http: own.http.as_ref().map(http),
            }),
            context_extensions: pairs(&own.context_extensions),
            metadata_context: own.metadata_context.as_ref().map(metadata),
            tls_session: own.tls_session.map(|tls| wire::TlsSession { sni: bytes(tls.sni) }),
            route_metadata_context: own.route_metadata_context.as_ref().map(metadata),
        }),
    }
}

fn any_text() -> BoxedStrategy<String> {
    prop_oneof![3 => "[ -~]{0,8}", 1 => any::<String>()].boxed()
}

fn any_map() -> impl Strategy<Value = HashMap<String, String>> {
    hash_map(any_text(), any_text(), 0..4)
}

fn any_struct() -> BoxedStrategy<google::Struct> {
    use google::value::Kind;
    let leaf = prop_oneof![
        Just(None),
        Just(Some(Kind::NullValue(0))),
        any::<f64>().prop_map(|number| Some(Kind::NumberValue(number))),
        any_text().prop_map(|text| Some(Kind::StringValue(text))),
        any::<bool>().prop_map(|value| Some(Kind::BoolValue(value))),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        let value = inner.prop_map(|kind| google::Value { kind });
        prop_oneof![
            vec(value.clone(), 0..4).prop_map(|values| Some(Kind::ListValue(google::ListValue { values }))),
            hash_map(any_text(), value, 0..4).prop_map(|fields| Some(Kind::StructValue(google::Struct { fields }))),
        ]
    });
    hash_map(any_text(), value.prop_map(|kind| google::Value { kind }), 0..4)
        .prop_map(|fields| google::Struct { fields })
        .boxed()
}

fn any_metadata() -> BoxedStrategy<core::Metadata> {
    hash_map(any_text(), any_struct(), 0..3)
        .prop_map(|filter_metadata| core::Metadata { filter_metadata, ..core::Metadata::default() })
        .boxed()
}

fn any_address() -> impl Strategy<Value = core::Address> {
    let port = prop_oneof![
        Just(None),
        any::<u32>().prop_map(|port| Some(PortSpecifier::PortValue(port))),
        any_text().prop_map(|name| Some(PortSpecifier::NamedPort(name))),
    ];
    let socket = (any_text(), port, any_text()).prop_map(|(address, port_specifier, resolver_name)| {
        // What mapping does not read must not get in the way.
        let socket = core::SocketAddress { address, port_specifier, resolver_name, ..core::SocketAddress::default() };
        Some(AddressKind::SocketAddress(socket))
    });
    let pipe = any_text().prop_map(|path| Some(AddressKind::Pipe(core::Pipe { path, mode: 0 })));
    prop_oneof![Just(None), socket, pipe].prop_map(|address| core::Address { address })
}

fn any_peer() -> BoxedStrategy<attribute_context::Peer> {
    (option::of(any_address()), any_text(), any_map(), any_text(), any_text())
        .prop_map(|(address, service, labels, principal, certificate)| attribute_context::Peer {
            address,
            service,
            labels,
            principal,
            certificate,
        })
        .boxed()
}

fn any_http() -> BoxedStrategy<attribute_context::HttpRequest> {
    let header = (any_text(), any_text(), vec(any::<u8>(), 0..6))
        .prop_map(|(key, value, raw_value)| core::HeaderValue { key, value, raw_value });
    let map = option::of(vec(header, 0..4)).prop_map(|headers| headers.map(|headers| core::HeaderMap { headers }));
    let line = (any_text(), any_text(), any_text(), any_text(), any_text(), any_text());
    let rest = (any_text(), any_text(), any_text(), vec(any::<u8>(), 0..64));
    (line, rest, any_map(), map, any::<i64>())
        .prop_map(|(line, rest, headers, header_map, size)| {
            let (id, method, path, host, scheme, protocol) = line;
            let (query, fragment, body, raw_body) = rest;
            attribute_context::HttpRequest {
                id,
                method,
                headers,
                header_map,
                path,
                host,
                scheme,
                query,
                fragment,
                size,
                protocol,
                body,
                raw_body,
            }
        })
        .boxed()
}

fn any_request() -> impl Strategy<Value = auth::CheckRequest> {
    let time = option::of((any::<i64>(), any::<i32>()));
    let time = time.prop_map(|time| time.map(|(seconds, nanos)| google::Timestamp { seconds, nanos }));
    let request = option::of((time, option::of(any_http())))
        .prop_map(|request| request.map(|(time, http)| attribute_context::Request { time, http }));
    let sni = option::of(any_text()).prop_map(|sni| sni.map(|sni| attribute_context::TlsSession { sni }));
    let peers = (option::of(any_peer()), option::of(any_peer()));
    let spaces = (option::of(any_metadata()), option::of(any_metadata()));
    let attributes =
        (peers, request, any_map(), spaces, sni).prop_map(|(peers, request, context_extensions, spaces, tls)| {
            auth::AttributeContext {
                source: peers.0,
                destination: peers.1,
                request,
                context_extensions,
                metadata_context: spaces.0,
                route_metadata_context: spaces.1,
                tls_session: tls,
            }
        });
    prop_oneof![1 => Just(None), 20 => attributes.prop_map(Some)]
        .prop_map(|attributes| auth::CheckRequest { attributes })
}

#[test]
fn our_messages_say_what_those_of_envoy_types_say() {
    holds(512, any_request(), |request| {
        let frame = request.encode_to_vec();
        let mut decoded = wire::CheckRequest::decode(frame.as_slice()).expect("a CheckRequest");
        let mut viewed = owned(&view::CheckRequest::decode(&frame).expect("a CheckRequest"));
        let mut expected = expected(&request);
        [&mut decoded, &mut viewed, &mut expected].into_iter().for_each(sort);
        assert_eq!(decoded, expected);
        assert_eq!(viewed, expected);
    });
}

#[test]
fn what_envoy_types_cannot_decode_for_its_encoding_alone_is_still_understood() {
    // CVE-2023-27488: bytes that are not UTF-8 in a field that protobuf calls `string` made the whole message invalid,
    // and an invalid message fails open under `failure_mode_allow`.
    let hostile = wire::CheckRequest {
        attributes: Some(wire::AttributeContext {
            source: Some(wire::Peer { principal: Bytes::from_static(b"caf\xe9"), ..wire::Peer::default() }),
            ..wire::AttributeContext::default()
        }),
    };
    let frame = hostile.encode_to_vec();
    assert!(auth::CheckRequest::decode(frame.as_slice()).is_err());
    assert_eq!(owned(&view::CheckRequest::decode(&frame).expect("bytes")), hostile);
}

#[test]
fn messages_in_pieces_are_what_prost_makes_of_them() {
    // A message that comes again is merged, a text that comes again replaces the first: two requests, run together.
    holds(512, (any_request(), any_request()), |(first, second)| {
        let frame = [first.encode_to_vec(), second.encode_to_vec()].concat();
        let mut viewed = owned(&view::CheckRequest::decode(&frame).expect("a CheckRequest"));
        let mut decoded = wire::CheckRequest::decode(frame.as_slice()).expect("a CheckRequest");
        [&mut decoded, &mut viewed].into_iter().for_each(sort);
        assert_eq!(viewed, decoded);
    });
}

// === whatever comes in, an answer goes out ===

/// A judge under the bundle that looks at everything.
fn everything(paths: &str) -> Court {
    let bundle = read(&repository("tests/everything"), &Limits::default()).expect("a directory");
    Court::new(&[bundle], &format!("service: shop\n{paths}"))
}

const ALL_FORMS: &str = "paths: {allow: [empty_path, double_slash, dot_segments, path_parameters, backslash, \
                         encoded_slash, encoded_dot, encoded_nul, double_encoding, malformed_escape, not_utf8, \
                         fragment]}";

/// Runs requests through a pipeline, and makes sure that each of these ends was reached: a property over refusals alone
/// would say nothing.
fn all_are_answered<S: Strategy>(cases: u32, requests: S, frame: impl Fn(S::Value) -> Vec<u8>, ends: &[&str]) {
    let courts = [everything(""), everything(ALL_FORMS)];
    let seen: RefCell<BTreeMap<&str, u32>> = RefCell::default();
    holds(cases, requests, |request| {
        let frame = Bytes::from(frame(request));
        for court in &courts {
            let end = sound(&court.pipeline.frame(frame.clone(), "d-1"));
            *seen.borrow_mut().entry(end).or_default() += 1;
        }
    });
    let seen = seen.into_inner();
    println!("{seen:?}");
    for end in ends {
        assert!(seen.contains_key(end), "nothing ended as `{end}`: {seen:?}");
    }
}

/// One of these, or what a client could put in their place.
fn like(known: &'static [&'static [u8]]) -> BoxedStrategy<Bytes> {
    prop_oneof![
        60 => select(known).prop_map(Bytes::from_static),
        1 => vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        1 => any::<String>().prop_map(Bytes::from),
        // Two of them run together.
        1 => (select(known), select(known)).prop_map(|(a, b)| Bytes::from([a, b].concat())),
        1 => (select(known), 0..5000_usize).prop_map(|(a, times)| Bytes::from(a.repeat(times / a.len().max(1)))),
    ]
    .boxed()
}

const NAMES: &[&[u8]] = &[
    b"x-s",
    b"x-n",
    b"x-b",
    b"x-ip",
    b"x-dec",
    b"x-at",
    b"x-for",
    b"x-who",
    b"x-set",
    b"x-ips",
    b"x-rec",
    b"X-N",
    b"x-envoy-auth-partial-body",
    b":path",
    b":method",
    b":authority",
    b"content-type",
    b"authorization",
    b"",
];

const VALUES: &[&[u8]] = &[
    b"",
    b"1",
    b"-1",
    b"007",
    b"9223372036854775807",
    b"9223372036854775808",
    b"true",
    b"false",
    b"a,b",
    b"1,2,1",
    b" ",
    b"10.0.0.1",
    b"10.0.0.0/8",
    b"::ffff:10.0.0.1",
    b"::1/129",
    b"1.2345",
    b"1.23456",
    b"2026-11-22",
    b"1d2h",
    b"-1ms",
    b"2026-11-22T05:44:45.840Z",
    b"\0",
    b"\r\n",
    b"caf\xe9",
    b"caf\xc3\xa9",
    b"%zz",
    b"\"",
    b"User::\"x\"",
    b"alice",
    b"application/json",
    b"application/grpc",
    b"application/x-www-form-urlencoded; charset=utf-8",
];

/// Headers, labels and the like: mostly such as fit their types.
fn headers() -> BoxedStrategy<Vec<wire::Pair>> {
    const FIT: &[(&[u8], &[u8])] = &[
        (b"x-s", b"caf\xc3\xa9"),
        (b"x-n", b"-7"),
        (b"x-b", b"true"),
        (b"x-b", b"false"),
        (b"x-ip", b"10.0.0.0/8"),
        (b"x-dec", b"1.2345"),
        (b"x-at", b"2026-11-22T05:44:45.840Z"),
        (b"x-for", b"1d2h"),
        (b"x-who", b"alice"),
        (b"x-set", b"1,2,1"),
        (b"x-ips", b"::1,10.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"content-type", b"application/grpc"),
    ];
    let fit = select(FIT).prop_map(|(name, value)| (Bytes::from_static(name), Bytes::from_static(value)));
    let pair = prop_oneof![4 => fit, 1 => (like(NAMES), like(VALUES))];
    vec(pair.prop_map(|(key, value)| wire::Pair { key, value }), 0..4).boxed()
}

fn hostile_peer() -> BoxedStrategy<wire::Peer> {
    let address = like(&[
        b"192.0.2.7",
        b"::1",
        b"::ffff:192.0.2.7",
        b"::192.0.2.7",
        b"64:ff9b::192.0.2.7",
        b"fe80::1%eth0",
        b"/run/x",
        b"",
    ]);
    let address = option::of((address, any::<u32>())).prop_map(|socket| wire::Address {
        socket_address: socket.map(|(address, port_value)| wire::SocketAddress { address, port_value }),
    });
    let principal = like(&[
        b"",
        b"",
        b"",
        b"",
        b"spiffe://cluster.local/ns/shop/sa/cart",
        b"spiffe://",
        b"spiffe://x/..",
        b"cart.shop",
        b"CN=a",
    ]);
    let certificate = like(&[b"", b"-----BEGIN%20CERTIFICATE-----%0A", b"%", b"%ff", b"%00"]);
    (option::of(address), headers(), principal, certificate)
        .prop_map(|(address, labels, principal, certificate)| wire::Peer { address, labels, principal, certificate })
        .boxed()
}

fn hostile_struct() -> BoxedStrategy<wire::Struct> {
    let number = prop_oneof![
        select(vec![
            0.0,
            -0.0,
            1.0,
            0.5,
            9_007_199_254_740_992.0,
            9_007_199_254_740_994.0,
            1e300,
            f64::NAN,
            f64::INFINITY
        ]),
        any::<f64>(),
    ];
    let as_text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
    let leaf = prop_oneof![
        Just(wire::Kind::Null(0)),
        number.prop_map(wire::Kind::Number),
        like(VALUES).prop_map(as_text).prop_map(wire::Kind::String),
        any::<bool>().prop_map(wire::Kind::Bool),
    ];
    let kind = leaf.prop_recursive(3, 16, 4, move |inner| {
        let value = inner.prop_map(|kind| wire::StructValue { kind: Some(kind) });
        prop_oneof![
            vec(value.clone(), 0..4).prop_map(|values| wire::Kind::List(wire::ListValue { values })),
            hash_map(like(NAMES).prop_map(as_text), value, 0..4)
                .prop_map(|fields| wire::Kind::Struct(wire::Struct { fields })),
        ]
    });
    let value = option::of(kind).prop_map(|kind| wire::StructValue { kind });
    hash_map(like(NAMES).prop_map(as_text), value, 0..4).prop_map(|fields| wire::Struct { fields }).boxed()
}

fn hostile_metadata() -> BoxedStrategy<wire::Metadata> {
    let token = (hostile_struct(), like(&[b"alice", b"bob", b""])).prop_map(|(mut claims, sub)| {
        if !sub.is_empty() {
            let sub = wire::Kind::String(String::from_utf8_lossy(&sub).into_owned());
            claims.fields.insert("sub".to_owned(), wire::StructValue { kind: Some(sub) });
        }
        let payload = wire::StructValue { kind: Some(wire::Kind::Struct(claims)) };
        wire::Struct { fields: HashMap::from([("jwt_payload".to_owned(), payload)]) }
    });
    (option::of(hostile_struct()), option::weighted(0.3, token))
        .prop_map(|(space, token)| wire::Metadata {
            filter_metadata: space
                .map(|space| ("ns".to_owned(), space))
                .into_iter()
                .chain(token.map(|token| ("envoy.filters.http.jwt_authn".to_owned(), token)))
                .collect(),
        })
        .boxed()
}

// What comes often stands there several times.
const METHODS: &[&[u8]] = &[
    b"GET", b"GET", b"GET", b"GET", b"GET", b"GET", b"GET", b"GET", b"POST", b"POST", b"POST", b"OPTIONS", b"CONNECT",
    b"get", b"", b"G ET",
];

const PATHS: &[&[u8]] = &[
    b"/",
    b"/",
    b"/",
    b"/",
    b"/",
    b"/a?x-n=1",
    b"/a?x-n=1",
    b"/users",
    b"/users",
    b"/things/7",
    b"/things/7",
    b"/files/a/b",
    b"/svc.Foo/Bar",
    b"/things/x",
    b"/users",
    b"/files/a/b",
    b"/svc.Foo/Bar",
    b"/a?x-n=1",
    b"/a?x-b=true&x-b=true",
    b"/a?x-n=%zz",
    b"*",
    b"",
    b"//a",
    b"/a/../b",
    b"/a;b",
    b"/%2e%2e/",
    b"/%2f",
    b"/%5C",
    b"/%00",
    b"/%252f",
    b"/%zz",
    b"/caf\xe9",
    b"/a#b",
    b"http://evil.example/",
    b"/%",
    b"/%F0%9F",
    b"?",
    b"/\xff?\xff",
];

const HOSTS: &[&[u8]] = &[
    b"shop.example",
    b"shop.example",
    b"shop.example",
    b"shop.example",
    b"shop.example",
    b"shop.example",
    b"nobody",
    b"SHOP.example.:80",
    b"[::1]:80",
    b"nobody",
    b"",
    b"a,b",
    b"[",
    b"a:b:c",
    b"[::1",
];

const BODIES: &[&[u8]] = &[
    b"",
    b"{}",
    b"{\"x-n\":1}",
    b"{\"x-n\":9}",
    b"{\"x-n\":1,\"x-n\":2}",
    b"{\"x-rec\":{\"x-ip\":\"1.2.3.4\"}}",
    b"[]",
    b"\"secret\"",
    b"{\"x-n\":1e400}",
    b"{\"x-s\":\"\\ud800\"}",
    b"x-n=1&x-b=true",
    b"x-n=%",
    b"[[[[[[[[[[[[",
    b"nul",
];

fn hostile_http() -> BoxedStrategy<wire::HttpRequest> {
    let method = like(METHODS);
    let path = like(PATHS);
    let host = like(HOSTS);
    let scheme = like(&[b"http", b"HTTPS", b""]);
    let protocol = like(&[b"HTTP/1.1", b"HTTP/2", b""]);
    let body = like(BODIES);
    let raw = headers().prop_map(|lines| wire::HeaderMap {
        headers: lines
            .into_iter()
            .map(|wire::Pair { key, value }| wire::HeaderValue { key, value: Bytes::new(), raw_value: value })
            .collect(),
    });
    let lines = prop_oneof![
        5 => headers().prop_map(|lines| (lines, None)),
        4 => raw.clone().prop_map(|lines| (Vec::new(), Some(lines))),
        1 => (headers(), option::of(raw)),
    ];
    let size = prop_oneof![Just(0), Just(-1), 0..20_i64, any::<i64>()];
    // Mostly none: one that is there must have one form, and a type.
    let text = prop_oneof![5 => Just(Bytes::new()), 1 => body.clone()];
    let bytes = prop_oneof![9 => Just(Bytes::new()), 1 => body];
    ((method, path, host, scheme, protocol), lines, text, bytes, size)
        .prop_map(|((method, path, host, scheme, protocol), (headers, header_map), body, raw_body, size)| {
            wire::HttpRequest { method, path, host, scheme, protocol, headers, header_map, body, raw_body, size }
        })
        .boxed()
}

fn hostile_request() -> impl Strategy<Value = wire::CheckRequest> {
    // The last second of the year 9999, and those around it: where formats of time end.
    let seconds = prop_oneof![9 => 0..2_000_000_000_i64, 1 => any::<i64>(), 1 => 253_402_300_797..253_402_300_803_i64, 1 => -2..2_i64];
    let nanos = prop_oneof![1 => any::<i32>(), 9 => 0..1_000_000_000_i32];
    let time = option::of((seconds, nanos).prop_map(|(seconds, nanos)| wire::Timestamp { seconds, nanos }));
    let request = (time, option::weighted(0.95, hostile_http())).prop_map(|(time, http)| wire::Request { time, http });
    let sni = option::of(like(&[b"shop.example", b""])).prop_map(|sni| sni.map(|sni| wire::TlsSession { sni }));
    let peers = (option::of(hostile_peer()), option::of(hostile_peer()));
    let spaces = (option::of(hostile_metadata()), option::of(hostile_metadata()));
    let attributes = (peers, option::weighted(0.97, request), headers(), spaces, sni).prop_map(
        |(peers, request, pairs, spaces, tls)| wire::AttributeContext {
            source: peers.0,
            destination: peers.1,
            request,
            context_extensions: pairs,
            metadata_context: spaces.0,
            route_metadata_context: spaces.1,
            tls_session: tls,
        },
    );
    option::weighted(0.98, attributes).prop_map(|attributes| wire::CheckRequest { attributes })
}

#[test]
fn every_hostile_request_is_answered() {
    let ends = [
        "allow",
        "policy",
        "default_deny",
        "not_applicable",
        "unrouted",
        "policy_error",
        "incomplete",
        "path",
        "host",
        "identity",
        "attribute",
    ];
    all_are_answered(4096, hostile_request(), |request| request.encode_to_vec(), &ends);
}

#[test]
fn every_frame_is_answered() {
    all_are_answered(1024, vec(any::<u8>(), 0..200), |frame| frame, &["malformed"]);
}

/// An edit of a message at a place in it.
#[derive(Debug, Clone)]
enum Edit {
    Put(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, usize),
}

#[test]
fn every_damaged_recording_is_answered() {
    let edit = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Put(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 0..5)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<Index>(), 1..9_usize).prop_map(|(at, length)| Edit::Cut(at, length)),
    ];
    let frames = (1..=9_u32, vec(edit, 0..4)).prop_map(|(number, edits)| {
        let mut frame = recording(number, "bin");
        for edit in edits {
            let length = frame.len();
            match edit {
                Edit::Put(at, byte) => frame[at.index(length)] = byte,
                Edit::Insert(at, bytes) => {
                    let at = at.index(length);
                    frame.splice(at..at, bytes);
                }
                Edit::Cut(at, cut) => {
                    let at = at.index(length);
                    frame.drain(at..(at + cut).min(length));
                }
            }
        }
        frame
    });
    all_are_answered(2048, frames, |frame| frame, &["allow", "malformed", "path"]);
}
