//! Import from files: an OCI image layout (a folder or a tar of one), or what `docker save` writes.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    Image, ImageError, On, Store,
    content::{self, decompressed},
    manifest::{self, Descriptor, ImageConfig, Index, Manifest, SavedImage},
    parse_name,
    store::{Writer, check},
};

/// No index, manifest or configuration is longer.
const LONGEST_DOCUMENT: u64 = 8 << 20;
/// Indexes may point to indexes; not forever.
const DEEPEST_INDEX: u32 = 4;

/// Adds the images of `path` to the store of the agent whose folder is `state_dir`, and returns their names. It needs
/// no running agent and disturbs none. `progress` is told what is done, a line at a time.
pub fn import(
    state_dir: &Path,
    name: Option<&str>,
    path: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<String>, ImageError> {
    let name = name.map(parse_name).transpose()?.map(|name| name.whole());
    let store = Store::open(&crate::pod::images_dir(state_dir))?;
    let mut writer = store.writer()?;
    let files = Files::open(path, &mut writer)?;
    let found = files.images(path)?;
    if name.is_some() && found.len() > 1 {
        return Err(ImageError::Several(found.len()));
    }
    let mut names = Vec::new();
    for image in found {
        let own = name.clone().map(|name| vec![name]).unwrap_or(image.names);
        if own.is_empty() {
            return Err(ImageError::Nameless);
        }
        let content = image.content;
        add(&files, &mut writer, &content, &own, progress)?;
        names.extend(own);
    }
    Ok(names)
}

/// An image of an archive.
struct Found {
    names: Vec<String>,
    content: Content,
}

/// Where an image's parts lie in an archive.
struct Content {
    /// The manifest's digest; for Docker's archives, which have none, the configuration's.
    digest: Option<String>,
    config: String,
    config_digest: Option<String>,
    /// File and digest.
    layers: Vec<(String, Option<String>)>,
    size: u64,
}

fn add(
    files: &Files,
    writer: &mut Writer,
    content: &Content,
    names: &[String],
    progress: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    let config = files.read(&content.config)?;
    let config_digest = content::digest(&config);
    if let Some(expected) = &content.config_digest {
        check(expected, config_digest.clone())?;
    }
    let parsed: ImageConfig = manifest::parse("the image's configuration", &config)?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != content.layers.len() {
        return Err(ImageError::Invalid(format!(
            "the image has {} layers, its configuration names {}",
            content.layers.len(),
            diff_ids.len()
        )));
    }
    for (number, ((file, digest), diff_id)) in content.layers.iter().zip(&diff_ids).enumerate() {
        progress(&format!("layer {} of {}", number + 1, diff_ids.len()));
        writer.add_layer(files.file(file)?, digest.as_deref(), diff_id)?;
    }
    let image = Image {
        name: String::new(),
        digest: content
            .digest
            .clone()
            .unwrap_or_else(|| config_digest.clone()),
        config: config_digest,
        layers: diff_ids,
        size: content.size,
    };
    let mut all = names.to_vec();
    for name in names {
        // Pods may ask for exactly this content.
        let by_digest = Image {
            name: name.clone(),
            ..image.clone()
        }
        .id();
        all.push(by_digest);
    }
    writer.publish(&all, &image, &config)
}

/// The files of an archive, wherever they lie.
enum Files {
    Folder(PathBuf),
    Tar {
        file: File,
        /// Start and length.
        entries: HashMap<String, (u64, u64)>,
    },
}

impl Files {
    fn open(path: &Path, writer: &mut Writer) -> Result<Files, ImageError> {
        if path.is_dir() {
            return Ok(Files::Folder(path.to_owned()));
        }
        let mut file = File::open(path).on("open", path)?;
        let mut start = [0; 4];
        let length = file.read(&mut start).on("read", path)?;
        file.seek(SeekFrom::Start(0)).on("read", path)?;
        let compressed =
            start[..length].starts_with(&[0x1f, 0x8b]) || start == [0x28, 0xb5, 0x2f, 0xfd];
        if compressed {
            // Its files are read in the order of the manifest, which is not that of the archive.
            let plain = writer.scratch_file();
            let mut copy = File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(&plain)
                .on("make", &plain)?;
            let mut reader = decompressed(file).on("decompress", path)?;
            io::copy(&mut reader, &mut copy).on("decompress", path)?;
            copy.seek(SeekFrom::Start(0)).on("read", &plain)?;
            file = copy;
        }
        let entries = entries(&file).map_err(|_| ImageError::Unknown(path.to_owned()))?;
        Ok(Files::Tar { file, entries })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(name).is_file(),
            Files::Tar { entries, .. } => entries.contains_key(name),
        }
    }

    fn file(&self, name: &str) -> Result<Box<dyn Read>, ImageError> {
        match self {
            Files::Folder(folder) => {
                let climbs = Path::new(name)
                    .components()
                    .any(|part| !matches!(part, std::path::Component::Normal(_)));
                let path = folder.join(name);
                if climbs || !path.is_file() {
                    return Err(ImageError::Absent(name.to_owned()));
                }
                Ok(Box::new(File::open(&path).on("open", &path)?))
            }
            Files::Tar { file, entries } => {
                let &(start, length) = entries
                    .get(name)
                    .ok_or_else(|| ImageError::Absent(name.to_owned()))?;
                Ok(Box::new(Part {
                    file: file.try_clone().on("open", Path::new(name))?,
                    position: start,
                    end: start + length,
                }))
            }
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut text = Vec::new();
        self.file(name)?
            .take(LONGEST_DOCUMENT)
            .read_to_end(&mut text)
            .on("read", Path::new(name))?;
        Ok(text)
    }

    /// A document that its digest names.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let text = self.read(&blob(digest)?)?;
        check(digest, content::digest(&text))?;
        Ok(text)
    }

    fn images(&self, path: &Path) -> Result<Vec<Found>, ImageError> {
        if self.has("index.json") {
            let index: Index = manifest::parse("index.json", &self.read("index.json")?)?;
            let mut found = Vec::new();
            for descriptor in &index.manifests {
                let names = names(&descriptor.annotations)?;
                if let Some(content) = self.resolve(descriptor, DEEPEST_INDEX)? {
                    found.push(Found { names, content });
                }
            }
            return if found.is_empty() {
                Err(ImageError::Platform)
            } else {
                Ok(found)
            };
        }
        if self.has("manifest.json") {
            let saved: Vec<SavedImage> =
                manifest::parse("manifest.json", &self.read("manifest.json")?)?;
            return saved.into_iter().map(from_saved).collect();
        }
        Err(ImageError::Unknown(path.to_owned()))
    }

    /// The image for this machine that a descriptor leads to; `None` when there is none for it.
    fn resolve(&self, descriptor: &Descriptor, depth: u32) -> Result<Option<Content>, ImageError> {
        if descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| !platform.is_ours())
        {
            return Ok(None);
        }
        let text = self.blob(&descriptor.digest)?;
        let is_index = descriptor.media_type.contains("index")
            || descriptor.media_type.contains("manifest.list");
        if is_index {
            let index: Index = manifest::parse("an image index", &text)?;
            let deeper = depth
                .checked_sub(1)
                .ok_or_else(|| ImageError::Invalid("indexes without end".into()))?;
            for descriptor in &index.manifests {
                if let Some(content) = self.resolve(descriptor, deeper)? {
                    return Ok(Some(content));
                }
            }
            return Ok(None);
        }
        let manifest: Manifest = manifest::parse("an image manifest", &text)?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| Ok((blob(&layer.digest)?, Some(layer.digest.clone()))));
        Ok(Some(Content {
            digest: Some(descriptor.digest.clone()),
            config: blob(&manifest.config.digest)?,
            config_digest: Some(manifest.config.digest.clone()),
            layers: layers.collect::<Result<_, ImageError>>()?,
            size: manifest.layers.iter().map(|layer| layer.size).sum(),
        }))
    }
}

fn from_saved(saved: SavedImage) -> Result<Found, ImageError> {
    let tags = saved.repo_tags.unwrap_or_default();
    let names = tags.iter().map(|tag| Ok(parse_name(tag)?.whole()));
    Ok(Found {
        names: names.collect::<Result<_, ImageError>>()?,
        content: Content {
            digest: None,
            config: saved.config,
            config_digest: None,
            layers: saved.layers.into_iter().map(|file| (file, None)).collect(),
            size: 0,
        },
    })
}

/// What an image of a layout calls itself. A bare tag, as umoci writes, is not a name.
fn names(
    annotations: &std::collections::BTreeMap<String, String>,
) -> Result<Vec<String>, ImageError> {
    let full = annotations.get("io.containerd.image.name");
    let own = annotations.get("org.opencontainers.image.ref.name");
    let name = full.or(own.filter(|name| name.contains(['/', ':'])));
    name.map(|name| Ok(parse_name(name)?.whole()))
        .into_iter()
        .collect()
}

fn blob(digest: &str) -> Result<String, ImageError> {
    Ok(format!("blobs/sha256/{}", manifest::hex(digest)?))
}

/// Where each file of a tar lies.
fn entries(file: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut entries = HashMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if entry.header().entry_type().is_file()
            && let Some(name) = entry.path()?.to_str()
        {
            let name = name.trim_start_matches("./").to_owned();
            entries.insert(name, (entry.raw_file_position(), entry.size()));
        }
    }
    Ok(entries)
}

/// A part of a file that others read as well.
struct Part {
    file: File,
    position: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let length = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}
