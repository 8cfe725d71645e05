//! Keys, and what each may sign.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use deserr::Deserr;
use pem_rfc7468::LineEnding;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Refusal;
use crate::terminal::clean_line;
use crate::yaml::{Faults, Invalid};

/// What a key may sign. A key that is stolen can do no more than its roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Which bundle is in force.
    Publish,
    /// Emergency denials and exceptions.
    Overlay,
    /// That what sidecars have is the newest there is.
    Beacon,
}

impl Role {
    /// The word for it in configurations and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Overlay => "overlay",
            Self::Beacon => "beacon",
        }
    }
}

/// Names a key: the first sixteen hex digits of the SHA-256 of its public half. Found, not chosen, so no two keys share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What an envelope says is the id of a key may be anything.
        f.write_str(&clean_line(&self.0.chars().take(64).collect::<String>()))
    }
}

/// An ed25519 public key, written as `ed25519:` and the base64 of its 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserr)]
#[deserr(error = Faults, try_from(String) = PublicKey::try_from_text -> Invalid)]
pub struct PublicKey([u8; 32]);

const PREFIX: &str = "ed25519:";

impl PublicKey {
    /// Names it.
    pub fn id(&self) -> KeyId {
        let hash = Sha256::digest(self.0);
        KeyId(hash.first_chunk::<8>().map(hex::encode).unwrap_or_default())
    }

    fn try_from_text(text: String) -> Result<Self, Invalid> {
        text.parse().map_err(|()| {
            Invalid::new(format!("`{text}` is not a public key"))
                .hint("`ed25519:` and 44 characters of base64, as `stockade keygen` prints it")
        })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(|text| BASE64.decode(text).ok()).ok_or(())?;
        bytes.try_into().map(Self).map_err(|_| ())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(self.0))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An ed25519 private key: PKCS#8 in PEM, as RFC 8410 and OpenSSL have it.
pub struct SecretKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// What the PEM of a private key is labelled with.
const LABEL: &str = "PRIVATE KEY";

/// Why there is no key. The text that was read is not quoted: it is a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    NoRandomness,
    /// It is not PEM.
    #[error("not a private key in PEM, which begins with `-----BEGIN {LABEL}-----`: {0}")]
    NotPem(pem_rfc7468::Error),
    /// It is PEM of something else.
    #[error("not a private key, but a `{}`", clean_line(.0))]
    OtherLabel(String),
    /// It is another key.
    #[error("not an ed25519 key in PKCS#8: {0}")]
    NotEd25519(ring::error::KeyRejected),
    /// It has a public half of another size.
    #[error("not an ed25519 key: its public half is not 32 bytes")]
    PublicHalf,
}

impl SecretKey {
    /// The text of a new key.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn generate() -> Result<String, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandomness)?;
        pem_rfc7468::encode_string(LABEL, LineEnding::LF, document.as_ref()).map_err(KeyError::NotPem)
    }

    /// Reads the text of a key.
    ///
    /// # Errors
    /// If it is none, without quoting it.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        // Lines of any length: a key may have passed through tools that wrap it in their own way.
        let mut decoder = pem_rfc7468::Decoder::new_detect_wrap(text.trim().as_bytes()).map_err(KeyError::NotPem)?;
        if decoder.type_label() != LABEL {
            return Err(KeyError::OtherLabel(decoder.type_label().to_owned()));
        }
        let mut bytes = Vec::new();
        decoder.decode_to_end(&mut bytes).map_err(KeyError::NotPem)?;
        // OpenSSL writes version 1, without the public half, which is derived then.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes).map_err(KeyError::NotEd25519)?;
        let public = pair.public_key().as_ref().try_into().map(PublicKey).map_err(|_| KeyError::PublicHalf)?;
        Ok(Self { pair, public })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretKey").field(&self.public.id()).finish()
    }
}

/// One entry of the configuration: a key and what it is trusted with.
#[derive(Debug, Clone, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Trusted {
    /// The public key, as `stockade keygen` prints it.
    pub key: PublicKey,
    /// What it may sign.
    pub roles: Vec<Role>,
}

/// The keys that are trusted. Several at a time may hold a role, which is how they are rotated.
#[derive(Debug, Clone, Default)]
pub struct Keyring(BTreeMap<KeyId, Trusted>);

impl Keyring {
    /// Trusts these.
    pub fn new(keys: impl IntoIterator<Item = Trusted>) -> Self {
        let mut ring = BTreeMap::<KeyId, Trusted>::new();
        for own in keys {
            let entry = ring.entry(own.key.id()).or_insert_with(|| Trusted { key: own.key, roles: Vec::new() });
            entry.roles.extend(own.roles);
        }
        Self(ring)
    }

    /// Whether any key may say this.
    pub fn has(&self, role: Role) -> bool {
        self.0.values().any(|own| own.roles.contains(&role))
    }

    /// Whether a trusted key of this role made the signature.
    ///
    /// # Errors
    /// [`Refusal::UnknownKey`], [`Refusal::Role`] or [`Refusal::Signature`].
    pub fn verify(&self, id: &KeyId, role: Role, message: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        let own = self.0.get(id).ok_or_else(|| Refusal::UnknownKey(id.clone()))?;
        if !own.roles.contains(&role) {
            return Err(Refusal::Role(id.clone(), role));
        }
        if own.key.verifies(message, signature) { Ok(()) } else { Err(Refusal::Signature(id.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_being_written_down() {
        let text = SecretKey::generate().expect("a key");
        let key = SecretKey::parse(&text).expect("the same key");
        let public: PublicKey = key.public().to_string().parse().expect("its public half");
        assert_eq!(public, key.public());
        let signature = key.sign(b"message");
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));
        assert!(!format!("{key:?}").contains(text.lines().nth(1).expect("a line")), "secrets are not printed");
    }

    #[test]
    fn a_key_of_openssl_is_read() {
        // RFC 8410, section 10.3: the example without the public half.
        let text = "-----BEGIN PRIVATE KEY-----\n\
                    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                    -----END PRIVATE KEY-----\n";
        let key = SecretKey::parse(text).expect("a key");
        assert_eq!(key.public().to_string(), "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=");
    }

    #[test]
    fn what_is_no_key_is_refused_without_quoting_it() {
        for text in ["", "secret", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"] {
            let error = SecretKey::parse(text).expect_err("no key").to_string();
            assert!(error.starts_with("not a") && !error.contains("c2Vj") && !error.contains("secret"), "{error}");
        }
        for text in ["", "ed25519:", "ed25519:AAAA", "AAAA", "rsa:AAAA"] {
            assert_eq!(text.parse::<PublicKey>(), Err(()), "{text}");
        }
    }
}
