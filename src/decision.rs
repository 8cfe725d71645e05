//! From Query to Outcome.

pub mod authorizer;
