//! What the commands that speak to the store have in common: how to reach it, whom to trust, and what is in it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::nats::{self, Domain, InboxPrefix, Patience, Server};
use crate::policy::{Files, Snapshot};
use crate::problem;
use crate::publish::history::{self, Entry};
use crate::publish::{Store, read_manifest};
use crate::store::keys::Trusted;
use crate::store::statement::{Head, Kind, Manifest};
use crate::store::trusted::Believed;
use crate::store::{Keyring, PublicKey, Role, SecretKey, StoreName, pack};
use crate::terminal::errln;
use crate::units::Span;
use crate::yaml::{AtLeastOne, Invalid};

/// How the store is reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Store")]
pub(super) struct StoreArgs {
    /// Its NATS servers, `nats://host:port` or `tls://host:port`; several divided by commas.
    #[arg(long = "store", env = "STOCKADE_STORE", value_name = "URL", value_delimiter = ',', required = true, value_parser = server)]
    servers: Vec<Server>,
    /// Its name.
    #[arg(long, env = "STOCKADE_STORE_NAME", value_name = "NAME", default_value = "default", value_parser = store_name)]
    name: StoreName,
    /// A `.creds` file of NATS: a JWT and its key.
    #[arg(long, env = "STOCKADE_CREDS", value_name = "FILE")]
    creds: Option<String>,
    /// A file with the seed of an nkey.
    #[arg(long, env = "STOCKADE_NKEY", value_name = "FILE")]
    nkey: Option<String>,
    /// A user's name.
    #[arg(long, env = "STOCKADE_USER", value_name = "USER")]
    user: Option<String>,
    /// A file with that user's password.
    #[arg(long, env = "STOCKADE_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<String>,
    /// A PEM file with the authorities of the servers.
    #[arg(long, env = "STOCKADE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<String>,
    /// A PEM file with our certificate.
    #[arg(long, env = "STOCKADE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<String>,
    /// A PEM file with the key of our certificate.
    #[arg(long, env = "STOCKADE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<String>,
    /// What the subjects of answers begin with, as the server's permissions have it.
    #[arg(long, env = "STOCKADE_INBOX_PREFIX", value_name = "WORD", value_parser = inbox_prefix)]
    inbox_prefix: Option<InboxPrefix>,
    /// The JetStream domain of the store, seen from a leaf node.
    #[arg(long, env = "STOCKADE_DOMAIN", value_name = "DOMAIN", value_parser = domain)]
    domain: Option<Domain>,
    /// How long the server may take for an answer.
    #[arg(long, env = "STOCKADE_ANSWER", value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    answer: Duration,
}

/// Whose signatures are believed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust")]
pub(super) struct TrustArgs {
    /// A public key, `ed25519:...`, as `stockade keygen` prints it. Can be given several times.
    #[arg(long = "trust", env = "STOCKADE_TRUST", value_name = "KEY", value_delimiter = ',', value_parser = public_key)]
    keys: Vec<PublicKey>,
}

/// Whose signatures are believed by those who only look.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust")]
pub(super) struct ReaderTrustArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// Your own private key: its public half is believed too, as when you publish.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Whoever signs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Signature")]
pub(super) struct SignArgs {
    /// The private key, as `stockade keygen` wrote it.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: PathBuf,
    /// Who you are, for those who read the history.
    #[arg(long = "as", env = "STOCKADE_PUBLISHER", value_name = "NAME")]
    publisher: Option<String>,
}

fn invalid(invalid: Invalid) -> String {
    invalid.to_string()
}

fn server(text: &str) -> Result<Server, String> {
    Server::try_from_text(text.to_owned()).map_err(invalid)
}

fn store_name(text: &str) -> Result<StoreName, String> {
    StoreName::try_from_text(text.to_owned()).map_err(invalid)
}

fn inbox_prefix(text: &str) -> Result<InboxPrefix, String> {
    InboxPrefix::try_from_text(text.to_owned()).map_err(invalid)
}

fn domain(text: &str) -> Result<Domain, String> {
    Domain::try_from_text(text.to_owned()).map_err(invalid)
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|()| "`ed25519:` and 44 characters of base64, as `stockade keygen` prints it".to_owned())
}

impl StoreArgs {
    fn config(&self) -> Result<nats::Config, String> {
        let tls = nats::Tls {
            ca: self.tls_ca.clone(),
            certificate: self.tls_cert.clone(),
            private_key: self.tls_key.clone(),
        };
        let config = nats::Config {
            servers: AtLeastOne(self.servers.clone()),
            credentials: self.creds.clone(),
            nkey: self.nkey.clone(),
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            tls: (tls != nats::Tls { ca: None, certificate: None, private_key: None }).then_some(tls),
            inbox_prefix: self.inbox_prefix.clone(),
            domain: self.domain.clone(),
            timeout: Span(self.answer),
        };
        config.wrong().map_or(Ok(config), |(message, hint)| Err(format!("{message} ({hint})")))
    }

    /// The store that is meant.
    pub(super) fn name(&self) -> &StoreName {
        &self.name
    }

    /// Connects, or says why not.
    pub(super) async fn connect(&self, keyring: Keyring) -> Result<Session, String> {
        let connected = Store::connect(&self.config()?, self.name.clone(), "cli", Patience::Once).await;
        connected.map(|(store, _)| Session { store, keyring })
    }

    /// Connects, however long it takes.
    pub(super) async fn follow(&self) -> Result<(Store, nats::Events), String> {
        Store::connect(&self.config()?, self.name.clone(), "beacon", Patience::Endless).await
    }
}

impl TrustArgs {
    /// These keys, and one's own. A person who names a key means whatever it signs.
    pub(super) fn keyring(&self, own: Option<&SecretKey>) -> Keyring {
        let keys = self.keys.iter().copied().chain(own.map(SecretKey::public));
        Keyring::new(keys.map(|key| Trusted { key, roles: vec![Role::Publish, Role::Overlay, Role::Beacon] }))
    }

    /// Whether any key was named.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl ReaderTrustArgs {
    /// The same keys that whoever publishes with these arguments believes.
    pub(super) fn keyring(&self) -> Result<Keyring, String> {
        let own = self.key.as_deref().map(read_key).transpose()?;
        Ok(self.trust.keyring(own.as_ref()))
    }

    /// Whether any key was named.
    pub(super) fn is_empty(&self) -> bool {
        self.trust.is_empty() && self.key.is_none()
    }
}

impl SignArgs {
    /// Reads the key.
    pub(super) fn key(&self) -> Result<SecretKey, String> {
        read_key(&self.key)
    }

    /// Who they say they are.
    pub(super) fn publisher(&self) -> String {
        let login = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let named = self.publisher.clone().or_else(login).filter(|name| !name.is_empty());
        named.unwrap_or_else(|| "unknown".to_owned())
    }
}

/// Reads a private key, and warns if others could.
pub(super) fn read_key(path: &Path) -> Result<SecretKey, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        errln!("warning: others can read the private key `{shown}` (chmod 600 {shown})");
    }
    SecretKey::parse(&text).map_err(|error| format!("`{shown}`: {error}"))
}

/// A connection, and whom to believe.
pub(super) struct Session {
    pub(super) store: Store,
    pub(super) keyring: Keyring,
}

impl Session {
    /// The manifest in force and its sequence, if there is one.
    pub(super) async fn newest(&self) -> Result<Option<(u64, Believed<Manifest>)>, String> {
        let stored = self.store.newest(Kind::Manifest).await.map_err(|error| error.to_string())?;
        let believed = stored.map(|stored| {
            read_manifest(self.store.name(), &self.keyring, &stored.payload).map(|own| (stored.sequence, own))
        });
        believed.transpose()
    }

    /// Which manifest is the newest, whoever signed it: to be shown, not to be acted upon.
    pub(super) async fn newest_head(&self) -> Result<Option<Head>, String> {
        let stored = self.store.newest(Kind::Manifest).await.map_err(|error| error.to_string())?;
        Ok(stored.and_then(|stored| history::head(&stored.payload)))
    }

    /// All manifests that are kept, oldest first.
    pub(super) async fn entries(&self) -> Result<Vec<Entry>, String> {
        self.entries_from(1).await
    }

    /// The manifests from a sequence on.
    pub(super) async fn entries_from(&self, sequence: u64) -> Result<Vec<Entry>, String> {
        let stored = self.store.history(Kind::Manifest, sequence).await.map_err(|error| error.to_string())?;
        Ok(history::read(&stored, self.store.name(), &self.keyring))
    }

    /// The bundle that a manifest names: its files, as they were published.
    pub(super) async fn files(&self, manifest: &Manifest) -> Result<Vec<Files>, String> {
        let bytes = self.store.blob(&manifest.bundle).await?;
        pack::unpack(&bytes, &format!("{}@{}", manifest.store, manifest.version))
    }
}

/// Compiles what came from the store.
pub(super) fn compile(files: &[Files]) -> Result<Snapshot, String> {
    Snapshot::compile(files, 1).map_err(|problems| problem::one_line(&problems))
}

/// Runs a command to its end, and says why it failed.
pub(super) fn run(command: impl Future<Output = Result<ExitCode, String>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(|error| format!("the runtime cannot be started: {error}"));
    match ended.and_then(|runtime| runtime.block_on(command)) {
        Ok(code) => code,
        Err(error) => {
            errln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A manifest that is believed, or why it is not to be acted upon.
pub(super) fn believed(entry: &Entry) -> Result<&Manifest, String> {
    entry.doubt.as_ref().map_or(Ok(&entry.manifest), |doubt| Err(doubt.clone()))
}
