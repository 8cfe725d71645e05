//! From a manifest to a compiled bundle.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::timeout;

use super::super::Limits;
use super::super::compiler::compiled;
use super::super::source::{Source, SourceError};
use super::Engine;
use super::state::{Fetch, Origin};
use crate::model::Published;
use crate::problem::{Problem, one_line};
use crate::store::statement::{Blob, Head, Manifest};
use crate::store::{Digest, Refusal, pack};

/// How long a bundle may take to arrive.
const ARRIVAL: std::time::Duration = std::time::Duration::from_secs(60);

/// Why a bundle could not be had.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// It did not arrive: to be tried again.
    Source(SourceError),
    /// It is not what the manifest names: to be tried again, for another server may have the right one.
    Blob(Refusal),
    /// It is not good, and never will be.
    Problems(Vec<Problem>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Blob(refusal) => refusal.fmt(f),
            Self::Problems(problems) => f.write_str(&one_line(problems)),
        }
    }
}

/// What a snapshot says of the manifest that put it in force.
pub(super) fn published(head: Head, manifest: &Manifest) -> Published {
    Published { number: head.version.to_string(), at: manifest.published_at.0 }
}

/// Gets the bundle that a manifest names, verifies and compiles it.
pub(super) async fn fetch<E: Engine>(
    source: &impl Source,
    engine: Arc<E>,
    fetch: &Fetch,
    limits: Limits,
) -> Result<(E::Base, Bytes), Failure> {
    let blob = &fetch.manifest.bundle;
    let bytes = match &fetch.origin {
        Origin::Store => arrive(source, blob, &limits).await?,
        Origin::Copy(bytes, _) => bytes.clone(),
    };
    verify(blob, &bytes).map_err(Failure::Blob)?;
    compile(engine, bytes, fetch, limits).await
}

/// Asks for a blob.
async fn arrive(source: &impl Source, blob: &Blob, limits: &Limits) -> Result<Bytes, Failure> {
    if blob.size > limits.max_total_size.0 {
        let message =
            format!("the bundle has {} bytes, more than `max_total_size` ({})", blob.size, limits.max_total_size);
        return Err(Failure::Problems(vec![Problem::error(message)]));
    }
    let bytes = timeout(ARRIVAL, source.blob(blob)).await;
    bytes.unwrap_or_else(|_| Err(SourceError("it did not arrive in time".to_owned()))).map_err(Failure::Source)
}

/// Makes sure that a blob is the one that was named.
fn verify(blob: &Blob, bytes: &Bytes) -> Result<(), Refusal> {
    if bytes.len() as u64 != blob.size {
        return Err(Refusal::Blob(format!("it has {} bytes instead of {}", bytes.len(), blob.size)));
    }
    let digest = Digest::of(bytes);
    match digest == blob.digest {
        true => Ok(()),
        false => Err(Refusal::Blob(format!("it is {digest} instead of {}", blob.digest))),
    }
}

/// Compiles a packed bundle.
async fn compile<E: Engine>(
    engine: Arc<E>,
    bytes: Bytes,
    fetch: &Fetch,
    limits: Limits,
) -> Result<(E::Base, Bytes), Failure> {
    let (packed, version) = (bytes.clone(), fetch.head.version);
    let published = published(fetch.head, &fetch.manifest);
    let compile = move || {
        let files = pack::unpack(&packed, &format!("store@{version}"))
            .map_err(|error| vec![Problem::error(format!("the bundle cannot be unpacked: {error}"))])?;
        limits.check(&files)?;
        engine.compile(&files, published.clone())
    };
    let made = compiled(compile, fetch.urgent).await.unwrap_or_else(|problem| Err(vec![problem]));
    made.map(|base| (base, bytes)).map_err(Failure::Problems)
}

/// Whether a version is this one or newer. A pre-release counts as what it leads to. What cannot be read is not understood either.
pub(super) fn is_at_least(version: &str, needed: &str) -> bool {
    let release = |text: &str| semver::Version::parse(text).ok().map(|found| (found.major, found.minor, found.patch));
    matches!((release(version), release(needed)), (Some(version), Some(needed)) if version >= needed)
}

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, needed, expected) in [
            ("0.1.0", "0.1.0", true),
            ("0.10.0", "0.9.9", true),
            ("0.9.9", "0.10.0", false),
            ("1.0.0-rc.1", "1.0.0", true),
            ("1.0.0", "1.0.0+build", true),
            ("1.0.0", "next", false),
            ("1.0.0", "", false),
        ] {
            assert_eq!(is_at_least(version, needed), expected, "{version} {needed}");
        }
    }
}
