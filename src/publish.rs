//! The other side of the store: what publishers, issuers of overlays, beacons and those who look on do with it.
//!
//! | type | what it does |
//! |---|---|
//! | [`Store`] | carries bytes: uploads, compare-and-set of statements, histories, statuses |
//! | [`Session`] | reads statements that trusted keys have signed; [`Session::publish_manifest`], [`Session::edit_overlays`] |
//! | [`BeaconSender`] | [`BeaconSender::send_beacon`] |
//!
//! Every statement is encoded, sealed and stored by the last two, for the command line, the load test and the tests alike.

mod beacon;
mod error;
pub mod history;
pub mod overlays;
pub mod presence;
pub mod rollout;
mod session;
mod statement;
mod store;
pub mod streams;

pub use beacon::BeaconSender;
pub use error::Error;
pub use session::{CurrentOverlays, Session};
pub use statement::{Draft, PackedBundle, Position};
pub use store::{Advance, Store};
