//! The nouns that the whole program speaks in. No I/O, no Envoy, no tonic.
//!
//! A [`Query`] is what Cedar is asked; an [`Outcome`] is what became of it: a [`Decision`], a refusal to map the
//! request ([`Unmapped`]), or the reason why *we* could not decide ([`Undecided`]).

mod effect;
mod outcome;
mod query;
mod revision;
mod types;

pub use cedar_policy::{EntityId, EntityTypeName, EntityUid, PolicyId};

pub use effect::Effect;
pub use outcome::{
    CacheState, Decision, Denial, MissReason, Outcome, PolicyError, Reason, Ruling, Shadow, Undecided, Unmapped,
    UnmappedKind,
};
pub use query::{Attributes, Extension, Principal, Proof, Query, Value};
pub use revision::{Freshness, Overlay, Published, Revision, Timeline};
pub use types::{AttributeType, Choices, ContextType, EntityType, RecordType, Root, Type};
