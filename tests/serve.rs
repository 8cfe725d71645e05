//! The sidecar as a process: how it starts, what it does with what no proxy should send, how it follows its bundles, what
//! it tells, and how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use testkit::{PATIENCE, Stockade, binary, config, get, repository, request};

const SERVICE: &str = "envoy.service.auth.v3.Authorization";
pub(crate) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

// === what the tests share ===

/// A bundle of one policy in a directory.
pub(crate) fn bundle(dir: &Path, policy: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("bundle.yaml"), "name: shop\n").unwrap();
    fs::write(dir.join("policy.cedar"), policy).unwrap();
}

pub(crate) const ALLOW: &str = "permit (principal, action, resource);";
const DENY: &str = "forbid (principal, action, resource);";

/// A sidecar that allows everything, with a bundle of its own beside its configuration.
pub(crate) async fn sidecar(more: &str) -> Stockade {
    let dir = TempDir::new().unwrap();
    bundle(&dir.path().join("bundle"), ALLOW);
    start(dir, &config(Path::new("bundle"), more)).await
}

pub(crate) async fn start(dir: TempDir, config: &str) -> Stockade {
    let mut stockade = Stockade::start(config, dir).await;
    logged(&mut stockade, |line| line["message"] == "ready").await;
    stockade
}

/// Runs a sidecar that cannot start, to its end.
fn cannot_start(config: &str) -> Output {
    let dir = TempDir::new().unwrap();
    bundle(&dir.path().join("bundle"), ALLOW);
    fs::write(dir.path().join("stockade.yaml"), config).unwrap();
    let child = Command::new(binary())
        .arg("serve")
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (pid, (sender, ended)) = (child.id(), std::sync::mpsc::channel());
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        testkit::process::signal(pid, "KILL");
        panic!("it started");
    })
}

pub(crate) async fn channel(stockade: &Stockade) -> Channel {
    Endpoint::from_shared(format!("http://{}", stockade.tcp())).unwrap().connect().await.unwrap()
}

pub(crate) fn code(response: &CheckResponse) -> i32 {
    response.status.as_ref().expect("a status").code
}

/// HTTP status and kind of an answer.
pub(crate) fn status(response: &CheckResponse) -> (&'static str, i32) {
    let status = |own: &Option<envoy_types::pb::envoy::r#type::v3::HttpStatus>| own.as_ref().expect("a status").code;
    match response.http_response.as_ref().expect("a body") {
        HttpResponse::OkResponse(_) => ("ok", 200),
        HttpResponse::DeniedResponse(denied) => ("denied", status(&denied.status)),
        HttpResponse::ErrorResponse(error) => ("error", status(&error.status)),
    }
}

pub(crate) fn metadata<'a>(response: &'a CheckResponse, name: &str) -> &'a str {
    match response.dynamic_metadata.as_ref().expect("metadata").fields[name].kind.as_ref() {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{name} is {other:?}"),
    }
}

/// The value of a series of `/metrics`.
pub(crate) async fn metric(stockade: &Stockade, series: &str) -> f64 {
    let (_, text) = stockade.admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

/// Waits until a series has this value: some are counted after the fact, and a scrape is all that tells.
pub(crate) async fn comes_to(stockade: &Stockade, series: &str, expected: f64) {
    let wait = async {
        while (metric(stockade, series).await - expected).abs() > 0.5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(PATIENCE, wait).await.is_err() {
        panic!("{series} is {}, not {expected}", metric(stockade, series).await);
    }
}

/// Waits for a line of the log, which may have come already.
pub(crate) async fn logged(stockade: &mut Stockade, wanted: impl Fn(&Json) -> bool) -> Json {
    loop {
        if let Some(line) = stockade.seen.iter().find(|line| wanted(line)) {
            return line.clone();
        }
        assert!(stockade.next_line().await.is_some(), "stockade ended: {:#?}", stockade.seen);
    }
}

fn refused(line: &Json) -> bool {
    line["message"].as_str().is_some_and(|text| text.starts_with("bundles refused"))
}

/// Waits until so many versions were put in force since the start.
pub(crate) async fn enforced(stockade: &mut Stockade, versions: usize) {
    let is_one = |line: &&Json| line["message"] == "bundles loaded and put in force";
    while stockade.seen.iter().filter(is_one).count() < versions {
        assert!(stockade.next_line().await.is_some(), "stockade ended: {:#?}", stockade.seen);
    }
}

pub(crate) fn decisions(kind: &str, outcome: &str, reason: &str) -> String {
    format!("stockade_decisions_total{{kind=\"{kind}\",outcome=\"{outcome}\",reason=\"{reason}\"}}")
}

async fn admin_json(stockade: &Stockade, path: &str) -> Json {
    serde_json::from_str(&stockade.admin(path).await.1).unwrap()
}

// --- gRPC by hand ---

/// An HTTP/2 connection, for calls that no gRPC library makes.
pub(crate) struct Raw(SendRequest<Bytes>);

/// An answer: headers and trailers in one list, and the messages of the body.
#[derive(Debug)]
pub(crate) struct Answer {
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(stockade: &Stockade) -> Self {
        let stream = TcpStream::connect(stockade.tcp()).await.unwrap();
        // Answers may pile up here.
        let (sender, connection) =
            h2::client::Builder::new().data_frame_budget(1 << 20).handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Opens a call and leaves its body open.
    pub(crate) async fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = http::Request::post(format!("http://stockade{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        let mut ready = self.0.clone().ready().await.unwrap();
        ready.send_request(request.body(()).unwrap(), false).unwrap()
    }

    /// Whether the server has not said that it closes the connection.
    pub(crate) async fn takes_calls(&self) -> bool {
        self.0.clone().ready().await.is_ok()
    }

    /// A whole call.
    pub(crate) async fn call(&mut self, headers: &[(&str, &str)], message: &[u8]) -> Answer {
        let (response, mut body) = self.open(CHECK, headers).await;
        body.send_data(frame(message), true).unwrap();
        answer(response).await
    }
}

/// A message in a gRPC frame, uncompressed.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len().try_into().unwrap());
    frame.put_slice(message);
    frame.freeze()
}

pub(crate) async fn answer(response: ResponseFuture) -> Answer {
    let receive = async {
        let (head, mut stream) = response.await.unwrap().into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data.unwrap();
            body.extend_from_slice(&data);
            stream.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = stream.trailers().await.unwrap().unwrap_or_default();
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        Answer { fields: head.headers.iter().map(text).chain(trailers.iter().map(text)).collect(), body }
    };
    timeout(PATIENCE, receive).await.expect("an answer in time")
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn response(&self) -> CheckResponse {
        assert_eq!(self.field("grpc-status"), "0", "{self:?}");
        CheckResponse::decode(&self.body[5..]).expect("a CheckResponse")
    }
}

// === the start ===

#[test]
fn a_taken_port_ends_the_start_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", taken.local_addr().unwrap());
    let bundles = "bundles: [{directory: bundle}]\n";
    for (config, words) in [
        (
            format!("{bundles}listen: [\"tcp://127.0.0.1:0\", \"{address}\"]\nadmin: {{listen: none}}"),
            format!("cannot listen on `{address}`: another process listens there (stop it, or choose another port)"),
        ),
        (
            format!("{bundles}listen: [\"tcp://127.0.0.1:0\"]\nadmin: {{listen: \"{address}\"}}"),
            format!("admin: cannot listen on `{address}`: another process listens there"),
        ),
    ] {
        let output = cannot_start(&config);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        let line: Json = serde_json::from_str(log.lines().last().unwrap()).expect("a line of the log");
        assert!(line["error"].as_str().unwrap().contains(&words), "{line}");
    }
}

#[test]
fn what_cannot_be_had_ends_the_start_and_is_named() {
    let config = |more: &str| {
        format!("bundles: [{{directory: bundle}}]\nlisten: [\"tcp://127.0.0.1:0\"]\nadmin: {{listen: none}}\n{more}")
    };
    let more = "decision_log: {output: \"file:///nowhere/log.jsonl\"}";
    let words = "cannot open the decision log `/nowhere/log.jsonl`";
    let output = cannot_start(&config(more));
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(words) && !log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn numbers_out_of_all_proportion_do_not_stop_the_start() {
    // A semaphore of tokio holds fewer permits than this.
    let stockade = sidecar("limits: {in_flight: 9223372036854775807}").await;
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
}

#[tokio::test]
async fn a_unix_socket_is_taken_over_from_the_dead_only() {
    let run = TempDir::new().unwrap();
    let socket = run.path().join("authz.sock");
    let listen = format!("listen: [\"unix://{}\"]", socket.display());
    let check = async || {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap();
        let response = AuthorizationClient::new(channel).check(get("/")).await.unwrap().into_inner();
        assert_eq!(code(&response), 0);
    };

    let mut first = sidecar(&listen).await;
    check().await;
    let output = cannot_start(&format!("bundles: [{{directory: bundle}}]\nadmin: {{listen: none}}\n{listen}"));
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on `unix://{}`", socket.display())), "{log}");
    // Whoever lost has not taken it away.
    check().await;

    first.signal("KILL");
    first.wait().await;
    assert!(socket.exists(), "nobody could clean up");
    let second = sidecar(&listen).await;
    check().await;
    assert_eq!(second.terminate().await.code(), Some(0));
    assert!(!socket.exists(), "an orderly end cleans up");
}

#[tokio::test]
async fn health_follows_the_bundle_and_the_end() {
    let dir = TempDir::new().unwrap();
    bundle(&dir.path().join("bundle"), "permit (principal);");
    let more = "shutdown: {grace: 60s, drain: 5s}\nfeed: {poll: 100ms}";
    let mut stockade = Stockade::start(&config(Path::new("bundle"), more), dir).await;
    logged(&mut stockade, refused).await;
    let mut client = HealthClient::new(channel(&stockade).await);
    let mut watched = Vec::new();
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let now = client.check(request.clone()).await.unwrap().into_inner().status();
        assert_eq!(now, ServingStatus::NotServing, "`{service}`");
        let mut stream = client.watch(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().status();
        assert_eq!(first, ServingStatus::NotServing, "`{service}`");
        watched.push(stream);
    }
    assert_eq!(stockade.admin("/readyz").await.0, 503);
    let undecided = stockade.check(get("/")).await.unwrap();
    assert_eq!((code(&undecided), status(&undecided)), (14, ("error", 503)));
    assert_eq!(metadata(&undecided, "reason"), "not_ready");

    bundle(&stockade.dir.path().join("bundle"), ALLOW);
    for stream in &mut watched {
        let next = timeout(PATIENCE, stream.message()).await.expect("news in time").unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::Serving);
    }
    assert_eq!(stockade.admin("/readyz").await.0, 200);
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);

    // Envoy is told before anything else happens.
    stockade.signal("TERM");
    for stream in &mut watched {
        let next = timeout(PATIENCE, stream.message()).await.expect("news in time").unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn reflection_is_there_where_it_is_asked_for() {
    let services = async |stockade: &Stockade| {
        let mut client = ServerReflectionClient::new(channel(stockade).await);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut stream = client.server_reflection_info(tokio_stream(request)).await?.into_inner();
        let response = stream.message().await?.expect("an answer");
        match response.message_response.expect("a list") {
            MessageResponse::ListServicesResponse(list) => {
                Ok::<_, tonic::Status>(list.service.into_iter().map(|service| service.name).collect::<BTreeSet<_>>())
            }
            other => panic!("{other:?}"),
        }
    };
    let without = sidecar("").await;
    assert_eq!(services(&without).await.unwrap_err().code(), tonic::Code::Unimplemented);
    let with = sidecar("http2: {reflection: true}").await;
    let listed = services(&with).await.unwrap();
    assert!(listed.contains(SERVICE) && listed.contains("grpc.health.v1.Health"), "{listed:?}");
}

/// A stream of one message.
fn tokio_stream<T: Send + 'static>(message: T) -> impl tonic::codegen::tokio_stream::Stream<Item = T> + Send {
    tonic::codegen::tokio_stream::once(message)
}

// === what no proxy should send ===

/// Whoever sends garbage must not choose the way that fails open: all of these are denials, none a gRPC error.
#[tokio::test]
async fn garbage_is_denied_with_400_and_counted() {
    let stockade = sidecar("limits: {message: 16KiB}").await;
    let mut raw = Raw::connect(&stockade).await;
    // Field 1 as a number, where a message should be; half a message; not protobuf at all.
    for garbage in [&b"\x08\x01"[..], b"\x0a\x05abc", b"GET / HTTP/1.1\r\n"] {
        let response = raw.call(&[], garbage).await.response();
        assert_eq!((code(&response), status(&response)), (7, ("denied", 400)), "{garbage:?}");
        assert_eq!(metadata(&response, "reason"), "malformed");
    }
    comes_to(&stockade, &decisions("unmapped", "deny", "malformed"), 3.0).await;

    let large = request("GET", "/", &[("x-large", &"x".repeat(20_000))]);
    let response = stockade.check(large.clone()).await.unwrap();
    assert_eq!((code(&response), status(&response)), (7, ("denied", 400)));
    assert_eq!(metadata(&response, "reason"), "too_large");
    // By the length that the frame declares, before it is all there.
    let (response, mut body) = raw.open(CHECK, &[]).await;
    let whole = frame(&large.encode_to_vec());
    body.send_data(whole.slice(..100), false).unwrap();
    assert_eq!(metadata(&answer(response).await.response(), "reason"), "too_large");
    comes_to(&stockade, &decisions("unmapped", "deny", "too_large"), 2.0).await;

    // And it goes on answering, on the same connection.
    let good = raw.call(&[], &get("/").encode_to_vec()).await;
    assert_eq!(code(&good.response()), 0);
}

#[tokio::test]
async fn there_is_one_method() {
    let stockade = sidecar("").await;
    let mut raw = Raw::connect(&stockade).await;
    for path in ["/envoy.service.auth.v3.Authorization/Chekc", "/envoy.service.auth.v2.Authorization/Check", "/"] {
        let (response, mut body) = raw.open(path, &[]).await;
        body.send_data(frame(b""), true).unwrap();
        let answer = answer(response).await;
        assert_eq!(answer.field("grpc-status"), "12", "{path}: {answer:?}");
        assert!(answer.body.is_empty(), "{path}: an answer, which allows if it has no status");
    }
}

#[tokio::test]
async fn what_is_too_much_is_shed_as_undecided() {
    let stockade = sidecar("limits: {in_flight: 1}").await;
    let mut raw = Raw::connect(&stockade).await;
    let message = get("/").encode_to_vec();
    let shedding = async {
        loop {
            // They come together, so the server has taken many before it gets to answer the first.
            let mut answers = Vec::new();
            for _ in 0..200 {
                let (response, mut body) = raw.open(CHECK, &[]).await;
                body.send_data(frame(&message), true).unwrap();
                answers.push(response);
            }
            let mut responses = Vec::new();
            for response in answers {
                responses.push(answer(response).await.response());
            }
            let shed = responses.iter().find(|response| code(response) != 0).cloned();
            if let Some(shed) = shed.filter(|_| responses.iter().any(|response| code(response) == 0)) {
                return shed;
            }
        }
    };
    let shed = timeout(PATIENCE, shedding).await.expect("nothing was shed in time");
    assert_eq!((code(&shed), status(&shed)), (14, ("error", 503)));
    assert_eq!((metadata(&shed, "decision"), metadata(&shed, "reason")), ("undecided", "overloaded"));
    assert!(metric(&stockade, &decisions("undecided", "undecided", "overloaded")).await >= 1.0);
    // And then there is a place again.
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
}

#[tokio::test]
async fn who_does_not_wait_any_more_is_not_decided_for() {
    let stockade = sidecar("").await;
    let mut raw = Raw::connect(&stockade).await;
    let message = get("/").encode_to_vec();
    let late = raw.call(&[("grpc-timeout", "1n")], &message).await.response();
    assert_eq!((code(&late), status(&late)), (14, ("error", 503)));
    assert_eq!(metadata(&late, "reason"), "deadline");
    comes_to(&stockade, &decisions("undecided", "undecided", "deadline"), 1.0).await;
    for good in ["1H", "99999999M", "60S"] {
        assert_eq!(code(&raw.call(&[("grpc-timeout", good)], &message).await.response()), 0, "{good}");
    }
    // What cannot be read is no deadline.
    assert_eq!(code(&raw.call(&[("grpc-timeout", "soon")], &message).await.response()), 0);
}

#[tokio::test]
async fn undecided_is_a_grpc_error_where_the_operator_says_so() {
    let dir = TempDir::new().unwrap();
    let stockade = Stockade::start(&config(Path::new("nowhere"), "undecided: grpc_status"), dir).await;
    let refused = stockade.check(get("/")).await.expect_err("an error");
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, "authorization unavailable: not_ready"));
    // Garbage is a denial all the same... once there is a bundle to say so.
    bundle(&stockade.dir.path().join("nowhere"), ALLOW);
    let decided = async {
        loop {
            if let Ok(response) = stockade.check(get("//")).await {
                return response;
            }
        }
    };
    let response = timeout(PATIENCE, decided).await.expect("a decision in time");
    assert_eq!((code(&response), status(&response)), (7, ("denied", 400)));
}

// === following the bundles ===

/// Publishes a version of a ConfigMap as the kubelet does: a new directory, and `..data` swapped to it at once.
fn publish(mount: &Path, version: &str, policy: &str) {
    bundle(&mount.join(format!("..{version}")), policy);
    let _ = fs::remove_file(mount.join("..data_tmp"));
    symlink(format!("..{version}"), mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    for file in ["bundle.yaml", "policy.cedar"] {
        let _ = symlink(format!("..data/{file}"), mount.join(file));
    }
}

#[tokio::test]
async fn a_swapped_config_map_is_enforced_and_a_bad_one_is_not() {
    let dir = TempDir::new().unwrap();
    let mount = dir.path().join("bundle");
    fs::create_dir(&mount).unwrap();
    publish(&mount, "v1", ALLOW);
    let mut stockade = start(dir, &config(Path::new("bundle"), "")).await;
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
    let first = admin_json(&stockade, "/snapshot").await;
    assert_eq!((&first["snapshot"]["generation"], &first["rejection"]), (&json!(1), &json!(null)));

    publish(&mount, "v2", DENY);
    enforced(&mut stockade, 2).await;
    let denied = stockade.check(get("/")).await.unwrap();
    assert_eq!((code(&denied), metadata(&denied, "reason")), (7, "policy"));
    let second = admin_json(&stockade, "/snapshot").await;
    assert_eq!(second["snapshot"]["generation"], 2);
    assert_ne!(second["snapshot"]["revision"], first["snapshot"]["revision"]);
    assert_eq!(metadata(&denied, "revision"), second["snapshot"]["revision"]["id"]);

    // A bad version: the last good one stays, and everybody can see why.
    publish(&mount, "v3", "permit (principal, action, resource) when { principal.nmae };");
    let line = logged(&mut stockade, refused).await;
    assert_eq!(line["message"], "bundles refused: the last good version stays in force");
    let rejected = async {
        loop {
            let shown = admin_json(&stockade, "/snapshot").await;
            if !shown["rejection"].is_null() {
                return shown;
            }
        }
    };
    let third = timeout(PATIENCE, rejected).await.expect("a rejection in time");
    assert_eq!(third["snapshot"], second["snapshot"]);
    let problems = third["rejection"]["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| problem.as_str().unwrap().contains("attribute `nmae`")), "{problems:?}");
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 7);
    assert_eq!(stockade.admin("/readyz").await.0, 200);

    for (series, expected) in [
        ("stockade_snapshot_generation", 2.0),
        ("stockade_snapshot_loads_total", 2.0),
        ("stockade_snapshot_rejections_total", 1.0),
        // The first version was there at the start: nobody waited for it.
        ("stockade_snapshot_lead_time_seconds_count", 1.0),
        ("stockade_snapshot_load_duration_seconds_count", 2.0),
        ("stockade_snapshot_policies", 1.0),
    ] {
        comes_to(&stockade, series, expected).await;
    }
    assert!(metric(&stockade, "stockade_snapshot_age_seconds").await < PATIENCE.as_secs_f64());

    // And back to a good one, which nobody refused.
    publish(&mount, "v4", ALLOW);
    enforced(&mut stockade, 3).await;
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
    let fourth = admin_json(&stockade, "/snapshot").await;
    assert_eq!((&fourth["snapshot"]["generation"], &fourth["rejection"]), (&json!(3), &json!(null)));
    // The same content has the same revision, whenever it comes.
    assert_eq!(fourth["snapshot"]["revision"], first["snapshot"]["revision"]);
}

// === what it tells ===

#[tokio::test]
async fn every_decision_leaves_one_record_and_no_secret() {
    let secret = "c2VjcmV0LXNlY3JldA";
    let dir = TempDir::new().unwrap();
    let more = "decision_log: {output: stdout, attributes: [context.source.address, context.headers, context.method]}";
    let config = config(&repository("policies/bookstore"), more).replace("format: json", "format: json, level: trace");
    let mut stockade = start(dir, &config).await;
    let mut raw = Raw::connect(&stockade).await;
    let secrets = [("authorization", secret), ("cookie", secret), ("proxy-authorization", secret)];
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let checks = [
        (request("GET", "/books", &secrets), "allow", "policy"),
        (request("GET", "/books/1", &secrets), "deny", "default_deny"),
        (request("GET", "/other", &secrets), "deny", "unrouted"),
        (request("GET", "//", &secrets), "deny", "path"),
        (CheckRequest::default(), "deny", "incomplete"),
    ];
    let mut ids = Vec::new();
    for (check, ..) in &checks {
        let response = raw.call(&[("traceparent", &parent)], &check.encode_to_vec()).await.response();
        ids.push(metadata(&response, "decision_id").to_owned());
    }
    let garbage = raw.call(&[("authorization", secret)], secret.as_bytes()).await.response();
    ids.push(metadata(&garbage, "decision_id").to_owned());
    stockade.signal("TERM");
    assert_eq!(stockade.wait().await.code(), Some(0));

    let stdout = stockade.stdout().await;
    let records: Vec<Json> = stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(records.len(), checks.len() + 1, "{stdout}");
    let expected = checks.iter().map(|(_, outcome, reason)| (*outcome, *reason)).chain([("deny", "malformed")]);
    for (at, (record, (outcome, reason))) in records.iter().zip(expected).enumerate() {
        let keys: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let always = [
            "action",
            "attributes",
            "cache",
            "decision_id",
            "determining",
            "errors",
            "latency_us",
            "outcome",
            "principal",
            "reason",
            "resource",
            "revision",
            "seq",
            "time",
        ];
        let sometimes = ["detail", "shadow", "trace_id"];
        assert!(always.iter().all(|key| keys.contains(key)), "{record:#}");
        assert!(keys.iter().all(|key| always.contains(key) || sometimes.contains(key)), "{record:#}");
        assert_eq!((&record["seq"], &record["decision_id"]), (&json!(at + 1), &json!(ids[at])));
        assert_eq!((&record["outcome"], &record["reason"]), (&json!(outcome), &json!(reason)), "{record:#}");
        assert_eq!(record["revision"].as_str().map(str::len), Some(12), "{record:#}");
        assert_eq!(record.get("trace_id"), (reason != "malformed").then_some(&json!(trace)), "{record:#}");
    }
    assert_eq!(records[0]["principal"], "Anonymous::\"anonymous\"");
    assert_eq!(records[0]["action"], "Action::\"listBooks\"");
    assert_eq!(records[0]["resource"], "Service::\"bookstore\"");
    assert_eq!(records[0]["determining"], json!(["bookstore/anyone-lists"]));
    let cache: Vec<&Json> = records.iter().map(|record| &record["cache"]).collect();
    assert_eq!(cache, ["miss", "miss", "off", "off", "off", "off"], "what no policy decided is not remembered");
    // What is named is logged where the request was mapped, whether policies read it or not.
    assert_eq!(records[1]["attributes"]["context.source.address"], "192.0.2.7");
    assert_eq!((&records[3]["principal"], &records[3]["attributes"]), (&json!(null), &json!({})));
    assert!(records[3]["detail"].as_str().unwrap().contains("double_slash"));

    while stockade.next_line().await.is_some() {}
    let log = serde_json::to_string(&stockade.seen).unwrap();
    assert!(log.contains("could not be mapped"), "not a log of all levels");
    for (output, name) in [(&stdout, "the decision log"), (&log, "the log")] {
        assert!(!output.contains(secret), "a secret is in {name}");
    }
}

/// Nobody reads the records, so they pile up; what cannot be logged is not decided.
#[tokio::test]
async fn nothing_is_decided_that_cannot_be_logged() {
    let more = "decision_log: {output: stdout, queue: 1, when_full: undecided}\nlimits: {deadline: 300ms}";
    let mut stockade = sidecar(more).await;
    let mut raw = Raw::connect(&stockade).await;
    let message = get("/").encode_to_vec();
    let mut answers = Vec::new();
    // A pipe holds 64 KiB, and a record takes a few hundred bytes.
    for _ in 0..5000 {
        let response = raw.call(&[], &message).await.response();
        answers.push((code(&response), metadata(&response, "decision_id").to_owned()));
        if code(&response) != 0 {
            assert_eq!((code(&response), status(&response)), (14, ("error", 503)));
            assert_eq!(metadata(&response, "reason"), "log_full");
        }
        // The first of them waits for the pipe until its deadline, the second in the queue, and the third finds that full.
        if answers.iter().filter(|(code, _)| *code == 14).count() == 3 {
            break;
        }
    }
    assert_eq!(answers.last().map(|(code, _)| *code), Some(14), "never full");
    assert!(metric(&stockade, "stockade_decision_log_lost_total{cause=\"queue_full\"}").await >= 1.0);
    assert!(metric(&stockade, &decisions("undecided", "undecided", "log_full")).await >= 1.0);

    // Somebody reads: it decides again.
    let mut lines = BufReader::new(stockade.take_stdout()).lines();
    let reading = tokio::spawn(async move {
        let mut records: Vec<Json> = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            records.push(serde_json::from_str(&line).expect("a whole line"));
        }
        records
    });
    let again = async {
        loop {
            let response = raw.call(&[], &message).await.response();
            answers.push((code(&response), metadata(&response, "decision_id").to_owned()));
            if code(&response) == 0 {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("a decision in time");
    assert_eq!(stockade.terminate().await.code(), Some(0));
    // Every allow has its record; every answer has its number, and those without a record show as gaps.
    let records = timeout(PATIENCE, reading).await.expect("all records in time").unwrap();
    let allows = records.iter().filter(|record| record["outcome"] == "allow");
    let logged: Vec<&str> = allows.map(|record| record["decision_id"].as_str().unwrap()).collect();
    let allowed: Vec<&str> = answers.iter().filter(|(code, _)| *code == 0).map(|(_, id)| id.as_str()).collect();
    // The one that the pipe had a part of when its caller gave up says more than was answered.
    let more: Vec<&&str> = logged.iter().filter(|id| !allowed.contains(id)).collect();
    assert!(allowed.iter().all(|id| logged.contains(id)) && more.len() <= 1, "{more:?}");
    assert!(records.iter().any(|record| record["reason"] == "log_full"), "the one in the queue was not let go");
    assert_eq!(records.last().unwrap()["seq"], answers.len());
}

#[tokio::test]
async fn every_documented_metric_is_there() {
    let stockade = sidecar("metrics: {policy_label: true}").await;
    stockade.check(get("/")).await.unwrap();
    let (status, text) = stockade.admin("/metrics").await;
    assert_eq!(status, 200);
    let documented = fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let names: Vec<&str> =
        documented.lines().filter_map(|line| line.strip_prefix("| `stockade_")?.split('`').next()).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in &names {
        let typed = text.lines().any(|line| line.starts_with(&format!("# TYPE stockade_{name} ")));
        assert!(typed && text.contains(&format!("\nstockade_{name}")), "no stockade_{name} in\n{text}");
    }
    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE stockade_")?.split(' ').next());
    let undocumented: Vec<&str> = served.filter(|name| !names.contains(name)).collect();
    assert_eq!(undocumented, Vec::<&str>::new());
    comes_to(&stockade, &decisions("decided", "allow", "policy"), 1.0).await;
    comes_to(&stockade, "stockade_determining_policy_total{policy=\"shop/policy\"}", 1.0).await;
    comes_to(&stockade, "stockade_check_duration_seconds_count", 1.0).await;
    comes_to(&stockade, "stockade_checks_in_flight", 0.0).await;
}

/// What policies read is told where the operator looks.
#[tokio::test]
async fn footprints_are_shown_at_the_admin_endpoint() {
    let dir = TempDir::new().unwrap();
    let policy =
        "permit (principal is Anonymous, action == Action::\"GET\", resource) when { context.path like \"/a*\" };";
    bundle(&dir.path().join("bundle"), policy);
    let stockade = start(dir, &config(Path::new("bundle"), "")).await;
    let shown = admin_json(&stockade, "/snapshot").await;
    let first = &shown["snapshot"]["footprints"][0];
    assert_eq!((&first["actions"], &first["hits"]), (&json!(["Action::\"GET\""]), &json!("few")), "{shown:#}");
    assert_eq!(first["places"][0]["place"], "context.path");
    assert_eq!(first["places"][0]["policies"][0]["id"], "shop/policy");
    assert_eq!(shown["snapshot"]["warnings"].as_array().map(Vec::len), Some(1), "{shown:#}");
    let (_, page) = stockade.admin("/").await;
    assert!(page.contains("<td>Action::&quot;GET&quot;<td>few<td>context.path<td>"), "{page}");
}

/// POSTs to a path of the admin endpoint: the answer's JSON.
async fn post(stockade: &Stockade, path: &str, body: &str) -> Json {
    let send = async {
        let mut stream = TcpStream::connect(stockade.admin_address()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, send).await.expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn the_cache_is_switched_while_it_runs() {
    let stockade = sidecar("").await;
    // Hits, and what is remembered, after so many equal checks.
    let after = async |checks: usize| {
        for _ in 0..checks {
            assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
        }
        let shown = admin_json(&stockade, "/cache").await;
        ["hits", "entries"].map(|name| shown[name].as_u64()).map(|count| count.expect("a number"))
    };
    assert_eq!(after(3).await, [2, 1]);
    let cleared = post(&stockade, "/cache/clear", "").await;
    assert_eq!((&cleared["enabled"], &cleared["entries"]), (&json!(true), &json!(0)));
    assert_eq!(after(2).await, [3, 1]);
    let off = post(&stockade, "/cache?enabled=false", "").await;
    assert_eq!((&off["enabled"], &off["entries"]), (&json!(false), &json!(0)));
    assert_eq!(after(2).await, [3, 0]);
    let on = post(&stockade, "/cache?enabled=true", "").await;
    assert_eq!((&on["enabled"], &on["entries"]), (&json!(true), &json!(0)));
    assert_eq!(after(2).await, [4, 1]);
    let shown = admin_json(&stockade, "/cache").await;
    assert_eq!((&shown["misses"]["absent"], &shown["capacity_bytes"]), (&json!(3), &json!(32 << 20)), "{shown:#}");
}

#[tokio::test]
async fn an_entry_of_the_cache_is_looked_up_by_its_request() {
    let stockade = sidecar("").await;
    let request = r#"{"attributes": {"request": {"http": {"method": "GET", "path": "/", "host": "shop.example"}}}}"#;
    let lookup = async || post(&stockade, "/cache/lookup", request).await;
    let before = lookup().await;
    assert_eq!((&before["cache"]["finds"], &before["cache"]["entry"]), (&json!("absent"), &Json::Null), "{before:#}");
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
    let found = lookup().await;
    let entry = &found["cache"]["entry"];
    assert_eq!((&found["cache"]["finds"], &entry["decision"]), (&json!("hit"), &json!("allow")), "{found:#}");
    assert_eq!((&entry["generation"], &found["query"]["action"]), (&json!(1), &json!("Action::\"GET\"")), "{found:#}");
    let (age, left) = (entry["age_ms"].as_u64().unwrap(), entry["left_ms"].as_u64().unwrap());
    assert!(left > 0 && age + left <= 30_000, "{found:#}");
    // Looking is not using.
    let shown = admin_json(&stockade, "/cache").await;
    assert_eq!((&shown["hits"], &shown["misses"]["absent"]), (&json!(0), &json!(1)), "{shown:#}");
    post(&stockade, "/cache?enabled=false", "").await;
    assert_eq!(lookup().await["cache"]["finds"], "off");
}

/// Nothing is evaluated for it and nothing is remembered, so it counts as neither.
#[tokio::test]
async fn a_request_that_no_route_names_is_denied_before_the_cache() {
    let dir = TempDir::new().unwrap();
    let stockade = start(dir, &config(&repository("policies/bookstore"), "")).await;
    for _ in 0..3 {
        assert_eq!(code(&stockade.check(get("/other")).await.unwrap()), 7);
    }
    let request =
        r#"{"attributes": {"request": {"http": {"method": "GET", "path": "/other", "host": "shop.example"}}}}"#;
    let lookup = async || post(&stockade, "/cache/lookup", request).await["cache"]["finds"].clone();
    assert_eq!(lookup().await, "unrouted");
    post(&stockade, "/cache?enabled=false", "").await;
    assert_eq!(code(&stockade.check(get("/other")).await.unwrap()), 7);
    assert_eq!(lookup().await, "unrouted");
    comes_to(&stockade, &decisions("decided", "deny", "unrouted"), 4.0).await;
    for series in ["stockade_evaluation_duration_seconds_count", "stockade_evaluation_candidates_count"] {
        assert_eq!(metric(&stockade, series).await, 0.0, "{series}");
    }
    let shown = admin_json(&stockade, "/cache").await;
    let misses: u64 = shown["misses"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!((misses, &shown["hits"]), (0, &json!(0)), "{shown:#}");
}

// === the end ===

#[tokio::test]
async fn a_signal_is_answered_by_an_orderly_end() {
    let mut stockade = sidecar("shutdown: {grace: 3s, drain: 60s}\nlimits: {deadline: 60s}").await;
    let mut raw = Raw::connect(&stockade).await;
    let message = get("/").encode_to_vec();
    // A check in flight: its body is half here.
    let (held, mut body) = raw.open(CHECK, &[]).await;
    body.send_data(frame(&message).slice(..7), false).unwrap();
    assert_eq!(code(&raw.call(&[], &message).await.response()), 0);

    stockade.signal("TERM");
    logged(&mut stockade, |line| line["phase"] == "Leaving").await;
    let not_ready = async {
        loop {
            let (status, body) = stockade.admin("/readyz").await;
            if status != 200 {
                return (status, serde_json::from_str::<Json>(&body).unwrap());
            }
        }
    };
    let told = timeout(PATIENCE, not_ready).await.expect("not ready in time");
    assert_eq!(told, (503, json!({"ready": false, "reasons": ["shutting down"]})));
    assert_eq!(stockade.admin("/livez").await.0, 200);
    // Envoy has not noticed yet, so it is answered: on old connections and on new ones.
    assert_eq!(code(&raw.call(&[], &message).await.response()), 0);
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);

    logged(&mut stockade, |line| line["phase"] == "Draining").await;
    // What is in flight comes to its end.
    body.send_data(frame(&message).slice(7..), true).unwrap();
    assert_eq!(code(&answer(held).await.response()), 0);
    drop(raw);
    assert_eq!(stockade.wait().await.code(), Some(0));
    let last = logged(&mut stockade, |line| line["message"] == "ended").await;
    assert_eq!(last["drained"], true);
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    for (second, expected) in [("TERM", 143), ("INT", 130)] {
        let mut stockade = sidecar("shutdown: {grace: 1h, drain: 1h}").await;
        stockade.signal("TERM");
        logged(&mut stockade, |line| line["phase"] == "Leaving").await;
        stockade.signal(second);
        assert_eq!(stockade.wait().await.code(), Some(expected));
    }
}

#[tokio::test]
async fn an_end_does_not_wait_for_ever() {
    let mut stockade = sidecar("shutdown: {grace: 0s, drain: 200ms}\nlimits: {deadline: 1h}").await;
    let mut raw = Raw::connect(&stockade).await;
    let (_held, mut body) = raw.open(CHECK, &[]).await;
    body.send_data(Bytes::from_static(b"\0"), false).unwrap();
    // It is there: one that came after it on the same connection was answered.
    assert_eq!(code(&raw.call(&[], &get("/").encode_to_vec()).await.response()), 0);
    stockade.signal("TERM");
    assert_eq!(stockade.wait().await.code(), Some(0));
    assert_eq!(logged(&mut stockade, |line| line["message"] == "ended").await["drained"], false);
}

// === size ===

#[tokio::test]
async fn a_thousand_policies_are_ready_soon() {
    let dir = TempDir::new().unwrap();
    let bundle = dir.path().join("bundle");
    fs::create_dir_all(bundle.join("policies")).unwrap();
    fs::write(bundle.join("bundle.yaml"), "name: shop\n").unwrap();
    for file in 0..100 {
        let policies: String = (0..10)
            .map(|at| {
                let n = file * 10 + at;
                format!(
                    "@id(\"p{n}\") permit (principal in Group::\"g{n}\", action == Action::\"GET\", resource) when {{
                         context.method == \"GET\" && context.path like \"/team-{n}/*\"
                     }};\n"
                )
            })
            .collect();
        fs::write(bundle.join(format!("policies/{file}.cedar")), policies).unwrap();
    }
    let start = Instant::now();
    let stockade = self::start(dir, &config(Path::new("bundle"), "")).await;
    println!(
        "1,000 policies, exec to ready: {:?}{}",
        start.elapsed(),
        if cfg!(debug_assertions) { " (debug build)" } else { "" }
    );
    comes_to(&stockade, "stockade_snapshot_policies", 1000.0).await;
    assert_eq!(code(&stockade.check(get("/team-7/x")).await.unwrap()), 7);
}
