//! Stockade: a sidecar that answers Envoy's `ext_authz` calls with Cedar policies.
//!
//! A Check comes in through [`ext_authz`], is mapped to a [`model::Query`], decided by [`decision`] under the
//! [`policy::Snapshot`] in force, and answered. Snapshots come from [`feed`], which follows the bundles; the two ways
//! meet in one `watch` channel that [`engine`] makes; `app` puts sockets around it. ARCHITECTURE.md has the picture.
//!
//! With default features this crate is the binary `stockade`. Without them it is [`engine`], for a process that decides requests
//! itself: built from a configuration, with a feed that follows the bundles, and a check that needs no socket.
//!
//! In reading order: the nouns, Cedar's side, the decision, Envoy's side, the store and the feed, what it tells about itself, and what
//! holds it together.

pub mod model;

pub mod policy;

pub mod decision;

pub mod ext_authz;
pub mod proto;

pub mod store;

#[cfg(feature = "nats")]
pub mod nats;
#[cfg(all(feature = "cli", feature = "nats"))]
pub mod publish;

pub mod feed;

#[cfg(feature = "server")]
pub mod admin;
pub mod observe;

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
#[cfg(feature = "server")]
pub mod descriptors;
pub mod engine;
#[cfg(feature = "server")]
pub mod listener;
#[cfg(feature = "server")]
pub mod shutdown;

mod backoff;
pub mod claim_path;
pub mod problem;
pub mod strict_json;
pub mod terminal;
pub mod units;
pub mod waiting;
pub mod yaml;
