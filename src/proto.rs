//! The messages of `ext_authz` on the wire: read where they lie, written without building them first, and as owned messages
//! and JSON for people and tests.

pub mod decode;
pub mod encode;
pub mod json;
pub mod varint;
pub mod view;
pub mod wire;

/// The descriptors of `envoy.service.auth.v3` and what it imports, for reflection and JSON; made as CONTRIBUTING.md says.
pub const DESCRIPTORS: &[u8] = include_bytes!("proto/descriptors.binpb");
