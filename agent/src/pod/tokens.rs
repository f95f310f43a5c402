//! Tokens of a pod's service account, for the volumes that hold them: asked for once, and again well before they end.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{PodRef, ReferenceError, References};

/// A token as the control plane has issued it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What is shown to prove who one is.
    pub text: String,
    /// When it stops being good.
    pub expires: Timestamp,
}

/// What a volume wants a token for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRequest {
    /// spec.serviceAccountName.
    pub account: String,
    /// For whom it is good; empty: for the API server.
    pub audience: String,
    /// How long it is good.
    pub seconds: i64,
}

/// The tokens of one pod.
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<TokenRequest, Held>);

#[derive(Clone, Debug)]
struct Held {
    token: Token,
    renew_at: Timestamp,
}

impl Held {
    /// As kubelet does: after four fifths of its life, or a day.
    fn new(token: Token, now: Timestamp) -> Held {
        let life = token.expires.duration_since(now);
        let wait = (life * 4 / 5).min(SignedDuration::from_hours(24));
        Held {
            renew_at: now.checked_add(wait).unwrap_or(token.expires),
            token,
        }
    }
}

impl Tokens {
    /// A token that is good for a while yet.
    pub async fn get(
        &mut self,
        references: &dyn References,
        pod: &PodRef,
        request: TokenRequest,
        now: Timestamp,
    ) -> Result<String, ReferenceError> {
        if let Some(held) = self.0.get(&request).filter(|held| now < held.renew_at) {
            return Ok(held.token.text.clone());
        }
        match references.token(pod, &request).await {
            Ok(token) => {
                let text = token.text.clone();
                self.0.insert(request, Held::new(token, now));
                Ok(text)
            }
            Err(error) => match self.0.get(&request) {
                Some(held) if now < held.token.expires => {
                    tracing::warn!(pod = pod.name, %error, "no new token yet: the old one still holds");
                    Ok(held.token.text.clone())
                }
                _ => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, Secret};

    use super::*;
    use crate::names::{Directory, Names};

    /// Numbers its tokens; the third request and later ones fail.
    #[derive(Default)]
    struct Issuer(AtomicU32);

    fn absent() -> ReferenceError {
        ReferenceError::NotFound {
            kind: "serviceaccount",
            name: "a".into(),
        }
    }

    #[async_trait]
    impl References for Issuer {
        async fn config_map(&self, _: &str, _: &str) -> Result<ConfigMap, ReferenceError> {
            Err(absent())
        }

        async fn secret(&self, _: &str, _: &str) -> Result<Secret, ReferenceError> {
            Err(absent())
        }

        async fn claimed(&self, _: &str, _: &str) -> Result<PersistentVolume, ReferenceError> {
            Err(absent())
        }

        fn names(&self) -> Names {
            Names::of(Directory::default())
        }

        async fn token(&self, _: &PodRef, wanted: &TokenRequest) -> Result<Token, ReferenceError> {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            let expires = at(i64::from(number) * 800 + wanted.seconds);
            (number < 2)
                .then(|| Token {
                    text: number.to_string(),
                    expires,
                })
                .ok_or_else(absent)
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time in range")
    }

    #[tokio::test]
    async fn tokens_are_renewed_before_they_end() {
        let (issuer, mut tokens) = (Issuer::default(), Tokens::default());
        let pod = PodRef {
            namespace: "d".into(),
            name: "p".into(),
            uid: "u".into(),
        };
        let request = TokenRequest {
            account: "a".into(),
            audience: String::new(),
            seconds: 1000,
        };
        // Renewed after 800 s; the second one can't be, and holds to its end at 1800 s.
        for (second, expected) in [
            (0, Some("0")),
            (799, Some("0")),
            (800, Some("1")),
            (1700, Some("1")),
            (1800, None),
        ] {
            let got = tokens.get(&issuer, &pod, request.clone(), at(second)).await;
            assert_eq!(got.ok().as_deref(), expected, "after {second} s");
        }
    }
}
