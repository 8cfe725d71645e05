//! Sessions with the store: of those who change it, and of those who read it.

use super::keys::{ReaderTrustArgs, SignArgs, TrustArgs};
use super::store::StoreArgs;
use super::wait::{StatusWatch, WaitArgs};
use crate::cli::output::Error;
use crate::publish::Session;
use crate::store::SecretKey;

/// Who changes the store, and what is waited for afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct WriterArgs {
    #[command(flatten)]
    sign: SignArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

impl WriterArgs {
    /// Connects; returns the key that signs, too, which the session trusts.
    pub(crate) async fn connect(&self) -> Result<(SecretKey, Session), Error> {
        let key = self.sign.key()?;
        let session = self.store.connect(self.trust.keyring(Some(&key))).await?;
        Ok((key, session))
    }

    /// Watches what sidecars report from now on, if that is to be waited for.
    pub(crate) async fn watch(&self, session: &Session) -> Result<Option<StatusWatch>, Error> {
        self.wait.watch(session).await
    }

    /// The name that was given, or the login.
    pub(crate) fn publisher(&self) -> String {
        self.sign.publisher()
    }
}

/// Who reads the store.
#[derive(Debug, clap::Args)]
pub(crate) struct ReaderArgs {
    #[command(flatten)]
    trust: ReaderTrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

impl ReaderArgs {
    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Session, Error> {
        self.store.connect(self.trust.keyring()?).await
    }

    /// Whether any key was named, so that signatures can be checked.
    pub(crate) fn has_keys(&self) -> bool {
        !self.trust.is_empty()
    }
}
