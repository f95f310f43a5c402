//! `portolan-control backup` and `restore`.

use bytes::Bytes;
use futures::{AsyncBufReadExt, stream};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::cli::{Backup, Restore};
use crate::opening::{self, open_backend};
use crate::store;
use crate::store::backup::{self, BackupError, Summary};

/// Where a server hands out backups.
pub const PATH: &str = "/portolan/backup";

/// Why there is no backup, or no store made of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store can't be opened.
    #[error(transparent)]
    Open(#[from] opening::Error),
    /// The kubeconfig can't be used.
    #[error("can't use the kubeconfig")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The server does not answer or refuses.
    #[error("can't have a backup from the server")]
    Api(#[source] Box<kube::Error>),
    /// The backup itself.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Makes a backup, and says what is in it.
pub async fn backup(options: &Backup) -> Result<String, Error> {
    let summary = match (&options.store, &options.kubeconfig) {
        (Some(address), _) => {
            let store = backup::open(open_backend(address, &options.etcd_tls).await?).await?;
            backup::save(backup::chunks(store), &options.file).await?
        }
        (None, Some(kubeconfig)) => {
            let unusable = |error| Error::Kubeconfig(Box::new(error));
            let file = Kubeconfig::read_from(kubeconfig).map_err(unusable)?;
            let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(unusable)?;
            config.read_timeout = None;
            download(config, options).await?
        }
        (None, None) => unreachable!("the command line asks for one of both"),
    };
    Ok(told("holds", summary))
}

async fn download(config: Config, options: &Backup) -> Result<Summary, Error> {
    let failed = |error| Error::Api(Box::new(error));
    let client = Client::try_from(config).map_err(failed)?;
    let request = http::Request::get(PATH)
        .body(Vec::new())
        .map_err(|error| failed(kube::Error::HttpError(error)))?;
    let reader = client.request_stream(request).await.map_err(failed)?;
    let chunks = stream::try_unfold(Box::pin(reader), async |mut reader| {
        let broken = |error| BackupError::from(store::Error::Unavailable(Box::new(error)));
        let chunk = Bytes::copy_from_slice(reader.fill_buf().await.map_err(broken)?);
        AsyncBufReadExt::consume_unpin(&mut reader, chunk.len());
        Ok::<_, BackupError>((!chunk.is_empty()).then_some((chunk, reader)))
    });
    Ok(backup::save(chunks, &options.file).await?)
}

/// Fills an empty store, and says with what.
pub async fn restore(options: &Restore) -> Result<String, Error> {
    let store = open_backend(&options.store, &options.etcd_tls).await?;
    let summary = backup::restore(&options.file, &*store).await?;
    Ok(told("the store holds", summary))
}

fn told(who: &str, summary: Summary) -> String {
    format!(
        "{who} {} keys as of revision {}",
        summary.keys, summary.revision
    )
}
