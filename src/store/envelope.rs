//! The envelope around a statement: DSSE (Dead Simple Signing Envelope, v1.0.2), as in-toto and Sigstore use it. The type is signed
//! along with the payload, so that a statement of one kind cannot be passed off as one of another.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::keys::{KeyId, Keyring, SecretKey};
use super::statement::Kind;

/// More signatures than this are not looked at: each costs a verification.
const SIGNATURES: usize = 4;

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Signature {
    keyid: KeyId,
    sig: String,
}

/// Signs a payload and wraps it.
///
/// # Errors
/// If the result is larger than what a sidecar reads.
pub fn seal(kind: Kind, payload: &[u8], key: &SecretKey) -> Result<Vec<u8>, Refusal> {
    let sig = BASE64.encode(key.sign(&signed(kind.payload_type(), payload)));
    let envelope = Envelope {
        payload: BASE64.encode(payload),
        payload_type: kind.payload_type().to_owned(),
        signatures: vec![Signature { keyid: key.public().id(), sig }],
    };
    let bytes = serde_json::to_vec(&envelope).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if bytes.len() > kind.max_size() { Err(Refusal::Oversized(bytes.len())) } else { Ok(bytes) }
}

/// The payload of an envelope, if a trusted key of the kind's role has signed it. Nothing of the payload is parsed before.
///
/// # Errors
/// Why it is not to be believed.
pub fn open(kind: Kind, bytes: &[u8], keyring: &Keyring) -> Result<Vec<u8>, Refusal> {
    if bytes.len() > kind.max_size() {
        return Err(Refusal::Oversized(bytes.len()));
    }
    let malformed = |what: &dyn std::fmt::Display| Refusal::Malformed(format!("its envelope: {what}"));
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    if envelope.payload_type != kind.payload_type() {
        return Err(malformed(&format!("it is of type `{}`", envelope.payload_type)));
    }
    let payload = BASE64.decode(&envelope.payload).map_err(|error| malformed(&error))?;
    let message = signed(&envelope.payload_type, &payload);
    let mut refusal = Refusal::Unsigned;
    for Signature { keyid, sig } in envelope.signatures.iter().take(SIGNATURES) {
        let verified = BASE64
            .decode(sig)
            .map_err(|error| malformed(&error))
            .and_then(|sig| keyring.verify(keyid, kind.role(), &message, &sig));
        match verified {
            Ok(()) => return Ok(payload),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// What is signed: DSSE's pre-authentication encoding. The lengths keep it injective.
fn signed(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Role, Trusted};
    use super::*;

    fn key() -> SecretKey {
        SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key")
    }

    fn trusting(key: &SecretKey, roles: &[Role]) -> Keyring {
        Keyring::new([Trusted { key: key.public(), roles: roles.to_vec() }])
    }

    #[test]
    fn the_encoding_is_that_of_dsse() {
        // The example of the DSSE specification, protocol.md.
        let message = signed("http://example.com/HelloWorld", b"hello world");
        assert_eq!(message, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn what_is_sealed_is_opened_by_who_trusts_the_key_with_it() {
        let key = key();
        let bytes = seal(Kind::Manifest, b"payload", &key).expect("sealed");
        assert_eq!(open(Kind::Manifest, &bytes, &trusting(&key, &[Role::Publish])).expect("opened"), b"payload");
        // The other half of a rotation: both are trusted, either opens.
        let mut both = vec![Trusted { key: key.public(), roles: vec![Role::Publish] }];
        both.push(Trusted { key: self::key().public(), roles: vec![Role::Publish] });
        assert!(open(Kind::Manifest, &bytes, &Keyring::new(both)).is_ok());
    }

    #[test]
    fn nothing_else_is() {
        let key = key();
        let good = seal(Kind::Manifest, b"payload", &key).expect("sealed");
        let publish = trusting(&key, &[Role::Publish]);
        let refusal = |kind, bytes: &[u8], keyring: &Keyring| open(kind, bytes, keyring).expect_err("refused").as_str();
        assert_eq!(refusal(Kind::Manifest, &good, &Keyring::default()), "unknown_key");
        assert_eq!(refusal(Kind::Manifest, &good, &trusting(&self::key(), &[Role::Publish])), "unknown_key");
        assert_eq!(refusal(Kind::Manifest, &good, &trusting(&key, &[Role::Beacon, Role::Overlay])), "role");
        assert_eq!(refusal(Kind::Overlays, &good, &publish), "malformed");
        assert_eq!(refusal(Kind::Manifest, &good[..good.len() - 1], &publish), "malformed");
        assert_eq!(refusal(Kind::Manifest, b"", &publish), "malformed");
        assert_eq!(refusal(Kind::Manifest, &vec![b' '; Kind::Manifest.max_size() + 1], &publish), "oversized");

        let edited = |edit: &dyn Fn(&mut Envelope)| {
            let mut envelope: Envelope = serde_json::from_slice(&good).expect("an envelope");
            edit(&mut envelope);
            refusal(Kind::Manifest, &serde_json::to_vec(&envelope).expect("bytes"), &publish)
        };
        assert_eq!(edited(&|envelope| envelope.payload = BASE64.encode(b"other")), "signature");
        assert_eq!(edited(&|envelope| envelope.signatures.clear()), "unsigned");
        assert_eq!(edited(&|envelope| envelope.signatures[0].sig = BASE64.encode([0; 64])), "signature");
        assert_eq!(edited(&|envelope| envelope.signatures[0].sig = "?".to_owned()), "malformed");
        assert_eq!(edited(&|envelope| envelope.payload_type = Kind::Beacon.payload_type().to_owned()), "malformed");
    }
}
