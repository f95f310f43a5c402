//! The keys of sealed values, and how one value is sealed and opened.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

use crate::random;

/// What every sealed value begins with; no JSON does.
const MARK: &[u8] = b"\0portolan-sealed-1\0";
const ID_LENGTH: usize = 8;
const KEY_LENGTH: usize = 32;
/// So that the name of a key is of no other use.
const ID_CONTEXT: &[u8] = b"portolan sealing key\0";

/// Which key: eight bytes of a digest of it, which tell nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; ID_LENGTH]);

impl fmt::Display for KeyId {
    /// In lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a sealed value can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is sealed with a key that is not among ours.
    #[error("it is sealed with key {0}, which is not in the encryption key file")]
    UnknownKey(KeyId),
    /// It was changed, or moved here from another name.
    #[error("it is not what was sealed under this name")]
    Damaged,
}

/// A line of the key file is no key. The line itself is not shown.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is not {KEY_LENGTH} bytes in base64")]
pub struct LineError {
    /// Which line, from 1.
    pub line: usize,
}

struct Key {
    id: KeyId,
    aead: LessSafeKey,
}

impl Key {
    fn new(bytes: &[u8]) -> Option<Self> {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(ID_CONTEXT)
            .chain_update(bytes)
            .finalize()
            .into();
        let id = KeyId(*digest.first_chunk()?);
        let key = UnboundKey::new(&AES_256_GCM, bytes).ok()?;
        Some(Self {
            id,
            aead: LessSafeKey::new(key),
        })
    }
}

/// Keys: the first one seals, each opens what it has sealed.
pub struct Keys {
    first: Key,
    others: Vec<Key>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = std::iter::once(&self.first).chain(&self.others);
        f.debug_list().entries(ids.map(|key| key.id)).finish()
    }
}

impl Keys {
    /// Makes one new key; also as the text of a key file.
    pub fn generate() -> (Self, String) {
        let bytes: [u8; KEY_LENGTH] = random::bytes();
        let first = Key::new(&bytes).expect("it has the length of a key");
        let text = format!(
            "# The first key encrypts what this cluster's store holds of secrets; all decrypt.\n{}\n",
            BASE64_STANDARD.encode(bytes)
        );
        let others = Vec::new();
        (Self { first, others }, text)
    }

    /// Reads a key file: one key of 32 bytes in base64 a line; lines that are empty or begin with # don't count.
    /// `None` when it holds no key.
    pub fn parse(text: &str) -> Result<Option<Self>, LineError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bytes = BASE64_STANDARD.decode(line).ok();
            let key = bytes.and_then(|bytes| Key::new(&bytes));
            keys.push(key.ok_or(LineError { line: index + 1 })?);
        }
        if keys.is_empty() {
            return Ok(None);
        }
        let others = keys.split_off(1);
        Ok(keys.pop().map(|first| Self { first, others }))
    }

    /// Which key seals.
    pub fn first(&self) -> KeyId {
        self.first.id
    }

    /// Which key a value is sealed with; `None` for one that is not sealed.
    pub fn sealed_with(value: &[u8]) -> Option<KeyId> {
        let rest = value.strip_prefix(MARK)?;
        rest.first_chunk().map(|id| KeyId(*id))
    }

    /// Seals a value for its place in the store.
    pub fn seal(&self, place: &[u8], value: &[u8]) -> Bytes {
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let mut body = value.to_vec();
        self.first
            .aead
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place),
                &mut body,
            )
            .expect("what the store takes is far below the limit of AES-GCM");
        [MARK, &self.first.id.0, &nonce, &body].concat().into()
    }

    /// Opens what was sealed for this place; what was never sealed comes back as it is.
    pub fn open(&self, place: &[u8], value: &Bytes) -> Result<Bytes, OpenError> {
        let Some(rest) = value.strip_prefix(MARK) else {
            return Ok(value.clone());
        };
        let (id, rest) = rest.split_first_chunk().ok_or(OpenError::Damaged)?;
        let (nonce, body) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(OpenError::Damaged)?;
        let id = KeyId(*id);
        let key = std::iter::once(&self.first)
            .chain(&self.others)
            .find(|key| key.id == id)
            .ok_or(OpenError::UnknownKey(id))?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.aead.open_in_place(nonce, Aad::from(place), &mut body);
        match opened {
            Ok(opened) => Ok(Bytes::copy_from_slice(opened)),
            Err(_) => Err(OpenError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_in_its_own_place_only() {
        let (keys, _) = Keys::generate();
        let sealed = keys.seal(b"/registry/core/secrets/default/a", b"hush");
        assert!(!sealed.windows(4).any(|part| part == b"hush"));
        let place = b"/registry/core/secrets/default/a";
        assert_eq!(keys.open(place, &sealed).unwrap(), "hush");
        let moved = keys.open(b"/registry/core/secrets/default/b", &sealed);
        assert_eq!(moved, Err(OpenError::Damaged));
        let (others, _) = Keys::generate();
        let unknown = Err(OpenError::UnknownKey(keys.first()));
        assert_eq!(others.open(place, &sealed), unknown);
    }

    #[test]
    fn what_was_cut_or_changed_is_refused() {
        let (keys, _) = Keys::generate();
        let sealed = keys.seal(b"/a", b"hush");
        for length in MARK.len()..sealed.len() {
            keys.open(b"/a", &sealed.slice(..length)).unwrap_err();
        }
        for place in MARK.len()..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[place] ^= 1;
            keys.open(b"/a", &changed.into()).unwrap_err();
        }
    }

    #[test]
    fn a_key_file_may_hold_several_keys() {
        let (old, old_text) = Keys::generate();
        let (new, new_text) = Keys::generate();
        let both = Keys::parse(&format!("{new_text}\n{old_text}"))
            .unwrap()
            .unwrap();
        assert_eq!(both.first(), new.first());
        let sealed = old.seal(b"/a", b"hush");
        assert_eq!(both.open(b"/a", &sealed).unwrap(), "hush");
        assert_eq!(Keys::sealed_with(&sealed), Some(old.first()));
        assert_eq!(Keys::sealed_with(&both.seal(b"/a", b"")), Some(new.first()));
        assert!(Keys::parse("# nothing\n\n").unwrap().is_none());
        let error = Keys::parse(&format!("{new_text}aHVzaA==\n")).unwrap_err();
        assert_eq!(error.line, 3);
        assert!(!error.to_string().contains("aHVzaA"), "{error}");
    }
}
