//! Tests at the boundary: the real binary, the real wire, the real Envoy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::disallowed_macros, reason = "a test that fails says what it saw")]

mod fixture;

mod accepted;
mod architecture;
mod bundles;
mod cli;
mod corpus;
mod documents;
mod engine;
mod envoy;
mod examples;
mod footprint;
mod full_disk;
mod identity;
mod library;
mod mapping;
mod memory;
mod names;
mod overlays;
mod recordings;
mod reference;
mod serve;
mod smoke;
#[cfg(feature = "nats")]
mod store;
mod strict;
mod terminal;
mod transport;
mod values;
mod wire;
