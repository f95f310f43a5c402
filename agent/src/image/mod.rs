//! Images: names, a content-addressed store on disk, import from files and pull from registries.
//!
//! ```text
//! STATE/images/
//!   refs/SHA256_OF_NAME.json   a name -> manifest digest, configuration, layers; replaced by rename
//!   configs/HEX.json           image configurations
//!   layers/HEX/                a layer unpacked, as overlayfs wants it, by the digest of its tar (diff id)
//!   tmp/                       work in progress; nothing of it is ever used
//!   lock                       shared by writers, taken alone by whoever clears tmp/
//! ```
//!
//! A layer is unpacked once, under a temporary name, and renamed when it is whole and its digest is right; a name is
//! written last. So an import or pull that is cut off at any point leaves the store as it was. No agent need run.

mod content;
mod import;
mod layer;
mod manifest;
mod pull;
mod store;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use content::digest;
pub use import::import;
pub use manifest::{ImageConfig, ProcessConfig};
pub use oci_client::Reference;
pub use pull::Puller;
pub use store::{Image, Store};

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a name that an image can have.
    #[error("couldn't parse image name \"{name}\": {reason}")]
    Name {
        /// As given.
        name: String,
        /// In Docker's words.
        reason: String,
    },
    /// An image of an archive says no name, and the user gave none.
    #[error("the image says no name of its own: give it one with --name")]
    Nameless,
    /// One name for several images.
    #[error("the archive holds {0} images, and one name was given")]
    Several(usize),
    /// Neither an OCI layout nor what `docker save` writes.
    #[error("{0} is neither an OCI image layout nor an image archive")]
    Unknown(PathBuf),
    /// A file that the archive's index names is absent.
    #[error("the archive has no file {0}")]
    Absent(String),
    /// Content that is not what its digest says.
    #[error("content of {expected} has the digest {actual}")]
    Digest {
        /// Of the manifest.
        expected: String,
        /// Of the content.
        actual: String,
    },
    /// A document that can't be read.
    #[error("{what} is not valid: {source}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Something that must not be.
    #[error("{0}")]
    Invalid(String),
    /// No image of the index is for this machine.
    #[error("no match for platform in manifest: not found")]
    Platform,
    /// A layer's entry could not be unpacked.
    #[error("cannot unpack {path}: {source}")]
    Unpack {
        /// Inside the image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer that would write outside of itself.
    #[error("layer entry {0} points outside of the image")]
    Escape(PathBuf),
    /// A file of the store or of an archive failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The registry's answer, in containerd's words where there are some.
    #[error("failed to pull and unpack image \"{name}\": {reason}")]
    Pull {
        /// Normalised.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Names the operation and the file of an error.
pub(crate) trait On<T> {
    /// `operation` is a verb: "read", "rename".
    fn on(self, operation: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> On<T> for Result<T, E> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io {
            operation,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// Docker's rules: "busybox" is docker.io/library/busybox:latest.
pub fn parse_name(name: &str) -> Result<Reference, ImageError> {
    name.parse::<Reference>().map_err(|error| ImageError::Name {
        name: name.to_owned(),
        reason: match error {
            oci_client::ParseError::NameContainsUppercase => {
                "invalid reference format: repository name must be lowercase".into()
            }
            _ => "invalid reference format".into(),
        },
    })
}

/// The images of an agent's store, by name.
pub fn list(state_dir: &Path) -> Result<Vec<Image>, ImageError> {
    Store::open(&crate::pod::images_dir(state_dir))?.list()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = "sha256:7cc4b5aefd1d0cadf8d97d4350462ba51c694ebca145b08d7d41b41acc8db5aa";
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("demo/x:1", "docker.io/demo/x:1".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            (
                "registry.example/a/b:v1",
                "registry.example/a/b:v1".to_owned(),
            ),
            (
                &format!("x@{digest}"),
                format!("docker.io/library/x@{digest}"),
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(parse_name(given).expect(given).whole(), expected);
        }
    }

    #[test]
    fn bad_names_are_refused_in_dockers_words() {
        for (given, expected) in [
            ("Busybox", "invalid reference format"),
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
        ] {
            let error = parse_name(given).expect_err(given).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
