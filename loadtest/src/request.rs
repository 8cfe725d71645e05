//! CheckRequests as Envoy 1.40 makes them: 13 headers, some 800 bytes.

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Metadata, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Timestamp, Value};

use crate::workload::Expect;

/// What a user of a service with folders asks, and the answer that its policies have for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// `sub` of the token.
    pub(crate) user: String,
    /// The one of `groups`.
    pub(crate) team: String,
    /// `GET` looks at the folder, `PUT` changes it.
    pub(crate) method: &'static str,
    pub(crate) folder: String,
    /// A query parameter.
    pub(crate) session: Option<String>,
    /// A header.
    pub(crate) tenant: String,
    /// The caller's side of the connection.
    pub(crate) address: String,
    pub(crate) expect: Expect,
}

const HOST: &str = "shop.example.com";

/// The year 2100: no token expires while it is measured.
const EXPIRES: f64 = 4_102_444_800.0;

impl Question {
    /// As Envoy asks it after its `jwt_authn` has verified the token and taken it out of the headers.
    pub(crate) fn request(&self) -> CheckRequest {
        let session = self.session.as_ref().map(|session| format!("?session={session}"));
        let path = format!("/folders/{}{}", self.folder, session.unwrap_or_default());
        let text = |text: &str| Kind::StringValue(text.into());
        let team = Value { kind: Some(text(&self.team)) };
        let payload = structure([
            ("iss", text("id.example.com")),
            ("sub", text(&self.user)),
            ("groups", Kind::ListValue(ListValue { values: vec![team] })),
            ("exp", Kind::NumberValue(EXPIRES)),
        ]);
        let verified = structure([("jwt_payload", Kind::StructValue(payload))]);
        let metadata = Metadata {
            filter_metadata: [("envoy.filters.http.jwt_authn".into(), verified)].into(),
            ..Metadata::default()
        };
        let own = ("x-tenant", self.tenant.as_str());
        check(self.method, &path, &self.address, own, metadata)
    }
}

/// A browser's GET with an opaque token.
pub(crate) fn product_list() -> CheckRequest {
    const TOKEN: &str = "Bearer 7c1f0a4e9b2d48e6a3f5c0d19e8b7a647c1f0a4e9b2d48e6a3f5c0d19e8b7a647c1f0a4e9b2d48e6a3f5c0d19e8b7a6417c1f0a4e9b2";
    let path = "/api/v1/products?lang=en&id=1";
    check("GET", path, "203.0.113.7", ("authorization", TOKEN), Metadata::default())
}

/// A request with twelve headers of a browser and one more.
fn check(method: &str, path: &str, address: &str, own: (&str, &str), metadata: Metadata) -> CheckRequest {
    let headers = [
        (":method", method),
        (":path", path),
        (":authority", HOST),
        (":scheme", "https"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        own,
        ("x-request-id", "e0d95bba-d1d0-4caa-a4a1-30d92d3cd21d"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", address),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let http = HttpRequest {
        id: "11121605496106669413".into(),
        method: method.into(),
        headers: headers.map(|(name, value)| (name.into(), value.into())).into(),
        path: path.into(),
        host: HOST.into(),
        scheme: "https".into(),
        protocol: "HTTP/2".into(),
        ..HttpRequest::default()
    };
    let time = Timestamp { seconds: 1_795_326_285, nanos: 840_910_000 };
    let attributes = AttributeContext {
        source: Some(peer(address, 39_012)),
        destination: Some(peer("10.1.2.3", 8443)),
        request: Some(Request { time: Some(time), http: Some(http) }),
        context_extensions: [("route".into(), "catch-all".into())].into(),
        metadata_context: Some(metadata),
        route_metadata_context: Some(Metadata::default()),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

fn structure<const N: usize>(fields: [(&str, Kind); N]) -> Struct {
    Struct { fields: fields.map(|(name, kind)| (name.into(), Value { kind: Some(kind) })).into_iter().collect() }
}

fn peer(address: &str, port: u32) -> Peer {
    let socket = SocketAddress {
        address: address.into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    let address = address::Address::SocketAddress(socket);
    Peer { address: Some(Address { address: Some(address) }), ..Peer::default() }
}

#[cfg(test)]
pub(crate) mod tests {
    use prost::Message as _;

    use super::*;

    /// Other bundles hold their questions against the same measure.
    #[test]
    fn requests_are_of_the_size_the_goals_are_stated_for() {
        assert_has_the_usual_size(product_list());
    }

    pub(crate) fn assert_has_the_usual_size(request: CheckRequest) {
        let size = request.encoded_len();
        assert!((780..=820).contains(&size), "{size} bytes");
        let http = request.attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!(http.headers.len(), 13);
    }
}
