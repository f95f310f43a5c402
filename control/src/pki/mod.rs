//! The cluster's certificates: one authority, kept in the store, and what it signs.
//!
//! | certificate | subject | for |
//! |---|---|---|
//! | authority | CN portolan-ca | signs the others; its SHA-256 is in every join token |
//! | server | CN portolan-control, the advertised names | the one TLS port; made anew at every start |
//! | admin | CN kubernetes-admin, O system:masters | the admin kubeconfig; made anew at every start |
//! | node | CN system:node:NAME, O system:nodes, the node's name | one agent, client and server, from its own key |
//! | control | CN portolan-control | control as a client of agents; made anew at every start |

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod kubeconfig;
mod pinned;
mod tls;
mod tokens;

pub use kubeconfig::{Kubeconfig, write_private};
pub use pinned::PinnedAuthority;
pub use tls::{client_config, server_config};
pub use tokens::TokenKey;

use crate::random;
use crate::store::{self, Guard, Store, Written};

/// Where the authority lies in the store.
const AUTHORITY_KEY: &[u8] = b"/portolan/pki/authority";
const AUTHORITY_NAME: &str = "portolan-ca";
const DAY: Duration = Duration::from_hours(24);
const AUTHORITY_LIFE: Duration = Duration::from_hours(3650 * 24);
const LIFE: Duration = Duration::from_hours(365 * 24);
/// Clocks differ; a certificate is valid from a little before it was made.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// The user that the admin kubeconfig speaks for.
const ADMIN: (&str, &str) = ("kubernetes-admin", "system:masters");
/// The common name of the server's own certificates.
pub const CONTROL: &str = "portolan-control";
/// What every node's common name begins with.
pub const NODE_PREFIX: &str = "system:node:";
/// The group of all nodes.
pub const NODES_GROUP: &str = "system:nodes";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store that holds the authority did not answer.
    #[error("can't reach the certificate authority's key")]
    Store(#[from] store::Error),
    /// What the store holds is not an authority.
    #[error("the certificate authority in the store is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate request that is no such thing, or not signed by its own key.
    #[error("the certificate request is not valid")]
    Request(#[source] rcgen::Error),
    /// A name that can't stand in a certificate.
    #[error("{name:?} can't stand in a certificate")]
    Name {
        /// Which.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The key or the signature could not be made.
    #[error("can't make a certificate")]
    Sign(#[from] rcgen::Error),
    /// TLS does not take what was made.
    #[error("can't set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The SHA-256 of a certificate: of the authority, what a join token carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate's DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    /// In lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A certificate with its private key.
pub struct Identity {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The same as text.
    pub certificate_pem: String,
    /// Its key.
    pub key: KeyPair,
}

/// A node's certificate request, checked to be signed by the key that it names.
pub struct NodeRequest(CertificateSigningRequestParams);

impl NodeRequest {
    /// Reads a PKCS#10 request in PEM. Only its key counts: subject and extensions are ours to give.
    pub fn parse(pem: &str) -> Result<Self, Error> {
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(Error::Request)?;
        Ok(Self(request))
    }

    /// What tells this key from others.
    pub fn key_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.public_key.der_bytes())
    }
}

/// As the store holds it.
#[derive(Serialize, Deserialize)]
struct Stored {
    certificate: String,
    key: String,
}

/// The certificate authority.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority from the store; the first server to start makes it.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let value = match store.get(AUTHORITY_KEY).await? {
            Some(stored) => stored.value,
            None => make(store).await?,
        };
        let stored: Stored =
            serde_json::from_slice(&value).map_err(|error| Error::Damaged(Box::new(error)))?;
        Self::from_stored(stored)
    }

    fn from_stored(stored: Stored) -> Result<Self, Error> {
        let key =
            KeyPair::from_pem(&stored.key).map_err(|error| Error::Damaged(Box::new(error)))?;
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(|error| Error::Damaged(Box::new(error)))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| Error::Damaged(Box::new(error)))?;
        Ok(Self {
            certificate,
            certificate_pem: stored.certificate,
            issuer,
        })
    }

    /// The authority's own certificate, as clients are given it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a join token carries, so that a node knows the server before it trusts it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A certificate for the TLS port under these names and addresses.
    pub fn server(&self, names: &[String]) -> Result<Identity, Error> {
        let mut params = CertificateParams::default();
        for name in names {
            let one = CertificateParams::new([name.clone()]).map_err(|source| Error::Name {
                name: name.clone(),
                source,
            })?;
            params.subject_alt_names.extend(one.subject_alt_names);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, CONTROL, &[])
    }

    /// The certificate of the cluster's administrator.
    pub fn admin(&self) -> Result<Identity, Error> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, ADMIN.0, &[ADMIN.1])
    }

    /// A node's certificate in PEM: its key, our words.
    pub fn node(&self, name: &str, request: &NodeRequest) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        // Control knows the node by its name, whatever its address.
        let named = CertificateParams::new([name.to_owned()]).map_err(|source| Error::Name {
            name: name.to_owned(),
            source,
        })?;
        params.subject_alt_names = named.subject_alt_names;
        let user = format!("{NODE_PREFIX}{name}");
        let key = &request.0.public_key;
        Ok(self.sign(params, &user, &[NODES_GROUP], key)?.pem())
    }

    /// The certificate by which nodes' agents know control.
    pub fn control(&self) -> Result<Identity, Error> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, CONTROL, &[])
    }

    fn issue(
        &self,
        params: CertificateParams,
        user: &str,
        groups: &[&str],
    ) -> Result<Identity, Error> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(params, user, groups, &key)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key,
        })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        user: &str,
        groups: &[&str],
        key: &impl PublicKeyData,
    ) -> Result<Certificate, Error> {
        params.distinguished_name = subject(user, groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        date(&mut params, LIFE);
        Ok(params.signed_by(key, &self.issuer)?)
    }
}

/// Makes an authority, unless another server is faster; returns what the store holds then.
async fn make(store: &dyn Store) -> Result<Bytes, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(AUTHORITY_NAME, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    date(&mut params, AUTHORITY_LIFE);
    let stored = Stored {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    };
    let value = serde_json::to_vec(&stored).map_err(|error| Error::Damaged(Box::new(error)))?;
    let value = Bytes::from(value);
    match store
        .put(AUTHORITY_KEY, value.clone(), Guard::Absent, None)
        .await?
    {
        Written::Done(_) => Ok(value),
        Written::Refused(Some(theirs)) => Ok(theirs.value),
        Written::Refused(None) => Err(Error::Damaged("it was deleted while it was made".into())),
    }
}

fn subject(user: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn date(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life.max(DAY)).into();
    params.serial_number = Some(SerialNumber::from_slice(&random::serial_number()));
}

#[cfg(test)]
mod tests;
