use std::process::ExitCode;

use crate::cli::args::overlay::{IssueArgs, ScopeArgs, issue};
use crate::cli::output;
use crate::store::statement::OverlayEffect;

/// Deny something everywhere, now, for a while.
///
/// Issues an emergency denial: a signed overlay that is in force beside whatever bundle is, wins over every `permit`, and
/// ends by itself to the second, also on a sidecar that is cut off. Its id is named in the decision log.
///
/// Exit status: 0 if it was issued, 1 if nothing was changed, 2 if it was issued, but `--wait` was not fulfilled or a
/// sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    issue: IssueArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    output::run(issue(OverlayEffect::Deny, &args.scope, None, &args.issue))
}
