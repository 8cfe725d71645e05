//! Which keys are trusted, and which one signs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli::output::Error;
use crate::store::keys::Trusted;
use crate::store::{Keyring, PublicKey, Role, SecretKey};
use crate::terminal::errln;

/// Whose signatures are believed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust")]
pub(crate) struct TrustArgs {
    /// A public key, `ed25519:...`, as `stockade keygen` prints it. Can be given several times.
    #[arg(long = "trust", env = "STOCKADE_TRUST", value_name = "KEY", value_delimiter = ',', value_parser = public_key)]
    keys: Vec<PublicKey>,
}

/// Whose signatures are believed by those who only look.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust")]
pub(crate) struct ReaderTrustArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// Your own private key: its public half is believed too, as when you publish.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The key that signs, and its owner.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Signature")]
pub(crate) struct SignArgs {
    /// The private key, as `stockade keygen` wrote it.
    #[arg(long, env = "STOCKADE_KEY", value_name = "FILE")]
    key: PathBuf,
    /// Who you are, for those who read the history.
    #[arg(long = "as", env = "STOCKADE_PUBLISHER", value_name = "NAME")]
    publisher: Option<String>,
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|()| "`ed25519:` and 44 characters of base64, as `stockade keygen` prints it".to_owned())
}

impl TrustArgs {
    /// These keys, and one's own. A person who names a key means whatever it signs.
    pub(crate) fn keyring(&self, own: Option<&SecretKey>) -> Keyring {
        let keys = self.keys.iter().copied().chain(own.map(SecretKey::public));
        Keyring::new(keys.map(|key| Trusted { key, roles: vec![Role::Publish, Role::Overlay, Role::Beacon] }))
    }

    /// Whether any key was named.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl ReaderTrustArgs {
    /// The same keys that are believed when one publishes with these arguments.
    pub(crate) fn keyring(&self) -> Result<Keyring, Error> {
        let own = self.key.as_deref().map(read_key).transpose()?;
        Ok(self.trust.keyring(own.as_ref()))
    }

    /// Whether any key was named.
    pub(crate) fn is_empty(&self) -> bool {
        self.trust.is_empty() && self.key.is_none()
    }
}

impl SignArgs {
    /// Reads the key.
    pub(crate) fn key(&self) -> Result<SecretKey, Error> {
        read_key(&self.key)
    }

    /// The name that was given, or the login.
    pub(crate) fn publisher(&self) -> String {
        let login = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let named = self.publisher.clone().or_else(login).filter(|name| !name.is_empty());
        named.unwrap_or_else(|| "unknown".to_owned())
    }
}

/// Reads a private key, and warns if others could.
pub(crate) fn read_key(path: &Path) -> Result<SecretKey, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        let shown = path.display();
        errln!("warning: others can read the private key `{shown}` (chmod 600 {shown})");
    }
    SecretKey::parse(&text).map_err(|error| Error::Key { path: path.to_owned(), error })
}
