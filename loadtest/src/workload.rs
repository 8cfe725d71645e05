//! What is asked, what Stockade is told so that it can answer, and which answer is right.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::ValueEnum;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use envoy_types::pb::google::protobuf::Timestamp;
use prost::Message;

use crate::client::Decision;

/// The files Stockade is started with: a path below the configuration's directory, and the text.
pub(crate) type Files = &'static [(&'static str, &'static str)];

/// The configuration's file name in every [`Files`].
pub(crate) const CONFIG: &str = "stockade.yaml";

/// A workload is asked of every target in the same way.
pub(crate) struct Workload {
    /// What Stockade is started with. Only `compare` starts one.
    pub(crate) files: Files,
    /// Whole gRPC messages, encoded once, sent in turn. Never empty.
    pub(crate) requests: Vec<Bytes>,
    /// What every answer must be.
    pub(crate) expect: Expect,
}

/// The decision that counts as right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Expect {
    Allow,
    Deny,
    /// Either, but a decision it must be.
    Any,
}

/// One policy, one request, always allowed: the price of a call and little else.
const ONE_POLICY: Files = &[
    (
        CONFIG,
        r#"service: bench
workers: 1
listen: ["tcp://127.0.0.1:0"]
bundles:
  - directory: ./bundle
admin:
  listen: "tcp://127.0.0.1:0"
decision_log:
  output: none
log:
  format: json
"#,
    ),
    ("bundle/bundle.yaml", "name: bench\n"),
    (
        "bundle/policies/allow.cedar",
        r#"@id("allow-get")
permit (principal, action == Action::"GET", resource == Service::"bench");
"#,
    ),
];

// === impl Workload ===

impl Workload {
    pub(crate) fn one_policy(expect: Expect) -> Self {
        let requests = vec![framed(&product_list().encode_to_vec())];
        Self { files: ONE_POLICY, requests, expect }
    }

    /// Reads encoded `CheckRequest`s, one a file, as a recording of Envoy's calls has them.
    pub(crate) fn from_files(paths: &[PathBuf], expect: Expect) -> anyhow::Result<Self> {
        let requests = paths.iter().map(|path| read(path)).collect::<anyhow::Result<_>>()?;
        Ok(Self { files: ONE_POLICY, requests, expect })
    }
}

// === impl Expect ===

impl Expect {
    pub(crate) fn admits(self, decision: Decision) -> bool {
        match self {
            Self::Allow => decision == Decision::Allow,
            Self::Deny => decision == Decision::Deny,
            Self::Any => true,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
    let name = path.display();
    let message = std::fs::read(path).with_context(|| format!("cannot read `{name}`"))?;
    CheckRequest::decode(message.as_slice()).with_context(|| format!("`{name}` is no encoded CheckRequest"))?;
    Ok(framed(&message))
}

/// A message as gRPC puts it into the body: not compressed, its length, its bytes.
fn framed(message: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    // No request comes near the 4 GiB at which this would saturate.
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(message);
    body.freeze()
}

/// A browser's GET as Envoy 1.40 asks about it: 13 headers, some 800 bytes.
fn product_list() -> CheckRequest {
    const PATH: &str = "/api/v1/products?lang=en&id=1";
    const HOST: &str = "shop.example.com";
    let headers = [
        (":method", "GET"),
        (":path", PATH),
        (":authority", HOST),
        (":scheme", "https"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        (
            "authorization",
            "Bearer 7c1f0a4e9b2d48e6a3f5c0d19e8b7a647c1f0a4e9b2d48e6a3f5c0d19e8b7a647c1f0a4e9b2d48e6a3f5c0d19e8b7a6417c1f0a4e9b2",
        ),
        ("x-request-id", "e0d95bba-d1d0-4caa-a4a1-30d92d3cd21d"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "203.0.113.7"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let http = HttpRequest {
        id: "11121605496106669413".into(),
        method: "GET".into(),
        headers: headers.map(|(name, value)| (name.into(), value.into())).into(),
        path: PATH.into(),
        host: HOST.into(),
        scheme: "https".into(),
        protocol: "HTTP/2".into(),
        ..HttpRequest::default()
    };
    let time = Timestamp { seconds: 1_795_326_285, nanos: 840_910_000 };
    let attributes = AttributeContext {
        source: Some(peer("203.0.113.7", 39_012)),
        destination: Some(peer("10.1.2.3", 8443)),
        request: Some(Request { time: Some(time), http: Some(http) }),
        context_extensions: [("route".into(), "catch-all".into())].into(),
        metadata_context: Some(Default::default()),
        route_metadata_context: Some(Default::default()),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
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
mod tests {
    use super::*;

    #[test]
    fn the_request_is_of_the_size_the_goals_are_stated_for() {
        let request = product_list();
        let size = request.encoded_len();
        assert!((780..=820).contains(&size), "{size} bytes");
        let http = request.attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!(http.headers.len(), 13);
    }

    #[test]
    fn a_frame_tells_its_length() {
        assert_eq!(framed(b"abc").as_ref(), b"\0\0\0\0\x03abc");
    }
}
