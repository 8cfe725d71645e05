use std::path::PathBuf;
use std::process::ExitCode;

use crate::feed::{self, Limits};
use crate::policy::{Files, Snapshot, idle_ignores};
use crate::problem;
use crate::terminal::{Stream, errln, outln};

/// Check a bundle, as a sidecar would before it puts it in force.
///
/// Parses every file, validates the policies strictly against the schema, and checks ids, annotations, links, entities
/// and routes. Prints every problem, with the place in the file where there is one. Several directories are checked
/// together, as a sidecar that follows all of them would merge them.
///
/// Exit status: 0 if the bundle is good (there may be warnings), 1 if it is not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle's directory, or several.
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// Treat warnings as errors.
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match load(&args.directories) {
        Ok(snapshot) => {
            Stream::Err.show(&problem::render(&snapshot.warnings));
            let summary = snapshot.summary();
            let warnings = snapshot.warnings.iter().filter(|problem| problem.is_warning()).count();
            outln!(
                "good: {} policies, {} routes, {} entities; revision {}; {warnings} warnings",
                summary.policies.len(),
                summary.routes,
                summary.entities,
                summary.revision.id,
            );
            if args.strict && warnings > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            let errors = problems.iter().filter(|problem| problem.is_error()).count();
            errln!("{errors} errors; a sidecar would refuse this and keep what is in force");
            ExitCode::FAILURE
        }
    }
}

/// Reads and compiles bundles, once.
pub(super) fn load(directories: &[PathBuf]) -> Result<Snapshot, Vec<problem::Problem>> {
    read(directories).map(|(_, snapshot)| snapshot)
}

/// Reads and compiles bundles, and keeps what was read.
pub(super) fn read(directories: &[PathBuf]) -> Result<(Vec<Files>, Snapshot), Vec<problem::Problem>> {
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
    // What is ignored is not read, so only who has the directory can look for it.
    let idle = directories.iter().zip(&files);
    let idle = idle.flat_map(|(directory, files)| idle_ignores(files, |entry| directory.join(entry).exists()));
    snapshot.warnings = snapshot.warnings.iter().cloned().chain(idle).collect();
    Ok((files, snapshot))
}
