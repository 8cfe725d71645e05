use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cli::args::bundle;
use crate::cli::args::config::{self as assumed, ConfigArgs};
use crate::config::Config;
use crate::decision::cache::{self, Cache};
use crate::decision::freshness::LastProof;
use crate::ext_authz::check::{Checked, Pipeline};
use crate::model::{Effect, Outcome, PolicyError};
use crate::observe::{self, Metrics};
use crate::policy::Snapshot;
use crate::problem::{self, Problem};
use crate::proto::json;
use crate::terminal::{Stream, errln, out, outln};

/// Show what is decided about one request.
///
/// Reads a CheckRequest in protobuf JSON from standard input, maps it and decides it under a bundle, as a sidecar would,
/// and prints the Query, the decision with the policies that determined it, evaluation errors, and the answer that Envoy
/// would get.
///
/// Exit status: 0 allow, 2 deny, 4 undecided; 1 if the bundle, the configuration or the request cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bundle's directory; may be given several times.
    #[arg(long, value_name = "DIR", required = true)]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match checked(args) {
        Ok(checked) => {
            if args.json {
                outln!("{:#}", report(&checked));
            } else {
                out!("{}", text(&checked));
            }
            match &checked.outcome {
                Outcome::Decided(decision) if decision.effect == Effect::Allow => ExitCode::SUCCESS,
                Outcome::Decided(_) | Outcome::Unmapped(_) => ExitCode::from(2),
                Outcome::Undecided(_) => ExitCode::from(4),
            }
        }
        Err(problems) => {
            Stream::Err.show(&problem::render(&problems));
            ExitCode::FAILURE
        }
    }
}

fn checked(args: &Args) -> Result<Checked, Vec<Problem>> {
    let config = match args.config.given()? {
        Some(config) => config,
        None => {
            let config = assumed::defaults()?;
            errln!("assumed {}; `--config` names the configuration of a sidecar", assumed::describe(&config));
            config
        }
    };
    let snapshot = Arc::new(bundle::load(&args.bundle)?);
    let one = |message: String| vec![Problem::error(message)];
    let mut input = String::new();
    std::io::stdin()
        .read_to_string(&mut input)
        .map_err(|error| one(format!("standard input cannot be read: {error}")))?;
    let request = json::check_request(&input).map_err(|message| {
        vec![Problem::error(message).hint("a CheckRequest in protobuf JSON, as Envoy's access to it is documented")]
    })?;
    let pipeline = pipeline(&config, Arc::clone(&snapshot))?;
    Stream::Err.show(&problem::render(&pipeline.mapping.undeclared(&snapshot)));
    Ok(pipeline.frame(request, "decide"))
}

/// A pipeline under a snapshot that stays, and remembers nothing.
pub(super) fn pipeline(config: &Config, snapshot: Arc<Snapshot>) -> Result<Pipeline, Vec<Problem>> {
    let (_sender, snapshots) = watch::channel(Some(snapshot));
    let cache = Arc::new(Cache::new(cache::Config { enabled: false, ..config.cache.clone() }));
    let (metrics, _) = Metrics::new(&config.metrics)
        .map_err(|error| vec![Problem::error(format!("metrics cannot be set up: {error}"))])?;
    Ok(Pipeline::new(config.pipeline(), snapshots, Arc::new(LastProof::none()), cache, metrics))
}

fn report(checked: &Checked) -> Value {
    let (outcome, reason) = observe::words(&checked.outcome);
    let mut report = json!({
        "decision": outcome,
        "reason": reason,
        "query": checked.query.as_ref().map(json::query),
        "answer": match &checked.response {
            Ok(answer) => answer.response().map_or(Value::Null, |response| json::check_response(&response)),
            Err(status) => json!({"grpc_status": status.code() as i32, "message": status.message()}),
        },
    });
    let errors = |errors: &[PolicyError]| -> Value {
        errors.iter().map(|error| json!({"policy": error.policy.to_string(), "message": error.message})).collect()
    };
    let ids = |ids: &[crate::model::PolicyId]| -> Value { ids.iter().map(|id| Value::from(id.to_string())).collect() };
    if let Value::Object(fields) = &mut report {
        match &checked.outcome {
            Outcome::Decided(decision) => {
                fields.insert("determining".to_owned(), ids(&decision.determining));
                fields.insert("errors".to_owned(), errors(&decision.errors));
                fields.insert("revision".to_owned(), decision.revision.id.clone().into());
                if let Some(shadow) = &decision.shadow {
                    let determining = ids(&shadow.determining);
                    let shadow = json!({
                        "decision": shadow.effect.as_str(), "determining": determining, "errors": errors(&shadow.errors),
                    });
                    fields.insert("shadow".to_owned(), shadow);
                }
            }
            Outcome::Unmapped(unmapped) => {
                fields.insert("detail".to_owned(), unmapped.detail.clone().into());
            }
            Outcome::Undecided(_) => {}
        }
    }
    report
}

/// The report for people: the same, a line each.
fn text(checked: &Checked) -> String {
    let report = report(checked);
    let mut text = String::new();
    let mut line = |name: &str, value: &Value| match value {
        Value::Null => {}
        Value::String(value) => text.push_str(&format!("{name:<22}{value}\n")),
        Value::Array(items) if items.is_empty() => text.push_str(&format!("{name:<22}none\n")),
        // An id that has a comma is shown as JSON: two ids would look the same.
        Value::Array(items) if items.iter().all(|item| item.as_str().is_some_and(|text| !text.contains(", "))) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            text.push_str(&format!("{name:<22}{}\n", items.join(", ")));
        }
        value => text.push_str(&format!("{name:<22}{value}\n")),
    };
    for name in ["principal", "principal_attributes", "principal_parents", "identity", "action", "resource", "context"]
    {
        line(name, report.pointer(&format!("/query/{name}")).unwrap_or(&Value::Null));
    }
    for name in ["decision", "reason", "detail", "determining", "errors", "shadow", "revision", "answer"] {
        line(name, report.get(name).unwrap_or(&Value::Null));
    }
    text
}
