use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use deserr::Deserr;

use super::{decide, validate};
use crate::config::Config;
use crate::ext_authz::json;
use crate::ext_authz::judge::{Judge, Verdict};
use crate::ext_authz::request::ServiceName;
use crate::model::Outcome;
use crate::observe;
use crate::policy::{Files, Snapshot};
use crate::problem::{self, Problem, SourceFile};
use crate::terminal::{Stream, errln, outln};
use crate::yaml::{self, Faults};

/// Run the tests of a bundle.
///
/// Each file `tests/*.yaml` of a bundle lists requests, and what is to become of them (policies/README.md). They are mapped and
/// decided as a sidecar would, under all bundles that are named together. `stockade publish` runs them too.
///
/// Exit status: 0 if all passed, 1 if not, or if there are none.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle's directory, or several.
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
}

/// A file of tests.
#[derive(Debug, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
struct Suite {
    /// The service that the sidecar stands beside, as in its configuration. Default: `default`.
    #[deserr(default = ServiceName("default".to_owned()))]
    service: ServiceName,
    /// What is tested.
    tests: Vec<Case>,
}

/// A request, and what is to become of it.
#[derive(Debug, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
struct Case {
    /// What it shows.
    name: String,
    /// The file with the CheckRequest in protobuf JSON, below `tests/`.
    request: String,
    /// The decision.
    expect: Expect,
    /// The reason, as Records have it.
    #[deserr(default)]
    reason: Option<String>,
    /// The policies that determine it, in any order; without the bundle's name where that is clear.
    #[deserr(default)]
    determining: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Deserr)]
#[deserr(error = Faults, rename_all = lowercase)]
enum Expect {
    Allow,
    Deny,
}

impl Expect {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

pub(super) fn run(args: &Args) -> ExitCode {
    let outcome = validate::read(&args.directories).and_then(|(files, _)| run_tests(&files));
    match outcome {
        Ok(0) => {
            errln!("there are no tests: write `tests/*.yaml`, as policies/README.md shows");
            ExitCode::FAILURE
        }
        Ok(passed) => {
            outln!("{passed} tests passed");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            errln!("{} tests failed or cannot be run", problems.len());
            ExitCode::FAILURE
        }
    }
}

/// Runs the tests of bundles that are known to be good; how many passed.
///
/// # Errors
/// Each test that failed, and each file that cannot be read.
pub(super) fn run_tests(files: &[Files]) -> Result<usize, Vec<Problem>> {
    let mut passed = 0;
    let mut problems = Vec::new();
    let mut snapshot = None;
    for bundle in files {
        let suites = bundle.files.iter().filter(|(path, _)| path.starts_with("tests/") && path.ends_with(".yaml"));
        for (path, text) in suites {
            let source = SourceFile::new(format!("{}/{path}", bundle.root), text.as_str());
            let suite: Suite = match yaml::parse(&source) {
                Ok(suite) => suite,
                Err(found) => {
                    problems.extend(found);
                    continue;
                }
            };
            let snapshot = match &snapshot {
                Some(snapshot) => Arc::clone(snapshot),
                None => Arc::clone(snapshot.insert(Arc::new(Snapshot::compile(files, 1)?))),
            };
            let config: Config = yaml::parse(&SourceFile::new("defaults", "bundles: [{directory: .}]"))?;
            let judge = decide::judge(&Config { service: suite.service, ..config }, snapshot)?;
            for case in &suite.tests {
                match check(&judge, case, bundle) {
                    Ok(()) => passed += 1,
                    Err(why) => problems.push(Problem::error(format!("`{}`: {why}", case.name)).in_file(&source)),
                }
            }
        }
    }
    if problems.is_empty() { Ok(passed) } else { Err(problems) }
}

/// Whether a test passes, or why not.
fn check(judge: &Judge, case: &Case, bundle: &Files) -> Result<(), String> {
    let path = format!("tests/{}", case.request);
    let text = bundle.files.get(&path).ok_or_else(|| format!("there is no `{path}` in the bundle"))?;
    let request = json::check_request(text).map_err(|error| format!("`{path}`: {error}"))?;
    let Verdict { outcome, .. } = judge.request(&request, "test");
    let (decision, reason) = observe::words(&outcome);
    let determining: Vec<String> = match &outcome {
        Outcome::Decided(decision) => decision.determining.iter().map(ToString::to_string).collect(),
        Outcome::Unmapped(unmapped) => vec![unmapped.to_string()],
        Outcome::Undecided(_) => Vec::new(),
    };
    let as_expected = decision == case.expect.as_str()
        && case.reason.as_ref().is_none_or(|expected| expected == reason)
        && case.determining.as_ref().is_none_or(|expected| are_these(&determining, expected));
    match as_expected {
        true => Ok(()),
        false => Err(format!("expected {}, got {decision} ({reason}) by {determining:?}", wanted(case))),
    }
}

fn wanted(case: &Case) -> String {
    let mut text = case.expect.as_str().to_owned();
    if let Some(reason) = &case.reason {
        text += &format!(" ({reason})");
    }
    if let Some(determining) = &case.determining {
        text += &format!(" by {determining:?}");
    }
    text
}

/// Whether these are the policies that are expected, which may be named without their bundle.
fn are_these(found: &[String], expected: &[String]) -> bool {
    let is = |id: &String, name: &String| id == name || id.split_once('/').is_some_and(|(_, own)| own == name);
    found.len() == expected.len() && expected.iter().all(|name| found.iter().any(|id| is(id, name)))
}
