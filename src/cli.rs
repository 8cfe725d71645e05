//! The command line: one file per subcommand.

#[cfg(feature = "nats")]
mod assumed;
mod beacon;
mod check_config;
mod completions;
mod decide;
#[cfg(feature = "nats")]
mod deny;
mod footprint;
#[cfg(feature = "nats")]
mod grant;
#[cfg(feature = "nats")]
mod history;
#[cfg(feature = "nats")]
mod issue;
mod keygen;
#[cfg(feature = "nats")]
mod overlays;
mod probe;
#[cfg(feature = "nats")]
mod prune;
#[cfg(feature = "nats")]
mod publish;
#[cfg(feature = "nats")]
mod pull;
#[cfg(feature = "nats")]
mod rollback;
mod serve;
#[cfg(feature = "nats")]
mod show;
#[cfg(feature = "nats")]
mod status;
#[cfg(feature = "nats")]
mod store;
mod test;
mod validate;
#[cfg(feature = "nats")]
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::terminal::{Stream, Styled};

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
    Probe(probe::Args),
    Validate(validate::Args),
    Decide(decide::Args),
    Footprint(footprint::Args),
    Test(test::Args),
    Keygen(keygen::Args),
    #[cfg(feature = "nats")]
    Publish(publish::Args),
    #[cfg(feature = "nats")]
    Rollback(rollback::Args),
    #[cfg(feature = "nats")]
    History(history::Args),
    #[cfg(feature = "nats")]
    Show(show::Args),
    #[cfg(feature = "nats")]
    Pull(pull::Args),
    #[cfg(feature = "nats")]
    Status(status::Args),
    #[cfg(feature = "nats")]
    Deny(deny::Args),
    #[cfg(feature = "nats")]
    Grant(grant::Args),
    #[cfg(feature = "nats")]
    Overlays(overlays::Args),
    #[cfg(feature = "nats")]
    Beacon(beacon::Args),
    #[cfg(feature = "nats")]
    Prune(prune::Args),
    Completions(completions::Args),
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
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Decide(args) => decide::run(&args),
        Command::Footprint(args) => footprint::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        #[cfg(feature = "nats")]
        Command::Publish(args) => publish::run(&args),
        #[cfg(feature = "nats")]
        Command::Rollback(args) => rollback::run(&args),
        #[cfg(feature = "nats")]
        Command::History(args) => history::run(&args),
        #[cfg(feature = "nats")]
        Command::Show(args) => show::run(&args),
        #[cfg(feature = "nats")]
        Command::Pull(args) => pull::run(&args),
        #[cfg(feature = "nats")]
        Command::Status(args) => status::run(&args),
        #[cfg(feature = "nats")]
        Command::Deny(args) => deny::run(&args),
        #[cfg(feature = "nats")]
        Command::Grant(args) => grant::run(&args),
        #[cfg(feature = "nats")]
        Command::Overlays(args) => overlays::run(&args),
        #[cfg(feature = "nats")]
        Command::Beacon(args) => beacon::run(&args),
        #[cfg(feature = "nats")]
        Command::Prune(args) => prune::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
