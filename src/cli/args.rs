//! Arguments that several commands share, and what is made of them.

pub(super) mod bundle;
pub(super) mod config;
#[cfg(feature = "nats")]
pub(super) mod keys;
#[cfg(feature = "nats")]
pub(super) mod overlay;
#[cfg(feature = "nats")]
pub(super) mod session;
#[cfg(feature = "nats")]
pub(super) mod store;
#[cfg(feature = "nats")]
pub(super) mod wait;
