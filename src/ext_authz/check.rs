//! From a CheckRequest to the answer: the way of a request (design, section 3), without accounts and without a wire.

use bytes::Bytes;
use tonic::Status;

use super::headers::Headers;
use super::request::{Mapped, Mapping};
use super::response::{Responder, Response, ResponseParts};
use crate::decision::authorizer::{Authorizer, Explanation};
use crate::model::{Attributes, Decision, Outcome, Query, Unmapped, UnmappedKind};
use crate::proto::view::{CheckRequest, Struct};

/// Maps, decides and answers.
#[derive(Debug)]
pub struct Pipeline {
    /// Decides.
    pub authorizer: Authorizer,
    /// Maps.
    pub mapping: Mapping,
    /// Answers.
    pub responder: Responder,
}

/// How a check ended.
#[derive(Debug)]
pub struct Checked {
    /// What became of it.
    pub outcome: Outcome,
    /// What Cedar was asked, if it came to that.
    pub query: Option<Query>,
    /// What of the request may be logged.
    pub logged: Attributes,
    /// The answer on the wire.
    pub response: Result<Response, Status>,
}

impl Pipeline {
    /// Checks a message as it came. One that does not decode is the client's doing as well: Envoy passed on what it sent.
    pub fn frame(&self, frame: Bytes, decision_id: &str) -> Checked {
        match CheckRequest::decode(&frame) {
            Ok(request) => self.decoded(&request, decision_id),
            Err(error) => {
                let unmapped = Unmapped::new(UnmappedKind::Malformed, format!("not a CheckRequest: {error}"));
                self.unseen(Outcome::Unmapped(unmapped), decision_id)
            }
        }
    }

    fn decoded(&self, request: &CheckRequest<'_>, decision_id: &str) -> Checked {
        let grpc = is_grpc(request);
        let (snapshot, freshness) = match self.authorizer.take() {
            Ok(taken) => taken,
            Err(undecided) => return self.checked(Outcome::Undecided(undecided), None, None, decision_id, grpc),
        };
        match self.mapping.map(request, &snapshot) {
            Ok(Mapped { query, claims, logged, incomplete, token }) => {
                let decided = match (incomplete, self.responder.sendable(claims)) {
                    (_, Err(unmapped)) => return self.unmapped(unmapped, decision_id, grpc),
                    (Some(attribute), Ok(())) => {
                        let principal = &query.principal.uid;
                        tracing::debug!(%principal, %attribute, "denied: no bundle says this attribute of the principal");
                        Ok(snapshot.unknown_principal())
                    }
                    (None, Ok(())) => self.authorizer.decide(&snapshot, &query, token),
                };
                let outcome = match decided {
                    Ok(decision) => Outcome::Decided(Decision { freshness, ..decision }),
                    Err(undecided) => Outcome::Undecided(undecided),
                };
                Checked { logged, ..self.checked(outcome, Some(query), claims, decision_id, grpc) }
            }
            Err(unmapped) => self.unmapped(unmapped, decision_id, grpc),
        }
    }

    fn unmapped(&self, unmapped: Unmapped, decision_id: &str, grpc: bool) -> Checked {
        tracing::debug!(%unmapped, "a request could not be mapped");
        self.checked(Outcome::Unmapped(unmapped), None, None, decision_id, grpc)
    }

    /// What the cache has for a request; nothing is decided.
    ///
    /// # Errors
    /// Why there is no Query to look for.
    pub fn explain(&self, frame: &Bytes) -> Result<(Query, Explanation), String> {
        let request = CheckRequest::decode(frame).map_err(|error| error.to_string())?;
        let snapshot = self.authorizer.current().map_err(|undecided| undecided.as_str().to_owned())?;
        let Mapped { query, incomplete, .. } =
            self.mapping.map(&request, &snapshot).map_err(|unmapped| unmapped.to_string())?;
        if let Some(attribute) = incomplete {
            let principal = &query.principal.uid;
            return Err(format!("{principal} is denied and nothing is remembered: no bundle says its `{attribute}`"));
        }
        let explanation = self.authorizer.explain(&snapshot, &query);
        Ok((query, explanation))
    }

    /// The answer to a check whose request was never looked at.
    pub fn unseen(&self, outcome: Outcome, decision_id: &str) -> Checked {
        self.checked(outcome, None, None, decision_id, false)
    }

    fn checked(
        &self,
        outcome: Outcome,
        query: Option<Query>,
        claims: Option<&Struct<'_>>,
        decision_id: &str,
        grpc: bool,
    ) -> Checked {
        let parts = ResponseParts { outcome: &outcome, query: query.as_ref(), claims, decision_id, grpc };
        let response = self.responder.respond(parts);
        Checked { outcome, query, logged: Attributes::new(), response }
    }
}

/// Whether the caller speaks gRPC, so that a denial should make sense to such a caller.
fn is_grpc(request: &CheckRequest<'_>) -> bool {
    let http = request.attributes.as_ref().and_then(|attributes| attributes.request.as_ref()?.http.as_ref());
    http.and_then(|http| Headers::of(http).ok())
        .is_some_and(|headers| headers.starts_with("content-type", "application/grpc"))
}
