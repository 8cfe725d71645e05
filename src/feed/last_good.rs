//! The copy on disk of what was in force: for a start while the store is down. It is verified like anything from the store, and its age
//! is that of the last beacon that proved it current, so nobody who can write to the disk can make it younger.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use deserr::Deserr;
use serde::Serialize;
use tokio::task;
use tracing::warn;

use crate::store::Digest;
use crate::store::statement::Kind;
use crate::units::Span;
use crate::yaml::Faults;

/// Where the copy is, and how old it may be.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// A directory of this sidecar's own, which survives a restart of the container.
    pub directory: String,
    /// How long ago it may have been proved to be current. Default: 1h.
    #[deserr(default = default_max_age())]
    pub max_age: Span,
}

fn default_max_age() -> Span {
    Span::seconds(3600)
}

/// How often the newest beacon is written: by so much the copy may look older than it is.
pub(super) const BEACON_INTERVAL: Duration = Duration::from_secs(10);

/// The copy on disk.
#[derive(Debug, Clone)]
pub(super) struct LastGood {
    directory: PathBuf,
    max_age: Duration,
}

/// What was found there. Nothing of it is verified.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) manifest: Bytes,
    pub(super) overlays: Option<Bytes>,
    pub(super) beacon: Bytes,
    pub(super) blob: Bytes,
}

const BLOB: &str = "bundle.tar";

impl LastGood {
    pub(super) fn new(config: Config) -> Self {
        Self { directory: config.directory.into(), max_age: config.max_age.0 }
    }

    pub(super) fn max_age(&self) -> Duration {
        self.max_age
    }

    /// Reads the copy; `None` if there is none, or not all of it.
    pub(super) async fn load(&self) -> Option<Copy> {
        let directory = self.directory.clone();
        let read = task::spawn_blocking(move || {
            let file = |name: &str| fs::read(directory.join(name)).map(Bytes::from);
            let overlays = match file(Kind::Overlays.as_str()) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                other => Some(other?),
            };
            let (manifest, beacon) = (file(Kind::Manifest.as_str())?, file(Kind::Beacon.as_str())?);
            Ok::<_, io::Error>(Copy { manifest, overlays, beacon, blob: file(BLOB)? })
        });
        match read.await {
            Ok(Ok(copy)) => Some(copy),
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => None,
            Ok(Err(error)) => {
                warn!(%error, directory = %self.directory.display(), "the copy on disk cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    /// Writes what is in force; `blob` only if it is another one. A full disk costs the copy, and nothing else.
    pub(super) fn save(
        &self,
        digest: Digest,
        blob: Option<Bytes>,
        manifest: Bytes,
        overlays: Option<Bytes>,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Were it to end half way, the digests would not fit, and the copy would not be used.
        let mut files = vec![(Kind::Manifest.as_str(), manifest)];
        files.extend(blob.map(|blob| (BLOB, blob)));
        files.extend(overlays.map(|overlays| (Kind::Overlays.as_str(), overlays)));
        tracing::debug!(%digest, "keeping what is in force on disk");
        self.write(files)
    }

    /// Writes one statement.
    pub(super) fn save_statement(&self, kind: Kind, bytes: Bytes) -> impl Future<Output = ()> + Send + use<> {
        self.write(vec![(kind.as_str(), bytes)])
    }

    fn write(&self, files: Vec<(&'static str, Bytes)>) -> impl Future<Output = ()> + Send + use<> {
        let directory = self.directory.clone();
        async move {
            let shown = directory.display().to_string();
            let written = task::spawn_blocking(move || {
                fs::create_dir_all(&directory)?;
                files.iter().try_for_each(|(name, bytes)| replace(&directory, name, bytes))
            });
            if let Ok(Err(error)) = written.await {
                warn!(%error, directory = shown, "what is in force could not be kept on disk");
            }
        }
    }
}

/// Replaces a file as a whole, or leaves it as it was.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, directory.join(name))
}
