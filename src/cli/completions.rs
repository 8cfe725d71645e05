use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print completions for a shell.
///
/// For bash: `stockade completions bash > /etc/bash_completion.d/stockade`.
///
/// Exit status: 0.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> ExitCode {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "stockade", &mut std::io::stdout());
    ExitCode::SUCCESS
}
