//! A TLS verifier that trusts one CA, known by the fingerprint that the join token carries.
//!
//! The server sends its CA at the end of its chain. The CA whose fingerprint matches becomes the only trust anchor, and
//! the ordinary verification (names, times, signatures) follows.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};

use super::token::CaPin;

/// No certificate of the server's chain has the token's fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("none of the {shown} certificates that it showed has the token's fingerprint")]
pub struct WrongCa {
    /// How many there were.
    pub shown: usize,
}

/// The verifier.
#[derive(Debug)]
pub struct PinnedCa {
    pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    /// A verifier that trusts the CA with this fingerprint.
    pub fn verifier(pin: CaPin) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Self {
            pin,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        })
    }
}

/// Whether a certificate is the one that a pin names.
pub fn matches(pin: CaPin, certificate: &CertificateDer<'_>) -> bool {
    Sha256::digest(certificate.as_ref())[..] == pin.0
}

/// A verdict in words.
pub fn explain(reason: &CertificateError) -> String {
    match reason {
        CertificateError::Other(OtherError(cause)) => cause.to_string(),
        other => other.to_string(),
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchor = intermediates
            .iter()
            .find(|certificate| matches(self.pin, certificate));
        let Some(anchor) = anchor else {
            let cause = WrongCa {
                shown: intermediates.len() + 1,
            };
            let reason = CertificateError::Other(OtherError(Arc::new(cause)));
            return Err(Error::InvalidCertificate(reason));
        };
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
