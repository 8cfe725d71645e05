//! Where bundles are published and denials issued, as the command line does it.

use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail};
use stockade::nats::{self, Patience};
use stockade::policy::Files;
use stockade::publish::overlays::{Edit, edited};
use stockade::publish::streams::Settings;
use stockade::publish::{Advance, Store};
use stockade::store::keys::Trusted;
use stockade::store::statement::{Blob, Kind, Manifest, OverlayEffect, OverlayEntry, Overlays, Timestamp, Version};
use stockade::store::{Digest, Role, SecretKey, StoreName, envelope, pack};

/// The name of the store.
pub(crate) const STORE: &str = "fanout";

/// The texts of the private keys, each with a role of its own.
pub(crate) struct Keys {
    publish: String,
    overlay: String,
    pub(crate) beacon: String,
}

/// A publisher and issuer of overlays, who are alone.
pub(crate) struct Desk {
    pub(crate) store: Store,
    publish: SecretKey,
    overlay: SecretKey,
    /// The newest manifest, and its place in the stream.
    manifest: Option<(u64, Version)>,
    /// The newest overlays, and their place.
    overlays: Option<(u64, Overlays)>,
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
        let key = || SecretKey::generate().map_err(anyhow::Error::msg);
        Ok(Self { publish: key()?, overlay: key()?, beacon: key()? })
    }

    /// What sidecars are configured with.
    pub(crate) fn trusted(&self) -> anyhow::Result<Vec<Trusted>> {
        let roles = [(&self.publish, Role::Publish), (&self.overlay, Role::Overlay), (&self.beacon, Role::Beacon)];
        roles.into_iter().map(|(text, role)| Ok(Trusted { key: read(text)?.public(), roles: vec![role] })).collect()
    }
}

fn read(text: &str) -> anyhow::Result<SecretKey> {
    SecretKey::parse(text).map_err(anyhow::Error::msg)
}

impl Desk {
    /// Connects, and makes the streams.
    pub(crate) async fn open(url: &str, keys: &Keys) -> anyhow::Result<Self> {
        let config = nats::Config::of(url).map_err(|invalid| anyhow!("{invalid}"))?;
        let connected = Store::connect(&config, name()?, "cli", Patience::Once).await;
        let (store, _) = connected.map_err(anyhow::Error::msg)?;
        store.ensure(&Settings::default()).await.map_err(anyhow::Error::msg)?;
        Ok(Self { store, publish: read(&keys.publish)?, overlay: read(&keys.overlay)?, manifest: None, overlays: None })
    }

    /// Puts a bundle in force.
    pub(crate) async fn publish(&mut self, files: Files) -> anyhow::Result<Issued> {
        let packed = pack::pack(&[files]).map_err(anyhow::Error::msg)?;
        let bundle = Blob { digest: Digest::of(&packed), size: packed.len() as u64 };
        self.store.upload(&bundle, &packed).await.map_err(anyhow::Error::msg)?;
        let now = SystemTime::now();
        let (after, version) = self.manifest.map_or_else(|| (0, Version::first(now)), |(at, own)| (at, own.next()));
        let manifest = Manifest {
            store: self.store.name().clone(),
            version,
            bundle,
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp(now),
            publisher: "loadtest".to_owned(),
            message: Some("the next round".to_owned()),
            commit: None,
            rolls_back_to: None,
        };
        let sequence = self.advance(Kind::Manifest, &manifest, after).await?;
        self.manifest = Some((sequence, version));
        Ok(Issued { version, at: now })
    }

    /// Denies a user everything.
    pub(crate) async fn deny(&mut self, id: &str, principal: String) -> anyhow::Result<Issued> {
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
            issuer: "loadtest".to_owned(),
            approved_by: None,
        };
        let current = self.overlays.as_ref().map(|(_, own)| own);
        let next =
            edited(current, &Edit::Add(entry), self.store.name(), "loadtest", now).map_err(anyhow::Error::msg)?;
        let after = self.overlays.as_ref().map_or(0, |(sequence, _)| *sequence);
        let sequence = self.advance(Kind::Overlays, &next, after).await?;
        let issued = Issued { version: next.version, at: now };
        self.overlays = Some((sequence, next));
        Ok(issued)
    }

    async fn advance(&self, kind: Kind, statement: &impl serde::Serialize, after: u64) -> anyhow::Result<u64> {
        let key = if kind == Kind::Manifest { &self.publish } else { &self.overlay };
        let sealed =
            envelope::seal(kind, &serde_json::to_vec(statement)?, key).map_err(|refusal| anyhow!("{refusal}"))?;
        match self.store.advance(kind, &sealed, after).await.map_err(anyhow::Error::msg)? {
            Advance::Done(sequence) => Ok(sequence),
            Advance::Overtaken => bail!("somebody else has published"),
        }
    }
}
