//! What annotations mean: the mode of a policy, how its denials look, how long its decisions may be remembered.
//!
//! Annotations are free text to Cedar. Those that Stockade gives a meaning are checked when the bundle is loaded, so
//! that no denial fails to be written at the moment that it is needed.

use std::time::Duration;

use cedar_policy::Effect;
use deserr::Deserr;

use crate::model::Denial;
use crate::yaml::{Faults, Invalid};

/// What the annotations of one policy say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `@mode("shadow")`: evaluated and reported, without effect.
    pub shadow: bool,
    /// `@status`, `@message`, `@header`, `@location`.
    pub denial: Option<Denial>,
    /// `@ttl`: an upper bound for how long a decision may be remembered that this policy was a candidate for.
    pub ttl: Option<Duration>,
}

impl Annotations {
    /// Reads the annotations of a policy with this effect. `listed` are those of the team's own.
    ///
    /// # Errors
    /// All faults: a message and a hint each.
    pub fn read<'a>(
        effect: Effect,
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
        listed: &[ListedAnnotation],
    ) -> Result<Self, Vec<(String, String)>> {
        let mut faults = Vec::new();
        let mut own = Self::default();
        let mut shape = Shape::default();
        let mut shapes = Vec::new();
        for (name, value) in annotations {
            match name {
                "mode" => match value {
                    "shadow" => own.shadow = true,
                    "enforce" => own.shadow = false,
                    _ => {
                        faults.push((format!("`@mode(\"{value}\")` is not a mode"), "`shadow` or `enforce`".to_owned()))
                    }
                },
                "ttl" => match humantime::parse_duration(value) {
                    Ok(ttl) => own.ttl = Some(ttl),
                    Err(error) => faults.push((
                        format!("`@ttl(\"{value}\")` is not a length of time: {error}"),
                        "like `@ttl(\"10s\")`".to_owned(),
                    )),
                },
                "status" => {
                    shapes.push(name);
                    match value.parse() {
                        Ok(status) => shape.status = Some(status),
                        Err(_) => faults.push((
                            format!("`@status(\"{value}\")` is not an HTTP status"),
                            "like `@status(\"401\")`".to_owned(),
                        )),
                    }
                }
                "message" => {
                    shapes.push(name);
                    shape.message = Some(value.to_owned());
                }
                "location" => {
                    shapes.push(name);
                    shape.location = Some(value.to_owned());
                }
                "header" => {
                    shapes.push(name);
                    if value.trim().is_empty() {
                        faults.push(("`@header` without a header".to_owned(), LIKE_HEADER.to_owned()));
                    }
                    for line in value.split('\n').filter(|line| !line.trim().is_empty()) {
                        match line.split_once(':') {
                            Some((name, value)) => {
                                shape.headers.push((name.trim().to_owned(), value.trim().to_owned()));
                            }
                            None => {
                                faults.push((format!("`@header(\"{line}\")` is not a header"), LIKE_HEADER.to_owned()))
                            }
                        }
                    }
                }
                "id" => {}
                _ if is_listed(name, listed) => {}
                _ => faults.extend(slip(name)),
            }
        }
        if let (Effect::Permit, Some(first)) = (effect, shapes.first()) {
            faults.push((
                format!("`@{first}` on a `permit`, which never denies"),
                "put it on a `forbid`, or into `denial` of bundle.yaml for requests that nothing permits".to_owned(),
            ));
        }
        if faults.is_empty() && !shapes.is_empty() {
            match shape.denial() {
                Ok(denial) => own.denial = Some(denial),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(own) } else { Err(faults) }
    }
}

const LIKE_HEADER: &str = "like `@header(\"www-authenticate: Bearer\")`; several are separated by `\\n`";

// === the others ===

/// The annotations that have a meaning.
const KNOWN: [&str; 7] = ["header", "id", "location", "message", "mode", "status", "ttl"];

/// What people write for them, without `_` and in lower case. A policy with `@disabled` or `@deny_status("401")` would be in
/// force as if it were not there.
const MEANT: [(&str, &[&str]); 6] = [
    (
        "mode",
        &[
            "shadow",
            "shadowmode",
            "enforce",
            "enforced",
            "enforcement",
            "enforcementmode",
            "dryrun",
            "monitor",
            "audit",
            "auditonly",
            "logonly",
            "testmode",
            "disabled",
            "disable",
            "enabled",
            "enable",
            "active",
            "inactive",
            "effect",
            "deny",
            "permit",
            "allow",
        ],
    ),
    (
        "status",
        &[
            "code",
            "statuscode",
            "httpstatus",
            "httpstatuscode",
            "httpcode",
            "denystatus",
            "responsestatus",
            "errorcode",
        ],
    ),
    ("message", &["msg", "body", "responsebody", "denymessage", "errormessage", "responsemessage", "denialmessage"]),
    ("header", &["responseheader", "responseheaders", "denyheader", "setheader", "addheader", "httpheader"]),
    ("location", &["redirect", "redirectto", "redirecturl", "redirecturi", "url"]),
    ("ttl", &["cache", "cachettl", "maxage", "cachefor", "timetolive", "cachecontrol"]),
];

/// An entry of `annotations` of `bundle.yaml`: a name, or what names begin with, such as `team_`.
#[derive(Debug, Clone, PartialEq, Eq, Deserr)]
#[deserr(error = Faults, try_from(String) = ListedAnnotation::parse -> Invalid)]
pub struct ListedAnnotation(String);

impl ListedAnnotation {
    fn parse(text: String) -> Result<Self, Invalid> {
        let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_name = text.starts_with(is_start) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if KNOWN.contains(&text.as_str()) {
            return Err(Invalid::new(format!("`{text}` has a meaning that no bundle can take away")).hint("remove it"));
        }
        match is_name && text.chars().any(|c| c != '_') {
            true => Ok(Self(text)),
            false => Err(Invalid::new(format!("`{text}` is no name of an annotation"))
                .hint("like `jira`, or `team_` for all that begin with it")),
        }
    }
}

fn is_listed(name: &str, listed: &[ListedAnnotation]) -> bool {
    listed.iter().any(|ListedAnnotation(own)| own == name || (own.ends_with('_') && name.starts_with(own.as_str())))
}

/// Whether an annotation means nothing to anyone that we know of.
pub(super) fn is_idle(name: &str, listed: &[ListedAnnotation]) -> bool {
    !KNOWN.contains(&name) && !is_listed(name, listed)
}

/// The fault of an annotation that is nearly one of ours: a message and a hint.
fn slip(name: &str) -> Option<(String, String)> {
    let plain: String = name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect();
    let tolerated = |known: &str| if known.len() > 4 { 2 } else { 1 };
    let near = |known: &&str| strsim::damerau_levenshtein(&plain, known) <= tolerated(known);
    let meant = MEANT.iter().find(|(_, words)| words.contains(&plain.as_str())).map(|(known, _)| *known);
    let known = meant.or_else(|| KNOWN.into_iter().find(near))?;
    let like = match known {
        "mode" => "@mode(\"shadow\")".to_owned(),
        known => format!("@{known}(\"...\")"),
    };
    let message = format!("`@{name}` has no effect");
    Some((message, format!("did you mean `{like}`? If it is yours, list it in bundle.yaml: `annotations: [{name}]`")))
}

/// The parts of a [`Denial`] as people write them, in annotations or in `bundle.yaml`.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// HTTP status; 403 if absent, 302 if there is a location.
    pub status: Option<u16>,
    /// Body; a default text if absent.
    pub message: Option<String>,
    /// Response headers.
    pub headers: Vec<(String, String)>,
    /// Where a redirect leads.
    pub location: Option<String>,
}

/// Headers that Envoy or HTTP itself owns; a denial that sets one would break the answer.
const REFUSED: [&str; 6] = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "location"];

impl Shape {
    /// Checks the parts and puts them together.
    ///
    /// # Errors
    /// The first fault: a message and a hint. Envoy passes any status through, even 200 and 99, so it is bounded here
    /// (contract, 1.3).
    pub fn denial(self) -> Result<Denial, (String, String)> {
        let status = self.status.unwrap_or(if self.location.is_some() { 302 } else { 403 });
        let redirect = (300..400).contains(&status);
        if !redirect && !(400..600).contains(&status) {
            return Err((
                format!("status {status} is not a denial"),
                "4xx or 5xx, or 3xx together with a location".to_owned(),
            ));
        }
        if redirect != self.location.is_some() {
            return Err((
                format!("status {status} and a location do not go together"),
                "a redirect has a status of 3xx and a location, any other denial has neither".to_owned(),
            ));
        }
        let mut headers = Vec::new();
        for (name, value) in self.headers {
            let name = header_name(&name)?;
            header_value(&name, &value)?;
            headers.push((name, value));
        }
        if let Some(location) = self.location {
            header_value("location", &location)?;
            headers.push(("location".to_owned(), location));
        }
        Ok(Denial { status, message: self.message.unwrap_or_else(|| "access denied".to_owned()), headers })
    }
}

fn header_name(text: &str) -> Result<String, (String, String)> {
    let name = http::HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| (format!("`{text}` is not a header name"), "letters, digits and `-`".to_owned()))?;
    if REFUSED.contains(&name.as_str()) {
        let hint = if name == "location" { "use the location of its own" } else { "Envoy sets it itself" };
        return Err((format!("the header `{name}` cannot be set"), hint.to_owned()));
    }
    Ok(name.as_str().to_owned())
}

fn header_value(name: &str, value: &str) -> Result<(), (String, String)> {
    match http::HeaderValue::from_str(value) {
        Ok(_) if !value.is_empty() => Ok(()),
        _ => Err((format!("`{value}` is not a value for the header `{name}`"), "visible ASCII, not empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::slips::slips;

    #[test]
    fn annotations_shape_denials_or_say_why_not() {
        let cases: [(&[(&str, &str)], Result<(u16, usize), &str>); 14] = [
            (&[("status", "401"), ("header", "www-authenticate: Bearer\nx-why: because")], Ok((401, 2))),
            (&[("message", "no")], Ok((403, 0))),
            (&[("location", "https://login.example/")], Ok((302, 1))),
            (&[("status", "303"), ("location", "/login")], Ok((303, 1))),
            (&[("status", "200")], Err("status 200 is not a denial")),
            (&[("status", "99")], Err("status 99 is not a denial")),
            (&[("status", "600")], Err("status 600 is not a denial")),
            (&[("status", "4o3")], Err("`@status(\"4o3\")` is not an HTTP status")),
            (&[("status", "302")], Err("status 302 and a location do not go together")),
            (&[("status", "403"), ("location", "/")], Err("status 403 and a location do not go together")),
            (&[("header", "nonsense")], Err("`@header(\"nonsense\")` is not a header")),
            (&[("header", "host: evil")], Err("the header `host` cannot be set")),
            (&[("header", ":status: 200")], Err("`` is not a header name")),
            (&[("mode", "shaddow")], Err("`@mode(\"shaddow\")` is not a mode")),
        ];
        for (annotations, expected) in cases {
            let read = Annotations::read(Effect::Forbid, annotations.iter().copied(), &[]);
            match expected {
                Ok((status, headers)) => {
                    let denial = read.expect("good").denial.expect("shaped");
                    assert_eq!((denial.status, denial.headers.len()), (status, headers), "{annotations:?}");
                }
                Err(message) => assert_eq!(read.expect_err("bad")[0].0, message, "{annotations:?}"),
            }
        }
    }

    #[test]
    fn a_permit_cannot_shape_a_denial() {
        assert!(Annotations::read(Effect::Permit, [("status", "401")].into_iter(), &[]).is_err());
        let own =
            Annotations::read(Effect::Permit, [("ttl", "10s"), ("owner", "me"), ("mode", "shadow")].into_iter(), &[]);
        let own = own.expect("good");
        assert_eq!((own.shadow, own.ttl), (true, Some(Duration::from_secs(10))));
    }
    /// Names that are one slip away from a known one, and what people write for it.
    fn near_misses(known: &str) -> Vec<String> {
        let mut all = slips(known);
        all.push(format!("{known}s"));
        all.extend((0..=known.len()).map(|at| format!("{}_{}", &known[..at], &known[at..])));
        all.retain(|slip| slip != known && !slip.is_empty());
        all
    }

    #[test]
    fn a_slip_is_refused_unless_it_is_listed() {
        let words = MEANT.iter().flat_map(|(_, words)| words.iter().map(|word| (*word).to_owned()));
        for name in KNOWN.into_iter().flat_map(near_misses).chain(words) {
            let read = |listed: &[ListedAnnotation]| {
                Annotations::read(Effect::Forbid, [(name.as_str(), "shadow")].into_iter(), listed)
            };
            let faults = read(&[]).expect_err(&name);
            assert!(faults[0].1.starts_with("did you mean `@"), "{name}: {faults:?}");
            assert_eq!(read(&[ListedAnnotation(name.clone())]), Ok(Annotations::default()), "{name}");
        }
    }

    #[test]
    fn what_is_near_nothing_is_idle_unless_it_is_listed() {
        let listed = ["jira", "team_"].map(|text| ListedAnnotation::parse(text.to_owned()).expect("good"));
        for (name, idle) in [
            ("linkWhen", true),
            ("createPolicyWhen", true),
            ("owner", true),
            ("description", true),
            ("advice", true),
            ("jira", false),
            ("jira2", true),
            ("team_owner", false),
            ("team", true),
            ("mode", false),
        ] {
            assert!(Annotations::read(Effect::Forbid, [(name, "shadow")].into_iter(), &listed).is_ok(), "{name}");
            assert_eq!(is_idle(name, &listed), idle, "{name}");
        }
        for text in ["mode", "", "_", "team-", "a b", "1a", "team.owner"] {
            assert!(ListedAnnotation::parse(text.to_owned()).is_err(), "{text}");
        }
    }
}
