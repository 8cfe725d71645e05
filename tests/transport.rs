//! Whoever sends decides what comes and when; not what that costs, and not how the check fails. docs/limits.md has the table that
//! these tests hold.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::process::Command;
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::serve::{
    ALLOW, CHECK, Raw, answer, bundle, channel, code, comes_to, decisions, enforced, frame, logged, metadata, metric,
    sidecar, start, status,
};
use testkit::certificates::Authority;
use testkit::{PATIENCE, Stockade, binary, config, get, http_get, request};

fn closed(listener: &str, reason: &str) -> String {
    format!("stockade_connections_closed_total{{listener=\"{listener}\",reason=\"{reason}\"}}")
}

/// A check on a connection of its own is decided.
async fn still_decides(stockade: &Stockade) {
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 0);
}

/// The same for a check that comes in many pieces.
async fn still_decides_large(stockade: &Stockade) {
    let mut raw = Raw::connect(stockade).await;
    let message = frame(&request("GET", "/", &[("x-large", &"x".repeat(60_000))]).encode_to_vec());
    let (response, mut body) = raw.open(CHECK, &[]).await;
    for piece in message.chunks(7_000) {
        body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
        // Each in a segment of its own: the connection answers a ping in between.
        tokio::task::yield_now().await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(code(&answer(response).await.response()), 0);
}

/// The end of a connection that the other side closes.
async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end in time");
}

// === what a client of the app could put into a check ===

#[tokio::test]
async fn headers_of_a_call_that_clients_choose_fail_no_check() {
    let stockade = sidecar("").await;
    let message = get("/").encode_to_vec();
    let long = "k=v,".repeat(32 << 10);
    let half = "x".repeat(64 << 10);
    let many: Vec<String> = (0..500).map(|n| format!("x-trace-{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "0123456789abcdef")).collect();
    let cases: [&[(&str, &str)]; 8] = [
        &[("tracestate", &long)],
        &[("tracestate", &half), ("baggage", &half)],
        &many,
        &[("tracestate", "caf\u{e9} \u{1f512}"), ("baggage", "a=\tb")],
        &[("tracestate", ""), ("tracestate", "a=1"), ("tracestate", "a=2"), ("traceparent", "00-zz-zz-zz")],
        &[("x-request-id", &long), ("traceparent", &half), ("b3", "0")],
        &[("trace-bin", "no base64!"), ("grpc-trace-bin", "AAAA")],
        &[("grpc-timeout", "soon"), ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "\u{ff}")],
    ];
    // All on one connection, since a connection that ends takes every other check with it.
    let mut raw = Raw::connect(&stockade).await;
    for (at, headers) in cases.iter().enumerate() {
        let size: usize = headers.iter().map(|(_, value)| value.len()).sum();
        assert_eq!(code(&raw.call(headers, &message).await.response()), 0, "case {at}, {size} bytes");
    }
}

/// What is too long fails its own check, and what is far too long ends the connection, as docs/limits.md says.
#[tokio::test]
async fn headers_beyond_the_limit_fail_their_check_alone() {
    let stockade = sidecar("http2: {header_list: 64KiB}").await;
    let message = get("/").encode_to_vec();
    let mut raw = Raw::connect(&stockade).await;
    for size in [60 << 10, 66 << 10, 70 << 10] {
        // Random, for HPACK to have nothing to shorten: as many bytes on the wire.
        let state = "!#$&*;<>".repeat(size / 8);
        let (response, _body) = raw.open(CHECK, &[("tracestate", &state)]).await;
        let status = if size < 64 << 10 {
            drop(response);
            assert_eq!(code(&raw.call(&[("tracestate", &state)], &message).await.response()), 0);
            continue;
        } else {
            timeout(PATIENCE, response).await.expect("an answer in time").unwrap().status()
        };
        assert_eq!(status, 431, "{size}");
        assert_eq!(code(&raw.call(&[], &message).await.response()), 0, "the next one on the same connection");
    }
    let (response, _body) = raw.open(CHECK, &[("tracestate", &"!#$&*;<>".repeat((128 << 10) / 8))]).await;
    // Whether its reason gets here depends on who is faster, the end or the rest of the headers.
    timeout(PATIENCE, response).await.expect("an end in time").expect_err("no answer");
    assert!(!raw.takes_calls().await, "the connection has ended");
    still_decides(&stockade).await;
}

#[tokio::test]
async fn trailers_are_no_reason_to_fail() {
    let stockade = sidecar("").await;
    let mut raw = Raw::connect(&stockade).await;
    let (response, mut body) = raw.open(CHECK, &[]).await;
    body.send_data(frame(&get("/").encode_to_vec()), false).unwrap();
    let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-why"), "not".parse().unwrap())]);
    body.send_trailers(trailers).unwrap();
    assert_eq!(code(&answer(response).await.response()), 0);
}

/// A reset in the answer's wake would count against the connection, and too many of them end it.
#[tokio::test]
async fn what_is_answered_early_is_read_to_its_end() {
    let stockade = sidecar("limits: {message: 64KiB}").await;
    let mut raw = Raw::connect(&stockade).await;
    let large = frame(&vec![0; 1 << 20]);
    for _ in 0..100 {
        let (response, mut body) = raw.open(CHECK, &[]).await;
        body.send_data(large.slice(..100), false).unwrap();
        let early = answer(response).await.response();
        assert_eq!((code(&early), status(&early), metadata(&early, "reason")), (7, ("denied", 400), "too_large"));
        // Whatever would have come after the answer is here now.
        assert_eq!(code(&raw.call(&[], &get("/").encode_to_vec()).await.response()), 0);
        body.send_data(large.slice(100..9_000), false).expect("not reset");
        body.send_data(large.slice(9_000..10_000), true).expect("not reset");
    }
    comes_to(&stockade, &decisions("unmapped", "deny", "too_large"), 100.0).await;
}

/// The same where no check is asked for.
#[tokio::test]
async fn other_methods_that_are_answered_early_are_read_to_their_end() {
    for (more, paths) in [
        ("http2: {reflection: true}", &["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"][..]),
        (
            "",
            &[
                "/grpc.health.v1.Health/Check",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/envoy.service.auth.v3.Authorization/Chek",
                "/",
            ],
        ),
    ] {
        let stockade = sidecar(more).await;
        let mut raw = Raw::connect(&stockade).await;
        // Its frame is larger than what these methods take.
        let large = frame(&vec![0; 1 << 20]);
        for path in paths {
            for _ in 0..50 {
                let (response, mut body) = raw.open(path, &[]).await;
                body.send_data(large.slice(..5_000), false).unwrap();
                // An error of the method, or the end of the stream of reflection.
                assert!(!answer(response).await.field("grpc-status").is_empty(), "{path}");
                // Whatever would have come after the answer is here now.
                assert_eq!(code(&raw.call(&[], &get("/").encode_to_vec()).await.response()), 0);
                body.send_data(large.slice(5_000..9_000), false).expect("not reset");
                body.send_data(large.slice(9_000..10_000), true).expect("not reset");
            }
        }
    }
}

// === what is given up ===

/// HTTP/2 by hand, in as few bytes as it takes, so that the sockets hold what is sent to a process that stands still.
struct Frames(TcpStream);

impl Frames {
    async fn connect(stockade: &Stockade) -> Self {
        let mut stream = TcpStream::connect(stockade.tcp()).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        Self(stream)
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A check of an empty message. The first one puts its path into the table of the connection.
    fn check(stream: u32, is_first: bool) -> Vec<u8> {
        let path = [&[0x44, u8::try_from(CHECK.len()).unwrap()][..], CHECK.as_bytes()].concat();
        let path = if is_first { path } else { vec![0x80 | 62] };
        // `:method: POST`, `:scheme: http`
        let headers = Self::frame(1, 4, stream, &[&[0x83, 0x86][..], &path].concat());
        [headers, Self::frame(0, 1, stream, &[0; 5])].concat()
    }

    fn reset(stream: u32) -> Vec<u8> {
        Self::frame(3, 0, stream, &8_u32.to_be_bytes())
    }

    /// The next frame: kind, stream and payload.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            Some((head[3], stream, payload))
        };
        timeout(PATIENCE, read).await.expect("a frame in time")
    }
}

/// Checks that were given up while the sidecar stood still, in rounds of as many as one connection may have, and then some that are in
/// time: how many of those are answered, or why the connection ended.
async fn given_up(rounds: u32) -> Result<usize, String> {
    let stockade = sidecar("http2: {max_concurrent_streams: 100}").await;
    let mut frames = Frames::connect(&stockade).await;
    frames.0.write_all(&Frames::check(1, true)).await.unwrap();
    while frames.next().await.expect("a frame").1 != 1 {}
    stockade.signal("STOP");
    let mut stream = 3;
    let mut bytes = Vec::new();
    for _ in 0..rounds {
        let round = (0..100).map(|n| stream + 2 * n);
        bytes.extend(round.clone().flat_map(|stream| Frames::check(stream, false)));
        bytes.extend(round.flat_map(Frames::reset));
        stream += 200;
    }
    let in_time: Vec<u32> = (0..100).map(|n| stream + 2 * n).collect();
    bytes.extend(in_time.iter().flat_map(|stream| Frames::check(*stream, false)));
    timeout(PATIENCE, frames.0.write_all(&bytes)).await.expect("the sockets hold them").unwrap();
    stockade.signal("CONT");
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < in_time.len() {
        let (kind, stream, payload) = frames.next().await.expect("a frame, not the end");
        if kind == 7 {
            return Err(String::from_utf8_lossy(&payload[8..]).into_owned());
        }
        if in_time.contains(&stream) && kind == 0 {
            answered.insert(stream);
        }
    }
    Ok(answered.len())
}

/// 16 rounds, as docs/limits.md says.
#[tokio::test]
async fn checks_given_up_while_it_stood_still_do_not_end_the_others() {
    assert_eq!(given_up(16).await, Ok(100));
    assert_eq!(given_up(17).await, Err("too_many_resets".to_owned()));
}

// === what does not come ===

#[tokio::test]
async fn the_least_of_both_deadlines_counts_from_the_first_byte() {
    let stockade = sidecar("limits: {deadline: 300ms}").await;
    let mut raw = Raw::connect(&stockade).await;
    // One that never ends, and none.
    for headers in [&[("grpc-timeout", "99999999H")][..], &[]] {
        let (response, mut body) = raw.open(CHECK, headers).await;
        body.send_data(Bytes::from_static(b"\0\0"), false).unwrap();
        let late = answer(response).await.response();
        assert_eq!((code(&late), status(&late), metadata(&late, "reason")), (14, ("error", 503), "deadline"));
    }
    drop(stockade);
    let stockade = sidecar("limits: {deadline: 1h}").await;
    let mut raw = Raw::connect(&stockade).await;
    let (response, _body) = raw.open(CHECK, &[("grpc-timeout", "200m")]).await;
    assert_eq!(metadata(&answer(response).await.response(), "reason"), "deadline");
}

/// Opens calls and sends this much of their message.
async fn leave_open(raw: &mut Raw, calls: usize, sent: &Bytes) -> Vec<impl Drop + use<>> {
    struct Held(#[allow(dead_code)] h2::client::ResponseFuture, #[allow(dead_code)] h2::SendStream<Bytes>);
    impl Drop for Held {
        fn drop(&mut self) {}
    }
    let mut held = Vec::new();
    for _ in 0..calls {
        let (response, mut body) = raw.open(CHECK, &[("grpc-timeout", "99999999H")]).await;
        if !sent.is_empty() {
            body.send_data(sent.clone(), false).unwrap();
        }
        held.push(Held(response, body));
    }
    held
}

#[tokio::test]
async fn open_streams_keep_nobody_out() {
    let stockade = sidecar("limits: {deadline: 1h}").await;
    let mut held = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(&stockade).await;
        held.push(leave_open(&mut raw, 1024, &Bytes::new()).await);
        connections.push(raw);
    }
    comes_to(&stockade, "stockade_messages_waiting", 4096.0).await;
    still_decides(&stockade).await;
    still_decides_large(&stockade).await;
    // Beyond the bound, those that have waited longest make room.
    let mut raw = Raw::connect(&stockade).await;
    held.push(leave_open(&mut raw, 1000, &Bytes::new()).await);
    reaches(&stockade, "stockade_messages_shed_total", 1000.0).await;
    assert!(metric(&stockade, "stockade_messages_waiting").await < 4097.0);
    still_decides(&stockade).await;
    still_decides_large(&stockade).await;
}

/// Waits until a counter has come so far.
async fn reaches(stockade: &Stockade, series: &str, least: f64) {
    testkit::until(series, async || (metric(stockade, series).await >= least).then_some(())).await;
}

/// `VmRSS` of a process, in MiB.
fn resident(stockade: &Stockade) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", stockade.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() >> 10
}

#[tokio::test]
async fn half_sent_messages_take_no_more_than_their_budget() {
    let stockade = sidecar("limits: {deadline: 1h, waiting_bytes: 8MiB}").await;
    still_decides_large(&stockade).await;
    let before = resident(&stockade);
    let half = frame(&vec![7; 1 << 20]).slice(..600_000);
    let mut held = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(&stockade).await;
        held.push(leave_open(&mut raw, 50, &half).await);
        connections.push(raw);
    }
    // A buffer grows by doubling, so eight of them are the budget.
    reaches(&stockade, "stockade_messages_shed_total", 390.0).await;
    assert!(metric(&stockade, "stockade_messages_waiting_bytes").await <= f64::from(8 << 20));
    still_decides(&stockade).await;
    still_decides_large(&stockade).await;
    let grown = resident(&stockade).saturating_sub(before);
    println!("{before} MiB, and {grown} with 400 half-sent messages of 600 kB");
    // 240 MB were sent. Each connection may hold a window of 1 MiB besides.
    assert!(grown < 64, "{before} MiB grew by {grown}");
}

#[tokio::test]
async fn other_methods_are_bounded_too() {
    let stockade = sidecar("limits: {deadline: 300ms}").await;
    let mut raw = Raw::connect(&stockade).await;
    let (response, mut body) = raw.open("/grpc.health.v1.Health/Check", &[]).await;
    // Half a message of 4 MiB.
    body.send_data(Bytes::from_static(b"\0\0\x40\0\0abc"), false).unwrap();
    assert_ne!(answer(response).await.field("grpc-status"), "0");
    let (response, _body) = raw.open("/grpc.health.v1.Health/Check", &[]).await;
    assert_eq!(answer(response).await.field("grpc-status"), "4");

    // As many watch as may; whoever only asks is answered all the same.
    let mut watching = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(&stockade).await;
        for _ in 0..600 {
            let (response, mut body) = raw.open("/grpc.health.v1.Health/Watch", &[]).await;
            body.send_data(frame(b""), true).unwrap();
            watching.push(response);
        }
        connections.push(raw);
    }
    let mut refused = 0;
    let mut streams = Vec::new();
    for response in watching {
        let response = timeout(PATIENCE, response).await.expect("an answer in time").unwrap();
        refused += usize::from(response.headers().get("grpc-status").is_some_and(|status| status == "8"));
        streams.push(response);
    }
    assert_eq!(refused, 1200 - 1024);
    let mut client = HealthClient::new(channel(&stockade).await);
    let health = client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
    assert_eq!(health, ServingStatus::Serving);
    still_decides(&stockade).await;
}

// === connections ===

#[tokio::test]
async fn a_connection_has_to_begin_to_ask_in_time() {
    let stockade = sidecar("http2: {handshake_timeout: 300ms, keep_alive_interval: 1h}").await;
    // Nothing, half a preface, a whole one, and with it all that HTTP/2 asks for but a call; the last one answers pings, too.
    let whole = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for beginning in [&b""[..], &whole[..22], &whole[..24], whole] {
        let mut stream = TcpStream::connect(stockade.tcp()).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        is_closed(&mut stream).await;
    }
    let stream = TcpStream::connect(stockade.tcp()).await.unwrap();
    let (_sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _: Result<(), h2::Error> = timeout(PATIENCE, connection).await.expect("an end in time");
    comes_to(&stockade, &closed("ext_authz", "handshake_timeout"), 5.0).await;
    // A request that is shorter than the preface.
    let mut stream = TcpStream::connect(stockade.tcp()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    is_closed(&mut stream).await;
    comes_to(&stockade, &closed("ext_authz", "not_http2"), 1.0).await;
    comes_to(&stockade, "stockade_connections{listener=\"ext_authz\"}", 0.0).await;
    still_decides(&stockade).await;
}

#[tokio::test]
async fn half_a_header_does_not_hold_a_connection() {
    let stockade = sidecar("http2: {keep_alive_interval: 100ms, keep_alive_timeout: 200ms}").await;
    // The first call, or one after others.
    for calls in [0, 1] {
        let mut frames = Frames::connect(&stockade).await;
        if calls > 0 {
            frames.0.write_all(&Frames::check(1, true)).await.unwrap();
            while frames.next().await.expect("a frame").1 != 1 {}
        }
        // The beginning of a frame of headers; whoever is in the middle of one cannot answer a ping.
        frames.0.write_all(&Frames::check(1 + 2 * calls, true)[..20]).await.unwrap();
        is_closed(&mut frames.0).await;
    }
    comes_to(&stockade, &closed("ext_authz", "keep_alive_timeout"), 2.0).await;
    still_decides(&stockade).await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let stockade = sidecar("http2: {handshake_timeout: 1h}\nlimits: {connections: 2}").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(stockade.tcp()).await.unwrap());
    }
    comes_to(&stockade, &closed("ext_authz", "shed"), 300.0 - 64.0).await;
    still_decides(&stockade).await;
    // The one that asked took the place of another, if it came before there was room.
    let open = metric(&stockade, "stockade_connections{listener=\"ext_authz\"}").await;
    assert!((63.0..=65.0).contains(&open), "{open}");
}

/// What a connection costs whoever opens it: a preface, no more.
#[tokio::test]
async fn connections_without_a_call_take_no_place_of_others() {
    let stockade = sidecar("http2: {handshake_timeout: 1h}\nlimits: {connections: 2}").await;
    let message = get("/").encode_to_vec();
    let (mut first, mut second) = (Raw::connect(&stockade).await, Raw::connect(&stockade).await);
    for raw in [&mut first, &mut second] {
        assert_eq!(code(&raw.call(&[], &message).await.response()), 0);
    }
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(Frames::connect(&stockade).await);
    }
    comes_to(&stockade, &closed("ext_authz", "shed"), 200.0 - 64.0).await;
    // Idle all the while, and still there.
    for raw in [&mut first, &mut second] {
        assert_eq!(code(&raw.call(&[], &message).await.response()), 0);
    }
    comes_to(&stockade, &closed("ext_authz", "displaced"), 0.0).await;
}

/// Whoever calls is served: the connection that was not called on for longest makes room, and loses no check by it.
#[tokio::test]
async fn the_connection_that_is_least_in_use_makes_room() {
    let stockade = sidecar("limits: {connections: 2, deadline: 1h}").await;
    let message = get("/").encode_to_vec();
    let (mut first, mut second) = (Raw::connect(&stockade).await, Raw::connect(&stockade).await);
    let (response, mut body) = second.open(CHECK, &[]).await;
    body.send_data(frame(&message).slice(..7), false).unwrap();
    comes_to(&stockade, "stockade_messages_waiting", 1.0).await;
    assert_eq!(code(&first.call(&[], &message).await.response()), 0);
    let mut third = Raw::connect(&stockade).await;
    assert_eq!(code(&third.call(&[], &message).await.response()), 0);
    // What was on its way there is still answered.
    body.send_data(frame(&message).slice(7..), true).unwrap();
    assert_eq!(code(&answer(response).await.response()), 0);
    comes_to(&stockade, &closed("ext_authz", "displaced"), 1.0).await;
    assert!(!second.takes_calls().await, "it is to call elsewhere");
    for raw in [&mut first, &mut third] {
        assert_eq!(code(&raw.call(&[], &message).await.response()), 0);
    }
    // Calls that are left open hold no connection either.
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(&stockade).await;
        let (response, body) = raw.open(CHECK, &[]).await;
        open.push((raw, response, body));
    }
    comes_to(&stockade, &closed("ext_authz", "displaced"), 21.0).await;
    still_decides(&stockade).await;
    comes_to(&stockade, "stockade_connections{listener=\"ext_authz\"}", 2.0).await;
}

async fn answers(sender: SendRequest<Bytes>) -> bool {
    let request = http::Request::post(format!("http://stockade{CHECK}")).body(()).unwrap();
    let Ok(mut sender) = sender.ready().await else { return false };
    let Ok((response, mut body)) = sender.send_request(request, false) else { return false };
    body.send_data(frame(&get("/").encode_to_vec()), true).is_ok() && response.await.is_ok()
}

#[tokio::test]
async fn requests_to_the_admin_endpoint_are_over_soon_or_make_room() {
    let stockade = sidecar("").await;
    let mut half_open = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(stockade.admin_address()).await.unwrap();
        // Some are closed by now.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n").await;
        half_open.push(stream);
        if half_open.len() == 100 {
            assert_eq!(stockade.admin("/readyz").await.0, 200);
        }
    }
    assert_eq!(stockade.admin("/readyz").await.0, 200);
    // Some were shed, some had their five seconds while the test got here.
    testkit::until("all but a few are closed", async || {
        let shed = metric(&stockade, &closed("admin", "shed")).await;
        let over = metric(&stockade, &closed("admin", "request_timeout")).await;
        (shed + over >= 300.0 - 32.0).then_some(())
    })
    .await;
    still_decides(&stockade).await;
    // The last ones were not in anybody's way, and still have an end.
    is_closed(half_open.last_mut().unwrap()).await;
    reaches(&stockade, &closed("admin", "request_timeout"), 1.0).await;
}

/// Those that have sent their head, and no more, have 30 seconds.
#[tokio::test]
async fn a_request_to_the_admin_endpoint_has_an_end() {
    let stockade = sidecar("").await;
    let mut stream = TcpStream::connect(stockade.admin_address()).await.unwrap();
    stream.write_all(b"POST /cache/lookup HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    is_closed(&mut stream).await;
    comes_to(&stockade, &closed("admin", "request_timeout"), 1.0).await;
}

/// Neither listener takes the descriptors of the other.
#[tokio::test]
async fn descriptors_are_shared_out() {
    let dir = TempDir::new().unwrap();
    bundle(&dir.path().join("bundle"), ALLOW);
    let more = "http2: {handshake_timeout: 1h}\nprobes: {listen: \"tcp://127.0.0.1:0\"}";
    let mut stockade = Stockade::start_with_open_files(128, &config(Path::new("bundle"), more), dir).await;
    let told = logged(&mut stockade, |line| line["open_files"] == 128).await;
    logged(&mut stockade, |line| line["message"] == "ready").await;
    let places = |name: &str| told[name].as_u64().unwrap();
    assert!(places("ext_authz") + places("admin") + places("probes") <= 64, "{told}");
    let probes = stockade.probes.clone().unwrap();
    let mut open = Vec::new();
    for _ in 0..300 {
        for address in [stockade.tcp(), stockade.admin_address(), &probes] {
            open.push(TcpStream::connect(address).await.unwrap());
        }
    }
    still_decides(&stockade).await;
    assert_eq!(stockade.admin("/readyz").await.0, 200);
    assert_eq!(http_get(&probes, "/readyz").await.0, 200);
    for listener in ["admin", "probes"] {
        assert!(metric(&stockade, &closed(listener, "shed")).await > 0.0, "{listener}");
    }
    // And a bundle can still be read.
    bundle(&stockade.dir.path().join("bundle"), "forbid (principal, action, resource);");
    enforced(&mut stockade, 2).await;
    assert_eq!(code(&stockade.check(get("/")).await.unwrap()), 7);
}

#[tokio::test]
async fn tls_is_bounded_and_asks_for_certificates() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let dir = TempDir::new().unwrap();
    bundle(&dir.path().join("bundle"), ALLOW);
    authority.write_server(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let tls =
        json!({"certificate": file("server.pem"), "private_key": file("server.key"), "client_ca": file("ca.pem")});
    let listen = json!([{"address": "tcp://127.0.0.1:0", "tls": tls}]);
    let more = format!("listen: {listen}\nhttp2: {{handshake_timeout: 2s}}");
    let config = config(Path::new("bundle"), &more);
    let mut stockade = start(dir, &config).await;
    let uri = "spiffe://shop/envoy";
    for (identity, expected) in [(Some((&authority, uri)), true), (Some((&stranger, uri)), false), (None, false)] {
        let stream = TcpStream::connect(stockade.tcp()).await.unwrap();
        let mut decided = false;
        // With TLS 1.3 a client learns that it was refused when it reads.
        if let Ok(stream) = authority.client(identity).connect("localhost".try_into().unwrap(), stream).await
            && let Ok((sender, connection)) = h2::client::handshake(stream).await
        {
            tokio::spawn(connection);
            decided = answers(sender).await;
        }
        assert_eq!(decided, expected, "{:?}", identity.map(|(_, uri)| uri));
    }
    comes_to(&stockade, &closed("ext_authz", "tls"), 2.0).await;
    // Who it was, where, and what was wrong.
    let told = logged(&mut stockade, |line| line["reason"] == "tls").await;
    assert_eq!(told["address"], format!("tcp://{}", stockade.tcp()), "{told}");
    assert!(told["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{told}");
    assert!(told["cause"].as_str().unwrap().contains("certificate"), "{told}");
    // Half a handshake, and a whole one without anything after it.
    let mut half = TcpStream::connect(stockade.tcp()).await.unwrap();
    half.write_all(b"\x16\x03\x01\x02\0").await.unwrap();
    is_closed(&mut half).await;
    let stream = TcpStream::connect(stockade.tcp()).await.unwrap();
    let client = authority.client(Some((&authority, uri)));
    let mut whole = client.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let _ = timeout(PATIENCE, whole.read_to_end(&mut Vec::new())).await.expect("an end in time");
    comes_to(&stockade, &closed("ext_authz", "handshake_timeout"), 2.0).await;
}

// === probes ===

/// Exit status and what is printed.
async fn probe(args: &[&str], dir: &Path) -> (i32, String) {
    let output = Command::new(binary()).arg("probe").args(args).current_dir(dir).output();
    let output = timeout(PATIENCE, output).await.expect("an end in time").unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(text.lines().count() <= 1, "one line: {text}");
    (output.status.code().unwrap(), text.trim().to_owned())
}

#[tokio::test]
async fn the_kubelet_asks_by_exec() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("admin.sock");
    let path = dir.path().to_owned();
    let more = format!("admin: {{listen: \"unix://{}\"}}\nfeed: {{poll: 100ms}}", socket.display());
    // Nothing is there yet, not even a configuration.
    let patient = ["--timeout", "30s"];
    let (status, text) = probe(&patient, &path).await;
    assert!(status == 1 && text.contains("stockade.yaml cannot be read"), "{text}");

    let mut stockade = Stockade::start(&config(Path::new("bundle"), &more), dir).await;
    let (status, text) = probe(&patient, &path).await;
    assert!(status == 1 && text.starts_with("not ready: no snapshot is in force yet"), "{text}");
    assert_eq!(probe(&["--live", "--timeout", "30s"], &path).await, (0, String::new()));
    bundle(&path.join("bundle"), ALLOW);
    logged(&mut stockade, |line| line["message"] == "ready").await;
    for args in [&["--ready"][..], &[], &["--admin", &format!("unix://{}", socket.display())]] {
        assert_eq!(probe(&[args, &patient].concat(), &path).await, (0, String::new()), "{args:?}");
    }
    // It is alive as long as it answers.
    stockade.signal("STOP");
    let (status, text) = probe(&["--live", "--timeout", "200ms"], &path).await;
    assert!(status == 1 && text.ends_with("did not answer within 200ms"), "{text}");
    stockade.signal("CONT");
    stockade.signal("TERM");
    assert_eq!(stockade.wait().await.code(), Some(0));
    let (status, text) = probe(&patient, &path).await;
    assert!(status == 1 && text.contains("cannot be asked"), "{text}");

    // Somebody else's socket, and addresses that say nothing.
    let dir = TempDir::new().unwrap();
    let other = dir.path().join("other.sock");
    let listener = UnixListener::bind(&other).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
            let _ = stream.read(&mut [0; 512]).await;
        }
    });
    let address = format!("unix://{}", other.display());
    let (status, text) = probe(&["--admin", &address, "--timeout", "30s"], dir.path()).await;
    assert!(status == 1 && text.ends_with("does not speak HTTP"), "{text}");
    for (more, expected) in [
        ("admin: {listen: none}", "neither `admin` nor `probes` listens"),
        ("admin: {listen: \"tcp://127.0.0.1:0\"}", "name it with `--admin`"),
    ] {
        fs::write(dir.path().join("own.yaml"), config(Path::new("bundle"), more)).unwrap();
        let (status, text) = probe(&["--config", "own.yaml"], dir.path()).await;
        assert!(status == 1 && text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn the_kubelet_asks_over_http() {
    let stockade = sidecar("admin: {listen: none}\nprobes: {listen: \"tcp://0.0.0.0:0\"}").await;
    let address = stockade.probes.clone().unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(http_get(&address, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(http_get(&address, "/livez").await, (200, "ok\n".to_owned()));
    for path in ["/", "/config", "/snapshot", "/metrics", "/cache", "/cache/clear"] {
        assert_eq!(http_get(&address, path).await.0, 404, "{path}");
    }
    let url = format!("tcp://{address}");
    assert_eq!(probe(&["--admin", &url, "--timeout", "30s"], stockade.dir.path()).await, (0, String::new()));
    stockade.signal("TERM");
}

#[tokio::test]
async fn the_admin_endpoint_answers_for_itself_alone() {
    let stockade = sidecar("admin: {listen: \"tcp://127.0.0.1:0\", hosts: [stockade.shop.svc]}").await;
    for (head, expected) in [
        ("GET /config HTTP/1.1\r\nhost: localhost", 200),
        ("GET /config HTTP/1.1\r\nhost: stockade.shop.svc:9192", 200),
        ("GET /livez HTTP/1.0", 200),
        ("GET /config HTTP/1.1\r\nhost: attacker.example", 421),
        ("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1.nip.io:9192", 421),
        ("GET http://attacker.example/config HTTP/1.1\r\nhost: localhost", 421),
        ("GET /config HTTP/1.1\r\nhost: localhost\r\nhost: attacker.example", 421),
        ("POST /cache/clear HTTP/1.1\r\nhost: attacker.example\r\ncontent-length: 0", 421),
        ("POST /cache/clear HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\ncontent-length: 0", 403),
        ("POST /cache/clear HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: cross-site\r\ncontent-length: 0", 403),
        ("POST /cache/clear HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0", 200),
    ] {
        let mut stream = TcpStream::connect(stockade.admin_address()).await.unwrap();
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(status, expected, "{head}: {answer}");
    }
    let shown: Json = serde_json::from_str(&stockade.admin("/config").await.1).unwrap();
    assert_eq!(shown["admin"]["hosts"], json!(["stockade.shop.svc"]));
}
