//! How a server is reached, and with what credentials.

use deserr::{Deserr, ValuePointerRef};
use serde::Serialize;

use crate::units::HumanDuration;
use crate::yaml::{AtLeastOne, Faults, Invalid};

/// How the NATS servers are reached. Secrets stand in files, never here, and the files are read at each connection.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields, validate = Config::validate -> Faults)]
pub struct Config {
    /// Their addresses, `nats://host:port` or `tls://host:port`; any one of a cluster will do.
    pub servers: AtLeastOne<Server>,
    /// A `.creds` file: a JWT and its key. Default: none.
    #[deserr(default)]
    pub credentials: Option<String>,
    /// A file with the seed of an nkey. Default: none.
    #[deserr(default)]
    pub nkey: Option<String>,
    /// A user's name, with `password_file`. Default: none.
    #[deserr(default)]
    pub user: Option<String>,
    /// A file with the password of `user`. Default: none.
    #[deserr(default)]
    pub password_file: Option<String>,
    /// TLS. Default: as the addresses and the server want it, with the system's authorities.
    #[deserr(default)]
    pub tls: Option<Tls>,
    /// What the subjects of answers begin with. The server's permissions allow to hear these and no others. Default:
    /// `_INBOX_stockade_sidecar` for sidecars, `_INBOX_stockade_beacon` for beacons, `_INBOX_stockade_cli` for people.
    #[deserr(default)]
    pub inbox_prefix: Option<InboxPrefix>,
    /// The JetStream domain that the store is in, seen from a leaf node. Default: the server's own.
    #[deserr(default)]
    pub domain: Option<Domain>,
    /// How long an answer may take. Default: 2s.
    #[deserr(default = TIMEOUT)]
    pub timeout: HumanDuration,
}

const TIMEOUT: HumanDuration = HumanDuration::seconds(2);

/// TLS. The files are read at each connection.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the authorities of the server. Default: those of the system.
    #[deserr(default)]
    pub ca: Option<String>,
    /// PEM file with our certificate and its chain. Default: none.
    #[deserr(default)]
    pub certificate: Option<String>,
    /// PEM file with its private key. Default: none.
    #[deserr(default)]
    pub private_key: Option<String>,
}

impl Config {
    /// One server, and defaults.
    ///
    /// # Errors
    /// If it is no address of a server.
    pub fn of(server: &str) -> Result<Self, Invalid> {
        Ok(Self {
            servers: AtLeastOne(vec![Server::try_from_text(server.to_owned())?]),
            credentials: None,
            nkey: None,
            user: None,
            password_file: None,
            tls: None,
            inbox_prefix: None,
            domain: None,
            timeout: TIMEOUT,
        })
    }

    fn validate(self, location: ValuePointerRef<'_>) -> Result<Self, Faults> {
        match self.wrong() {
            None => Ok(self),
            Some((message, hint)) => Err(Faults::new(message, Some(hint.to_owned()), location)),
        }
    }

    /// What is wrong with the keys taken together, and what to do about it.
    pub fn wrong(&self) -> Option<(String, &'static str)> {
        let given = [("credentials", &self.credentials), ("nkey", &self.nkey), ("user", &self.user)];
        let given: Vec<&str> = given.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key).collect();
        if let [one, two, ..] = given.as_slice() {
            return Some((format!("both `{one}` and `{two}` are given"), "one proof of identity is enough"));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Some(("`user` and `password_file` go together".to_owned(), "give both, or neither"));
        }
        if self.timeout < HumanDuration::millis(100) {
            return Some((format!("a `timeout` of {} is too short for an answer", self.timeout), "at least `100ms`"));
        }
        let tls = self.tls.as_ref()?;
        if tls.certificate.is_some() != tls.private_key.is_some() {
            return Some(("`certificate` and `private_key` go together".to_owned(), "give both, or neither"));
        }
        None
    }
}

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = Server::try_from_text -> Invalid)]
#[serde(transparent)]
pub struct Server(String);

impl Server {
    /// Reads an address.
    ///
    /// # Errors
    /// If it is none, or holds a password: addresses are shown.
    pub fn try_from_text(text: String) -> Result<Self, Invalid> {
        let form = "like `nats://nats.example:4222` or `tls://nats.example:4222`";
        if let Some((_, host)) = text.rsplit_once('@') {
            return Err(Invalid::new(format!("the address of `{host}` holds credentials"))
                .hint("addresses are logged: put the password into a file, and name it in `password_file`"));
        }
        let known = text.starts_with("nats://") || text.starts_with("tls://");
        match known && text.parse::<async_nats::ServerAddr>().is_ok() {
            true => Ok(Self(text)),
            false => Err(Invalid::new(format!("`{text}` is not the address of a NATS server")).hint(form)),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the subjects of answers begin with: one word of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = InboxPrefix::try_from_text -> Invalid)]
#[serde(transparent)]
pub struct InboxPrefix(String);

impl InboxPrefix {
    /// That of a kind of client, if none is configured.
    pub(super) fn of(name: &str) -> Self {
        Self(format!("_INBOX_stockade_{name}"))
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it would not be one word of a subject.
    pub fn try_from_text(text: String) -> Result<Self, Invalid> {
        match is_word(&text) {
            true => Ok(Self(text)),
            false => {
                Err(Invalid::new(format!("`{text}` is not a prefix for inboxes")).hint("letters, digits, `_` or `-`"))
            }
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a JetStream domain.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, try_from(String) = Domain::try_from_text -> Invalid)]
#[serde(transparent)]
pub struct Domain(String);

impl Domain {
    /// Reads one.
    ///
    /// # Errors
    /// If it would not be one word of a subject.
    pub fn try_from_text(text: String) -> Result<Self, Invalid> {
        match is_word(&text) {
            true => Ok(Self(text)),
            false => Err(Invalid::new(format!("`{text}` is not a domain")).hint("letters, digits, `_` or `-`")),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::SourceFile;
    use crate::yaml;

    fn problems(text: &str) -> Vec<String> {
        match yaml::parse::<Config>(&SourceFile::new("c.yaml", text)) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_complete_configuration_is_read() {
        let good = "servers: [\"tls://a.example:4222\", \"nats://b.example\"]\nuser: x\npassword_file: /p\n\
                    tls: {ca: /ca, certificate: /c, private_key: /k}\ninbox_prefix: _INBOX_x\ndomain: hub\ntimeout: 500ms\n";
        assert_eq!(problems(good), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("servers: []", "there must be at least one"),
            ("servers: [\"http://a\"]", "`http://a` is not the address of a NATS server"),
            ("servers: [\"nats://u:hunter2@a\"]", "the address of `a` holds credentials"),
            ("servers: [\"nats://a\"]\nuser: x", "`user` and `password_file` go together"),
            ("servers: [\"nats://a\"]\ntimeout: 1ms", "a `timeout` of 1ms is too short"),
            ("servers: [\"nats://a\"]\nnkey: /x\ncredentials: /y", "both `credentials` and `nkey` are given"),
            ("servers: [\"nats://a\"]\ntls: {certificate: /x}", "`certificate` and `private_key` go together"),
            ("servers: [\"nats://a\"]\ninbox_prefix: a.b", "`a.b` is not a prefix for inboxes"),
            ("servers: [\"nats://a\"]\npasword_file: x", "unknown key `pasword_file`"),
        ] {
            let problems = problems(text);
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{text}: {problems:?}");
            assert!(!problems.iter().any(|problem| problem.contains("hunter2")), "{problems:?}");
        }
    }
}
