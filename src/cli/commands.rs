//! One file for each subcommand: its arguments, its help, and what it does.

#[cfg(feature = "nats")]
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
mod test;
mod validate;

use std::process::ExitCode;

use clap::Subcommand;

pub(super) use probe::ProbeError;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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

impl Command {
    /// Runs the command.
    pub(crate) fn run(&self) -> ExitCode {
        match self {
            Command::Serve(args) => serve::run(args),
            Command::CheckConfig(args) => check_config::run(args),
            Command::Probe(args) => probe::run(args),
            Command::Validate(args) => validate::run(args),
            Command::Decide(args) => decide::run(args),
            Command::Footprint(args) => footprint::run(args),
            Command::Test(args) => test::run(args),
            Command::Keygen(args) => keygen::run(args),
            #[cfg(feature = "nats")]
            Command::Publish(args) => publish::run(args),
            #[cfg(feature = "nats")]
            Command::Rollback(args) => rollback::run(args),
            #[cfg(feature = "nats")]
            Command::History(args) => history::run(args),
            #[cfg(feature = "nats")]
            Command::Show(args) => show::run(args),
            #[cfg(feature = "nats")]
            Command::Pull(args) => pull::run(args),
            #[cfg(feature = "nats")]
            Command::Status(args) => status::run(args),
            #[cfg(feature = "nats")]
            Command::Deny(args) => deny::run(args),
            #[cfg(feature = "nats")]
            Command::Grant(args) => grant::run(args),
            #[cfg(feature = "nats")]
            Command::Overlays(args) => overlays::run(args),
            #[cfg(feature = "nats")]
            Command::Beacon(args) => beacon::run(args),
            #[cfg(feature = "nats")]
            Command::Prune(args) => prune::run(args),
            Command::Completions(args) => completions::run(args),
        }
    }
}
