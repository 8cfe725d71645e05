use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::terminal::out;

/// Print completions for a shell.
///
/// For bash: `stockade completions bash > /etc/bash_completion.d/stockade`.
///
/// Exit status: 0.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::Cli::command(), "stockade", &mut script);
    out!("{}", String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
