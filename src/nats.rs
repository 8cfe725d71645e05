//! The connection to a NATS server, for the feed and for those who publish: how it is made, kept and watched, and the few
//! requests of JetStream's API that Stockade makes (`api`).

mod api;
mod config;
mod pieces;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Auth, AuthError, Client, ClientError, ConnectOptions, ServerAddr, ServerError};
use nkeys::KeyPair;
use tokio::sync::{mpsc, watch};
use tracing::debug;

pub use api::{Error, Stored, code};
pub use config::{Config, Domain, InboxPrefix, Server, Tls};
pub use pieces::PiecesError;

use crate::backoff::Backoff;

/// How often the server is pinged. The third that it owes an answer ends the connection: a server that is stopped but
/// connected is noticed after some five seconds, by this. The beacon notices sooner.
const PING: Duration = Duration::from_secs(2);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);

/// The longest pause between two attempts to connect. Each is random below a limit that doubles (full jitter), so that a
/// thousand sidecars do not come back in step.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), longest: Duration::from_secs(4) };

/// How many messages of a subscription wait to be looked at. What comes beyond is dropped, and reported as [`Event::Dropped`].
const SUBSCRIPTION: usize = 4096;

/// How many events wait to be looked at. A reader that does not look misses some: [`Connection::is_up`] is always right.
const EVENTS: usize = 128;

/// What happens to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is made, for the first time or again.
    Up,
    /// It is lost, or an attempt to make it has failed.
    Down(String),
    /// The server does not let us in, or not do something. A subscription to a forbidden subject looks like one on which
    /// nothing is ever said; this is the only sign.
    Refused(String),
    /// A subscription had more messages than were looked at, so some are gone.
    Dropped,
}

/// Events in the order in which they came.
pub type Events = mpsc::Receiver<Event>;

/// What to do if no server answers at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectRetry {
    /// Keep trying: for a process that outlives the server.
    Forever,
    /// Fail: for a person who waits.
    Never,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file with credentials cannot be read.
    #[error("`{path}` cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file of credentials lacks one of its parts.
    #[error("`{path}` holds no {block}: not a `.creds` file")]
    NotCredentials {
        /// The file.
        path: String,
        /// What it should hold.
        block: &'static str,
    },
    /// A file does not hold the seed of an nkey.
    #[error("`{0}` holds no seed of an nkey, which begins with `SU`")]
    NotASeed(String),
    /// A file of TLS is something else.
    #[error("`{0}` holds nothing in PEM form")]
    NotPem(String),
    /// The challenge of the server cannot be signed.
    #[error("the server's challenge cannot be signed: {0}")]
    Unsigned(nkeys::error::Error),
    /// An address cannot be used.
    #[error("`{address}` is not the address of a NATS server: {source}")]
    Address {
        /// The address.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// No server could be reached.
    #[error("cannot connect to {servers}: {cause}")]
    Unreachable {
        /// All their addresses.
        servers: String,
        /// Why not.
        cause: String,
    },
    /// The server does not know these credentials.
    #[error("cannot connect to {servers}: {cause} (are these the right credentials, and does the server know them?)")]
    Unauthorized {
        /// All their addresses.
        servers: String,
        /// What it answered.
        cause: String,
    },
}

/// A connection that is kept: once it has been made it is made again whenever it is lost, for ever.
#[derive(Debug, Clone)]
pub struct Connection {
    client: Client,
    timeout: Duration,
    /// What subjects of JetStream's API begin with.
    api: String,
    /// The last thing that the server refused: a request for it gets no other answer.
    refused: watch::Receiver<String>,
}

/// Connects. `name` is what the server shows of us, and part of the inbox that answers come to.
///
/// # Errors
/// If the configuration or its files are wrong, or, with [`ConnectRetry::Never`], if no server lets us in.
pub async fn connect(config: &Config, name: &str, retry: ConnectRetry) -> Result<(Connection, Events), ConnectError> {
    let address = |server: &Server| {
        let parsed = server.as_str().parse::<ServerAddr>();
        parsed.map_err(|source| ConnectError::Address { address: server.as_str().to_owned(), source })
    };
    let servers: Vec<ServerAddr> = config.servers.0.iter().map(address).collect::<Result<_, _>>()?;
    // What is wrong with the files at the start will be at every attempt; later, they may be about to be replaced.
    config.check_files()?;
    let (sender, events) = mpsc::channel(EVENTS);
    let (refusals, refused) = watch::channel(String::new());
    let mut options = options(config, name);
    let tell = Arc::new(move |event: Event| {
        debug!(?event, "connection to NATS");
        if let Event::Refused(what) = &event {
            refusals.send_replace(what.clone());
        }
        // Full: nobody looks at them.
        let _ = sender.try_send(event);
    });
    let told = Arc::clone(&tell);
    let files = config.clone();
    options = options.event_callback(move |event| {
        match read(event) {
            Some(Event::Refused(what)) => told(Event::Refused(files.explain(what))),
            Some(event) => told(event),
            None => {}
        }
        std::future::ready(())
    });
    if retry == ConnectRetry::Forever {
        options = options.retry_on_initial_connect();
    }
    // It chooses no server: it is where the library reports, before each attempt, what came of those before, by address and cause.
    let files = config.clone();
    options = options.reconnect_to_server_callback(move |pool, _| {
        if let Some(why) = unreached(&pool) {
            tell(Event::Down(files.explain(why)));
        }
        std::future::ready(None)
    });
    let client = options.connect(servers).await.map_err(|error| unreachable(config, &error))?;
    let api = config.domain.as_ref().map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"));
    Ok((Connection { client, timeout: config.timeout.0, api, refused }, events))
}

fn options(config: &Config, name: &str) -> ConnectOptions {
    let mut options = match config.has_credentials() {
        // They are read at each connection, so that nothing needs a restart when they are renewed.
        true => {
            let config = config.clone();
            ConnectOptions::with_auth_callback(move |nonce| {
                std::future::ready(config.credentials().and_then(|own| own.sign(&nonce)).map_err(AuthError::new))
            })
        }
        false => ConnectOptions::new(),
    };
    if let Some(tls) = &config.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.into());
        }
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.private_key) {
            options = options.add_client_certificate(certificate.into(), key.into());
        }
    }
    let inbox = config.inbox_prefix.as_ref().map_or_else(|| InboxPrefix::of(name), Clone::clone);
    let first = AtomicBool::new(true);
    options
        .name(format!("stockade {name}"))
        .custom_inbox_prefix(inbox.as_str())
        .connection_timeout(CONNECT)
        .request_timeout(Some(config.timeout.0))
        .ping_interval(PING)
        .subscription_capacity(SUBSCRIPTION)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| match first.swap(false, Ordering::Relaxed) {
            true => Duration::ZERO,
            false => RETRY.limit(u32::try_from(attempt).unwrap_or(u32::MAX)).mul_f64(fastrand::f64()),
        })
}

/// What an event of the library means to us.
fn read(event: async_nats::Event) -> Option<Event> {
    match event {
        async_nats::Event::Connected => Some(Event::Up),
        async_nats::Event::Disconnected => Some(Event::Down("the connection was lost".to_owned())),
        async_nats::Event::Closed => Some(Event::Down("the connection was closed".to_owned())),
        async_nats::Event::SlowConsumer(_) => Some(Event::Dropped),
        async_nats::Event::ServerError(ServerError::SlowConsumer(_)) => Some(Event::Dropped),
        async_nats::Event::ServerError(ServerError::AuthorizationViolation) => {
            Some(Event::Refused("the server does not let us in: authorization violation".to_owned()))
        }
        async_nats::Event::ServerError(ServerError::Other(text)) => Some(said(text)),
        // Why else an attempt to connect has failed is reported with the address ([`unreached`]).
        async_nats::Event::ClientError(ClientError::Other(text)) => refused(&text),
        async_nats::Event::ClientError(error) => Some(Event::Down(error.to_string())),
        async_nats::Event::LameDuckMode | async_nats::Event::Draining => None,
    }
}

/// What the server sends by itself: that something is forbidden, or why it is about to hang up.
fn said(text: String) -> Event {
    let lower = text.to_lowercase();
    let refused = ["permissions violation", "authorization", "authentication", "account", "revoked"];
    if refused.iter().any(|word| lower.contains(word)) { Event::Refused(text) } else { Event::Down(text) }
}

/// What a server that was reached refuses; `None` if it was not reached.
fn refused(kind: &str) -> Option<Event> {
    let text = match kind {
        "authorization violation" => "the server does not let us in: authorization violation",
        "failed signing nonce" => "the credentials cannot be used or read",
        _ => return None,
    };
    Some(Event::Refused(text.to_owned()))
}

/// Which servers could not be reached, and why; `None` if all that were tried could.
fn unreached(pool: &[async_nats::Server]) -> Option<String> {
    let failed =
        pool.iter().filter_map(|server| Some((server.addr.as_url_str(), cause(server.last_error.as_deref()?)?)));
    let lines: Vec<String> = failed.map(|(address, cause)| format!("{address}: {cause}")).collect();
    (!lines.is_empty()).then(|| format!("cannot connect to {}", lines.join("; ")))
}

/// The cause in an error of the library's: `IO error` and such say nothing beside it. Nothing if the server was reached.
fn cause(error: &str) -> Option<&str> {
    let (kind, cause) = error.split_once(": ").unwrap_or((error, error));
    (refused(kind).is_none()).then_some(cause)
}

fn unreachable(config: &Config, error: &async_nats::ConnectError) -> ConnectError {
    let servers = config.servers.0.iter().map(Server::as_str).collect::<Vec<_>>().join(", ");
    let text = error.to_string();
    let cause = cause(&text).unwrap_or(&text).to_owned();
    match error.kind() {
        async_nats::ConnectErrorKind::AuthorizationViolation => ConnectError::Unauthorized { servers, cause },
        _ => ConnectError::Unreachable { servers, cause },
    }
}

impl Connection {
    /// Whether it is there, as far as is known: a server that hangs shows after some five seconds.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Hears what is said on a subject from now on. If that is forbidden, nothing ever is: [`Event::Refused`].
    ///
    /// # Errors
    /// If the subject is none, or the connection is closed.
    pub async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, Error> {
        self.client.subscribe(subject).await.map_err(|error| Error::Other(error.to_string()))
    }

    /// Waits until the server has everything that was sent, subscriptions too.
    ///
    /// # Errors
    /// If it does not confirm that in time.
    pub async fn flush(&self) -> Result<(), Error> {
        match tokio::time::timeout(self.timeout, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| Error::Other(error.to_string())),
            Err(_) => Err(Error::TimedOut(self.timeout)),
        }
    }
}

/// What we prove to be ourselves with.
enum Credentials {
    None,
    Password { user: String, password: String },
    Key { pair: Box<KeyPair>, jwt: Option<String> },
}

impl Credentials {
    /// The answer to a server's challenge.
    fn sign(&self, nonce: &[u8]) -> Result<Auth, ConnectError> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::Password { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.clone());
            }
            Self::Key { pair, jwt } => {
                auth.signature = Some(pair.sign(nonce).map_err(ConnectError::Unsigned)?);
                match jwt {
                    Some(jwt) => auth.jwt = Some(jwt.clone()),
                    None => auth.nkey = Some(pair.public_key()),
                }
            }
        }
        Ok(auth)
    }
}

impl Config {
    fn has_credentials(&self) -> bool {
        self.credentials.is_some() || self.nkey.is_some() || self.user.is_some()
    }

    /// Whether the files that the configuration names are what they should be.
    fn check_files(&self) -> Result<(), ConnectError> {
        self.credentials()?;
        let tls = self.tls.iter().flat_map(|tls| [&tls.ca, &tls.certificate, &tls.private_key]);
        tls.flatten().try_for_each(|path| match secret(path)?.contains("-----BEGIN ") {
            true => Ok(()),
            false => Err(ConnectError::NotPem(path.clone())),
        })
    }

    /// Why something with a server failed, and the file that is at fault if one is: the library reports only what went wrong with it.
    fn explain(&self, why: String) -> String {
        match self.check_files() {
            Ok(()) => why,
            Err(file) => format!("{why} ({file})"),
        }
    }

    /// Reads the files that prove who we are. What they hold appears in no message.
    fn credentials(&self) -> Result<Credentials, ConnectError> {
        if let Some(path) = &self.credentials {
            let text = secret(path)?;
            let block = |name| {
                block(&text, name).ok_or_else(|| ConnectError::NotCredentials { path: path.clone(), block: name })
            };
            let pair = key(path, block("USER NKEY SEED")?)?;
            return Ok(Credentials::Key { pair, jwt: Some(block("NATS USER JWT")?.to_owned()) });
        }
        if let Some(path) = &self.nkey {
            return Ok(Credentials::Key { pair: key(path, secret(path)?.trim())?, jwt: None });
        }
        match (&self.user, &self.password_file) {
            (Some(user), Some(path)) => {
                Ok(Credentials::Password { user: user.clone(), password: secret(path)?.trim().to_owned() })
            }
            _ => Ok(Credentials::None),
        }
    }
}

fn secret(path: &str) -> Result<String, ConnectError> {
    std::fs::read_to_string(path).map_err(|source| ConnectError::File { path: path.to_owned(), source })
}

fn key(path: &str, seed: &str) -> Result<Box<KeyPair>, ConnectError> {
    // What the library says of a bad seed may quote it.
    KeyPair::from_seed(seed).map(Box::new).map_err(|_| ConnectError::NotASeed(path.to_owned()))
}

/// The line between `-----BEGIN name-----` and `------END name------`.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("-----BEGIN {name}-----"))?;
    after.split_once("-----").map(|(inner, _)| inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forbidden_is_told_from_what_is_broken() {
        for text in ["Permissions Violation for Subscription to \"x\"", "User Authentication Expired"] {
            assert!(matches!(said(text.to_owned()), Event::Refused(_)), "{text}");
        }
        assert!(matches!(said("Stale Connection".to_owned()), Event::Down(_)));
        assert!(matches!(refused("authorization violation"), Some(Event::Refused(_))));
        assert_eq!((refused("IO error"), cause("authorization violation")), (None, None));
        assert_eq!(cause("IO error: Connection refused (os error 111)"), Some("Connection refused (os error 111)"));
        assert_eq!(cause("timed out"), Some("timed out"));
    }

    #[test]
    fn a_credentials_file_is_read() {
        let pair = KeyPair::new_user();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.x-_\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            pair.seed().expect("a seed")
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.creds").display().to_string();
        std::fs::write(&path, text).expect("written");
        let config = Config { credentials: Some(path), ..Config::of("nats://127.0.0.1:4222").expect("a server") };
        let auth = config.credentials().and_then(|own| own.sign(b"nonce")).expect("an answer");
        assert_eq!((auth.jwt.as_deref(), auth.nkey), (Some("eyJ0.x-_"), None));
        assert!(pair.verify(b"nonce", &auth.signature.expect("a signature")).is_ok());
    }

    #[test]
    fn files_that_are_wrong_are_named_and_not_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed").display().to_string();
        let config = Config { nkey: Some(path.clone()), ..Config::of("nats://127.0.0.1:4222").expect("a server") };
        let error = || config.credentials().err().expect("an error").to_string();
        assert!(error().contains("cannot be read"), "{}", error());
        std::fs::write(&path, "hunter2").expect("written");
        assert!(error().contains(&path) && !error().contains("hunter2"), "{}", error());
    }

    #[tokio::test]
    async fn files_of_tls_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca.pem").display().to_string();
        let tls = Some(config::Tls { ca: Some(path.clone()), certificate: None, private_key: None });
        let config = Config { tls, ..Config::of("tls://127.0.0.1:1").expect("a server") };
        let refused = async || connect(&config, "test", ConnectRetry::Never).await.expect_err("an error").to_string();
        assert_eq!(refused().await, format!("`{path}` cannot be read: No such file or directory (os error 2)"));
        std::fs::write(&path, [0x30, 0x82]).expect("written");
        assert!(refused().await.starts_with(&format!("`{path}` cannot be read: ")), "{}", refused().await);
        std::fs::write(&path, "hunter2").expect("written");
        assert_eq!(refused().await, format!("`{path}` holds nothing in PEM form"));
        // The file goes while the sidecar runs.
        assert_eq!(
            config.explain("cannot connect to tls://127.0.0.1:1: x".to_owned()),
            format!("cannot connect to tls://127.0.0.1:1: x (`{path}` holds nothing in PEM form)")
        );
    }
}
