use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use deserr::Deserr;

use super::assumed::{self, ConfigArgs};
use super::{decide, validate};
use crate::config::Config;
use crate::ext_authz::check::{Checked, Pipeline};
use crate::ext_authz::identity_source::{self, IdentitySource};
use crate::ext_authz::request::ServiceName;
use crate::model::{Outcome, Reason};
use crate::observe;
use crate::policy::{FileKind, Files, Snapshot};
use crate::problem::{self, Problem, SourceFile};
use crate::proto::json;
use crate::terminal::{Stream, errln, outln};
use crate::yaml::{self, AtLeastOne, Faults};

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
    #[command(flatten)]
    config: ConfigArgs,
}

/// A file of tests.
#[derive(Debug, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
struct Suite {
    /// The service that the sidecar stands beside, as in its configuration. Default: that of `--config`, else `default`.
    #[deserr(default)]
    service: Option<ServiceName>,
    /// Proofs of identity, as in the sidecar's configuration. Default: those of `--config`, else a sidecar's own default.
    #[deserr(default)]
    identity: Option<AtLeastOne<IdentitySource>>,
    /// What is tested.
    tests: AtLeastOne<Case>,
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
    /// The reason, as Records have it; default: that of a decision of policies, `policy` or `default_deny`.
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
    let given = args.config.given();
    let outcome = given.and_then(|config| {
        let (files, _) = validate::read(&args.directories)?;
        Stream::Err.show(&problem::render(&unused(&files)));
        run_tests(&files, config.as_ref())
    });
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

/// Runs the tests of bundles that are known to be good, as a sidecar of this configuration would decide; how many passed.
///
/// # Errors
/// Each test that failed, and each file that cannot be read.
pub(super) fn run_tests(files: &[Files], given: Option<&Config>) -> Result<usize, Vec<Problem>> {
    let mut passed = 0;
    let mut problems = Vec::new();
    let mut snapshot = None;
    for bundle in files {
        for source in suites(bundle) {
            let suite: Suite = match yaml::parse(&source) {
                Ok(suite) => suite,
                Err(found) => {
                    problems.extend(found);
                    continue;
                }
            };
            let snapshot = match &snapshot {
                Some(snapshot) => Arc::clone(snapshot),
                None => Arc::clone(snapshot.insert(Arc::new(Snapshot::compile(files, None, &mut Default::default())?))),
            };
            let idle =
                suite.identity.as_ref().map(|sources| identity_source::out_of_turn(&sources.0)).unwrap_or_default();
            problems.extend(idle.into_iter().map(|problem| problem.in_file(&source)));
            let config = match configured(&suite, given) {
                Ok(config) => config,
                Err(why) => {
                    problems.push(Problem::error(why).in_file(&source));
                    continue;
                }
            };
            if given.is_none() && (suite.service.is_none() || suite.identity.is_none()) {
                let described = assumed::describe(&config);
                let path = &source.name;
                errln!(
                    "{path}: assumed {described}; `--config` names a sidecar's own, and so do `service` and `identity` here"
                );
            }
            let pipeline = decide::pipeline(&config, snapshot)?;
            let mut names = BTreeSet::new();
            for case in &suite.tests.0 {
                if !names.insert(case.name.as_str()) {
                    let problem = Problem::error(format!("two tests are called `{}`", case.name));
                    problems.push(problem.hint("a test that fails is known by its name").in_file(&source));
                }
                match check(&pipeline, case, bundle) {
                    Ok(()) => passed += 1,
                    Err(problem) => problems.push(problem.in_file(&source)),
                }
            }
        }
    }
    if problems.is_empty() { Ok(passed) } else { Err(problems) }
}

/// The configuration that a suite is run under. What it says and what `--config` says must be the same: one of them would have no
/// effect otherwise.
fn configured(suite: &Suite, given: Option<&Config>) -> Result<Config, String> {
    let config = match given {
        Some(given) => given.clone(),
        None => assumed::defaults().map_err(|problems| problem::render(&problems).to_string())?,
    };
    let service = suite.service.clone().unwrap_or_else(|| config.service.clone());
    let identity = suite.identity.clone().unwrap_or_else(|| config.identity.clone());
    if given.is_some() && (service != config.service || identity.0 != config.identity.0) {
        let what = if service == config.service { "identity" } else { "service" };
        return Err(format!("`{what}` is not the one of `--config`: leave it out of one of them"));
    }
    Ok(Config { service, identity, ..config })
}

/// The files of tests of a bundle.
fn suites(bundle: &Files) -> impl Iterator<Item = Arc<SourceFile>> {
    let suites = bundle.files.iter().filter(|(path, _)| FileKind::of(path) == Ok(FileKind::Tests));
    suites.map(|(path, text)| SourceFile::new(format!("{}/{path}", bundle.root), text.as_str()))
}

/// Warnings of requests that no test is about. Files of tests that cannot be read are reported where they are run.
fn unused(files: &[Files]) -> Vec<Problem> {
    let mut unused = Vec::new();
    for bundle in files {
        let tests = suites(bundle).filter_map(|source| yaml::parse::<Suite>(&source).ok()).flat_map(|own| own.tests.0);
        let used: BTreeSet<String> = tests.map(|case| format!("tests/{}", case.request)).collect();
        let requests = bundle.files.keys().filter(|path| FileKind::of(path) == Ok(FileKind::Request));
        for path in requests.filter(|path| !used.contains(*path)) {
            let file = SourceFile::new(format!("{}/{path}", bundle.root), "");
            unused.push(Problem::warning("no test is about this request").in_file(&file));
        }
    }
    unused
}

/// Whether a test passes, or why not.
fn check(pipeline: &Pipeline, case: &Case, bundle: &Files) -> Result<(), Problem> {
    let failed = |why: String| Problem::error(format!("`{}`: {why}", case.name));
    let path = format!("tests/{}", case.request);
    let text = bundle.files.get(&path).ok_or_else(|| failed(format!("there is no `{path}` in the bundle")))?;
    let request = json::check_request(text).map_err(|error| failed(format!("`{path}`: {error}")))?;
    let Checked { outcome, .. } = pipeline.frame(request, "test");
    let (decision, reason) = observe::words(&outcome);
    let determining: Vec<String> = match &outcome {
        Outcome::Decided(decision) => decision.determining.iter().map(ToString::to_string).collect(),
        Outcome::Unmapped(unmapped) => vec![unmapped.to_string()],
        Outcome::Undecided(_) => Vec::new(),
    };
    let of_policies = is_of_policies(&outcome);
    let is_reason = case.reason.as_ref().map_or(of_policies, |expected| expected == reason);
    let as_expected = decision == case.expect.as_str()
        && is_reason
        && case.determining.as_ref().is_none_or(|expected| are_these(&determining, expected));
    if as_expected {
        return Ok(());
    }
    let problem = failed(format!("expected {}, got {decision} ({reason}) by {determining:?}", wanted(case)));
    let is_unnamed = decision == case.expect.as_str() && case.reason.is_none() && !of_policies;
    Err(match is_unnamed {
        true => problem.hint(format!("no policy decided this; `reason: {reason}` if the test is about that")),
        false => problem,
    })
}

/// Whether policies decided: some of them, or all by their silence. A denial for another reason, such as a request that no route
/// names or that cannot be understood, says nothing about the policies, so a test has to name that reason to pass.
fn is_of_policies(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Decided(decision) if matches!(decision.reason, Reason::Policy | Reason::DefaultDeny))
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
