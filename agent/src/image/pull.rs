//! Pull from a registry: over https, and over plain http from this machine itself.
#![forbid(unsafe_code)]

use std::{net::IpAddr, path::PathBuf, time::Duration};

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{OciDescriptor, OciImageManifest},
    secrets::RegistryAuth,
};

use super::{
    Image, ImageError, On, Store, content,
    manifest::{self, ImageConfig},
};

const CONNECT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const SILENCE: Duration = Duration::from_mins(1);
const USER_AGENT: &str = concat!("portolan-agent/", env!("CARGO_PKG_VERSION"));

/// Pulls images into a store.
#[derive(Clone, Debug)]
pub struct Puller {
    store: Store,
}

impl Puller {
    /// Into `store`.
    pub fn new(store: Store) -> Puller {
        Puller { store }
    }

    /// Pulls an image, with all of its layers, whether the store has it or not.
    pub async fn pull(&self, name: &Reference) -> Result<Image, ImageError> {
        install_tls_provider();
        let client = client(name)?;
        let auth = RegistryAuth::Anonymous;
        let (manifest, digest) = client
            .pull_image_manifest(name, &auth)
            .await
            .map_err(|error| unresolved(name, &error))?;
        let mut config = Vec::new();
        client
            .pull_blob(name, &manifest.config, &mut config)
            .await
            .map_err(|error| failed(name, &error))?;
        let parsed: ImageConfig = manifest::parse("the image's configuration", &config)?;
        let diff_ids = parsed.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(
                "the manifest and the configuration name different layers".into(),
            ));
        }
        let image = Image {
            name: name.whole(),
            digest,
            config: content::digest(&config),
            size: size(&manifest),
            layers: diff_ids,
        };
        self.layers(&client, name, &manifest, &image, config).await
    }

    async fn layers(
        &self,
        client: &Client,
        name: &Reference,
        manifest: &OciImageManifest,
        image: &Image,
        config: Vec<u8>,
    ) -> Result<Image, ImageError> {
        let store = self.store.clone();
        let mut writer = blocking(move || store.writer()).await?;
        for (layer, diff_id) in manifest.layers.iter().zip(&image.layers) {
            if writer.has_layer(diff_id)? {
                continue;
            }
            let path = writer.scratch_file();
            download(client, name, layer, &path).await?;
            let (digest, diff_id) = (layer.digest.clone(), diff_id.clone());
            writer = blocking(move || {
                let file = std::fs::File::open(&path).on("open", &path)?;
                writer.add_layer(file, Some(&digest), &diff_id)?;
                std::fs::remove_file(&path).on("remove", &path)?;
                Ok(writer)
            })
            .await?;
        }
        let image = image.clone();
        blocking(move || {
            writer.publish(&[image.name.clone(), image.id()], &image, &config)?;
            Ok(image)
        })
        .await
    }
}

/// Not by `Client::new`, which panics on a machine without CA certificates.
fn client(name: &Reference) -> Result<Client, ImageError> {
    let config = |accept_invalid_certificates| ClientConfig {
        protocol: protocol(name),
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        user_agent: USER_AGENT,
        accept_invalid_certificates,
        ..ClientConfig::default()
    };
    let is_plain = matches!(protocol(name), ClientProtocol::HttpsExcept(_));
    Client::try_from(config(false))
        // This machine's own registry is asked without TLS: no certificate is ever looked at.
        .or_else(|error| {
            if is_plain {
                Client::try_from(config(true))
            } else {
                Err(error)
            }
        })
        .map_err(|error| failed(name, &error))
}

async fn download(
    client: &Client,
    name: &Reference,
    layer: &OciDescriptor,
    path: &PathBuf,
) -> Result<(), ImageError> {
    let mut file = tokio::fs::File::create(path).await.on("make", path)?;
    client
        .pull_blob(name, layer, &mut file)
        .await
        .map_err(|error| failed(name, &error))?;
    tokio::io::AsyncWriteExt::shutdown(&mut file)
        .await
        .on("write", path)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Invalid(format!(
            "unpacking was cut off: {error}"
        ))),
    }
}

fn size(manifest: &OciImageManifest) -> u64 {
    manifest
        .layers
        .iter()
        .map(|layer| u64::try_from(layer.size).unwrap_or(0))
        .sum()
}

/// Plain http is for registries of this very machine, as Docker has it.
fn protocol(name: &Reference) -> ClientProtocol {
    let registry = name.resolve_registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if local {
        ClientProtocol::HttpsExcept(vec![registry.to_owned()])
    } else {
        ClientProtocol::Https
    }
}

/// The HTTP client panics without one, also for plain http. Whichever part of the agent comes first installs it.
fn install_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
    {
        tracing::debug!("another thread has installed a TLS provider");
    }
}

fn unresolved(name: &Reference, error: &OciDistributionError) -> ImageError {
    let whole = name.whole();
    let absent = match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| {
                matches!(
                    error.code,
                    OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                )
            })
        }
        _ => false,
    };
    let denied = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
    );
    let reason = if absent {
        format!("{whole}: not found")
    } else if denied {
        "pull access denied, repository does not exist or may require authorization".to_owned()
    } else {
        chain(error)
    };
    ImageError::Pull {
        reason: format!("failed to resolve reference \"{whole}\": {reason}"),
        name: whole,
    }
}

fn failed(name: &Reference, error: &OciDistributionError) -> ImageError {
    ImageError::Pull {
        name: name.whole(),
        reason: chain(error),
    }
}

/// The error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text
}
