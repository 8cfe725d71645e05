//! Tests at the boundary: the real binary, the real wire, the real Envoy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod fixture;
mod support;

mod bundles;
mod cli;
mod corpus;
mod engine;
mod envoy;
mod footprint;
mod mapping;
mod memory;
mod overlays;
mod recordings;
mod reference;
mod serve;
mod smoke;
#[cfg(feature = "nats")]
mod store;
mod strict;
mod values;
mod wire;
