//! The copy on disk of what was in force: for a start while the store is down. It is verified like anything from the store, and its age
//! is that of the last beacon that proved it current, so nobody who can write to the disk can make it younger.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use deserr::Deserr;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task;
use tracing::warn;

use crate::store::statement::Kind;
use crate::units::HumanDuration;
use crate::yaml::Faults;

/// Where the copy is, and how old it may be.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// A directory of this sidecar's own, which survives a restart of the container.
    pub directory: String,
    /// How long ago it may have been proved to be current. Default: 1h.
    #[deserr(default = default_max_age())]
    pub max_age: HumanDuration,
}

fn default_max_age() -> HumanDuration {
    HumanDuration::seconds(3600)
}

/// How often the newest beacon is written: by so much the copy may look older than it is.
pub(super) const BEACON_INTERVAL: Duration = Duration::from_secs(10);

/// The copy on disk.
#[derive(Debug, Clone)]
pub(super) struct LastGood {
    directory: PathBuf,
    /// To the one task that writes, in the order in which it is told.
    writes: mpsc::Sender<Files>,
}

/// Files by name, which are written in this order.
type Files = Vec<(&'static str, Bytes)>;

/// How many writes wait for a slow disk. What comes beyond is let go: the next one brings it again.
const WRITES: usize = 8;

/// What was found there. Nothing of it is verified.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) manifest: Bytes,
    pub(super) overlays: Option<Bytes>,
    pub(super) beacon: Bytes,
    pub(super) blob: Bytes,
}

/// The name of the packed bundle.
pub(super) const BLOB: &str = "bundle.tar";

impl LastGood {
    /// Knows the copy, and starts what writes it.
    pub(super) fn start(config: Config) -> Self {
        let directory = PathBuf::from(config.directory);
        let (writes, written) = mpsc::channel(WRITES);
        task::spawn(write(directory.clone(), written));
        Self { directory, writes }
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

    /// Has files written, each as a whole. A full disk costs the copy, and nothing else.
    pub(super) fn save(&self, files: Files) {
        if self.writes.try_send(files).is_err() {
            warn!("the disk is slow: what is in force is not kept there this time");
        }
    }
}

async fn write(directory: PathBuf, mut writes: mpsc::Receiver<Files>) {
    while let Some(files) = writes.recv().await {
        let target = directory.clone();
        let written = task::spawn_blocking(move || {
            fs::create_dir_all(&target)?;
            files.iter().try_for_each(|(name, bytes)| replace(&target, name, bytes))
        });
        if let Ok(Err(error)) = written.await {
            warn!(%error, directory = %directory.display(), "what is in force could not be kept on disk");
        }
    }
}

/// Replaces a file as a whole, or leaves it as it was.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(name))
    })();
    if written.is_err() {
        // Half a file is of no use, and takes the room that the disk does not have. It may not even be there.
        let _ = fs::remove_file(new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The disk is full before the first byte, and in the middle of it: `/dev/full` takes nothing.
    #[test]
    fn what_cannot_be_written_leaves_what_was_there() {
        let directory = tempfile::tempdir().expect("a directory");
        replace(directory.path(), "manifest", b"one").expect("written");
        std::os::unix::fs::symlink("/dev/full", directory.path().join(".manifest.new")).expect("linked");
        let error = replace(directory.path(), "manifest", b"two").expect_err("full");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read(directory.path().join("manifest")).expect("read"), b"one");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1, "and nothing half");
        replace(directory.path(), "manifest", b"three").expect("there is room again");
        assert_eq!(fs::read(directory.path().join("manifest")).expect("read"), b"three");
    }
}
