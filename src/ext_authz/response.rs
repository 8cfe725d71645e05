//! The one place where outcomes become wire.
//!
//! Envoy reads only the status of an answer: one without a status allows, and so does one with status OK that carries a
//! denial (contract, 1.3). So a CheckResponse is built here and nowhere else, from an [`Outcome`], by a function in
//! which those pairs cannot be written.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use deserr::Deserr;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{BoolValue, ListValue, Struct, Value};
use envoy_types::pb::google::rpc;
use serde::Serialize;
use tonic::Status;

use super::wire;
use crate::model::{CacheState, Decision, Denial, Effect, Outcome, Query, Undecided, Unmapped};
use crate::yaml::{Faults, Invalid};

/// What the operator says about answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// How Undecided looks on the wire.
    pub undecided: UndecidedAnswer,
    /// Headers that the upstream gets with an allowed request.
    pub upstream_headers: BTreeMap<HeaderName, HeaderSource>,
    /// Headers that the upstream does not get.
    pub remove_headers: Vec<HeaderName>,
}

/// `undecided:` of the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults)]
#[serde(rename_all = "snake_case")]
pub enum UndecidedAnswer {
    /// A CheckResponse with an `error_response`, which Envoy counts as an error and answers with its 503.
    #[default]
    #[deserr(rename = "error_response")]
    ErrorResponse,
    /// A gRPC error, for proxies that do not know `error_response` and would take its status for a denial.
    #[deserr(rename = "grpc_status")]
    GrpcStatus,
}

/// A header that Stockade may set or remove.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = HeaderName::parse -> Invalid)]
#[serde(transparent)]
pub struct HeaderName(String);

impl HeaderName {
    fn parse(text: String) -> Result<Self, Invalid> {
        let name = http::HeaderName::from_bytes(text.as_bytes())
            .map_err(|_| Invalid::new(format!("`{text}` is not a header name")))?;
        if ["host", "content-length", "transfer-encoding", "connection"].contains(&name.as_str()) {
            return Err(Invalid::new(format!("`{text}` is not ours to set or remove")));
        }
        Ok(Self(name.as_str().to_owned()))
    }
}

impl std::str::FromStr for HeaderName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text.to_owned())
    }
}

/// Where the value of an upstream header comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = HeaderSource::parse -> Invalid)]
pub enum HeaderSource {
    /// `User::"alice"`
    Principal,
    /// `alice`
    PrincipalId,
    /// The id under which the decision log knows it.
    DecisionId,
    /// The revision it was made under.
    Revision,
    /// A claim of the token.
    Claim(String),
}

impl HeaderSource {
    fn parse(text: String) -> Result<Self, Invalid> {
        Ok(match text.as_str() {
            "principal" => Self::Principal,
            "principal_id" => Self::PrincipalId,
            "decision_id" => Self::DecisionId,
            "revision" => Self::Revision,
            other => match other.strip_prefix("claim:") {
                Some(claim) if !claim.is_empty() => Self::Claim(claim.to_owned()),
                _ => {
                    return Err(Invalid::new(format!("`{text}` is not something a header can be set to"))
                        .hint("`principal`, `principal_id`, `decision_id`, `revision` or `claim:<name>`"));
                }
            },
        })
    }
}

impl Serialize for HeaderSource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Principal => serializer.serialize_str("principal"),
            Self::PrincipalId => serializer.serialize_str("principal_id"),
            Self::DecisionId => serializer.serialize_str("decision_id"),
            Self::Revision => serializer.serialize_str("revision"),
            Self::Claim(claim) => serializer.collect_str(&format_args!("claim:{claim}")),
        }
    }
}

/// Everything an answer is built from.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// What became of the request.
    pub outcome: &'a Outcome,
    /// What Cedar was asked, if the request could be mapped.
    pub query: Option<&'a Query>,
    /// The claims of the principal's token.
    pub claims: Option<&'a wire::Struct>,
    /// The id under which the decision log knows it.
    pub decision_id: &'a str,
    /// Whether the caller speaks gRPC.
    pub grpc: bool,
}

/// gRPC codes, as CheckResponse.status carries them. Envoy knows zero and non-zero.
const OK: i32 = 0;
const PERMISSION_DENIED: i32 = 7;
const UNAVAILABLE: i32 = 14;

impl Answers {
    /// The answer on the wire.
    ///
    /// # Errors
    /// Undecided as a gRPC error, where the operator chose that.
    pub fn respond(&self, answered: Answered<'_>) -> Result<CheckResponse, Status> {
        let (code, http_response) = match answered.outcome {
            Outcome::Decided(decision) => match (decision.effect, &decision.denial) {
                (Effect::Allow, _) => (OK, HttpResponse::OkResponse(self.allowed(&answered, decision))),
                (Effect::Deny, Some(denial)) => {
                    (PERMISSION_DENIED, HttpResponse::DeniedResponse(denied(denial, answered.grpc)))
                }
                (Effect::Deny, None) => (PERMISSION_DENIED, HttpResponse::DeniedResponse(plain(403, "access denied"))),
            },
            Outcome::Unmapped(unmapped) => {
                (PERMISSION_DENIED, HttpResponse::DeniedResponse(plain(400, &unmapped_message(unmapped))))
            }
            Outcome::Undecided(undecided) => match self.undecided {
                UndecidedAnswer::ErrorResponse => {
                    (UNAVAILABLE, HttpResponse::ErrorResponse(plain(503, &undecided_message(*undecided))))
                }
                UndecidedAnswer::GrpcStatus => return Err(Status::unavailable(undecided_message(*undecided))),
            },
        };
        Ok(CheckResponse {
            status: Some(rpc::Status { code, message: String::new(), details: Vec::new() }),
            dynamic_metadata: Some(dynamic_metadata(&answered)),
            http_response: Some(http_response),
        })
    }

    /// What the upstream gets. A header that we own is set, or removed if it has no value: what the client sent under
    /// its name never survives. Envoy applies removals after sets, so a name is in one of the two only.
    fn allowed(&self, answered: &Answered<'_>, decision: &Decision) -> OkHttpResponse {
        let mut headers = Vec::new();
        let mut headers_to_remove: Vec<String> = Vec::new();
        for (name, source) in &self.upstream_headers {
            match header_value(source, answered, decision) {
                Some(value) => headers.push(header(&name.0, &visible(&value))),
                None => headers_to_remove.push(name.0.clone()),
            }
        }
        let removed = self.remove_headers.iter().filter(|name| !self.upstream_headers.contains_key(name));
        headers_to_remove.extend(removed.map(|name| name.0.clone()));
        OkHttpResponse { headers, headers_to_remove, ..OkHttpResponse::default() }
    }
}

fn header_value(source: &HeaderSource, answered: &Answered<'_>, decision: &Decision) -> Option<String> {
    let value = match source {
        HeaderSource::Principal => answered.query?.principal.uid.to_string(),
        HeaderSource::PrincipalId => answered.query?.principal.uid.id().unescaped().to_owned(),
        HeaderSource::DecisionId => answered.decision_id.to_owned(),
        HeaderSource::Revision => decision.revision.id.clone(),
        HeaderSource::Claim(claim) => claim_text(answered.claims?.fields.get(claim)?)?,
    };
    (!value.is_empty()).then_some(value)
}

/// A claim as a header: texts, numbers and truth values as they are, lists of texts joined with `,`.
fn claim_text(value: &wire::StructValue) -> Option<String> {
    match value.kind.as_ref()? {
        wire::Kind::String(text) => Some(text.clone()),
        wire::Kind::Number(number) => Some(number.to_string()),
        wire::Kind::Bool(value) => Some(value.to_string()),
        wire::Kind::List(list) => Some(list.values.iter().map(claim_text).collect::<Option<Vec<_>>>()?.join(",")),
        wire::Kind::Null(_) | wire::Kind::Struct(_) => None,
    }
}

/// A value that every HTTP implementation takes: what is not visible ASCII, and `%` itself, is percent-encoded.
fn visible(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if (byte.is_ascii_graphic() || byte == b' ') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// One header. `append: false` counts in Envoy 1.40 and `append_action` in 1.37, where the default appends to what the
/// client sent (contract, finding 4).
fn header(name: &str, value: &str) -> HeaderValueOption {
    #[expect(deprecated, reason = "`append` is the field that Envoy 1.40 reads")]
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), raw_value: Vec::new() }),
        append: Some(BoolValue { value: false }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

/// A denial as a policy or a bundle shapes it. Envoy derives the grpc-status of a gRPC caller from the HTTP status;
/// a redirect means nothing to such a caller and becomes a plain refusal.
fn denied(denial: &Denial, grpc: bool) -> DeniedHttpResponse {
    let redirect = (300..400).contains(&denial.status);
    if grpc && redirect {
        return plain(403, &denial.message);
    }
    let headers = denial.headers.iter().map(|(name, value)| header(name, value)).collect();
    DeniedHttpResponse { headers, ..plain(denial.status, &denial.message) }
}

fn plain(status: u16, body: &str) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: Some(HttpStatus { code: i32::from(status) }),
        headers: Vec::new(),
        body: body.to_owned(),
    }
}

fn unmapped_message(unmapped: &Unmapped) -> String {
    format!("bad request: {unmapped}")
}

fn undecided_message(undecided: Undecided) -> String {
    format!("authorization unavailable: {}", undecided.as_str())
}

/// What Envoy's access log and later filters learn, on every answer. The revision is a text, since numbers become
/// doubles on the way.
fn dynamic_metadata(answered: &Answered<'_>) -> Struct {
    let cache = match answered.outcome {
        Outcome::Decided(decision) => decision.cache.as_str(),
        Outcome::Unmapped(_) | Outcome::Undecided(_) => CacheState::Off.as_str(),
    };
    let (decision, reason, determining, revision) = match answered.outcome {
        Outcome::Decided(decision) => (
            decision.effect.as_str(),
            decision.reason.as_str(),
            decision.determining.iter().map(|id| text(AsRef::<str>::as_ref(id))).collect(),
            Some(decision.revision.id.as_str()),
        ),
        Outcome::Unmapped(unmapped) => (Effect::Deny.as_str(), unmapped.kind.as_str(), Vec::new(), None),
        Outcome::Undecided(undecided) => ("undecided", undecided.as_str(), Vec::new(), None),
    };
    let mut fields = HashMap::from([
        ("decision".to_owned(), text(decision)),
        ("reason".to_owned(), text(reason)),
        ("determining_policies".to_owned(), Value { kind: Some(Kind::ListValue(ListValue { values: determining })) }),
        ("decision_id".to_owned(), text(answered.decision_id)),
        ("cache".to_owned(), text(cache)),
    ]);
    if let Some(revision) = revision {
        fields.insert("revision".to_owned(), text(revision));
    }
    if let Outcome::Decided(Decision { shadow: Some(shadow), .. }) = answered.outcome {
        fields.insert("shadow_decision".to_owned(), text(shadow.effect.as_str()));
    }
    Struct { fields }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Reason, Revision, UnmappedKind};

    fn decision(effect: Effect, denial: Option<Denial>) -> Outcome {
        Outcome::Decided(Decision {
            effect,
            reason: Reason::Policy,
            determining: Vec::new(),
            errors: Vec::new(),
            shadow: None,
            denial: denial.map(Arc::new),
            revision: Arc::new(Revision { id: "r".to_owned(), digest: "r".to_owned() }),
            cache: CacheState::Off,
        })
    }

    fn every_outcome() -> Vec<Outcome> {
        let denial = Denial { status: 302, message: "go".to_owned(), headers: vec![("location".into(), "/".into())] };
        let mut all = vec![
            decision(Effect::Allow, None),
            // Pairs that no code should make, and that must not open anything if it does.
            decision(Effect::Allow, Some(denial.clone())),
            decision(Effect::Deny, None),
            decision(Effect::Deny, Some(denial)),
        ];
        all.extend(UnmappedKind::ALL.map(|kind| Outcome::Unmapped(Unmapped::new(kind, "x"))));
        all.extend(Undecided::ALL.map(Outcome::Undecided));
        all
    }

    #[test]
    fn every_answer_has_a_status_and_the_body_that_belongs_to_it() {
        for outcome in every_outcome() {
            for grpc in [false, true] {
                let answered = Answered { outcome: &outcome, query: None, claims: None, decision_id: "d", grpc };
                let response = Answers::default().respond(answered).expect("a CheckResponse");
                let code = response.status.expect("a status").code;
                let allowed = matches!(&outcome, Outcome::Decided(Decision { effect: Effect::Allow, .. }));
                assert_eq!(code == 0, allowed, "{outcome:?}");
                assert!(response.dynamic_metadata.is_some());
                let status = match response.http_response.expect("a body") {
                    HttpResponse::OkResponse(_) => {
                        assert!(allowed, "{outcome:?}");
                        continue;
                    }
                    HttpResponse::DeniedResponse(denied) => {
                        assert!(!matches!(outcome, Outcome::Undecided(_)));
                        denied.status.expect("a status").code
                    }
                    HttpResponse::ErrorResponse(error) => {
                        assert!(matches!(outcome, Outcome::Undecided(_)));
                        error.status.expect("a status").code
                    }
                };
                assert!(!allowed && (300..600).contains(&status), "{outcome:?}: {status}");
                assert!(!(grpc && status < 400), "{outcome:?}: {status}");
            }
        }
    }

    #[test]
    fn undecided_is_a_grpc_error_where_the_operator_says_so() {
        let answers = Answers { undecided: UndecidedAnswer::GrpcStatus, ..Answers::default() };
        for outcome in every_outcome() {
            let answered = Answered { outcome: &outcome, query: None, claims: None, decision_id: "d", grpc: false };
            assert_eq!(answers.respond(answered).is_err(), matches!(outcome, Outcome::Undecided(_)), "{outcome:?}");
        }
    }

    #[test]
    fn headers_that_we_own_are_set_or_removed() {
        let headers = [("x-user", HeaderSource::PrincipalId), ("x-decision", HeaderSource::DecisionId)];
        let answers = Answers {
            upstream_headers: headers.into_iter().map(|(n, s)| (HeaderName(n.to_owned()), s)).collect(),
            remove_headers: vec![HeaderName("x-decision".to_owned()), HeaderName("cookie".to_owned())],
            ..Answers::default()
        };
        let outcome = decision(Effect::Allow, None);
        let answered = Answered { outcome: &outcome, query: None, claims: None, decision_id: "d%\u{e9}", grpc: false };
        let Some(HttpResponse::OkResponse(ok)) = answers.respond(answered).expect("good").http_response else {
            panic!("not allowed")
        };
        let set: Vec<_> = ok.headers.iter().filter_map(|option| option.header.as_ref()).collect();
        assert_eq!((set.len(), set[0].key.as_str(), set[0].value.as_str()), (1, "x-decision", "d%25%C3%A9"));
        assert_eq!(ok.headers_to_remove, ["x-user", "cookie"]);
    }
}
