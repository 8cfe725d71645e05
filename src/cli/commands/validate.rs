use std::process::ExitCode;

use crate::cli::args::bundle::BundleArgs;
use crate::cli::output::{count, show};
use crate::terminal::{errln, outln};

/// Check a bundle, as a sidecar would before it puts it in force.
///
/// Parses every file, validates the policies strictly against the schema, and checks ids, annotations, links, entities
/// and routes. Prints every problem, with the place in the file where there is one. Several directories are checked
/// together, as a sidecar that follows all of them would merge them.
///
/// Exit status: 0 if the bundle is valid (there may be warnings), 1 if it is not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Treat warnings as errors.
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match args.bundle.load() {
        Ok(snapshot) => {
            show(&snapshot.warnings);
            let summary = snapshot.summary();
            let warnings = snapshot.warnings.iter().filter(|problem| problem.is_warning()).count();
            outln!(
                "good: {}, {}, {}; revision {}; {}",
                count(summary.policies.len(), "policy"),
                count(summary.routes, "route"),
                count(summary.entities, "entity"),
                summary.revision.id,
                count(warnings, "warning"),
            );
            if args.strict && warnings > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(problems) => {
            show(&problems);
            let errors = problems.iter().filter(|problem| problem.is_error()).count();
            errln!("{}; a sidecar would refuse this and keep what is in force", count(errors, "error"));
            ExitCode::FAILURE
        }
    }
}
