//! Who asks: the subject of the connection's client certificate, or the account whose token the request bears; and for
//! whom, where the request asks in another's name.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use std::collections::BTreeMap;

use http::{HeaderMap, header};

use crate::api::engine::Engine;
use crate::api::rbac::{Action, SERVICE_ACCOUNT_USER};
use crate::api::tokens::ISSUER;
use crate::api::{Caller, Status};
use crate::pki::Fingerprint;

/// The user without credentials.
const ANONYMOUS: &str = "system:anonymous";
/// The group of users without credentials.
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group of users with credentials.
const AUTHENTICATED: &str = "system:authenticated";

/// The caller of a connection whose certificates TLS has verified.
pub fn caller(certificates: Option<&[CertificateDer<'_>]>) -> Caller {
    certificates
        .and_then(<[_]>::first)
        .and_then(|certificate| from_certificate(certificate))
        .unwrap_or_else(anonymous)
}

/// Who asks with these headers on a connection of `connected`.
pub async fn of_request(
    engine: &Engine,
    connected: &Caller,
    headers: &HeaderMap,
) -> Result<Caller, Status> {
    let mut caller = connected.clone();
    if let Some(shown) = headers.get(header::AUTHORIZATION)
        && caller.user == ANONYMOUS
    {
        let text = shown.to_str().ok();
        let token = text.and_then(|text| text.strip_prefix("Bearer "));
        let token = token.ok_or_else(Status::unauthorized)?;
        let account = engine.authenticate(token.trim(), &[ISSUER]).await;
        caller = account.ok_or_else(Status::unauthorized)?;
    }
    impersonated(engine, caller, headers)
}

/// The caller that the request speaks for, if the one who asks may speak for others.
fn impersonated(engine: &Engine, caller: Caller, headers: &HeaderMap) -> Result<Caller, Status> {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect()
    };
    let mut groups = all("impersonate-group");
    let Some(user) = all("impersonate-user").into_iter().next() else {
        if groups.is_empty() {
            return Ok(caller);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups without impersonating a user",
        ));
    };
    let may = |resource: &str, namespace: Option<&str>, name: &str| {
        let action = Action {
            verb: "impersonate",
            resource,
            namespace,
            name: Some(name),
            ..Action::default()
        };
        match engine.decide(&caller, &action) {
            Some(_) => Ok(()),
            None => Err(Status {
                code: 403,
                reason: "Forbidden".to_owned(),
                message: format!(
                    "{resource} \"{name}\" is forbidden: User \"{}\" cannot impersonate resource \"{resource}\" in \
                     API group \"\" {}",
                    caller.user,
                    match namespace {
                        Some(namespace) => format!("in the namespace \"{namespace}\""),
                        None => "at the cluster scope".to_owned(),
                    }
                ),
                details: None,
            }),
        }
    };
    let account = user.strip_prefix(SERVICE_ACCOUNT_USER);
    if let Some((namespace, name)) = account.and_then(|account| account.split_once(':')) {
        may("serviceaccounts", Some(namespace), name)?;
        if groups.is_empty() {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
    } else {
        may("users", None, &user)?;
        for group in &groups {
            may("groups", None, group)?;
        }
    }
    let everyone = everyone_like(&user);
    if !groups.iter().any(|group| group == everyone) {
        groups.push(everyone.to_owned());
    }
    Ok(Caller {
        user,
        groups,
        uid: String::new(),
        extra: BTreeMap::new(),
    })
}

/// The group of everybody who is known, or of everybody who is not.
fn everyone_like(user: &str) -> &'static str {
    if user == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    }
}

fn anonymous() -> Caller {
    Caller {
        user: ANONYMOUS.to_owned(),
        groups: vec![UNAUTHENTICATED.to_owned()],
        ..Caller::default()
    }
}

/// Which extra says by which credential somebody is known.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// User: the common name; groups: the organizations.
fn from_certificate(certificate: &[u8]) -> Option<Caller> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push(AUTHENTICATED.to_owned());
    let digest = Fingerprint::of(certificate);
    let credential = (CREDENTIAL.to_owned(), vec![format!("X509SHA256={digest}")]);
    Some(Caller {
        user,
        groups,
        extra: BTreeMap::from([credential]),
        ..Caller::default()
    })
}
