//! Stockade: a sidecar that answers Envoy's `ext_authz` calls with Cedar policies.
//!
//! A Check comes in through [`ext_authz`], is mapped to a [`model::Query`], decided by [`decision`] under the
//! [`policy::Snapshot`] in force, and answered. Snapshots come from [`feed`], which follows the bundles; the two ways
//! meet in one `watch` channel that [`app`] makes. ARCHITECTURE.md has the picture.
//!
//! In reading order: the nouns, Cedar's side, the decision, Envoy's side, the store and the feed, what it tells about itself, and what
//! holds it together.

pub mod model;

pub mod policy;

pub mod decision;

pub mod ext_authz;

pub mod store;

#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "nats")]
pub mod publish;

pub mod feed;

pub mod admin;
pub mod observe;

pub mod app;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod listener;
pub mod shutdown;

mod backoff;
pub mod claim_path;
pub mod problem;
pub mod strict_json;
pub mod terminal;
pub mod units;
pub mod varint;
pub mod waiting;
pub mod yaml;
