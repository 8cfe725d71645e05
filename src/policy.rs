//! Cedar's side: from the files of a bundle to a [`Snapshot`] that answers Queries. Nothing outside this module
//! imports `cedar_policy`, save the id types that [`crate::model`] re-exports.

mod annotations;
mod bundle;
mod change;
mod compile;
mod difference;
mod entities;
mod entity_file;
mod files;
mod footprint;
mod index;
mod layout;
mod lint;
mod literals;
mod memory;
mod mentions;
mod open;
mod overlay;
mod pattern;
mod policy_file;
mod report;
mod routes;
mod schema;
#[cfg(test)]
mod slips;
mod snapshot;
mod summary;
mod value;
mod vocabulary;

pub use bundle::Ttl;
pub use difference::Difference;
pub use files::Files;
pub use footprint::{Footprint, Reads};
pub use layout::{Kind as FileKind, READ as FILES_READ, idle_ignores, strays};
pub use literals::mapped as mapped_range;
pub use memory::Memory;
pub use report::{ALWAYS as ALWAYS_IN_KEY, FootprintSummary, Hits, PlaceSummary, Read, Reader};
pub use routes::{Matched, Routes};
pub use schema::{ActionType, Types};
pub use snapshot::{Evaluation, Snapshot};
pub use summary::{BundleSummary, OverlaySummary, PolicySummary, Summary};
pub use value::check as check_extension;
pub use vocabulary::{BASE as BASE_SCHEMA, unrouted};

/// By keys that come from bundles. Requests look keys up and add none, so nobody can choose them to collide; and each
/// request looks up several, which took a fiftieth of a hit with SipHash.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
