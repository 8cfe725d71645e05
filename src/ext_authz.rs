//! Envoy's side: from CheckRequest to Query, and from what became of it to CheckResponse. tonic and Envoy's types stay
//! in here.

pub mod account;
mod attributes;
pub mod body;
pub mod check;
mod claims;
mod grpc;
mod header_value;
mod headers;
pub mod identity;
mod names;
pub mod path;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
mod undeclared;
