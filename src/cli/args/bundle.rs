//! Which bundles, and reading them as a sidecar would.

use std::path::PathBuf;

use crate::feed::{self, Limits};
use crate::policy::{Files, Snapshot, idle_ignores};
use crate::problem::Problem;

/// The bundles that a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct BundleArgs {
    /// The bundle's directory, or several, which are merged as on a sidecar that follows all of them.
    #[arg(value_name = "DIR", required = true)]
    pub(crate) directories: Vec<PathBuf>,
}

impl BundleArgs {
    /// Reads and compiles them, once.
    pub(crate) fn load(&self) -> Result<Snapshot, Vec<Problem>> {
        load(&self.directories)
    }

    /// The same, with what was read.
    pub(crate) fn read(&self) -> Result<(Vec<Files>, Snapshot), Vec<Problem>> {
        read(&self.directories)
    }
}

/// Reads and compiles bundles, once.
pub(crate) fn load(directories: &[PathBuf]) -> Result<Snapshot, Vec<Problem>> {
    read(directories).map(|(_, snapshot)| snapshot)
}

fn read(directories: &[PathBuf]) -> Result<(Vec<Files>, Snapshot), Vec<Problem>> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for directory in directories {
        match feed::read(directory, &Limits::default()) {
            Ok(read) => files.push(read),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut snapshot = Snapshot::compile(&files, None, &mut Default::default())?;
    // What is ignored is not read, so only a reader of the directory can look for it.
    let idle = directories.iter().zip(&files);
    let idle = idle.flat_map(|(directory, files)| idle_ignores(files, |entry| directory.join(entry).exists()));
    snapshot.warnings = snapshot.warnings.iter().cloned().chain(idle).collect();
    Ok((files, snapshot))
}
