//! The command line: `commands` has one file for each subcommand, `args` the arguments that several of them share, `output` what they
//! print.

mod args;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;

use self::commands::Command;
use crate::terminal::{Stream, Styled};

/// A sidecar that answers Envoy's ext_authz calls with Cedar policies.
///
/// Stockade runs beside Envoy, maps each HTTP or gRPC request to a Cedar query, evaluates the policies of its bundles
/// locally, and answers allow, deny or "could not decide".
///
/// A first look: `stockade validate policies/bookstore` checks a bundle; `stockade decide --bundle policies/bookstore
/// < request.json` shows what is decided about one request; `stockade footprint policies/bookstore` shows what decisions are
/// remembered by; `stockade serve --config stockade.yaml` runs the sidecar.
///
/// Exit status: 64 if the command line cannot be understood, else what the help of each command says.
#[derive(Debug, Parser)]
#[command(name = "stockade", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What a command line that cannot be understood exits with (`EX_USAGE` of sysexits.h): 1 to 4 have meanings here.
const USAGE: u8 = 64;

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let stream = if error.use_stderr() { Stream::Err } else { Stream::Out };
            let text = error.render();
            let coloured = stream.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let shown = if coloured { text.ansi().to_string() } else { text.to_string() };
            stream.show(&Styled::new(&text.to_string(), shown));
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    cli.command.run()
}
