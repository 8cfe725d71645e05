use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::decide;
use crate::cli::args::bundle;
use crate::config::Config;
use crate::problem::{self, Problem};
use crate::terminal::{Stream, errln, outln};

/// Check a configuration file.
///
/// Prints every problem of the file with its place and a hint. Nothing is bound. With `--bundles` the directories of its bundles are
/// read as well, and what the configuration names and no bundle declares is a warning.
///
/// Exit status: 0 if the file is valid, 2 if it is not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the effective configuration, with every default, as JSON.
    #[arg(long)]
    print: bool,
    /// Read the bundles that it names, too.
    #[arg(long)]
    bundles: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match Config::load(&args.file).and_then(|config| if args.bundles { with_bundles(config) } else { Ok(config) }) {
        Ok(config) if args.print => match serde_json::to_string_pretty(&config) {
            Ok(text) => {
                outln!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                errln!("the configuration cannot be printed: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(config) => {
            Stream::Err.show(&problem::render(&config.without_effect()));
            outln!("{}: good", args.file.display());
            ExitCode::SUCCESS
        }
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            ExitCode::from(2)
        }
    }
}

/// Reads the bundles of a configuration, and prints what it names that they do not have.
fn with_bundles(config: Config) -> Result<Config, Vec<Problem>> {
    if config.store.is_some() {
        let problem = Problem::error("`--bundles`: the bundles come from a store");
        return Err(vec![problem.hint("`stockade pull` brings them into a directory, for `stockade validate`")]);
    }
    let snapshot = Arc::new(bundle::load(&config.directories())?);
    let warnings = decide::pipeline(&config, Arc::clone(&snapshot))?.mapping.undeclared(&snapshot);
    Stream::Err.show(&problem::render(&snapshot.warnings));
    Stream::Err.show(&problem::render(&warnings));
    Ok(config)
}
