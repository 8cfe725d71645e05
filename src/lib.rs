//! Stockade.

pub mod feed;
pub mod model;
pub mod policy;
pub mod problem;
pub mod units;
pub mod yaml;
