use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::problem;
use crate::terminal::{Stream, errln, outln};

/// Check a configuration file.
///
/// Prints every problem of the file with its place and a hint. Nothing is bound and no bundle is read: `stockade
/// validate` does that.
///
/// Exit status: 0 if the file is good, 2 if it is not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the effective configuration, with every default, as JSON.
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match Config::load(&args.file) {
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
        Ok(_) => {
            outln!("{}: good", args.file.display());
            ExitCode::SUCCESS
        }
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            ExitCode::from(2)
        }
    }
}
