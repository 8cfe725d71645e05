//! Why a command came to nothing.

use std::io;
use std::path::PathBuf;

use crate::app::StartError;
use crate::cli::commands::ProbeError;
#[cfg(feature = "nats")]
use crate::publish;
use crate::store::keys::KeyError;

/// What can happen to a command, beside problems of bundles and configurations.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The store.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Store(#[from] publish::Error),
    /// The same, while something was looked up in it.
    #[cfg(feature = "nats")]
    #[error("{version}: {doubt}")]
    Doubted {
        /// The version.
        version: crate::store::Version,
        /// Why it is not to be acted upon.
        doubt: String,
    },
    /// A file or directory cannot be read.
    #[cfg(feature = "nats")]
    #[error("`{}` cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("`{}` cannot be written: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds no key.
    #[cfg(feature = "nats")]
    #[error("`{}`: {error}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What it is instead.
        error: KeyError,
    },
    /// No key can be made.
    #[error(transparent)]
    NoKey(#[from] KeyError),
    /// A directory that is to be written holds something.
    #[cfg(feature = "nats")]
    #[error("`{}` is not empty (name another directory)", .0.display())]
    NotEmpty(PathBuf),
    /// Arguments that do not go together.
    #[cfg(feature = "nats")]
    #[error("{message} ({hint})")]
    Arguments {
        /// What is wrong.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Something that has no effect, or a bad one.
    #[cfg(feature = "nats")]
    #[error("nothing was changed: {0}")]
    Unchanged(String),
    /// A bundle that must not be published.
    #[cfg(feature = "nats")]
    #[error("nothing was published: {0}")]
    NotPublished(String),
    /// A bundle of the store that cannot be used.
    #[cfg(feature = "nats")]
    #[error("the bundle of {version} is not valid here: {problems}")]
    NotValid {
        /// Of which version.
        version: crate::store::Version,
        /// Why not.
        problems: String,
    },
    /// A sidecar that was probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A sidecar that cannot start, or ended.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There are no threads to be had.
    #[cfg(feature = "nats")]
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    /// There are no signals to be had.
    #[error("signals cannot be caught: {0}")]
    Signals(io::Error),
}

#[cfg(feature = "nats")]
impl From<crate::nats::Error> for Error {
    fn from(error: crate::nats::Error) -> Self {
        publish::Error::from(error).into()
    }
}
