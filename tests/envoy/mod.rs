//! End to end: the real Envoy asks the real sidecar about real requests. What Envoy does with each answer was measured
//! once (docs/envoy-contract.md); these tests show when it changes.

mod bodies;
mod configs;
mod grpc;
mod headers;
mod identity;
mod lab;
mod outcomes;
mod paths;
mod restart;
mod traps;
