//! From a CheckRequest to the answer: the way of a request (design, section 3), without accounts and without a wire.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tonic::Status;

use super::headers::Headers;
use super::identity_source::IdentitySource;
use super::request::{Mapped, Mapping, ServiceName};
use super::response::{HeaderName, Responder, Response, ResponseParts};
use super::{body, path};
use crate::decision::authorizer::{Authorizer, Explanation};
use crate::decision::cache::Cache;
use crate::decision::freshness::LastProof;
use crate::model::{Attributes, Decision, Outcome, Query, Unmapped, UnmappedKind};
use crate::observe::Metrics;
use crate::observe::decision_log::Attribute;
use crate::policy::Snapshot;
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

/// What a configuration has to say of the way of a request.
#[derive(Debug)]
pub struct Config<'a> {
    /// The resource of requests that no route gives another one.
    pub service: &'a ServiceName,
    /// Which forms of paths are let through.
    pub paths: &'a path::Config,
    /// Proofs of identity, in the order in which they count.
    pub identity: &'a [IdentitySource],
    /// What may be logged.
    pub logged: &'a [Attribute],
    /// What becomes of bodies that cannot be read.
    pub bodies: body::Config,
    /// How answers are made.
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

/// How a request ended, before anything is answered.
struct Ended<'a> {
    outcome: Outcome,
    query: Option<Query>,
    claims: Option<&'a Struct<'a>>,
    logged: Attributes,
}

impl Ended<'_> {
    /// Before there was a Query.
    fn early(outcome: Outcome) -> Self {
        Self { outcome, query: None, claims: None, logged: Attributes::new() }
    }

    fn unmapped(unmapped: Unmapped) -> Self {
        tracing::debug!(%unmapped, "a request could not be mapped");
        Self::early(Outcome::Unmapped(unmapped))
    }
}

impl Pipeline {
    /// The pipeline of a configuration, under the snapshot that the channel holds.
    pub fn new(
        config: Config<'_>,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        proof: Arc<LastProof>,
        cache: Arc<Cache>,
        metrics: Metrics,
    ) -> Self {
        let Config { service, paths, identity, logged, bodies, responder } = config;
        let changed = responder.upstream_headers.keys().chain(&responder.remove_headers).map(HeaderName::as_str);
        let mapping =
            Mapping::new(service, paths.clone(), identity.to_vec(), logged).with_bodies(bodies).owning(changed);
        Self { authorizer: Authorizer::new(snapshots, proof, cache, metrics), mapping, responder }
    }

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

    /// What becomes of a request, for callers that have no wire to answer on.
    pub fn check(&self, request: &CheckRequest<'_>) -> Outcome {
        self.decide(request).outcome
    }

    fn decoded(&self, request: &CheckRequest<'_>, decision_id: &str) -> Checked {
        let Ended { outcome, query, claims, logged } = self.decide(request);
        let checked = self.respond(outcome, query, claims, decision_id, is_grpc(request));
        Checked { logged, ..checked }
    }

    fn decide<'a>(&self, request: &'a CheckRequest<'a>) -> Ended<'a> {
        let (snapshot, freshness) = match self.authorizer.take() {
            Ok(taken) => taken,
            Err(undecided) => return Ended::early(Outcome::Undecided(undecided)),
        };
        let Mapped { query, claims, logged, incomplete, token } = match self.mapping.map(request, &snapshot) {
            Ok(mapped) => mapped,
            Err(unmapped) => return Ended::unmapped(unmapped),
        };
        let decided = match (incomplete, self.responder.sendable(claims)) {
            (_, Err(unmapped)) => return Ended::unmapped(unmapped),
            (Some(attribute), Ok(())) => {
                let principal = &query.principal.uid;
                tracing::debug!(%principal, %attribute, "denied: no bundle has this attribute of the principal");
                Ok(snapshot.unknown_principal())
            }
            (None, Ok(())) => self.authorizer.decide(&snapshot, &query, token),
        };
        let outcome = match decided {
            Ok(decision) => Outcome::Decided(Decision { freshness, ..decision }),
            Err(undecided) => Outcome::Undecided(undecided),
        };
        Ended { outcome, query: Some(query), claims, logged }
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
        self.respond(outcome, None, None, decision_id, false)
    }

    fn respond(
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
