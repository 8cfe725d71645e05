//! What the central store holds, and what of it may be believed: statements, signatures, packed bundles. Pure: bytes in,
//! verdicts out. How they travel
//! is none of its business.
//!
//! Three signed statements, each by keys that may say nothing else (docs/store.md):
//!
//! | statement | role | says |
//! |---|---|---|
//! | [`Manifest`] | publish | which bundle is in force |
//! | [`Overlays`] | overlay | which emergency denials and exceptions are in force beside it |
//! | [`Beacon`] | beacon | which of the two are the newest, at this instant |

pub mod envelope;
pub mod keys;
pub mod layout;
pub mod pack;
pub mod statement;
pub mod trusted;

pub use keys::{Keyring, PublicKey, Role, SecretKey};
pub use pack::Digest;
pub use statement::{Beacon, Head, Kind, Manifest, Overlays, Status, StoreName, Timestamp, Version};
pub use trusted::{Refusal, TrustedStatements};
