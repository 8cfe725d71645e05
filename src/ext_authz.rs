//! Envoy's side: from CheckRequest to Query, and from what became of it to CheckResponse. tonic and Envoy's types stay
//! in here.

pub mod body;
pub mod checker;
mod claims;
mod convert;
mod encode;
mod grpc;
mod header_value;
mod headers;
pub mod identity;
pub mod json;
pub mod judge;
mod names;
pub mod path;
mod recency;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
mod undeclared;
pub mod view;
pub mod wire;
