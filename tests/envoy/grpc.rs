//! What a gRPC client gets: Envoy makes a gRPC status of the HTTP status of a denial.

use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::lab::{Lab, Listener, bundle};
use testkit::Stockade;
use testkit::upstream::Upstream;

const ROUTES: &str = "
routes:
  - {match: grpc lab.v1.Lab/Allowed, action: allowed}
  - {match: grpc lab.v1.Lab/Denied, action: denied}
  - {match: grpc lab.v1.Lab/Unauthenticated, action: unauthenticated}
  - {match: grpc lab.v1.Lab/Forbidden, action: forbidden}
  - {match: grpc lab.v1.Lab/Missing, action: missing}
  - {match: grpc lab.v1.Lab/Slower, action: slower}
  - {match: grpc lab.v1.Lab/Redirected, action: redirected}
  - {match: grpc lab.v1.Lab/Legal, action: legal}
";

const SCHEMA: &str = r#"
action "allowed", "denied", "unauthenticated", "forbidden", "missing", "slower", "redirected", "legal" appliesTo {
    principal: [Anonymous], resource: [Service], context: { grpc?: { service: String, method: String } },
};
"#;

const POLICIES: &str = r#"
@id("all") permit (principal, action, resource) unless { action == Action::"denied" };
@id("forbidden") @message("no") forbid (principal, action == Action::"forbidden", resource) when {
    context has grpc && context.grpc.service == "lab.v1.Lab" && context.grpc.method == "Forbidden"
};
@id("unauthenticated") @status("401") @message("who are you?") @header("www-authenticate: Bearer")
forbid (principal, action == Action::"unauthenticated", resource);
@id("missing") @status("404") @message("100% \"nothing\" here") forbid (principal, action == Action::"missing", resource);
@id("slower") @status("429") forbid (principal, action == Action::"slower", resource);
@id("redirected") @location("https://login.example/") forbid (principal, action == Action::"redirected", resource);
@id("legal") @status("451") forbid (principal, action == Action::"legal", resource);
"#;

#[tokio::test]
async fn grpc_clients_get_grpc_statuses() {
    let good = bundle(&[("routes.yaml", ROUTES), ("schema.cedarschema", SCHEMA), ("policies/all.cedar", POLICIES)]);
    let broken = bundle(&[("policies/broken.cedar", "permit")]);
    let ready = Stockade::with_bundle(good.path(), "").await;
    let undecided = Stockade::start(&testkit::config(broken.path(), ""), tempfile::TempDir::new().unwrap()).await;
    let upstream = Upstream::start().await;
    let mut envoy = Lab::new(&upstream)
        .sidecar("ready", &ready.addresses[0])
        .sidecar("undecided", &undecided.addresses[0])
        .sidecar("down", &format!("unix://{}/nobody.sock", good.path().display()))
        .listener("ready", "ready", Listener::default())
        .listener("undecided", "undecided", Listener::default())
        .listener("down", "down", Listener::default())
        .start()
        .await;

    // Listener, method, gRPC status and message; behind it, the HTTP status of which Envoy makes the first.
    let table = [
        ("ready", "Forbidden", Code::PermissionDenied, "no"),         // 403
        ("ready", "Denied", Code::PermissionDenied, "access denied"), // 403
        ("ready", "Unauthenticated", Code::Unauthenticated, "who are you?"), // 401
        ("ready", "Missing", Code::Unimplemented, "100% \"nothing\" here"), // 404
        ("ready", "Slower", Code::Unavailable, "access denied"),      // 429
        ("ready", "Legal", Code::Unknown, "access denied"),           // 451
        // A redirect means nothing to such a client.
        ("ready", "Redirected", Code::PermissionDenied, "access denied"), // 403
        ("ready", "Un%2fmapped", Code::Internal, ""),                     // 400
        ("ready", "Un;mapped", Code::Internal, "bad request: path"),      // 400
        ("undecided", "Allowed", Code::Unavailable, "authorization unavailable: not_ready"), // 503
        ("down", "Allowed", Code::Unavailable, ""),                       // 503
    ];
    for (listener, method, code, message) in table {
        let status = call(envoy.listener(listener), method).await;
        assert_eq!((status.code(), status.message()), (code, message), "{listener} {method}: {status:?}");
        assert_eq!(envoy.logged().await["code"], 200, "{listener} {method}");
        if method == "Unauthenticated" {
            assert_eq!(status.metadata().get("www-authenticate").unwrap(), "Bearer", "{status:?}");
        }
        assert!(upstream.take().is_empty(), "{listener} {method}");
    }

    // The upstream here does not speak gRPC, but it is asked.
    call(envoy.listener("ready"), "Allowed").await;
    let seen = upstream.take();
    assert_eq!((seen.len(), &*seen[0].target), (1, "/lab.v1.Lab/Allowed"));
}

/// Calls a method with an empty message, as a client of tonic does.
async fn call(address: std::net::SocketAddr, method: &str) -> Status {
    let channel = tonic::transport::Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/lab.v1.Lab/{method}")).unwrap();
    let call = client.unary(Request::new(()), path, Empty);
    tokio::time::timeout(testkit::PATIENCE, call).await.expect("an answer in time").expect_err("no gRPC upstream")
}

/// Messages without fields.
struct Empty;

impl Codec for Empty {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Empty {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Empty {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}
