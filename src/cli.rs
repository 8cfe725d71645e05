//! The command line: one file per subcommand.

mod check_config;
mod completions;
mod decide;
mod footprint;
mod serve;
mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A sidecar that answers Envoy's ext_authz calls with Cedar policies.
///
/// Stockade runs beside Envoy, maps each HTTP or gRPC request to a Cedar query, evaluates the policies of its bundles
/// locally, and answers allow, deny or "could not decide".
///
/// A first look: `stockade validate policies/bookstore` checks a bundle; `stockade decide --bundle policies/bookstore
/// < request.json` shows what becomes of one request; `stockade footprint policies/bookstore` shows what decisions are
/// remembered by; `stockade serve --config stockade.yaml` runs the sidecar.
///
/// Exit status: 64 if the command line cannot be understood, else what the help of each command says.
#[derive(Debug, Parser)]
#[command(name = "stockade", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    CheckConfig(check_config::Args),
    Validate(validate::Args),
    Decide(decide::Args),
    Footprint(footprint::Args),
    Completions(completions::Args),
}

/// What a command line that cannot be understood exits with (`EX_USAGE` of sysexits.h): 1 to 4 have meanings here.
const USAGE: u8 = 64;

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing to a closed pipe is all that can fail, and then nobody is left to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Decide(args) => decide::run(&args),
        Command::Footprint(args) => footprint::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
