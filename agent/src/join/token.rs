//! The join token: `ID.SECRET.CA_SHA256_HEX`.

use std::{fmt, str::FromStr};

/// What a token must look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts between dots.
    #[error("it is not ID.SECRET.FINGERPRINT")]
    Parts,
    /// The last part is not a SHA-256 in hexadecimal.
    #[error("its fingerprint is not 64 hexadecimal digits")]
    Fingerprint,
}

/// The SHA-256 of the CA certificate's DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaPin(pub [u8; 32]);

/// A parsed token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
    pin: CaPin,
}

impl fmt::Debug for JoinToken {
    /// Shows the public id alone: the rest admits nodes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.text.split('.').next().unwrap_or_default();
        write!(f, "JoinToken({id}.***)")
    }
}

impl JoinToken {
    /// The token in full, for the one message that carries it.
    pub fn reveal(&self) -> String {
        self.text.clone()
    }

    /// Which CA to trust.
    pub fn pin(&self) -> CaPin {
        self.pin
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let parts: Vec<&str> = text.split('.').collect();
        let [id, secret, fingerprint] = parts[..] else {
            return Err(TokenError::Parts);
        };
        if id.is_empty() || secret.is_empty() {
            return Err(TokenError::Parts);
        }
        let pin = parse_hex(fingerprint).ok_or(TokenError::Fingerprint)?;
        Ok(Self {
            text: text.to_owned(),
            pin: CaPin(pin),
        })
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut value = [0; 32];
    for (slot, digits) in value.iter_mut().zip(bytes.chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *slot = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_hides_the_secret() {
        let text = format!("abc123.s3cr3t.{}", "0f".repeat(32));
        let token: JoinToken = format!("{text}\n").parse().expect("a token");
        assert_eq!(token.pin().0, [0x0f; 32]);
        assert_eq!(token.reveal(), text);
        assert_eq!(format!("{token:?}"), "JoinToken(abc123.***)");
    }

    #[test]
    fn malformed_tokens_say_what_is_wrong() {
        for (text, error) in [
            ("", TokenError::Parts),
            ("a.b", TokenError::Parts),
            (".b.c", TokenError::Parts),
            ("a.b.c.d", TokenError::Parts),
            ("a.b.c", TokenError::Fingerprint),
            (&format!("a.b.{}", "zz".repeat(32)), TokenError::Fingerprint),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(error), "{text:?}");
        }
    }
}
