//! What became of a request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::PolicyId;

use super::effect::Effect;
use super::revision::{Freshness, Revision};

/// Everything that can become of a request. There is no fourth case: an answer is built from this and nothing else.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The policies decided.
    Decided(Decision),
    /// The request cannot be understood: the client's doing, denied with 400.
    Unmapped(Unmapped),
    /// *We* could not decide: never the client's doing, never cached. The operator's fail-open switch governs it.
    Undecided(Undecided),
}

/// Allow or deny, and the revision it stands under.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What the policies say: shared by all decisions that came out alike.
    pub ruling: Arc<Ruling>,
    /// The snapshot it was made under, or still stands under.
    pub revision: Arc<Revision>,
    /// The local count of that snapshot.
    pub generation: u64,
    /// Whether it was made for this request or remembered.
    pub cache: CacheState,
    /// How current the snapshot was known to be; `None` if it comes from directories.
    pub freshness: Option<Freshness>,
}

#[cfg(test)]
impl Decision {
    /// A ruling, decided under some snapshot.
    pub fn of(ruling: Ruling) -> Self {
        let revision = Revision { id: "0123456789ab".into(), digest: "0123456789ab".into(), number: None };
        let (ruling, revision) = (Arc::new(ruling), Arc::new(revision));
        Self { ruling, revision, generation: 1, cache: CacheState::Off, freshness: None }
    }
}

impl std::ops::Deref for Decision {
    type Target = Ruling;

    fn deref(&self) -> &Ruling {
        &self.ruling
    }
}

/// What the policies say of a Query: all of a [`Decision`] that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Allow or deny.
    pub effect: Effect,
    /// Why, in a word of bounded number.
    pub reason: Reason,
    /// The policies that determined it, sorted. Empty for a default denial.
    pub determining: Vec<PolicyId>,
    /// Evaluation errors; an erring `permit` is skipped as Cedar does, an erring `forbid` denies.
    pub errors: Vec<PolicyError>,
    /// What the `@mode("shadow")` policies would have done, if there are any.
    pub shadow: Option<Shadow>,
    /// How the policies want a denial to look; `None` on allow.
    pub denial: Option<Arc<Denial>>,
}

impl Ruling {
    /// Whether an evaluation error had a part in it, in force or in shadow.
    pub fn erred(&self) -> bool {
        !self.errors.is_empty() || self.shadow.as_ref().is_some_and(|shadow| !shadow.errors.is_empty())
    }
}

/// What the decision cache had to do with a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It was not asked.
    Off,
    /// It remembered the decision, for this long.
    Hit(Duration),
    /// The decision was made.
    Miss(MissReason),
}

/// Why the decision cache had no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissReason {
    /// It never had one, or had to make room.
    Absent,
    /// What it had was too old.
    Expired,
    /// A Change since may have altered what it had.
    Changed,
    /// The policies of the action read the clock.
    Uncacheable,
}

impl CacheState {
    /// The word for it in records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Hit(_) => "hit",
            Self::Miss(_) => "miss",
        }
    }
}

impl MissReason {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Expired, Self::Changed, Self::Uncacheable];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Changed => "changed",
            Self::Uncacheable => "uncacheable",
        }
    }
}

/// Why a [`Decision`] came out as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// At least one policy determined it.
    Policy,
    /// No policy spoke: denied.
    DefaultDeny,
    /// The schema does not let this type of principal do this action to this type of resource: denied.
    NotApplicable,
    /// No route names the request, and the bundles have routes: denied.
    Unrouted,
    /// Its type requires attributes, and neither the proof of identity nor a bundle says them of this principal: denied,
    /// and nothing is evaluated.
    UnknownPrincipal,
    /// A `forbid` in scope could not be evaluated. Cedar skips it, which would open access: denied.
    PolicyError,
}

impl Reason {
    /// All reasons for which something is denied, for metrics that exist from the start.
    pub const DENIALS: [Self; 6] = [
        Self::Policy,
        Self::DefaultDeny,
        Self::NotApplicable,
        Self::Unrouted,
        Self::UnknownPrincipal,
        Self::PolicyError,
    ];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::DefaultDeny => "default_deny",
            Self::NotApplicable => "not_applicable",
            Self::Unrouted => "unrouted",
            Self::UnknownPrincipal => "unknown_principal",
            Self::PolicyError => "policy_error",
        }
    }
}

/// A policy that could not be evaluated for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The policy.
    pub policy: PolicyId,
    /// What Cedar says.
    pub message: String,
}

/// What the policies would have decided if those in shadow mode were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The decision with the shadow policies counted in.
    pub effect: Effect,
    /// The shadow policies that were satisfied, sorted.
    pub determining: Vec<PolicyId>,
    /// Their evaluation errors.
    pub errors: Vec<PolicyError>,
}

/// How a denial looks to the client. Built from annotations or `bundle.yaml`, checked when the bundle is loaded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Denial {
    /// HTTP status: 4xx or 5xx, or 3xx with a `location`.
    pub status: u16,
    /// Body, as `text/plain`; for gRPC callers the `grpc-message`.
    pub message: String,
    /// Response headers, lower-case names.
    pub headers: Vec<(String, String)>,
}

/// Why a request could not be mapped to a [`Query`](super::Query). The client's doing: denied with 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// The kind, of bounded number, for metrics and the client.
    pub kind: UnmappedKind,
    /// What exactly, for the log and the client: names the attribute or the form, never a secret value.
    pub detail: String,
}

/// The kinds of [`Unmapped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnmappedKind {
    /// The message is not a CheckRequest.
    Malformed,
    /// The message is larger than the limit.
    TooLarge,
    /// Something without which a request cannot be understood is missing, or contradicts itself.
    Incomplete,
    /// The path is in a form that the path contract refuses.
    Path,
    /// The host is not a host.
    Host,
    /// A proof of identity is there but not usable.
    Identity,
    /// An attribute that the schema declares is missing or does not fit its type.
    Attribute,
}

impl UnmappedKind {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 7] =
        [Self::Malformed, Self::TooLarge, Self::Incomplete, Self::Path, Self::Host, Self::Identity, Self::Attribute];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Path => "path",
            Self::Host => "host",
            Self::Identity => "identity",
            Self::Attribute => "attribute",
        }
    }
}

impl Unmapped {
    /// A refusal of this kind, with what exactly was wrong.
    pub fn new(kind: UnmappedKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.detail)
    }
}

/// Why we could not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Undecided {
    /// No snapshot is in force yet.
    NotReady,
    /// Too many checks are in flight.
    Overloaded,
    /// The caller's deadline passed before we could decide.
    Deadline,
    /// What is in force was not proved to be current for too long, and the operator chose not to decide by it.
    Stale,
    /// The decision log is full or cannot be written, and the operator chose not to decide unlogged.
    LogFull,
    /// A fault of ours.
    Internal,
}

impl Undecided {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 6] =
        [Self::NotReady, Self::Overloaded, Self::Deadline, Self::Stale, Self::LogFull, Self::Internal];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::Deadline => "deadline",
            Self::Stale => "stale",
            Self::LogFull => "log_full",
            Self::Internal => "internal",
        }
    }
}
