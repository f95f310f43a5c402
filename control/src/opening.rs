//! How the store of the command line is opened: its backend, its base, its keys.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::{EtcdTls, Serve, StoreAddress};
use crate::server_join;
use crate::store::backup::{self, BackupError};
use crate::store::embedded::OpenError;
use crate::store::etcd::{ConnectError, Tls};
use crate::store::sealed::{self, KeyError, Sealed};
use crate::store::{Embedded, Etcd, Store};

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's file can't be used.
    #[error("can't open the store")]
    Embedded(#[from] OpenError),
    /// etcd can't be used.
    #[error("can't reach the store")]
    Etcd(#[from] ConnectError),
    /// A certificate or key for etcd can't be read.
    #[error("can't read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What the store holds can't be used as it is.
    #[error("can't use the store")]
    Content(#[from] BackupError),
    /// The keys can't be had from the server that was named.
    #[error(transparent)]
    Join(#[from] server_join::Error),
    /// What is sealed can't be opened.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Nobody said where the key is.
    #[error("--store etcd:... needs --encryption-key-file FILE, the same file for all servers")]
    NoKeyFile,
}

/// The store of a server.
pub struct OpenedStore {
    /// With everything opened that is sealed in it.
    pub store: Arc<dyn Store>,
    /// With everything sealed that is: for backups.
    pub below: Arc<dyn Store>,
    /// The same as the first, for sealing anew.
    pub sealed: Option<Arc<Sealed>>,
    /// Where the keys are.
    pub key_file: PathBuf,
    /// Whether other servers may have it open too.
    pub is_shared: bool,
}

/// Opens the backend as it is: for backups.
pub async fn open_backend(address: &StoreAddress, tls: &EtcdTls) -> Result<Arc<dyn Store>, Error> {
    Ok(match address {
        StoreAddress::Embedded(path) => Arc::new(Embedded::open(path).await?),
        StoreAddress::Etcd(endpoints) => Arc::new(Etcd::connect(endpoints, read_tls(tls)?).await?),
    })
}

/// Opens the store as servers use it.
pub async fn open_sealed(options: &Serve) -> Result<OpenedStore, Error> {
    let backend = open_backend(&options.store, &options.etcd_tls).await?;
    let key_file = match (&options.encryption_key_file, &options.store) {
        (Some(path), _) => path.clone(),
        (None, StoreAddress::Embedded(store)) => {
            let mut path = store.clone().into_os_string();
            path.push(".keys");
            path.into()
        }
        (None, StoreAddress::Etcd(_)) => return Err(Error::NoKeyFile),
    };
    let store = backup::open(backend).await?;
    if let (Some(server), Some(token)) = (&options.join, &options.server_token_file)
        && !key_file.exists()
    {
        server_join::fetch_keys(server, token, &key_file).await?;
    }
    let keys = sealed::open_keys(&*store, &key_file).await?;
    let sealed = Arc::new(Sealed::new(Arc::clone(&store), keys));
    Ok(OpenedStore {
        store: Arc::clone(&sealed) as _,
        below: store,
        sealed: Some(sealed),
        key_file,
        is_shared: matches!(options.store, StoreAddress::Etcd(_)),
    })
}

fn read_tls(files: &EtcdTls) -> Result<Tls, Error> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })
    };
    let identity = match (&files.etcd_cert, &files.etcd_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        // The command line takes both or none.
        _ => None,
    };
    Ok(Tls {
        authority: files.etcd_ca.as_ref().map(read).transpose()?,
        identity,
    })
}
