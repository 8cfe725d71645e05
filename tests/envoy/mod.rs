//! End to end: the real Envoy asks the real sidecar about real requests. What Envoy does with an answer is not written down
//! anywhere in full; these tests are where a new version of it shows that it does something else.

mod bodies;
mod claims;
mod configs;
mod grpc;
mod headers;
mod identity;
mod lab;
mod limits;
mod outcomes;
mod paths;
mod restart;
mod traps;
