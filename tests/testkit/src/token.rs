//! An issuer of tokens with a key of its own, made in every run.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

/// Signs tokens with ES256, as `envoy/jwt.yaml` expects them.
pub struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    /// One with a new key.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        Self { key, random }
    }

    /// Its public key, for Envoy.
    pub fn jwks(&self) -> String {
        // An uncompressed point: 4, then the coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "test",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
        json!({ "keys": [key] }).to_string()
    }

    /// A token for this person in these groups, good for a day; `claims` are added or take the place of others.
    pub fn token(&self, subject: &str, groups: &[&str], claims: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut payload = json!({"iss": "https://issuer.example", "aud": "bookstore", "sub": subject, "groups": groups,
            "iat": now, "exp": now + 24 * 3600});
        payload.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        self.sign(&json!({"alg": "ES256", "typ": "JWT", "kid": "test"}), &payload)
    }

    /// Signs this header and payload, whatever they say.
    pub fn sign(&self, header: &Value, payload: &Value) -> String {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(payload));
        let signature = self.key.sign(&self.random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
