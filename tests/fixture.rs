//! What tests of the library share: bundles and configurations that stand in the test, requests without a proxy, and
//! Queries in a form that a table can hold.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use prost::Message as _;
use serde_json::{Map, Value as Json, json};
use stockade::config::Config;
use stockade::decision::cache::{self, Cache};
use stockade::ext_authz::check::{Checked, Pipeline};
use stockade::model::{Attributes, Effect, Outcome, Overlay, Query, Value};
use stockade::observe::Metrics;
use stockade::observe::words;
use stockade::policy::{Files, Snapshot};
use stockade::problem::{Problem, SourceFile};
use stockade::proto::view;
use stockade::proto::wire::{
    Address, AttributeContext, CheckRequest, HeaderMap, HeaderValue, HttpRequest, Kind, ListValue, Metadata, Pair,
    Peer, Request, SocketAddress, Struct, StructValue, Timestamp,
};
use stockade::yaml;
use tokio::sync::watch;

// === bundles ===

/// A bundle of these files, by path.
pub fn files(root: &str, files: &[(&str, &str)]) -> Files {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    Files { root: root.to_owned(), files, changed: None }
}

/// The bundle `shop` of these files.
pub fn shop(more: &[(&str, &str)]) -> Files {
    files("shop", &[&[("bundle.yaml", "name: shop")], more].concat())
}

/// The bundle `shop` whose GET, POST and PUT have this context, and that allows everything.
pub fn shop_with_context(context: &str) -> Files {
    let schema = format!(
        "action \"GET\", \"POST\", \"PUT\", \"OPTIONS\", \"CONNECT\" appliesTo {{
            principal: [User, Workload, Anonymous], resource: [Service], context: {{ {context} }}
        }};"
    );
    shop(&[("schema.cedarschema", &schema), ("policies/all.cedar", EVERYTHING)])
}

/// Compiles bundles that are good.
pub fn compile(bundles: &[Files]) -> Arc<Snapshot> {
    match Snapshot::compile(bundles, None, &mut Default::default()) {
        Ok(snapshot) => Arc::new(snapshot),
        Err(problems) => panic!("not a good bundle: {:#?}", lines(&problems)),
    }
}

/// Compiles bundles, and puts them behind a snapshot, or first, with these overlays.
pub fn succeeding(
    previous: Option<&Snapshot>,
    bundles: &[Files],
    overlays: &[Overlay],
) -> Result<Snapshot, Vec<Problem>> {
    Ok(Snapshot::compile(bundles, None, &mut Default::default())?.succeeding(previous, overlays))
}

/// The problems of bundles that are not good, one line each.
pub fn problems(bundles: &[Files]) -> Vec<String> {
    match Snapshot::compile(bundles, None, &mut Default::default()) {
        Ok(snapshot) => panic!("a good bundle, with the warnings {:?}", lines(&snapshot.warnings)),
        Err(problems) => lines(&problems),
    }
}

/// A permit that can read the whole context, so that none of it is cut away.
pub const EVERYTHING: &str = "permit (principal, action, resource) when { [context].contains(context) };";

/// Problems, one line each.
pub fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

// === judging ===

/// A pipeline, and the snapshot that it checks under.
pub struct Court {
    pub pipeline: Pipeline,
    pub snapshot: Arc<Snapshot>,
}

impl Court {
    /// Checks under these bundles. `config` is what a configuration says beside `bundles`.
    pub fn new(bundles: &[Files], config: &str) -> Self {
        Self::under(compile(bundles), config)
    }

    /// Checks under this snapshot.
    pub fn under(snapshot: Arc<Snapshot>, config: &str) -> Self {
        let source = SourceFile::new("stockade.yaml", format!("bundles: [{{directory: .}}]\n{config}"));
        let config: Config = match yaml::parse(&source) {
            Ok(config) => config,
            Err(problems) => panic!("not a good configuration: {:?}", lines(&problems)),
        };
        let (_, snapshots) = watch::channel(Some(Arc::clone(&snapshot)));
        // Mapping and deciding are what these tests are about; tests/engine.rs is about remembering.
        let cache = Cache::new(cache::Config { enabled: false, ..config.cache.clone() });
        let (metrics, _) = Metrics::new(&config.metrics).unwrap();
        Self {
            pipeline: Pipeline::new(config.pipeline(), snapshots, Arc::new(config.proof()), Arc::new(cache), metrics),
            snapshot,
        }
    }

    /// What Cedar is asked, or `kind: detail` of the refusal; of a principal that lacks an attribute, Cedar is asked nothing.
    pub fn query(&self, request: &CheckRequest) -> Result<Query, String> {
        let frame = request.encode_to_vec();
        let request = view::CheckRequest::decode(&frame).expect("a CheckRequest");
        match self.pipeline.mapping.map(&request, &self.snapshot) {
            Ok(mapped) => match mapped.incomplete {
                Some(attribute) => Err(format!("unknown_principal: {attribute}")),
                None => Ok(mapped.query),
            },
            Err(unmapped) => Err(unmapped.to_string()),
        }
    }

    /// The context that Cedar is asked with, or `kind: detail` of the refusal.
    pub fn context(&self, request: &CheckRequest) -> Result<Json, String> {
        self.query(request).map(|query| shown_record(&query.context))
    }
}

/// The context of a request to `shop` under the default configuration, if this is what the schema declares.
pub fn context(declared: &str, request: &CheckRequest) -> Result<Json, String> {
    Court::new(&[shop_with_context(declared)], "service: shop").context(request)
}

/// A Query as JSON that tells all types apart: `{"ip": ..}` and the like for extension values, `{"entity": ..}`.
pub fn shown(query: &Query) -> Json {
    json!({
        "principal": query.principal.uid.to_string(),
        "attributes": shown_record(&query.principal.attributes),
        "parents": query.principal.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "proof": query.principal.proof.as_str(),
        "action": query.action.to_string(),
        "resource": query.resource.to_string(),
        "context": shown_record(&query.context),
    })
}

pub fn shown_record(record: &Attributes) -> Json {
    Json::Object(record.iter().map(|(name, value)| (name.to_string(), shown_value(value))).collect())
}

fn shown_value(value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::Long(value) => json!(value),
        Value::String(text) => json!(text.as_str()),
        Value::Entity(uid) => json!({"entity": uid.to_string()}),
        Value::Extension(extension, text) => {
            Json::Object(Map::from_iter([(extension.as_str().to_owned(), json!(text.as_str()))]))
        }
        Value::Set(members) => members.iter().map(shown_value).collect(),
        Value::Record(fields) => json!({"record": shown_record(fields)}),
    }
}

// === requests ===

/// A GET of `/` by an address of TEST-NET-1, without headers.
pub fn request() -> CheckRequest {
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer("192.0.2.7", 40_000)),
            destination: Some(peer("192.0.2.1", 8080)),
            request: Some(Request {
                time: Some(Timestamp { seconds: 1_795_326_285, nanos: 840_910_000 }),
                http: Some(HttpRequest {
                    method: "GET".into(),
                    path: "/".into(),
                    host: "shop.example".into(),
                    scheme: "http".into(),
                    protocol: "HTTP/1.1".into(),
                    ..HttpRequest::default()
                }),
            }),
            ..AttributeContext::default()
        }),
    }
}

/// That request with another attribute.
pub fn with(change: impl FnOnce(&mut AttributeContext)) -> CheckRequest {
    let mut request = request();
    change(request.attributes.as_mut().unwrap());
    request
}

/// That request with another HTTP request.
pub fn with_http(change: impl FnOnce(&mut HttpRequest)) -> CheckRequest {
    with(|attributes| change(attributes.request.as_mut().unwrap().http.as_mut().unwrap()))
}

/// A method and a target, otherwise as [`request`].
pub fn line(method: &str, target: &str) -> CheckRequest {
    with_http(|http| {
        http.method = Bytes::copy_from_slice(method.as_bytes());
        http.path = Bytes::copy_from_slice(target.as_bytes());
    })
}

/// A POST with a body of this type.
pub fn post(content_type: &str, body: &str) -> CheckRequest {
    with_http(|http| {
        http.method = "POST".into();
        http.headers = pairs(&[("content-type", content_type)]);
        http.size = body.len() as i64;
        http.body = Bytes::copy_from_slice(body.as_bytes());
    })
}

/// Joined headers, as Envoy sends them by default.
pub fn joined(headers: &[(&str, &str)]) -> CheckRequest {
    with_http(|http| http.headers = pairs(headers))
}

/// Headers one by one, as Envoy sends them with `encode_raw_headers`.
pub fn raw(headers: &[(&str, &[u8])]) -> CheckRequest {
    with_http(|http| http.header_map = Some(header_map(headers)))
}

pub fn header_map(headers: &[(&str, &[u8])]) -> HeaderMap {
    let line = |(name, value): &(&str, &[u8])| HeaderValue {
        key: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::copy_from_slice(value),
    };
    HeaderMap { headers: headers.iter().map(line).collect() }
}

pub fn pairs(entries: &[(&str, &str)]) -> Vec<Pair> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    entries.iter().map(|(key, value)| Pair { key: bytes(key), value: bytes(value) }).collect()
}

pub fn peer(address: &str, port: u32) -> Peer {
    let socket = SocketAddress { address: Bytes::copy_from_slice(address.as_bytes()), port_value: port };
    Peer { address: Some(Address { socket_address: Some(socket) }), ..Peer::default() }
}

/// That request by this mTLS peer.
pub fn by_peer(principal: &str) -> CheckRequest {
    with(|attributes| attributes.source.as_mut().unwrap().principal = Bytes::copy_from_slice(principal.as_bytes()))
}

/// A request as it comes over the wire.
pub fn frame(request: &CheckRequest) -> Bytes {
    request.encode_to_vec().into()
}

/// That request with a token that `jwt_authn` verified.
pub fn by_token(claims: Json) -> CheckRequest {
    with(|attributes| {
        let space = json!({"envoy.filters.http.jwt_authn": {"jwt_payload": claims}});
        attributes.metadata_context = Some(metadata(&space));
    })
}

/// Metadata by namespace.
pub fn metadata(spaces: &Json) -> Metadata {
    let spaces = spaces.as_object().unwrap();
    Metadata { filter_metadata: spaces.iter().map(|(name, space)| (name.clone(), fields(space))).collect() }
}

fn fields(json: &Json) -> Struct {
    let fields = json.as_object().unwrap();
    Struct { fields: fields.iter().map(|(name, value)| (name.clone(), struct_value(value))).collect() }
}

fn struct_value(json: &Json) -> StructValue {
    StructValue {
        kind: Some(match json {
            Json::Null => Kind::Null(0),
            Json::Bool(value) => Kind::Bool(*value),
            Json::Number(number) => Kind::Number(number.as_f64().unwrap()),
            Json::String(text) => Kind::String(text.clone()),
            Json::Array(values) => Kind::List(ListValue { values: values.iter().map(struct_value).collect() }),
            Json::Object(_) => Kind::Struct(fields(json)),
        }),
    }
}

// === properties ===

/// Runs a property over so many cases, or over as many as `PROPTEST_CASES` says. What a failure needs to be repeated
/// stands in its message.
pub fn holds<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value)) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&strategy, |value| {
        property(value);
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
}

/// Holds an answer against what must be true of every answer, and tells in a word why it came out as it did. There is
/// a snapshot, so nothing is Undecided: that would be a fault of ours.
pub fn sound(checked: &Checked) -> &'static str {
    let answer = checked.response.as_ref().expect("an answer: a gRPC error is for the Undecided");
    let response = answer.response().expect("a CheckResponse");
    // Envoy allows an answer without a status.
    let code = response.status.as_ref().expect("a status").code;
    let allowed = matches!(&checked.outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
    assert_eq!(code == 0, allowed, "{checked:?}");
    match (&checked.outcome, response.http_response.as_ref().expect("a body")) {
        (Outcome::Decided(_), HttpResponse::OkResponse(_)) => assert!(allowed, "{checked:?}"),
        (Outcome::Decided(_), HttpResponse::DeniedResponse(denied)) => {
            let status = denied.status.as_ref().expect("an HTTP status").code;
            assert!((300..600).contains(&status), "{checked:?}");
        }
        (Outcome::Unmapped(_), HttpResponse::DeniedResponse(denied)) => {
            assert_eq!(denied.status.as_ref().expect("an HTTP status").code, 400, "{checked:?}");
        }
        _ => panic!("an outcome and a body that do not belong together: {checked:?}"),
    }
    let (_, reason) = words(&checked.outcome);
    if allowed { "allow" } else { reason }
}
