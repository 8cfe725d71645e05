//! Which addresses may be listened on, as they are written in a configuration.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use deserr::{DeserializeError, Deserr, IntoValue, MergeWithError, Value, ValueKind, ValuePointerRef, take_cf_content};
use serde::{Serialize, Serializer};

use crate::problem::Problem;
use crate::yaml::Faults;

/// Where to listen: a string such as `unix:///run/stockade/authz.sock`, or a mapping with an `address` and more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Config {
    /// `unix:///path`
    Unix {
        /// The path of the socket.
        #[serde(rename = "address", serialize_with = "unix_address")]
        path: PathBuf,
        /// Who may connect. Default: "0660".
        mode: Mode,
        /// The group that the socket belongs to. Default: that of the process.
        #[serde(skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
    },
    /// `tcp://ip:port`
    Tcp {
        /// The address to bind; port 0 takes a free one.
        #[serde(serialize_with = "tcp_address")]
        address: SocketAddr,
        /// Whether other machines may connect without TLS. Default: false.
        allow_remote: bool,
        /// TLS. Default: none.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<Tls>,
    },
}

/// The permissions of a Unix socket, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

/// A group, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Group {
    /// A name, looked up in `/etc/group`.
    Name(String),
    /// A number, for images without an `/etc/group`.
    Id(u32),
}

/// TLS on a TCP listener. The files are read once, when it is bound.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate and its chain.
    pub certificate: String,
    /// PEM file with its private key.
    pub private_key: String,
    /// PEM file with the authorities of clients; with it, a client needs a certificate of theirs. Default: none.
    #[deserr(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<String>,
}

/// The mapping as it is written.
#[derive(Debug, Default, Deserr)]
#[deserr(error = Faults, deny_unknown_fields)]
struct Entry {
    address: String,
    #[deserr(default)]
    mode: Option<Mode>,
    #[deserr(default)]
    group: Option<Group>,
    #[deserr(default)]
    allow_remote: Option<bool>,
    #[deserr(default)]
    tls: Option<Tls>,
}

const MODE: Mode = Mode(0o660);

/// What `sockaddr_un` holds, without the NUL at the end (unix(7)).
const UNIX_PATH_MAX: usize = 107;

/// The length of [`temporary_name`], which must fit beside the socket.
pub(super) const TEMPORARY_NAME_LEN: usize = 17;

const FORMS: &str = "like `unix:///run/stockade/authz.sock` or `tcp://127.0.0.1:9191`";

impl Config {
    /// Reads the short form, for defaults and the command line.
    ///
    /// # Errors
    /// If it is not an address, or one that only the mapping can allow.
    pub fn parse(address: &str) -> Result<Self, Vec<Problem>> {
        Self::try_from(Entry { address: address.to_owned(), ..Entry::default() })
            .map_err(|wrongs| wrongs.into_iter().map(|wrong| Problem::error(wrong.message).hint(wrong.hint)).collect())
    }

    /// Reads the short form of an address that other machines may connect to, since nothing is to be had there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_open(address: &str) -> Result<Self, String> {
        let is_tcp = address.starts_with("tcp://");
        Self::try_from(Entry { address: address.to_owned(), allow_remote: is_tcp.then_some(true), ..Entry::default() })
            .map_err(|wrongs| wrongs.into_iter().map(|wrong| wrong.message).collect::<Vec<_>>().join("; "))
    }

    /// Whether it asks for TLS, which only the ext_authz service offers.
    pub fn has_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: Some(_), .. })
    }
}

/// `tcp://127.0.0.1:9191`, `unix:///path`
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
        }
    }
}

/// One thing that is wrong with an [`Entry`], and the key that it is about.
struct Wrong {
    key: &'static str,
    message: String,
    hint: String,
}

impl Wrong {
    fn new(key: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { key, message: message.into(), hint: hint.into() }
    }
}

impl TryFrom<Entry> for Config {
    type Error = Vec<Wrong>;

    fn try_from(entry: Entry) -> Result<Self, Vec<Wrong>> {
        if let Some(path) = entry.address.strip_prefix("unix://") {
            let misplaced = [("allow_remote", entry.allow_remote.is_some()), ("tls", entry.tls.is_some())];
            let mut wrongs = misplaced_keys(&misplaced, "a Unix socket");
            wrongs.extend(check_unix_path(path));
            let (path, mode) = (PathBuf::from(path), entry.mode.unwrap_or(MODE));
            return if wrongs.is_empty() { Ok(Self::Unix { path, mode, group: entry.group }) } else { Err(wrongs) };
        }
        let Some(address) = entry.address.strip_prefix("tcp://") else {
            return Err(vec![Wrong::new("address", format!("`{}` is not an address", entry.address), FORMS)]);
        };
        let misplaced = [("mode", entry.mode.is_some()), ("group", entry.group.is_some())];
        let mut wrongs = misplaced_keys(&misplaced, "a TCP address");
        let address = tcp(address).map_err(|wrong| wrongs.push(wrong)).ok();
        let allow_remote = entry.allow_remote.unwrap_or(false);
        if let Some(address) = address.filter(|address| !is_loopback(address.ip()))
            && !allow_remote
            && entry.tls.is_none()
        {
            let message = format!("`tcp://{address}` can be reached from other machines");
            wrongs.push(Wrong::new(
                "address",
                message,
                "listen on `127.0.0.1`, set up `tls`, or say `allow_remote: true`",
            ));
        }
        match address.filter(|_| wrongs.is_empty()) {
            Some(address) => Ok(Self::Tcp { address, allow_remote, tls: entry.tls }),
            None => Err(wrongs),
        }
    }
}

fn misplaced_keys(keys: &[(&'static str, bool)], on: &str) -> Vec<Wrong> {
    let present = keys.iter().filter(|(_, present)| *present);
    present.map(|(key, _)| Wrong::new(key, format!("{on} has no `{key}`"), "remove it")).collect()
}

fn check_unix_path(text: &str) -> Option<Wrong> {
    let path = Path::new(text);
    let shown = format!("`unix://{text}`");
    let wrong = |message: String, hint: &str| Some(Wrong::new("address", message, hint));
    if !path.is_absolute() {
        return wrong(
            format!("{shown} is not an absolute path"),
            "three slashes, like `unix:///run/stockade/authz.sock`",
        );
    }
    let (Some(name), Some(parent), false) = (path.file_name(), path.parent(), text.ends_with('/')) else {
        return wrong(format!("{shown} names no file"), FORMS);
    };
    if text.contains('\0') {
        return wrong(format!("{shown} contains a NUL"), FORMS);
    }
    let longest = parent.join("x".repeat(name.len().max(TEMPORARY_NAME_LEN)));
    if longest.as_os_str().len() > UNIX_PATH_MAX {
        let limit = format!("{shown} is too long: the kernel takes {UNIX_PATH_MAX} bytes");
        let hint =
            format!("choose a shorter directory; beside the socket a name of {TEMPORARY_NAME_LEN} bytes must fit");
        return wrong(limit, &hint);
    }
    None
}

fn tcp(text: &str) -> Result<SocketAddr, Wrong> {
    let wrong = |what: &str, hint: &str| Wrong::new("address", format!("`tcp://{text}` {what}"), hint);
    let (host, port) = text.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')).unwrap_or((text, ""));
    if port.is_empty() || port.ends_with(']') {
        return Err(wrong("has no port", "like `tcp://127.0.0.1:9191`; port 0 takes a free one"));
    }
    let port: u16 = port.parse().map_err(|_| wrong("has a port that is none", "a number from 0 to 65535"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match (host, bracketed) {
        // Not looked up: it has meant something else on some machines, and an outage on others.
        ("localhost", _) => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (_, Some(v6)) => v6.parse().ok().map(IpAddr::V6),
        (v4, None) => v4.parse().ok().map(IpAddr::V4),
    };
    let hint = "an IP address or `localhost`; IPv6 in brackets, like `tcp://[::1]:9191`";
    ip.map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| wrong("has a host that is no IP address", hint))
}

/// Also `::ffff:127.0.0.1`.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl Deserr<Faults> for Config {
    fn deserialize_from_value<V: IntoValue>(value: Value<V>, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let (entry, is_text) = match value {
            Value::String(address) => (Entry { address, ..Entry::default() }, true),
            Value::Map(_) => (Entry::deserialize_from_value(value, location)?, false),
            actual => return Err(wrong_kind(actual, &[ValueKind::String, ValueKind::Map], location)),
        };
        Self::try_from(entry).map_err(|wrongs| {
            let faults = wrongs.into_iter().map(|wrong| {
                let place = if is_text { location } else { location.push_key(wrong.key) };
                Faults::new(wrong.message, Some(wrong.hint), place)
            });
            let all = faults.reduce(|all, fault| take_cf_content(Faults::merge(Some(all), fault, location)));
            all.unwrap_or_else(|| Faults::new("not an address", Some(FORMS.to_owned()), location))
        })
    }
}

impl Deserr<Faults> for Mode {
    fn deserialize_from_value<V: IntoValue>(value: Value<V>, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        let text = match value {
            Value::String(text) => text,
            // YAML reads 0660 as a decimal number: 01224 in octal.
            Value::Integer(number) => number.to_string(),
            actual => return Err(wrong_kind(actual, &[ValueKind::String], location)),
        };
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| text.starts_with('0') && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| {
            let hint = "in octal, with a zero in front and in quotes, like \"0660\"";
            Faults::new(format!("`{text}` is not a file mode"), Some(hint.to_owned()), location)
        })
    }
}

impl Deserr<Faults> for Group {
    fn deserialize_from_value<V: IntoValue>(value: Value<V>, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        match value {
            Value::String(text) => Ok(text.parse().map(Self::Id).unwrap_or(Self::Name(text))),
            Value::Integer(number) => u32::try_from(number).map(Self::Id).map_err(|_| {
                Faults::new(format!("`{number}` is not a group"), Some("a number below 2^32".to_owned()), location)
            }),
            actual => Err(wrong_kind(actual, &[ValueKind::String, ValueKind::Integer], location)),
        }
    }
}

fn wrong_kind<V: IntoValue>(actual: Value<V>, accepted: &[ValueKind], location: ValuePointerRef<'_>) -> Faults {
    let error = deserr::ErrorKind::IncorrectValueKind { actual, accepted };
    take_cf_content(<Faults as DeserializeError>::error::<V>(None, error, location))
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

fn unix_address<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("unix://{}", path.display()))
}

fn tcp_address<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("tcp://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::SourceFile;
    use crate::yaml::parse;

    fn config(yaml: &str) -> Result<Config, String> {
        #[derive(Debug, Deserr)]
        #[deserr(error = Faults, deny_unknown_fields)]
        struct Sample {
            listen: Config,
        }
        let sample = parse::<Sample>(&SourceFile::new("s", yaml)).map(|sample| sample.listen);
        sample.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn good_addresses() {
        for (yaml, expected) in [
            ("listen: unix:///run/s.sock", r#"{"address":"unix:///run/s.sock","mode":"0660"}"#),
            ("listen: tcp://127.0.0.1:0", r#"{"address":"tcp://127.0.0.1:0","allow_remote":false}"#),
            ("listen: tcp://localhost:91", r#"{"address":"tcp://127.0.0.1:91","allow_remote":false}"#),
            ("listen: tcp://[::1]:91", r#"{"address":"tcp://[::1]:91","allow_remote":false}"#),
            (
                "listen: {address: 'unix:///s', mode: '0666', group: envoy}",
                r#"{"address":"unix:///s","mode":"0666","group":"envoy"}"#,
            ),
            ("listen: {address: 'unix:///s', group: 1337}", r#"{"address":"unix:///s","mode":"0660","group":1337}"#),
            (
                "listen: {address: 'tcp://0.0.0.0:91', allow_remote: true}",
                r#"{"address":"tcp://0.0.0.0:91","allow_remote":true}"#,
            ),
            (
                "listen: {address: 'tcp://[::]:91', tls: {certificate: c, private_key: k, client_ca: a}}",
                r#"{"address":"tcp://[::]:91","allow_remote":false,"tls":{"certificate":"c","private_key":"k","client_ca":"a"}}"#,
            ),
        ] {
            let config = config(yaml).expect(yaml);
            assert_eq!(serde_json::to_string(&config).expect("json"), expected);
        }
    }

    #[test]
    fn bad_addresses() {
        let long = format!("listen: unix:///{}/s", "d".repeat(90));
        for (yaml, expected) in [
            ("listen: 127.0.0.1:91", "`127.0.0.1:91` is not an address (like `unix:///"),
            ("listen: http://x:91", "`http://x:91` is not an address"),
            ("listen: unix://run/s", "`unix://run/s` is not an absolute path (three slashes"),
            ("listen: unix:///run/", "`unix:///run/` names no file"),
            ("listen: unix:///run/..", "`unix:///run/..` names no file"),
            (&long, "is too long: the kernel takes 107 bytes (choose a shorter directory"),
            ("listen: tcp://127.0.0.1", "`tcp://127.0.0.1` has no port"),
            ("listen: tcp://[::1]", "`tcp://[::1]` has no port"),
            ("listen: tcp://127.0.0.1:http", "has a port that is none"),
            ("listen: tcp://127.0.0.1:65536", "has a port that is none"),
            ("listen: tcp://::1:91", "has a host that is no IP address"),
            ("listen: tcp://example.com:91", "has a host that is no IP address (an IP address or `localhost`"),
            ("listen: tcp://:91", "has a host that is no IP address"),
            (
                "listen: tcp://0.0.0.0:91",
                "s:1:9: `listen`: `tcp://0.0.0.0:91` can be reached from other machines (listen",
            ),
            (
                "listen: {address: 'tcp://10.0.0.1:91', allow_remote: false}",
                "`listen.address`: `tcp://10.0.0.1:91` can be",
            ),
            (
                "listen: {address: 'tcp://[::1]:91', mode: '0660'}",
                "`listen.mode`: a TCP address has no `mode` (remove it)",
            ),
            ("listen: {address: 'unix:///s', tls: {certificate: c, private_key: k}}", "a Unix socket has no `tls`"),
            ("listen: {address: 'unix:///s', mode: 0o660}", "`432` is not a file mode (in octal"),
            ("listen: {address: 'unix:///s', mode: '0999'}", "`0999` is not a file mode"),
            ("listen: {address: 'unix:///s', mode: '01777'}", "`01777` is not a file mode"),
            ("listen: {address: 'unix:///s', mod: '0660'}", "unknown key `mod` (did you mean `mode`?)"),
            ("listen: {mode: '0660'}", "`address` is missing"),
            ("listen: [tcp]", "expected a string or a mapping, found a list"),
            // Several at once.
            ("listen: {address: 'unix://s', tls: {certificate: c, private_key: k}}", "`listen.tls`: a Unix"),
            ("listen: {address: 'unix://s', tls: {certificate: c, private_key: k}}", "`listen.address`: `unix://s` is"),
        ] {
            let problems = config(yaml).expect_err(yaml);
            assert!(problems.contains(expected), "{yaml}: {problems}");
        }
    }
}
