//! Envoy's side: from CheckRequest to Query, and from what became of it to CheckResponse. tonic and Envoy's types stay
//! in here.

pub mod body;
pub mod checker;
mod convert;
mod encode;
mod grpc;
mod headers;
pub mod identity;
pub mod json;
pub mod judge;
mod names;
pub mod path;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
pub mod view;
pub mod wire;
