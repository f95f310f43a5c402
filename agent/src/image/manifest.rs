//! The documents of the OCI image format, and of Docker's where they differ: only what is read here.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::ImageError;

/// An image layout's index.json, or a manifest list.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// Images, or further indexes.
    pub manifests: Vec<Descriptor>,
}

/// Points to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of document or layer.
    #[serde(default)]
    pub media_type: String,
    /// "sha256:" and 64 hex digits.
    pub digest: String,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
    /// What it runs on.
    pub platform: Option<Platform>,
    /// Names among them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on, in Go's words.
#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    /// "amd64".
    pub architecture: String,
    /// "linux".
    pub os: String,
}

impl Platform {
    /// Whether it is this machine's.
    pub fn is_ours(&self) -> bool {
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.os == "linux" && self.architecture == own
    }
}

/// An image.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// One image of what `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SavedImage {
    /// The file of its configuration.
    pub config: String,
    /// Its names.
    pub repo_tags: Option<Vec<String>>,
    /// The files of its layers, the lowest first.
    pub layers: Vec<String>,
}

/// An image's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// How it runs.
    #[serde(default)]
    pub config: ProcessConfig,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// What a container of the image runs when the pod says nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessConfig {
    /// "user", "1000", "user:group".
    pub user: Option<String>,
    /// "NAME=value".
    pub env: Option<Vec<String>>,
    /// What precedes the arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments.
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    pub working_dir: Option<String>,
    /// What asks it to end: "SIGQUIT", "15".
    pub stop_signal: Option<String>,
}

/// The digests of the layers' tars.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// The lowest first.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// Reads a document that `what` names in errors.
pub fn parse<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|source| ImageError::Document {
        what: what.to_owned(),
        source,
    })
}

/// The hex digits of a SHA-256 digest: the only one that names files here.
pub fn hex(digest: &str) -> Result<&str, ImageError> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        })
        .ok_or_else(|| {
            ImageError::Invalid(format!(
                "digest \"{digest}\" is not sha256 and 64 hex digits"
            ))
        })
}
