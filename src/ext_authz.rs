//! Envoy's side: from CheckRequest to Query, and from what became of it to CheckResponse. tonic and Envoy's types stay
//! in here.

pub mod account;
mod attributes;
pub mod body;
pub mod check;
mod claims;
mod context;
mod grpc;
mod header_value;
mod headers;
mod identity;
pub mod identity_source;
mod json_body;
mod logged;
mod names;
mod pairs;
pub mod path;
mod recency;
pub mod request;
mod request_line;
pub mod response;
pub mod server;
pub mod service;
mod undeclared;
