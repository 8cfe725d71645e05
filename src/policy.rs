//! Cedar's side: from the files of a bundle to a [`Snapshot`] that answers Queries. Nothing outside this module
//! imports `cedar_policy`, save the id types that [`crate::model`] re-exports.

mod annotations;
mod base;
mod bundle;
mod change;
mod compile;
mod compiled;
mod core;
mod entities;
mod entity_file;
mod evaluate;
mod files;
mod footprint;
mod header;
mod index;
mod layout;
mod lint;
mod literals;
mod memory;
mod mentions;
mod open;
mod origin;
mod overlays;
mod pattern;
mod policy_diff;
mod policy_file;
mod report;
mod route_file;
mod routes;
mod ruling;
mod schema;
#[cfg(test)]
mod slips;
mod snapshot;
mod strays;
mod summary;
mod unreachable;
mod value;
mod vocabulary;

pub use evaluate::Evaluation;
pub use files::Files;
pub use footprint::{Footprint, Reads};
pub use header::{BundleSummary, Ttl};
pub use layout::{FileKind, READ as FILES_READ};
pub use literals::mapped as mapped_range;
pub use memory::Memory;
pub use policy_diff::PolicyDiff;
pub use report::{ALWAYS as ALWAYS_IN_KEY, FootprintSummary, Hits, PlaceSummary, PolicyRead, Read};
pub use routes::{Matched, Routes};
pub use schema::{ActionType, Types};
pub use snapshot::Snapshot;
pub use strays::{idle_ignores, strays};
pub use summary::{OverlaySummary, PolicySummary, Summary};
pub use value::check as check_extension;
pub use vocabulary::{BASE as BASE_SCHEMA, unrouted};

/// By keys that come from bundles. Requests look keys up and add none, so nobody can choose them to collide; and each
/// request looks up several, which took a fiftieth of a hit with SipHash.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
