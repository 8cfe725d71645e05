//! How the store is reached.

use std::time::Duration;

use crate::cli::output::Error;
use crate::nats::{self, ConnectRetry, Domain, InboxPrefix, Server};
use crate::publish::{Session, Store};
use crate::store::{Keyring, StoreName};
use crate::units::HumanDuration;
use crate::yaml::{AtLeastOne, Invalid};

/// How the store is reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArgs {
    /// Its NATS servers, `nats://host:port` or `tls://host:port`; several are divided by commas.
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

impl StoreArgs {
    fn config(&self) -> Result<nats::Config, Error> {
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
            timeout: HumanDuration(self.answer),
        };
        config.wrong().map_or(Ok(config), |(message, hint)| Err(Error::Arguments { message, hint }))
    }

    /// Connects; fails if no server answers.
    pub(crate) async fn connect(&self, keyring: Keyring) -> Result<Session, Error> {
        let (store, _) = Store::connect(&self.config()?, self.name.clone(), "cli", ConnectRetry::Never).await?;
        Ok(Session { store, keyring })
    }

    /// Connects, however long it takes.
    pub(crate) async fn follow(&self) -> Result<(Store, nats::Events), Error> {
        Ok(Store::connect(&self.config()?, self.name.clone(), "beacon", ConnectRetry::Forever).await?)
    }
}
