//! The tokens of service accounts: JSON Web Tokens (RFC 7519), signed with a key of the cluster's own (ES256).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Error;
use crate::store::{Guard, Store, Written};

/// Where the key lies in the store, as PKCS#8.
const KEY: &[u8] = b"/portolan/pki/service-accounts";
/// Letters of a key's name.
const NAME_LENGTH: usize = 16;

/// The key that signs tokens and knows its own.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    name: String,
    random: SystemRandom,
}

impl TokenKey {
    /// Reads the key from the store; the first server to start makes it.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let stored = match store.get(KEY).await? {
            Some(stored) => stored.value,
            None => make(store).await?,
        };
        let damaged = |error: ring::error::KeyRejected| Error::Damaged(error.to_string().into());
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &stored, &random)
            .map_err(damaged)?;
        let digest = Sha256::digest(pair.public_key());
        let mut name = URL_SAFE_NO_PAD.encode(digest);
        name.truncate(NAME_LENGTH);
        Ok(Self { pair, name, random })
    }

    /// A token of these claims.
    pub fn sign(&self, claims: &Value) -> Result<String, Error> {
        let head = json!({"alg": "ES256", "kid": self.name});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(claims));
        let signature = self
            .pair
            .sign(&self.random, signed.as_bytes())
            .map_err(|error| Error::Damaged(error.to_string().into()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key has signed; whether they hold is another question.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let json = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        if json(head)?["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        key.verify(signed.as_bytes(), &signature).ok()?;
        json(claims)
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for whoever checks tokens without asking here.
    pub fn key_set(&self) -> Value {
        // An uncompressed point: 4, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at((point.len() - 1) / 2);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.name, "crv": "P-256", "alg": "ES256", "x": text(x), "y": text(y),
        }]})
    }
}

async fn make(store: &dyn Store) -> Result<Bytes, Error> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|error| Error::Damaged(error.to_string().into()))?;
    let value = Bytes::copy_from_slice(pkcs8.as_ref());
    match store.put(KEY, value.clone(), Guard::Absent, None).await? {
        Written::Done(_) => Ok(value),
        Written::Refused(Some(theirs)) => Ok(theirs.value),
        Written::Refused(None) => Err(Error::Damaged("it was deleted while it was made".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    #[tokio::test]
    async fn a_key_knows_its_own_tokens_and_no_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = async |name: &str| {
            Embedded::open(folder.path().join(name))
                .await
                .expect("a store")
        };
        let (store, other) = (open("a").await, open("b").await);
        let key = TokenKey::load(&store).await.expect("a key");
        let again = TokenKey::load(&store).await.expect("the same key");
        let other = TokenKey::load(&other).await.expect("another key");
        let claims = json!({"sub": "system:serviceaccount:a:b"});
        let token = key.sign(&claims).expect("a token");
        assert_eq!(again.verify(&token), Some(claims));
        assert_eq!(other.verify(&token), None);
        let (head, rest) = token.split_once('.').expect("parts");
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:a:admin"}"#);
        let signature = rest.split_once('.').expect("parts").1;
        for bad in [
            format!("{head}.{forged}.{signature}"),
            format!("{}.{forged}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#)),
            "x".to_owned(),
            String::new(),
        ] {
            assert_eq!(key.verify(&bad), None, "{bad}");
        }
    }
}
