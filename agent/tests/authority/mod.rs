//! A certificate authority for servers that run in a test.

#![allow(dead_code, reason = "each test uses the part that it needs")]

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use tonic::transport::Identity;

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

impl Authority {
    /// One of that name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// As join tokens carry it.
    pub fn fingerprint(&self) -> String {
        let der = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        let digest = Sha256::digest(der.as_ref());
        let digits: Vec<_> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.concat()
    }

    /// A server's certificate for 127.0.0.1, and for the name of all servers, with this CA behind it.
    pub fn server_identity(&self) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let names = ["127.0.0.1", "kubernetes.default.svc"].map(str::to_owned);
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity::from_pem(certificate.pem() + &self.pem, key.serialize_pem())
    }

    /// Answers a certificate request.
    pub fn sign(&self, request: &str) -> String {
        let request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        request
            .signed_by(&self.issuer)
            .expect("a certificate")
            .pem()
    }

    /// A client's certificate and key, in PEM.
    pub fn client_identity(&self, common_name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}
