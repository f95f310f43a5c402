//! The node's key and certificate with the CA, as they lie in STATE/pki.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{pinned, token::CaPin};
use crate::files::{self, FileError};

/// Why an identity can't be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of STATE/pki.
    #[error(transparent)]
    File(#[from] FileError),
    /// What should be PEM is not.
    #[error("{what} is not PEM")]
    Pem {
        /// "the certificate", "the CA", "the key".
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The CA is not the pinned one.
    #[error("the CA is not the one that the token names")]
    WrongCa,
    /// The certificate is for another key.
    #[error("the certificate is not for the node's key")]
    WrongKey(#[source] rustls::Error),
}

/// A node's key and certificate, and the CA that it trusts. All in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node's certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The cluster's CA.
    pub ca: String,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeIdentity(***)")
    }
}

const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";

impl NodeIdentity {
    /// From its parts.
    pub fn new(certificate: String, key: String, ca: String) -> Self {
        Self {
            certificate,
            key,
            ca,
        }
    }

    /// The folder that holds identities.
    pub fn directory(state_dir: &Path) -> PathBuf {
        state_dir.join("pki")
    }

    /// The files as libraries want them: certificate, key, CA.
    pub fn paths(state_dir: &Path) -> [PathBuf; 3] {
        [CERTIFICATE, KEY, CA].map(|name| Self::directory(state_dir).join(name))
    }

    /// Reads what an earlier join stored.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        if !Self::directory(state_dir).exists() {
            return Ok(None);
        }
        let [certificate, key, ca] = Self::paths(state_dir);
        let read = |path: PathBuf| {
            fs::read_to_string(&path).map_err(|source| FileError::new("read", &path)(source))
        };
        Ok(Some(Self::new(read(certificate)?, read(key)?, read(ca)?)))
    }

    /// Stores all three files or none: they appear with the rename of their folder.
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let (directory, draft) = (Self::directory(state_dir), state_dir.join("pki.new"));
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::new("remove", &draft)(error).into());
            }
            _ => {}
        }
        files::create_private_directory(&draft)?;
        for (name, content) in [
            (CERTIFICATE, &self.certificate),
            (KEY, &self.key),
            (CA, &self.ca),
        ] {
            files::replace(&draft.join(name), content.as_bytes(), 0o600)?;
        }
        fs::rename(&draft, &directory).map_err(FileError::new("rename into place", &directory))?;
        files::sync_directory_of(&directory).map_err(FileError::new("sync", state_dir))?;
        Ok(())
    }

    /// Whether the CA is the pinned one and the certificate is for the key.
    pub fn check(&self, pin: CaPin) -> Result<(), IdentityError> {
        let pem = |what| move |source| IdentityError::Pem { what, source };
        let ca = CertificateDer::from_pem_slice(self.ca.as_bytes()).map_err(pem("the CA"))?;
        if !pinned::matches(pin, &ca) {
            return Err(IdentityError::WrongCa);
        }
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(pem("the certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(pem("the key"))?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain, key, &provider)
            .map(drop)
            .map_err(IdentityError::WrongKey)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_stored_whole_and_for_root_alone() {
        let state = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(NodeIdentity::load(state.path()).expect("nothing yet"), None);
        // What a crash in the middle of storing leaves.
        fs::create_dir(state.path().join("pki.new")).expect("created");
        fs::write(state.path().join("pki.new").join(KEY), "half").expect("written");
        assert_eq!(
            NodeIdentity::load(state.path()).expect("still nothing"),
            None
        );

        let identity = NodeIdentity::new("certificate".into(), "key".into(), "ca".into());
        identity.store(state.path()).expect("stored");
        assert_eq!(
            NodeIdentity::load(state.path()).expect("loaded"),
            Some(identity)
        );
        for path in NodeIdentity::paths(state.path()) {
            let mode = fs::metadata(&path).expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }
}
