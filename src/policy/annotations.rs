//! What annotations mean: the mode of a policy, how its denials look, how long its decisions may be remembered.
//!
//! Annotations are free text to Cedar. Those that Stockade gives a meaning are checked when the bundle is loaded, so
//! that no denial fails to be written at the moment that it is needed.

use std::time::Duration;

use cedar_policy::Effect;

use crate::model::Denial;

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
    /// Reads the annotations of a policy with this effect.
    ///
    /// # Errors
    /// All faults: a message and a hint each.
    pub fn read<'a>(
        effect: Effect,
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
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
                    for line in value.split('\n').filter(|line| !line.trim().is_empty()) {
                        match line.split_once(':') {
                            Some((name, value)) => {
                                shape.headers.push((name.trim().to_owned(), value.trim().to_owned()));
                            }
                            None => faults.push((
                                format!("`@header(\"{line}\")` is not a header"),
                                "like `@header(\"www-authenticate: Bearer\")`; several are separated by `\\n`"
                                    .to_owned(),
                            )),
                        }
                    }
                }
                _ => {}
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
            let read = Annotations::read(Effect::Forbid, annotations.iter().copied());
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
        assert!(Annotations::read(Effect::Permit, [("status", "401")].into_iter()).is_err());
        let own = Annotations::read(Effect::Permit, [("ttl", "10s"), ("owner", "me"), ("mode", "shadow")].into_iter());
        let own = own.expect("good");
        assert_eq!((own.shadow, own.ttl), (true, Some(Duration::from_secs(10))));
    }
}
