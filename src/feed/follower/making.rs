//! From a manifest to a compiled bundle.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::timeout;

use super::super::Limits;
use super::super::compiler::compiled;
use super::super::source::{Source, SourceError};
use super::{Engine, FETCH, Failure};
use crate::model::Published;
use crate::problem::Problem;
use crate::store::statement::{Blob, Head, Manifest};
use crate::store::{Refusal, pack};

/// What a snapshot is told of the manifest that put it in force.
pub(super) fn published(head: Head, says: &Manifest) -> Published {
    Published { number: head.version.to_string(), at: says.published_at.0 }
}

/// Whether a manifest is to be in force by now.
pub(super) fn is_due(says: &Manifest, now: SystemTime) -> bool {
    says.not_before.is_none_or(|not_before| not_before.0 <= now)
}

/// Gets a blob, and makes sure that it is the one.
pub(super) async fn fetch(source: &impl Source, blob: &Blob, limits: &Limits) -> Result<Bytes, Failure> {
    if blob.size > limits.max_total_size.0 {
        let message =
            format!("the bundle has {} bytes, more than `max_total_size` ({})", blob.size, limits.max_total_size);
        return Err(Failure::Problems(vec![Problem::error(message)]));
    }
    let bytes = timeout(FETCH, source.blob(blob)).await;
    let bytes = bytes.unwrap_or_else(|_| Err(SourceError("it did not arrive in time".to_owned())));
    verify(blob, bytes.map_err(Failure::Source)?).map_err(Failure::Blob)
}

pub(super) fn verify(blob: &Blob, bytes: Bytes) -> Result<Bytes, Refusal> {
    if bytes.len() as u64 != blob.size {
        return Err(Refusal::Blob(format!("it has {} bytes instead of {}", bytes.len(), blob.size)));
    }
    let digest = pack::Digest::of(&bytes);
    if digest == blob.digest {
        Ok(bytes)
    } else {
        Err(Refusal::Blob(format!("it is {digest} instead of {}", blob.digest)))
    }
}

/// Compiles a packed bundle; `at_once` if there is nothing in force yet that checks are decided by.
pub(super) async fn compile<E: Engine>(
    engine: Arc<E>,
    bytes: Bytes,
    (head, says): (Head, &Manifest),
    limits: Limits,
    at_once: bool,
) -> Result<(E::Base, Bytes), Failure> {
    let (packed, published) = (bytes.clone(), published(head, says));
    let compile = move || {
        let files = pack::unpack(&packed, &format!("store@{}", head.version))
            .map_err(|error| vec![Problem::error(format!("the bundle cannot be unpacked: {error}"))])?;
        limits.check(&files)?;
        engine.compile(&files, published.clone())
    };
    let made = compiled(compile, at_once).await.unwrap_or_else(|problem| Err(vec![problem]));
    made.map(|base| (base, bytes)).map_err(Failure::Problems)
}

/// Whether a version is this one or newer. A pre-release counts as what it leads to. What cannot be read is not understood either.
pub(super) fn is_at_least(own: &str, needed: &str) -> bool {
    let release = |text: &str| semver::Version::parse(text).ok().map(|own| (own.major, own.minor, own.patch));
    matches!((release(own), release(needed)), (Some(own), Some(needed)) if own >= needed)
}

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (own, needed, expected) in [
            ("0.1.0", "0.1.0", true),
            ("0.10.0", "0.9.9", true),
            ("0.9.9", "0.10.0", false),
            ("1.0.0-rc.1", "1.0.0", true),
            ("1.0.0", "1.0.0+build", true),
            ("1.0.0", "next", false),
            ("1.0.0", "", false),
        ] {
            assert_eq!(is_at_least(own, needed), expected, "{own} {needed}");
        }
    }
}
