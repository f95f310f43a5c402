//! The store on disk: names, configurations and unpacked layers.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    ImageError, On, Reference,
    content::{self, Hashing},
    layer,
    manifest::{self, ImageConfig},
};
use crate::runtime::bundle::Document;

/// An image that is whole on this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Normalised: "docker.io/library/busybox:latest".
    pub name: String,
    /// Of its manifest.
    pub digest: String,
    /// Of its configuration: the image's id.
    pub config: String,
    /// Digests of its layers' tars, the lowest first.
    pub layers: Vec<String>,
    /// Compressed, in bytes.
    pub size: u64,
}

impl Image {
    /// status.containerStatuses[].imageID: the repository and the manifest's digest.
    pub fn id(&self) -> String {
        let repository = self
            .name
            .split_once('@')
            .map_or(self.name.as_str(), |(repository, _)| repository);
        // A colon behind the last slash begins a tag; one before it, a port.
        let repository = match repository.rfind(':') {
            Some(colon) if !repository[colon..].contains('/') => &repository[..colon],
            _ => repository,
        };
        format!("{repository}@{}", self.digest)
    }
}

/// The images of one node.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store in the folder `root`, and makes it when there is none.
    pub fn open(root: &Path) -> Result<Store, ImageError> {
        for name in ["refs", "configs", "layers", "tmp"] {
            let folder = root.join(name);
            fs::create_dir_all(&folder).on("make", &folder)?;
        }
        // Absolute: the overlay's mount options are read elsewhere.
        let root = root.canonicalize().on("find", root)?;
        Ok(Store { root })
    }

    /// The image of a name, when this node has it.
    pub fn find(&self, name: &Reference) -> Result<Option<Image>, ImageError> {
        let path = self.reference(&name.whole());
        Document::<Image>::new(path.clone())
            .read()
            .on("read", &path)
    }

    /// How containers of an image run.
    pub fn config(&self, image: &Image) -> Result<ImageConfig, ImageError> {
        let path = self.config_path(&image.config)?;
        let text = fs::read(&path).on("read", &path)?;
        manifest::parse("the image's configuration", &text)
    }

    /// The folders of an image's layers, the lowest first.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        image
            .layers
            .iter()
            .map(|diff_id| self.layer_path(diff_id))
            .collect()
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let folder = self.root.join("refs");
        let mut images = Vec::new();
        for entry in fs::read_dir(&folder).on("list", &folder)? {
            let path = entry.on("list", &folder)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
                && let Some(image) = Document::<Image>::new(path.clone())
                    .read()
                    .on("read", &path)?
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Begins to add images.
    pub fn writer(&self) -> Result<Writer, ImageError> {
        let path = self.root.join("lock");
        let lock = self.lock(FlockArg::LockShared)?;
        let lock = lock
            .ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))
            .on("lock", &path)?;
        // Named by the process and a random number: clearing leaves those alone whose process holds the lock.
        let scratch =
            self.root
                .join("tmp")
                .join(format!("{}-{:016x}", std::process::id(), random()));
        fs::create_dir(&scratch).on("make", &scratch)?;
        Ok(Writer {
            store: self.clone(),
            scratch,
            count: 0,
            _lock: lock,
        })
    }

    /// Removes what writers left that were killed, unless one is at work.
    pub fn clear_scratch(&self) -> Result<(), ImageError> {
        let Some(_alone) = self.lock(FlockArg::LockExclusiveNonblock)? else {
            return Ok(());
        };
        let folder = self.root.join("tmp");
        for entry in fs::read_dir(&folder).on("list", &folder)? {
            let path = entry.on("list", &folder)?.path();
            crate::runtime::bundle::remove_tree(&path).on("remove", &path)?;
        }
        Ok(())
    }

    fn lock(&self, how: FlockArg) -> Result<Option<Flock<File>>, ImageError> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .on("open", &path)?;
        match Flock::lock(file, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno).on("lock", &path),
        }
    }

    fn reference(&self, name: &str) -> PathBuf {
        let digest = content::digest(name.as_bytes());
        let hex = digest.trim_start_matches("sha256:");
        self.root.join("refs").join(format!("{hex}.json"))
    }

    fn config_path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        Ok(self
            .root
            .join("configs")
            .join(format!("{}.json", manifest::hex(digest)?)))
    }

    fn layer_path(&self, diff_id: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("layers").join(manifest::hex(diff_id)?))
    }
}

/// Adds images. What it has not published vanishes with it.
pub struct Writer {
    store: Store,
    scratch: PathBuf,
    count: u32,
    _lock: Flock<File>,
}

impl Writer {
    /// A path for a file of one's own, which vanishes with the writer.
    pub fn scratch_file(&mut self) -> PathBuf {
        self.count += 1;
        self.scratch.join(self.count.to_string())
    }

    /// Whether a layer is in the store already.
    pub fn has_layer(&self, diff_id: &str) -> Result<bool, ImageError> {
        Ok(self.store.layer_path(diff_id)?.exists())
    }

    /// Unpacks a layer, unless it is there, and checks it against its digests. `blob` may be compressed.
    pub fn add_layer(
        &mut self,
        blob: impl Read,
        digest: Option<&str>,
        diff_id: &str,
    ) -> Result<(), ImageError> {
        let place = self.store.layer_path(diff_id)?;
        if place.exists() {
            return Ok(());
        }
        let folder = self.scratch_file();
        fs::create_dir(&folder).on("make", &folder)?;
        let mut blob = Hashing::new(blob);
        let tar = content::decompressed(&mut blob).on("decompress", Path::new(diff_id))?;
        let mut tar = Hashing::new(tar);
        layer::unpack(&mut tar, &folder)?;
        let actual = tar.finish().on("decompress", Path::new(diff_id))?;
        check(diff_id, actual)?;
        if let Some(digest) = digest {
            check(digest, blob.finish().on("read", Path::new(digest))?)?;
        }
        match fs::rename(&folder, &place) {
            // Another writer was faster with the same content.
            Err(error) if place.exists() => {
                tracing::debug!(%error, diff_id, "the layer is there already");
                Ok(())
            }
            result => result.on("rename", &place),
        }
    }

    /// Gives an image its names: from here on pods find it. Its layers are in the store.
    pub fn publish(
        &mut self,
        names: &[String],
        image: &Image,
        config: &[u8],
    ) -> Result<(), ImageError> {
        check(&image.config, content::digest(config))?;
        let path = self.store.config_path(&image.config)?;
        crate::runtime::bundle::replace_file(&path, config).on("write", &path)?;
        for name in names {
            let path = self.store.reference(name);
            let image = Image {
                name: name.clone(),
                ..image.clone()
            };
            Document::new(path.clone())
                .write(&image)
                .on("write", &path)?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = crate::runtime::bundle::remove_tree(&self.scratch) {
            tracing::warn!(path = %self.scratch.display(), %error, "cannot remove scratch files");
        }
    }
}

/// Whether content is what it was said to be.
pub fn check(expected: &str, actual: String) -> Result<(), ImageError> {
    if expected == actual {
        Ok(())
    } else {
        Err(ImageError::Digest {
            expected: expected.to_owned(),
            actual,
        })
    }
}

/// Differs between two calls, which is all that scratch names ask.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::time::Instant::now())
}
