//! Where bundles are published and denials issued, as the command line does it.

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use stockade::nats::{self, ConnectRetry};
use stockade::policy::Files;
use stockade::publish::overlays::Edit;
use stockade::publish::streams::Settings;
use stockade::publish::{Draft, PackedBundle, Session, Store};
use stockade::store::keys::Trusted;
use stockade::store::statement::{OverlayEffect, OverlayEntry, Timestamp, Version};
use stockade::store::{Keyring, Role, SecretKey, StoreName};

/// Who publishes, for the history.
const PUBLISHER: &str = "loadtest";

/// The name of the store.
pub(crate) const STORE: &str = "fanout";

/// The private keys in PEM, each with a role of its own.
pub(crate) struct Keys {
    publish: String,
    overlay: String,
    pub(crate) beacon: String,
}

/// A publisher and issuer of overlays: the same calls that the command line makes.
pub(crate) struct Publisher {
    pub(crate) session: Session,
    publish: SecretKey,
    overlay: SecretKey,
}

/// A statement that is on its way to the sidecars.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Issued {
    pub(crate) version: Version,
    /// When it was signed.
    pub(crate) at: SystemTime,
}

pub(crate) fn name() -> anyhow::Result<StoreName> {
    StoreName::try_from_text(STORE.to_owned()).map_err(|invalid| anyhow!("{invalid}"))
}

impl Keys {
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let key = SecretKey::generate;
        Ok(Self { publish: key()?, overlay: key()?, beacon: key()? })
    }

    /// What sidecars are configured with.
    pub(crate) fn trusted(&self) -> anyhow::Result<Vec<Trusted>> {
        let roles = [(&self.publish, Role::Publish), (&self.overlay, Role::Overlay), (&self.beacon, Role::Beacon)];
        roles.into_iter().map(|(text, role)| Ok(Trusted { key: read(text)?.public(), roles: vec![role] })).collect()
    }
}

fn read(text: &str) -> anyhow::Result<SecretKey> {
    Ok(SecretKey::parse(text)?)
}

impl Publisher {
    /// Connects, and makes the streams.
    pub(crate) async fn open(url: &str, keys: &Keys) -> anyhow::Result<Self> {
        let config = nats::Config::of(url).map_err(|invalid| anyhow!("{invalid}"))?;
        let (store, _) = Store::connect(&config, name()?, "cli", ConnectRetry::Never).await?;
        store.ensure(&Settings::default()).await?;
        let session = Session { store, keyring: Keyring::new(keys.trusted()?) };
        Ok(Self { session, publish: read(&keys.publish)?, overlay: read(&keys.overlay)? })
    }

    /// Puts a bundle in force.
    pub(crate) async fn publish(&self, files: Files) -> anyhow::Result<Issued> {
        let packed = PackedBundle::of(&[files])?;
        self.session.store.upload(&packed.blob, &packed.bytes).await?;
        let position = self.session.position(false).await?;
        let draft = Draft { message: Some("the next round".to_owned()), ..Draft::new(packed.blob, PUBLISHER) };
        let manifest = self.session.publish_manifest(&self.publish, &position, draft).await?;
        Ok(Issued { version: manifest.version, at: manifest.published_at.0 })
    }

    /// Denies a user everything.
    pub(crate) async fn deny(&self, id: &str, principal: String) -> anyhow::Result<Issued> {
        let now = SystemTime::now();
        let entry = OverlayEntry {
            id: id.to_owned(),
            effect: OverlayEffect::Deny,
            principal: Some(principal),
            action: None,
            resource: None,
            from: Timestamp(now),
            until: Timestamp(now + Duration::from_secs(3600)),
            reason: "a round of the load test".to_owned(),
            issuer: PUBLISHER.to_owned(),
            approved_by: None,
        };
        let edited = self.session.edit_overlays(&self.overlay, PUBLISHER, &Edit::Add(entry), false).await?;
        Ok(Issued { version: edited.0.version, at: edited.0.published_at.0 })
    }
}
