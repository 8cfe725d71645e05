use std::process::ExitCode;

use crate::cli::args::overlay::{IssueArgs, ScopeArgs, issue};
use crate::cli::output;
use crate::store::statement::OverlayEffect;

/// Allow something everywhere, now, for a while.
///
/// Issues a time-boxed exception: a signed overlay that is in force beside whatever bundle is and ends by itself to the
/// second, also on a sidecar that is cut off. Every `forbid` wins over it. Its id is named in the decision log.
///
/// Exit status: 0 if it was issued, 1 if nothing was changed, 2 if it was issued, but `--wait` was not fulfilled or a
/// sidecar refuses it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Who approved it.
    #[arg(long, value_name = "NAME")]
    approved_by: String,
    #[command(flatten)]
    issue: IssueArgs,
}

pub(super) fn run(args: &Args) -> ExitCode {
    output::run(issue(OverlayEffect::Grant, &args.scope, Some(args.approved_by.clone()), &args.issue))
}
