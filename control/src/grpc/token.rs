//! Join tokens: Secrets of type bootstrap.kubernetes.io/token in kube-system, spent by compare-and-swap.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Api, Caller, ObjectKey, ResourceId, Status, WriteOptions};
use crate::random;

/// Where tokens lie.
pub const NAMESPACE: &str = "kube-system";
/// The type of their Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// How often a token that others spend at the same time is tried.
const ATTEMPTS: usize = 32;
const COMPONENT: &str = "portolan-join";
const SECRETS: ResourceId = ResourceId {
    group: "",
    version: "v1",
    plural: "secrets",
};

/// "ID.SECRET.CA_SHA256_HEX".
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the Secret.
    pub id: String,
    /// What only its holder knows.
    pub secret: String,
    /// The SHA-256 of the authority's certificate, in hexadecimal.
    pub authority: String,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.authority)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}...)", self.id)
    }
}

/// Who may join with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// A node, which gets a certificate of its own.
    Node,
    /// A control server, which gets the keys to everything.
    Server,
}

impl Joins {
    /// The field of the Secret that allows it.
    fn usage(self) -> &'static str {
        match self {
            Self::Node => "usage-bootstrap-authentication",
            Self::Server => "usage-portolan-server",
        }
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a join token has the form ID.SECRET.CA_SHA256_HEX")]
pub struct Malformed;

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, authority] = parts[..] else {
            return Err(Malformed);
        };
        let word = |text: &str, length| {
            text.len() == length
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let hex =
            |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !word(id, ID_LENGTH) || !word(secret, SECRET_LENGTH) || !hex(authority) {
            return Err(Malformed);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            authority: authority.to_owned(),
        })
    }
}

impl Token {
    /// A token that nobody has seen yet.
    pub fn generate(authority: &str) -> Self {
        Self {
            id: random::word(ID_LENGTH),
            secret: random::word(SECRET_LENGTH),
            authority: authority.to_owned(),
        }
    }

    /// The Secret that makes it valid.
    pub fn to_secret(&self, joins: Joins, uses: u32, expiration: Timestamp) -> Value {
        let expiration = expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "namespace": NAMESPACE, "name": secret_name(&self.id) },
            "type": SECRET_TYPE,
            "data": {
                "token-id": encode(&self.id),
                "token-secret": encode(&self.secret),
                "expiration": encode(&expiration),
                "uses": encode(&uses.to_string()),
                joins.usage(): encode("true"),
            },
        })
    }
}

fn secret_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// Makes a token valid for a while.
pub async fn issue(
    api: &dyn Api,
    authority: &str,
    joins: Joins,
    uses: u32,
    lifetime: Duration,
) -> Result<Token, Status> {
    let token = Token::generate(authority);
    let secret = token.to_secret(joins, uses, Timestamp::now() + lifetime);
    let caller = Caller::system(COMPONENT);
    let options = WriteOptions::default();
    api.create(&caller, SECRETS, Some(NAMESPACE), secret, &options)
        .await?;
    Ok(token)
}

/// Why a token does not let a node in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It never was one, or is deleted, or the secret is another. Which of these is nobody's business.
    #[error("the join token is wrong")]
    Wrong,
    /// Its time is over.
    #[error("the join token expired at {0}")]
    Expired(String),
    /// As many nodes have joined with it as may.
    #[error("the join token is used up")]
    UsedUp,
    /// It could not be looked at.
    #[error("the join token can't be checked")]
    Api(#[from] Status),
}

/// Checks that a token is valid, without using it.
pub async fn check(
    api: &dyn Api,
    token: &Token,
    joins: Joins,
    now: Timestamp,
) -> Result<(), Refused> {
    judge(&read(api, token).await?, token, joins, now).map(drop)
}

/// Uses a token once.
pub async fn spend(
    api: &dyn Api,
    token: &Token,
    joins: Joins,
    now: Timestamp,
) -> Result<(), Refused> {
    let caller = Caller::system(COMPONENT);
    let mut conflict = None;
    for _ in 0..ATTEMPTS {
        let mut secret = read(api, token).await?;
        let uses = judge(&secret, token, joins, now)?;
        secret["data"]["uses"] = BASE64_STANDARD.encode((uses - 1).to_string()).into();
        let key = key(token);
        let options = WriteOptions::default();
        // The secret's resourceVersion makes this a compare-and-swap.
        match api
            .update(&caller, SECRETS, &key, None, secret, &options)
            .await
        {
            Ok(_) => return Ok(()),
            Err(status) if status.code == 409 => conflict = Some(status),
            Err(status) => return Err(Refused::Api(status)),
        }
    }
    Err(conflict.map_or(Refused::Wrong, Refused::Api))
}

fn key(token: &Token) -> ObjectKey {
    ObjectKey {
        namespace: Some(NAMESPACE.to_owned()),
        name: secret_name(&token.id),
    }
}

async fn read(api: &dyn Api, token: &Token) -> Result<Value, Refused> {
    match api
        .get(&Caller::system(COMPONENT), SECRETS, &key(token))
        .await
    {
        Ok(secret) => Ok(secret),
        Err(status) if status.code == 404 => Err(Refused::Wrong),
        Err(status) => Err(Refused::Api(status)),
    }
}

/// How often the token may still be used.
fn judge(secret: &Value, token: &Token, joins: Joins, now: Timestamp) -> Result<u32, Refused> {
    let field = |name: &str| {
        let encoded = secret["data"][name].as_str()?;
        String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()
    };
    if secret["type"] != SECRET_TYPE {
        return Err(Refused::Wrong);
    }
    let known = field("token-secret").ok_or(Refused::Wrong)?;
    if !same(known.as_bytes(), token.secret.as_bytes()) {
        return Err(Refused::Wrong);
    }
    // A node's token that someone made by hand may say nothing; a server's must.
    let allowed = match field(joins.usage()) {
        Some(usage) => usage == "true",
        None => joins == Joins::Node && field(Joins::Server.usage()).is_none(),
    };
    if !allowed {
        return Err(Refused::Wrong);
    }
    if let Some(expiration) = field("expiration") {
        let ends: Timestamp = expiration.parse().map_err(|_| Refused::Wrong)?;
        if ends <= now {
            return Err(Refused::Expired(expiration));
        }
    }
    // A token that someone made by hand, without a count, is good for one node.
    let uses = field("uses").map_or(Ok(1), |uses| uses.parse::<u32>());
    match uses {
        Ok(0) => Err(Refused::UsedUp),
        Ok(uses) => Ok(uses),
        Err(_) => Err(Refused::Wrong),
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    let pairs = left.iter().zip(right);
    let difference = pairs.fold(0, |sum, (left, right)| black_box(sum | (left ^ right)));
    left.len() == right.len() && black_box(difference) == 0
}
