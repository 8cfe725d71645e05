//! Envoy's side: from CheckRequest to Query, and from what became of it to CheckResponse. tonic and Envoy's types stay
//! in here.

#[cfg(feature = "server")]
pub mod account;
mod attributes;
pub mod body;
pub mod check;
mod claims;
mod context;
#[cfg(feature = "server")]
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
#[cfg(feature = "server")]
mod recency;
pub mod request;
mod request_line;
pub mod response;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
mod undeclared;
