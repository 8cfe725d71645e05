//! Cedar's side: from the files of a bundle to a [`Snapshot`] that answers Queries. Nothing outside this module
//! imports `cedar_policy`, save the id types that [`crate::model`] re-exports.

mod summary;

pub use summary::{BundleSummary, PolicySummary, Summary};
