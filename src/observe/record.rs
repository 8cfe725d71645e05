//! What is in a [`Record`], and how it is written.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deserr::Deserr;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};
use smol_str::SmolStr;

use super::tracing::TraceId;
use super::words;
use crate::claim_path::{Below, ClaimPath, Node, Step};
use crate::model::{
    self, CacheState, EntityUid, Freshness, Outcome, PolicyError, PolicyId, Query, Revision, Root, Shadow, Type, Value,
};
use crate::yaml::{Faults, Invalid, suggest};

/// What the service knows of a decision once it is made. Formatting is left to the writer.
#[derive(Debug)]
pub struct Parts {
    /// When the check arrived.
    pub time: SystemTime,
    /// The id under which the client, Envoy's access log and this log know the decision.
    pub decision_id: String,
    /// What became of the request.
    pub outcome: Outcome,
    /// What Cedar was asked, if the request could be mapped.
    pub query: Option<Query>,
    /// What of the request may be logged: under `principal` and `context`, cut down to the configured attributes. Apart
    /// from the query, which holds what policies read.
    pub logged: model::Attributes,
    /// The snapshot in force, if there was one. A [`Decision`](crate::model::Decision) names its own.
    pub revision: Option<Arc<Revision>>,
    /// From the arrival to the answer.
    pub latency: Duration,
    /// The trace that the request belongs to.
    pub trace_id: Option<TraceId>,
}

/// One line of the decision log.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// Counts from 1 with every start of the process. Lines may change places by a few; a number that never comes is a
    /// record that was lost.
    pub seq: u64,
    /// RFC 3339 in UTC, to the millisecond.
    #[serde(serialize_with = "text")]
    pub time: humantime::Rfc3339Timestamp,
    /// The id of the decision.
    pub decision_id: &'a str,
    /// `allow`, `deny` or `undecided`.
    pub outcome: &'static str,
    /// Why, in a word; the same as in `stockade_decisions_total`.
    pub reason: &'static str,
    /// What exactly could not be mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    /// The snapshot it was decided under, or that was in force.
    pub revision: Option<&'a str>,
    /// As Cedar writes it; null if the request could not be mapped.
    #[serde(serialize_with = "maybe_text")]
    pub principal: Option<&'a EntityUid>,
    /// As Cedar writes it; null if the request could not be mapped.
    #[serde(serialize_with = "maybe_text")]
    pub action: Option<&'a EntityUid>,
    /// As Cedar writes it; null if the request could not be mapped.
    #[serde(serialize_with = "maybe_text")]
    pub resource: Option<&'a EntityUid>,
    /// The policies that determined it.
    #[serde(serialize_with = "texts")]
    pub determining: &'a [PolicyId],
    /// What the policies in shadow mode would have done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowRecord<'a>>,
    /// Policies that could not be evaluated.
    pub errors: Vec<ErrorRecord<'a>>,
    /// `hit`, `miss` or `off`: whether the decision was remembered.
    pub cache: &'static str,
    /// How long ago a remembered decision was made, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_age_ms: Option<u64>,
    /// `fresh`, `stale` or `expired`: how current the snapshot was known to be. Not there if it comes from directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freshness: Option<&'static str>,
    /// From the arrival to the answer, in microseconds.
    pub latency_us: u64,
    /// The trace that the request belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<TraceId>,
    /// The configured attributes, those that the request has.
    pub attributes: Map<String, Json>,
}

/// The `shadow` of a [`Record`].
#[derive(Debug, Serialize)]
pub struct ShadowRecord<'a> {
    /// `allow` or `deny`.
    pub effect: &'static str,
    /// The shadow policies that were satisfied.
    #[serde(serialize_with = "texts")]
    pub determining: &'a [PolicyId],
    /// Those that could not be evaluated.
    pub errors: Vec<ErrorRecord<'a>>,
}

/// A policy that could not be evaluated.
#[derive(Debug, Serialize)]
pub struct ErrorRecord<'a> {
    /// Its id.
    #[serde(serialize_with = "text")]
    pub policy: &'a PolicyId,
    /// What Cedar says.
    pub message: &'a str,
}

/// An attribute that may be logged, such as `context.source.address` or `principal.department`.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = Attribute::try_from_text -> Invalid)]
pub struct Attribute {
    of: Of,
    /// From there on.
    path: ClaimPath,
}

/// What an attribute is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The principal.
    Principal,
    /// The context.
    Context,
}

// === impl Record ===

impl<'a> Record<'a> {
    /// The record of a decision.
    pub fn new(seq: u64, parts: &'a Parts, names: &[Attribute]) -> Self {
        let (outcome, reason) = words(&parts.outcome);
        let decision = match &parts.outcome {
            Outcome::Decided(decision) => Some(decision),
            _ => None,
        };
        let detail = match &parts.outcome {
            Outcome::Unmapped(unmapped) => Some(unmapped.detail.as_str()),
            _ => None,
        };
        let revision = decision.map(|decision| &decision.revision).or(parts.revision.as_ref());
        let query = parts.query.as_ref();
        let cache = decision.map_or(CacheState::Off, |decision| decision.cache);
        Self {
            seq,
            time: humantime::format_rfc3339_millis(parts.time),
            decision_id: &parts.decision_id,
            outcome,
            reason,
            detail,
            revision: revision.map(|revision| revision.id.as_str()),
            principal: query.map(|query| &query.principal.uid),
            action: query.map(|query| &query.action),
            resource: query.map(|query| &query.resource),
            determining: decision.map_or(&[], |decision| &decision.determining),
            shadow: decision.and_then(|decision| decision.shadow.as_ref()).map(ShadowRecord::new),
            errors: decision.map_or_else(Vec::new, |decision| errors(&decision.errors)),
            cache: cache.as_str(),
            cache_age_ms: match cache {
                CacheState::Hit(age) => u64::try_from(age.as_millis()).ok(),
                CacheState::Off | CacheState::Miss(_) => None,
            },
            freshness: decision.and_then(|decision| decision.freshness).map(Freshness::as_str),
            latency_us: u64::try_from(parts.latency.as_micros()).unwrap_or(u64::MAX),
            trace_id: parts.trace_id,
            attributes: attributes(names, &parts.logged),
        }
    }
}

impl<'a> ShadowRecord<'a> {
    fn new(shadow: &'a Shadow) -> Self {
        Self { effect: shadow.effect.as_str(), determining: &shadow.determining, errors: errors(&shadow.errors) }
    }
}

fn errors(errors: &[PolicyError]) -> Vec<ErrorRecord<'_>> {
    errors.iter().map(|error| ErrorRecord { policy: &error.policy, message: &error.message }).collect()
}

fn text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn maybe_text<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn texts<T: fmt::Display, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

// === attributes ===

impl Attribute {
    /// What it is one of.
    pub fn of(&self) -> Of {
        self.of
    }

    /// Where it is from there on: the name of an attribute, and for some what is in it.
    pub fn path(&self) -> &ClaimPath {
        &self.path
    }

    fn try_from_text(text: String) -> Result<Self, Invalid> {
        let (of, rest) = match text.split_once('.') {
            Some(("principal", rest)) => (Of::Principal, rest),
            Some(("context", rest)) => (Of::Context, rest),
            _ => {
                return Err(Invalid::new(format!("`{text}` is not an attribute of the principal or the context"))
                    .hint("like `context.source.address` or `principal.department`"));
            }
        };
        let path: ClaimPath = rest.parse()?;
        let names = path.steps().iter().filter_map(|step| match step {
            Step::Name(name) => Some(name.as_str()),
            Step::Item(_) => None,
        });
        if names.chain([path.name()]).any(is_credential) {
            let hint = "whoever reads the log could use it; log the principal or a claim instead";
            return Err(Invalid::new(format!("`{text}` is a credential and never logged")).hint(hint));
        }
        if path.steps().iter().any(|step| matches!(step, Step::Item(_))) {
            return Err(
                Invalid::new(format!("`{text}`: a set has no items with numbers")).hint("name the set as a whole")
            );
        }
        match of {
            Of::Principal if !path.steps().is_empty() => {
                let hint = format!("name the attribute as a whole: `principal.{}`", ClaimPath::of(path.name()));
                Err(Invalid::new(format!("`{text}`: attributes of the principal are logged whole")).hint(hint))
            }
            Of::Context => possible(&text, &path).map(|()| Self { of, path }),
            Of::Principal => Ok(Self { of, path }),
        }
    }
}

/// Whether a context can have this at all; whether a schema declares the rest is seen when bundles are loaded.
fn possible(text: &str, path: &ClaimPath) -> Result<(), Invalid> {
    let Some(root) = Root::ALL.into_iter().find(|root| root.as_str() == path.name()) else {
        let unknown = Invalid::new(format!("`{text}`: a context has no `{}`", path.name()));
        return Err(unknown.hint(suggest(path.name(), &Root::ALL.map(Root::as_str))));
    };
    let (Some(fixed), Some(Step::Name(first))) = (root.fixed(), path.steps().first()) else { return Ok(()) };
    let Type::Record(fields) = fixed else {
        let fault = Invalid::new(format!("`{text}`: `context.{}` is one value", root.as_str()));
        return Err(fault.hint(format!("name it as a whole: `context.{}`", root.as_str())));
    };
    let labels = root == Root::Destination && first == "labels";
    match (labels || fields.contains_key(first), path.steps().len()) {
        (true, 1) => Ok(()),
        (true, _) if labels => Ok(()),
        (true, _) => Err(Invalid::new(format!("`{text}`: `{first}` is one value"))),
        (false, _) => {
            let names: Vec<&str> = fields.keys().map(SmolStr::as_str).collect();
            Err(Invalid::new(format!("`{text}`: `context.{}` has no `{first}`", root.as_str()))
                .hint(suggest(first, &names)))
        }
    }
}

impl Of {
    fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Context => "context",
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.of.as_str(), self.path)
    }
}

impl Serialize for Attribute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Headers that let their reader in, in any of the ways in which an attribute may be spelt after them.
fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    matches!(name.as_str(), "authorization" | "proxy-authorization" | "cookie" | "set-cookie")
}

/// The values of the named attributes, those that the request has. Only what the request itself brought: the entities of
/// the bundles are in the bundles.
pub fn attributes(names: &[Attribute], logged: &model::Attributes) -> Map<String, Json> {
    let value = |name: &Attribute| {
        let Some(Value::Record(under)) = logged.get(name.of.as_str()) else { return None };
        let found = name.path.find(|top| under.get(top)).ok()??;
        Some((name.to_string(), json(found)))
    };
    names.iter().filter_map(value).collect()
}

impl Node for &Value {
    fn below(self, step: &Step) -> Below<Self> {
        match (self, step) {
            (Value::Record(fields), Step::Name(name)) => fields.get(name).map_or(Below::Absent, Below::There),
            _ => Below::Misfit,
        }
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::Long(value) => (*value).into(),
        Value::String(text) | Value::Extension(_, text) => text.as_str().into(),
        Value::Entity(uid) => uid.to_string().into(),
        Value::Set(members) => members.iter().map(json).collect(),
        // Whoever names a whole record has not named the credentials in it.
        Value::Record(record) => record
            .iter()
            .filter(|(name, _)| !is_credential(name))
            .map(|(name, value)| (name.to_string(), json(value)))
            .collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Decision, Effect, Extension, Principal, Proof, Reason, Ruling, Unmapped, UnmappedKind};
    use crate::observe::decision_log::Config;
    use crate::observe::tracing::TraceParent;
    use crate::problem::SourceFile;
    use crate::yaml;

    pub(in crate::observe) fn decided(effect: Effect) -> Outcome {
        Outcome::Decided(Decision::of(Ruling {
            effect,
            reason: Reason::Policy,
            determining: vec![PolicyId::new("shop/read")],
            errors: Vec::new(),
            shadow: None,
            denial: None,
        }))
    }

    fn query() -> Query {
        let uid = |text: &str| text.parse::<EntityUid>().expect(text);
        Query {
            principal: Principal {
                uid: uid(r#"User::"a\"b""#),
                attributes: model::Attributes::new(),
                parents: Vec::new(),
                proof: Proof::Jwt,
            },
            action: uid(r#"Action::"GET""#),
            resource: uid(r#"Service::"shop""#),
            context: model::Attributes::new(),
        }
    }

    fn logged() -> model::Attributes {
        let record = |entries: &[(&str, Value)]| -> Value {
            Value::Record(entries.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
        };
        let group = r#"Group::"g""#.parse().expect("an entity");
        let headers = record(&[("authorization", Value::String("secret".into())), ("x-id", Value::Long(7))]);
        let address = Value::Extension(Extension::Ipaddr, "10.0.0.1".into());
        let principal = record(&[
            ("https://example.com/role", Value::String("admin".into())),
            ("groups", Value::set(vec![Value::Entity(group), Value::Bool(true)])),
        ]);
        let context = record(&[("source", record(&[("address", address)])), ("headers", headers)]);
        [("principal".into(), principal), ("context".into(), context)].into()
    }

    pub(in crate::observe) fn parts(id: impl ToString, outcome: Outcome) -> Parts {
        Parts {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            decision_id: id.to_string(),
            outcome,
            query: None,
            logged: model::Attributes::new(),
            revision: None,
            latency: Duration::from_nanos(12_345),
            trace_id: None,
        }
    }

    fn names(names: &[&str]) -> Vec<Attribute> {
        names.iter().map(|name| Attribute::try_from_text((*name).to_owned()).expect(name)).collect()
    }

    #[test]
    fn credentials_cannot_be_named() {
        for name in [
            "context.headers.authorization",
            "context.headers.Cookie",
            "context.headers.proxy-authorization",
            "context.headers.set_cookie",
            "principal.cookie",
        ] {
            let config = format!("attributes: [context.source.address, {name}]");
            let problems = yaml::parse::<Config>(&SourceFile::new("c.yaml", config)).expect_err(name);
            let message = format!("`attributes[1]`: `{name}` is a credential and never logged (whoever reads");
            assert!(problems[0].to_string().contains(&message), "{}", problems[0]);
        }
    }

    #[test]
    fn attributes_are_those_that_are_named_and_there() {
        let names = names(&[
            "principal.\"https://example.com/role\"",
            "principal.groups",
            "context.source.address",
            "context.headers",
            "context.source.port",
        ]);
        let expected = json!({
            "principal.\"https://example.com/role\"": "admin",
            "principal.groups": [true, "Group::\"g\""],
            "context.source.address": "10.0.0.1",
            "context.headers": {"x-id": 7},
        });
        assert_eq!(Json::Object(attributes(&names, &logged())), expected);
    }

    #[test]
    fn records_have_their_shape() {
        let error = || PolicyError { policy: PolicyId::new("shop/limit"), message: "overflow".into() };
        let mut outcome = decided(Effect::Allow);
        if let Outcome::Decided(decision) = &mut outcome {
            let ruling = Arc::make_mut(&mut decision.ruling);
            ruling.errors = vec![error()];
            ruling.shadow = Some(Shadow { effect: Effect::Deny, determining: Vec::new(), errors: vec![error()] });
        }
        let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("a trace");
        let full =
            Parts { query: Some(query()), logged: logged(), trace_id: Some(trace.trace_id), ..parts("d-1", outcome) };
        let record = Record::new(4, &full, &names(&["context.source.address"]));
        let expected = json!({
            "seq": 4, "time": "2023-11-14T22:13:20.123Z", "decision_id": "d-1",
            "outcome": "allow", "reason": "policy", "revision": "0123456789ab",
            "principal": r#"User::"a\"b""#, "action": r#"Action::"GET""#, "resource": r#"Service::"shop""#,
            "determining": ["shop/read"],
            "shadow": {
                "effect": "deny", "determining": [], "errors": [{"policy": "shop/limit", "message": "overflow"}]
            },
            "errors": [{"policy": "shop/limit", "message": "overflow"}],
            "cache": "off", "latency_us": 12, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "attributes": {"context.source.address": "10.0.0.1"},
        });
        assert_eq!(serde_json::to_value(record).expect("JSON"), expected);

        let unmapped = Outcome::Unmapped(Unmapped::new(UnmappedKind::Path, "dot segments"));
        let expected = json!({
            "seq": 5, "time": "2023-11-14T22:13:20.123Z", "decision_id": "d-2",
            "outcome": "deny", "reason": "path", "detail": "dot segments", "revision": null,
            "principal": null, "action": null, "resource": null,
            "determining": [], "errors": [], "cache": "off", "latency_us": 12, "attributes": {},
        });
        assert_eq!(serde_json::to_value(Record::new(5, &parts("d-2", unmapped), &[])).expect("JSON"), expected);
    }
}
