//! A CheckRequest as owned messages, for tests and for what makes requests; the hot path reads [`super::view`].
//!
//! Fields that protobuf calls `string` are bytes here, so that what is not
//! UTF-8 is refused by mapping with a named reason and not by the transport with a gRPC error, which fails open under
//! `failure_mode_allow` (CVE-2023-27488 had that shape). Field numbers are those of Envoy 1.40's descriptors; that both
//! decode alike is a test.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;

/// `envoy.service.auth.v3.CheckRequest`
#[derive(Clone, PartialEq, Message)]
pub struct CheckRequest {
    /// What Envoy knows of the request.
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<AttributeContext>,
}

/// `envoy.service.auth.v3.AttributeContext`
#[derive(Clone, PartialEq, Message)]
pub struct AttributeContext {
    /// The caller's side of the connection.
    #[prost(message, optional, tag = "1")]
    pub source: Option<Peer>,
    /// The service's side of the connection.
    #[prost(message, optional, tag = "2")]
    pub destination: Option<Peer>,
    /// The request.
    #[prost(message, optional, tag = "4")]
    pub request: Option<Request>,
    /// What the operator set for the route.
    #[prost(message, repeated, tag = "10")]
    pub context_extensions: Vec<Pair>,
    /// Metadata of filters, by namespace.
    #[prost(message, optional, tag = "11")]
    pub metadata_context: Option<Metadata>,
    /// The TLS session.
    #[prost(message, optional, tag = "12")]
    pub tls_session: Option<TlsSession>,
    /// Metadata of the route, by namespace.
    #[prost(message, optional, tag = "13")]
    pub route_metadata_context: Option<Metadata>,
}

/// One entry of a protobuf map of strings: on the wire a map is a list of these.
#[derive(Clone, PartialEq, Message)]
pub struct Pair {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `AttributeContext.Peer`
#[derive(Clone, PartialEq, Message)]
pub struct Peer {
    /// The transport address.
    #[prost(message, optional, tag = "1")]
    pub address: Option<Address>,
    /// Labels of the workload.
    #[prost(message, repeated, tag = "3")]
    pub labels: Vec<Pair>,
    /// The authenticated identity: a URI SAN, else a DNS SAN, else the subject.
    #[prost(bytes = "bytes", tag = "4")]
    pub principal: Bytes,
    /// The certificate, PEM, URL-encoded.
    #[prost(bytes = "bytes", tag = "5")]
    pub certificate: Bytes,
}

/// `envoy.config.core.v3.Address`, as far as it can be an IP address.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// An IP address and a port; pipes have neither.
    #[prost(message, optional, tag = "1")]
    pub socket_address: Option<SocketAddress>,
}

/// `envoy.config.core.v3.SocketAddress`
#[derive(Clone, PartialEq, Message)]
pub struct SocketAddress {
    /// The IP address.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// The port.
    #[prost(uint32, tag = "3")]
    pub port_value: u32,
}

/// `AttributeContext.Request`
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// When Envoy received its first byte.
    #[prost(message, optional, tag = "1")]
    pub time: Option<Timestamp>,
    /// The HTTP request.
    #[prost(message, optional, tag = "2")]
    pub http: Option<HttpRequest>,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, PartialEq, Message)]
pub struct Timestamp {
    /// Seconds since the epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `AttributeContext.HttpRequest`
#[derive(Clone, PartialEq, Message)]
pub struct HttpRequest {
    /// The method.
    #[prost(bytes = "bytes", tag = "2")]
    pub method: Bytes,
    /// Headers, repetitions joined with `,`.
    #[prost(message, repeated, tag = "3")]
    pub headers: Vec<Pair>,
    /// Path and query.
    #[prost(bytes = "bytes", tag = "4")]
    pub path: Bytes,
    /// `Host` or `:authority`.
    #[prost(bytes = "bytes", tag = "5")]
    pub host: Bytes,
    /// The scheme.
    #[prost(bytes = "bytes", tag = "6")]
    pub scheme: Bytes,
    /// The size of the body; -1 if unknown.
    #[prost(int64, tag = "9")]
    pub size: i64,
    /// The protocol.
    #[prost(bytes = "bytes", tag = "10")]
    pub protocol: Bytes,
    /// The body, as Envoy sends it by default.
    #[prost(bytes = "bytes", tag = "11")]
    pub body: Bytes,
    /// The body, with `pack_as_bytes`.
    #[prost(bytes = "bytes", tag = "12")]
    pub raw_body: Bytes,
    /// Headers one by one, with `encode_raw_headers`.
    #[prost(message, optional, tag = "13")]
    pub header_map: Option<HeaderMap>,
}

/// `envoy.config.core.v3.HeaderMap`
#[derive(Clone, PartialEq, Message)]
pub struct HeaderMap {
    /// In the order in which they came.
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<HeaderValue>,
}

/// `envoy.config.core.v3.HeaderValue`
#[derive(Clone, PartialEq, Message)]
pub struct HeaderValue {
    /// The name, in lower case.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value, if it was sent as text.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// The value, as it came.
    #[prost(bytes = "bytes", tag = "3")]
    pub raw_value: Bytes,
}

/// `envoy.config.core.v3.Metadata`
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// By namespace, which is the name of the filter that wrote it.
    #[prost(map = "string, message", tag = "1")]
    pub filter_metadata: HashMap<String, Struct>,
}

/// `google.protobuf.Struct`
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Its fields.
    #[prost(map = "string, message", tag = "1")]
    pub fields: HashMap<String, StructValue>,
}

/// `google.protobuf.Value`
#[derive(Clone, PartialEq, Message)]
pub struct StructValue {
    /// What it holds.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

/// The kinds of a [`StructValue`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// `null`
    #[prost(int32, tag = "1")]
    Null(i32),
    /// All numbers are doubles.
    #[prost(double, tag = "2")]
    Number(f64),
    /// A text.
    #[prost(string, tag = "3")]
    String(String),
    /// A boolean.
    #[prost(bool, tag = "4")]
    Bool(bool),
    /// A struct.
    #[prost(message, tag = "5")]
    Struct(Struct),
    /// A list.
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// `google.protobuf.ListValue`
#[derive(Clone, PartialEq, Message)]
pub struct ListValue {
    /// Its members.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<StructValue>,
}

/// `AttributeContext.TLSSession`
#[derive(Clone, PartialEq, Message)]
pub struct TlsSession {
    /// The server name that the client asked for.
    #[prost(bytes = "bytes", tag = "1")]
    pub sni: Bytes,
}
