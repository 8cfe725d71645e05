//! From Query to Decision: made, or remembered.

pub mod authorizer;
pub mod cache;
pub mod freshness;
pub mod key;
