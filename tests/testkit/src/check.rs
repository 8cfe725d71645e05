//! CheckRequests, as Envoy sends them.

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};

/// A GET of a path, as Envoy sends it, without an identity.
pub fn get(path: &str) -> CheckRequest {
    request("GET", path, &[])
}

/// A request with these headers, as Envoy sends it.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let pseudo = [(":method", method), (":path", path), (":authority", "bookstore.example"), (":scheme", "http")];
    let headers = pseudo.iter().chain(headers).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer { address: Some(socket("192.0.2.7", 40_000)), ..Peer::default() }),
            destination: Some(Peer { address: Some(socket("192.0.2.1", 8080)), ..Peer::default() }),
            request: Some(Request {
                time: None,
                http: Some(HttpRequest {
                    method: method.to_owned(),
                    path: path.to_owned(),
                    host: "bookstore.example".to_owned(),
                    scheme: "http".to_owned(),
                    protocol: "HTTP/1.1".to_owned(),
                    headers: headers.collect(),
                    ..HttpRequest::default()
                }),
            }),
            ..AttributeContext::default()
        }),
    }
}

fn socket(address: &str, port: u32) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}
