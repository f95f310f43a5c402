//! Who a connection is: the subject of its client certificate.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::Caller;

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

/// Whether a caller has shown credentials.
pub fn is_authenticated(caller: &Caller) -> bool {
    caller.user != ANONYMOUS
}

fn anonymous() -> Caller {
    Caller {
        user: ANONYMOUS.to_owned(),
        groups: vec![UNAUTHENTICATED.to_owned()],
    }
}

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
    Some(Caller { user, groups })
}
