//! The one place where outcomes become wire.
//!
//! Envoy reads only the status of an answer: one without a status allows, and so does one with status OK that carries a
//! denial (contract, 1.3). So a CheckResponse is built here and nowhere else, from an [`Outcome`], by a function in
//! which those pairs cannot be written. It is written as bytes at once (by `encode`); the field numbers are those of
//! envoy-types, whose messages read it back in the tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use deserr::Deserr;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use prost::{DecodeError, Message as _};
use serde::Serialize;
use tonic::Status;

use super::claims;
use super::header_value::HeaderText;
use crate::claim_path::ClaimPath;
use crate::model::{CacheState, Decision, Denial, Effect, Outcome, Query, Undecided, Unmapped, UnmappedKind};
use crate::observe::words;
use crate::proto::encode::Message;
use crate::proto::view::Struct;
use crate::yaml::{Faults, Invalid};

/// What the operator says about answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Responder {
    /// How Undecided looks on the wire.
    pub undecided: UndecidedResponse,
    /// What clients learn of refusals.
    pub errors: Errors,
    /// Headers that the upstream gets with an allowed request.
    pub upstream_headers: BTreeMap<HeaderName, HeaderSource>,
    /// Headers that the upstream does not get.
    pub remove_headers: Vec<HeaderName>,
}

/// `undecided:` of the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults)]
#[serde(rename_all = "snake_case")]
pub enum UndecidedResponse {
    /// A CheckResponse with an `error_response`, which Envoy counts as an error and answers with its 503.
    #[default]
    #[deserr(rename = "error_response")]
    ErrorResponse,
    /// A gRPC error, for proxies that do not know `error_response` and would take its status for a denial.
    #[deserr(rename = "grpc_status")]
    GrpcStatus,
}

/// `errors:` what clients learn of refusals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Errors {
    /// What the body of a 400 says: `reason`, a word of a bounded number, or `full`, which names the attribute or the form that
    /// was refused, and so what policies read. Records and the log always say all of it. Default `reason`.
    #[deserr(default)]
    pub detail: Detail,
}

/// What the body of a 400 says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// The reason, in a word.
    #[default]
    Reason,
    /// What exactly was refused.
    Full,
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
        if text.contains('_') {
            let invalid = Invalid::new(format!("`{text}` has a `_`, which apps take for `-`"));
            return Err(invalid.hint(format!("`{}`", text.replace('_', "-"))));
        }
        Ok(Self(name.as_str().to_owned()))
    }

    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
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
    Claim(ClaimPath),
}

impl HeaderSource {
    fn parse(text: String) -> Result<Self, Invalid> {
        Ok(match text.as_str() {
            "principal" => Self::Principal,
            "principal_id" => Self::PrincipalId,
            "decision_id" => Self::DecisionId,
            "revision" => Self::Revision,
            other => match other.strip_prefix("claim:") {
                Some(claim) => Self::Claim(claim.parse()?),
                None => {
                    return Err(Invalid::new(format!("`{text}` is not something a header can be set to"))
                        .hint("`principal`, `principal_id`, `decision_id`, `revision` or `claim:<path>`"));
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
pub struct ResponseParts<'a> {
    /// What became of the request.
    pub outcome: &'a Outcome,
    /// What Cedar was asked, if the request could be mapped.
    pub query: Option<&'a Query>,
    /// The claims of the principal's token.
    pub claims: Option<&'a Struct<'a>>,
    /// The id under which the decision log knows it.
    pub decision_id: &'a str,
    /// Whether the caller speaks gRPC.
    pub grpc: bool,
}

/// An encoded CheckResponse, in the frame of a gRPC message.
#[derive(Clone, PartialEq, Eq)]
pub struct Response(Vec<u8>);

impl Response {
    /// The flag that says "not compressed", and the length.
    const PREFIX: usize = 5;

    fn write(write: impl FnOnce(&mut Message<'_>)) -> Self {
        // Most answers take some three hundred bytes.
        let mut frame = Vec::with_capacity(512);
        frame.extend_from_slice(&[0; Self::PREFIX]);
        write(&mut Message::new(&mut frame));
        // Denials are checked to be small when a bundle is loaded.
        let length = u32::try_from(frame.len() - Self::PREFIX).unwrap_or(u32::MAX);
        if let Some(place) = frame.get_mut(1..Self::PREFIX) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Self(frame)
    }

    /// The frame, as it goes on the wire.
    pub fn into_frame(self) -> Bytes {
        self.0.into()
    }

    /// The message, as Envoy reads it.
    ///
    /// # Errors
    /// If it cannot be read, which is a bug of ours.
    pub fn response(&self) -> Result<CheckResponse, DecodeError> {
        CheckResponse::decode(self.0.get(Self::PREFIX..).unwrap_or_default())
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.response(), f)
    }
}

/// gRPC codes, as CheckResponse.status carries them. Envoy knows zero and non-zero.
const OK: u64 = 0;
const PERMISSION_DENIED: u64 = 7;
const UNAVAILABLE: u64 = 14;

/// Fields of a CheckResponse.
mod field {
    pub(super) const STATUS: u64 = 1;
    pub(super) const DENIED_RESPONSE: u64 = 2;
    pub(super) const OK_RESPONSE: u64 = 3;
    pub(super) const DYNAMIC_METADATA: u64 = 4;
    pub(super) const ERROR_RESPONSE: u64 = 5;
}

impl Responder {
    /// The answer on the wire.
    ///
    /// # Errors
    /// Undecided as a gRPC error, where the operator chose that.
    pub fn respond(&self, answered: ResponseParts<'_>) -> Result<Response, Status> {
        if let (Outcome::Undecided(undecided), UndecidedResponse::GrpcStatus) = (answered.outcome, self.undecided) {
            return Err(Status::unavailable(undecided_message(*undecided)));
        }
        Ok(Response::write(|response| {
            match answered.outcome {
                Outcome::Decided(decision) => match (decision.effect, &decision.denial) {
                    (Effect::Allow, _) => {
                        status(response, OK);
                        response.message(field::OK_RESPONSE, |ok| self.allow(ok, &answered, decision));
                    }
                    (Effect::Deny, Some(denial)) => {
                        status(response, PERMISSION_DENIED);
                        response.message(field::DENIED_RESPONSE, |denied| deny(denied, denial, answered.grpc));
                    }
                    (Effect::Deny, None) => {
                        status(response, PERMISSION_DENIED);
                        response.message(field::DENIED_RESPONSE, |denied| plain(denied, 403, "access denied"));
                    }
                },
                Outcome::Unmapped(unmapped) => {
                    status(response, PERMISSION_DENIED);
                    let message = unmapped_message(unmapped, self.errors.detail);
                    response.message(field::DENIED_RESPONSE, |denied| plain(denied, 400, &message));
                }
                Outcome::Undecided(undecided) => {
                    status(response, UNAVAILABLE);
                    let message = undecided_message(*undecided);
                    response.message(field::ERROR_RESPONSE, |error| plain(error, 503, &message));
                }
            }
            response.message(field::DYNAMIC_METADATA, |metadata| dynamic_metadata(metadata, &answered));
        }))
    }

    /// Whether every claim that is to become a header can be one. It is asked before anything is decided: a claim that cannot
    /// be told from another one is no reason to send the app nothing, or something else.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn sendable(&self, claims: Option<&Struct<'_>>) -> Result<(), Unmapped> {
        let Some(claims) = claims else { return Ok(()) };
        for (name, source) in &self.upstream_headers {
            let HeaderSource::Claim(path) = source else { continue };
            let refuse = |why: String| {
                let detail = format!("the claim `{path}` cannot be sent as the header `{}`: {why}", name.0);
                Unmapped::new(UnmappedKind::Attribute, detail)
            };
            if let Some(kind) = claims::claim(claims, path).map_err(|astray| refuse(astray.to_string()))? {
                HeaderText::claim(kind).map_err(|what| refuse(format!("it is {what}")))?;
            }
        }
        Ok(())
    }

    /// What the upstream gets. A header that we own is set, or removed if it has no value: what the client sent under
    /// its name never survives. Envoy applies removals after sets, so a name is in one of the two only.
    fn allow(&self, ok: &mut Message<'_>, answered: &ResponseParts<'_>, decision: &Decision) {
        const HEADERS: u64 = 2;
        const HEADERS_TO_REMOVE: u64 = 5;
        for (name, source) in &self.upstream_headers {
            match header_value(source, answered, decision) {
                Some(value) => ok.message(HEADERS, |option| header(option, &name.0, value)),
                None => ok.text(HEADERS_TO_REMOVE, &name.0),
            }
        }
        let removed = self.remove_headers.iter().filter(|name| !self.upstream_headers.contains_key(name));
        removed.for_each(|name| ok.text(HEADERS_TO_REMOVE, &name.0));
    }
}

/// `google.rpc.Status`. The message is there also if it says OK: Envoy allows without one, and nobody should take this
/// answer for an empty one.
fn status(response: &mut Message<'_>, code: u64) {
    response.message(field::STATUS, |status| {
        if code != OK {
            status.number(1, code);
        }
    });
}

/// `None` where there is no such value; [`Responder::sendable`] has refused what is there and cannot be one.
fn header_value<'a>(
    source: &HeaderSource,
    answered: &ResponseParts<'a>,
    decision: &'a Decision,
) -> Option<HeaderText<'a>> {
    let value: Cow<'_, str> = match source {
        HeaderSource::Principal => answered.query?.principal.uid.to_string().into(),
        HeaderSource::PrincipalId => answered.query?.principal.uid.id().unescaped().into(),
        HeaderSource::DecisionId => answered.decision_id.into(),
        HeaderSource::Revision => decision.revision.id.as_str().into(),
        HeaderSource::Claim(path) => return HeaderText::claim(claims::claim(answered.claims?, path).ok()??).ok()?,
    };
    (!value.is_empty()).then_some(HeaderText::One(value))
}

/// One header, as a `HeaderValueOption`. `append: false` counts in Envoy 1.40 and `append_action` in 1.37, where the
/// default appends to what the client sent (contract, finding 4).
fn header(option: &mut Message<'_>, name: &str, value: impl fmt::Display) {
    option.message(1, |header| {
        header.text(1, name);
        header.display(2, value);
    });
    // A BoolValue that is there, and false.
    option.message(2, |_| ());
    option.number(3, HeaderAppendAction::OverwriteIfExistsOrAdd as u64);
}

/// A denial as a policy or a bundle shapes it. Envoy derives the grpc-status of a gRPC caller from the HTTP status;
/// a redirect means nothing to such a caller and becomes a plain refusal.
fn deny(response: &mut Message<'_>, denial: &Denial, grpc: bool) {
    let redirect = (300..400).contains(&denial.status);
    if grpc && redirect {
        return plain(response, 403, &denial.message);
    }
    plain(response, denial.status, &denial.message);
    for (name, value) in &denial.headers {
        response.message(2, |option| header(option, name, value));
    }
}

fn plain(response: &mut Message<'_>, status: u16, body: &str) {
    response.message(1, |http_status| http_status.number(1, u64::from(status)));
    response.text(3, body);
}

fn unmapped_message(unmapped: &Unmapped, detail: Detail) -> String {
    match detail {
        Detail::Reason => format!("bad request: {}", unmapped.kind.as_str()),
        Detail::Full => format!("bad request: {unmapped}"),
    }
}

fn undecided_message(undecided: Undecided) -> String {
    format!("authorization unavailable: {}", undecided.as_str())
}

/// What Envoy's access log and later filters learn, on every answer. The revision is a text, since numbers become
/// doubles on the way.
fn dynamic_metadata(metadata: &mut Message<'_>, answered: &ResponseParts<'_>) {
    let decision = match answered.outcome {
        Outcome::Decided(decision) => Some(decision),
        Outcome::Unmapped(_) | Outcome::Undecided(_) => None,
    };
    let (outcome, reason) = words(answered.outcome);
    entry(metadata, "decision", |value| value.text(STRING, outcome));
    entry(metadata, "reason", |value| value.text(STRING, reason));
    entry(metadata, "determining_policies", |value| {
        value.message(LIST, |list| {
            for id in decision.into_iter().flat_map(|decision| &decision.determining) {
                list.message(1, |value| value.text(STRING, id.as_ref()));
            }
        });
    });
    entry(metadata, "decision_id", |value| value.text(STRING, answered.decision_id));
    let cache = decision.map_or(CacheState::Off, |decision| decision.cache);
    entry(metadata, "cache", |value| value.text(STRING, cache.as_str()));
    if let Some(decision) = decision {
        entry(metadata, "revision", |value| value.text(STRING, &decision.revision.id));
        if let Some(freshness) = decision.freshness {
            entry(metadata, "freshness", |value| value.text(STRING, freshness.as_str()));
        }
        if let Some(shadow) = &decision.shadow {
            entry(metadata, "shadow_decision", |value| value.text(STRING, shadow.effect.as_str()));
        }
    }
}

/// Kinds of a `google.protobuf.Value`.
const STRING: u64 = 3;
const LIST: u64 = 6;

/// A field of a `google.protobuf.Struct`: on the wire a map is a list of pairs.
fn entry(own: &mut Message<'_>, name: &str, write: impl FnOnce(&mut Message<'_>)) {
    own.message(1, |pair| {
        pair.text(1, name);
        pair.message(2, write);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;

    use super::*;
    use crate::model::{PolicyId, Reason, Ruling, Shadow, UnmappedKind};

    fn decision(effect: Effect, denial: Option<Denial>) -> Outcome {
        Outcome::Decided(Decision::of(Ruling {
            effect,
            reason: Reason::Policy,
            determining: vec![PolicyId::new("a"), PolicyId::new("b")],
            errors: Vec::new(),
            shadow: Some(Shadow { effect, determining: Vec::new(), errors: Vec::new() }),
            denial: denial.map(Arc::new),
        }))
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
                let answered = ResponseParts { outcome: &outcome, query: None, claims: None, decision_id: "d", grpc };
                let answer = Responder::default().respond(answered).expect("an answer");
                let response = answer.response().expect("a CheckResponse");
                // Nothing was written that its reader does not know, and nothing twice.
                assert_eq!(response.encoded_len() + Response::PREFIX, answer.into_frame().len(), "{outcome:?}");
                let code = response.status.expect("a status").code;
                let allowed = matches!(&outcome, Outcome::Decided(decision) if decision.effect == Effect::Allow);
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
        let answers = Responder { undecided: UndecidedResponse::GrpcStatus, ..Responder::default() };
        for outcome in every_outcome() {
            let answered =
                ResponseParts { outcome: &outcome, query: None, claims: None, decision_id: "d", grpc: false };
            assert_eq!(answers.respond(answered).is_err(), matches!(outcome, Outcome::Undecided(_)), "{outcome:?}");
        }
    }

    #[test]
    fn headers_that_we_own_are_set_or_removed() {
        let headers = [("x-user", HeaderSource::PrincipalId), ("x-decision", HeaderSource::DecisionId)];
        let answers = Responder {
            upstream_headers: headers.into_iter().map(|(n, s)| (HeaderName(n.to_owned()), s)).collect(),
            remove_headers: vec![HeaderName("x-decision".to_owned()), HeaderName("cookie".to_owned())],
            ..Responder::default()
        };
        let outcome = decision(Effect::Allow, None);
        let answered =
            ResponseParts { outcome: &outcome, query: None, claims: None, decision_id: "d%\u{e9}", grpc: false };
        let answer = answers.respond(answered).expect("an answer").response().expect("a CheckResponse");
        let Some(HttpResponse::OkResponse(ok)) = answer.http_response else { panic!("not allowed") };
        let set: Vec<_> = ok.headers.iter().filter_map(|option| option.header.as_ref()).collect();
        assert_eq!((set.len(), set[0].key.as_str(), set[0].value.as_str()), (1, "x-decision", "d%25%C3%A9"));
        assert_eq!(ok.headers_to_remove, ["x-user", "cookie"]);
    }
}
