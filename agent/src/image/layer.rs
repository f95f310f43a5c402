//! Unpacks a layer's tar into a folder, as overlayfs wants it, and never outside of that folder.
//!
//! Every path is opened with RESOLVE_IN_ROOT: links that the layer brings along resolve inside the layer, as they will
//! in the container. Whiteouts become the overlay's own marks; marks that the tar brings along are dropped.
#![forbid(unsafe_code)]

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, fchmod, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Archive, Entry, EntryType};
use xattr::FileExt as _;

use super::ImageError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks `tar` into the folder `root`, which exists and is empty.
pub fn unpack(tar: impl Read, root: &Path) -> Result<(), ImageError> {
    let root = File::open(root).map_err(|source| ImageError::Unpack {
        path: root.to_owned(),
        source,
    })?;
    let mut layer = Layer {
        root: root.into(),
        folder_times: Vec::new(),
    };
    let mut archive = Archive::new(tar);
    let unreadable = |source| ImageError::Unpack {
        path: PathBuf::from("the layer"),
        source,
    };
    for entry in archive.entries().map_err(unreadable)? {
        layer.entry(&mut entry.map_err(unreadable)?)?;
    }
    layer.set_folder_times()
}

struct Layer {
    root: OwnedFd,
    /// Set last: what is put into a folder changes its times.
    folder_times: Vec<(PathBuf, TimeSpec)>,
}

/// Who owns an entry, and who may do what with it.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    modified: TimeSpec,
}

impl Metadata {
    fn of<R: Read>(entry: &Entry<'_, R>) -> io::Result<Metadata> {
        let header = entry.header();
        let id = |id: u64| {
            u32::try_from(id).map_err(|_| io::Error::other("an owner that no system has"))
        };
        Ok(Metadata {
            uid: Uid::from_raw(id(header.uid()?)?),
            gid: Gid::from_raw(id(header.gid()?)?),
            mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
            modified: TimeSpec::new(i64::try_from(header.mtime()?).unwrap_or(0), 0),
        })
    }
}

impl Layer {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ImageError> {
        let path = entry.path().map(std::borrow::Cow::into_owned);
        let path = path.map_err(|source| ImageError::Unpack {
            path: PathBuf::from("the layer"),
            source,
        })?;
        let inside = inside(&path)?;
        self.place(entry, &inside).map_err(|error| match error {
            Placing::Io(source) => ImageError::Unpack { path, source },
            Placing::Escape(target) => ImageError::Escape(target),
        })
    }

    fn place<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> Result<(), Placing> {
        let kind = entry.header().entry_type();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The layer's own root.
            let metadata = Metadata::of(entry)?;
            self.finish_folder(&self.root.try_clone()?, Path::new(""), &metadata)?;
            return Ok(());
        };
        let folder = self.folder(parent)?;
        if name.as_bytes() == OPAQUE {
            File::from(folder).set_xattr("trusted.overlay.opaque", b"y")?;
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return Ok(whiteout(&folder, OsStr::from_bytes(hidden))?);
        }
        if kind == EntryType::Directory {
            return Ok(self.directory(entry, &folder, path, name)?);
        }
        if !matches!(kind, EntryType::XGlobalHeader) {
            clear(&folder, name)?;
        }
        match kind {
            EntryType::Link => self.hard_link(entry, &folder, name),
            EntryType::XGlobalHeader => Ok(()),
            _ => Ok(other(entry, &folder, name, kind)?),
        }
    }

    /// Opens a folder of the layer, and makes it when no entry has named it.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::ENOENT) => {}
            result => return Ok(result?),
        }
        let mut parent = self.root.try_clone()?;
        let mut so_far = PathBuf::new();
        for component in path.components() {
            so_far.push(component);
            parent = match self.open(&so_far) {
                Err(Errno::ENOENT) => {
                    mkdirat(
                        &parent,
                        component.as_os_str(),
                        Mode::from_bits_truncate(0o755),
                    )?;
                    self.open(&so_far)?
                }
                result => result?,
            };
        }
        Ok(parent)
    }

    fn open(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }

    fn directory<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        folder: &OwnedFd,
        path: &Path,
        name: &OsStr,
    ) -> io::Result<()> {
        let open = || {
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(folder, name, flags, Mode::empty())
        };
        let directory = match open() {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                clear(folder, name)?;
                mkdirat(folder, name, Mode::from_bits_truncate(0o755))?;
                open()?
            }
            Err(errno) => return Err(errno.into()),
        };
        let metadata = Metadata::of(entry)?;
        set_xattrs(entry, &File::from(directory.try_clone()?))?;
        self.finish_folder(&directory, path, &metadata)
    }

    fn finish_folder(
        &mut self,
        folder: &OwnedFd,
        path: &Path,
        metadata: &Metadata,
    ) -> io::Result<()> {
        fchown(folder, Some(metadata.uid), Some(metadata.gid))?;
        fchmod(folder, metadata.mode)?;
        self.folder_times.push((path.to_owned(), metadata.modified));
        Ok(())
    }

    fn hard_link<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        folder: &OwnedFd,
        name: &OsStr,
    ) -> Result<(), Placing> {
        let target = entry
            .link_name()?
            .ok_or_else(|| io::Error::other("a link to nothing"))?;
        let target = inside(&target).map_err(|_| Placing::Escape(target.into_owned()))?;
        let (Some(parent), Some(target)) = (target.parent(), target.file_name()) else {
            return Err(Placing::Escape(target));
        };
        let parent = self.open(parent).map_err(io::Error::from)?;
        Ok(linkat(&parent, target, folder, name, AtFlags::empty()).map_err(io::Error::from)?)
    }

    fn set_folder_times(&self) -> Result<(), ImageError> {
        for (path, modified) in &self.folder_times {
            // A later entry may have put something else in its place.
            let Ok(folder) = self.open(path) else {
                continue;
            };
            nix::sys::stat::futimens(&folder, modified, modified).map_err(|errno| {
                ImageError::Unpack {
                    path: path.clone(),
                    source: errno.into(),
                }
            })?;
        }
        Ok(())
    }
}

/// Why an entry has no place.
enum Placing {
    Io(io::Error),
    Escape(PathBuf),
}

impl From<io::Error> for Placing {
    fn from(error: io::Error) -> Placing {
        Placing::Io(error)
    }
}

/// `path` relative to the layer's root. One that climbs is refused, not bent: no honest tool writes it.
fn inside(path: &Path) -> Result<PathBuf, ImageError> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(ImageError::Escape(path.to_owned()));
            }
        }
    }
    Ok(inside)
}

/// Files, links and nodes.
fn other<R: Read>(
    entry: &mut Entry<'_, R>,
    folder: &OwnedFd,
    name: &OsStr,
    kind: EntryType,
) -> io::Result<()> {
    let metadata = Metadata::of(entry)?;
    match kind {
        EntryType::Symlink => {
            let target = entry
                .link_name()?
                .ok_or_else(|| io::Error::other("a link to nothing"))?;
            symlinkat(target.as_ref(), folder, name)?;
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => node(entry, folder, name, kind)?,
        _ if kind.is_file() || kind == EntryType::GNUSparse => {
            return file(entry, folder, name, &metadata);
        }
        _ => {
            return Err(io::Error::other(format!(
                "unknown type of entry {:?}",
                kind.as_byte()
            )));
        }
    }
    fchownat(
        folder,
        name,
        Some(metadata.uid),
        Some(metadata.gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    if kind != EntryType::Symlink {
        // After chown, which clears setuid bits.
        nix::sys::stat::fchmodat(
            folder,
            name,
            metadata.mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
    }
    utimensat(
        folder,
        name,
        &metadata.modified,
        &metadata.modified,
        UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}

fn file<R: Read>(
    entry: &mut Entry<'_, R>,
    folder: &OwnedFd,
    name: &OsStr,
    metadata: &Metadata,
) -> io::Result<()> {
    let flags =
        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(
        folder,
        name,
        flags,
        Mode::from_bits_truncate(0o600),
    )?);
    io::copy(entry, &mut file)?;
    fchown(&file, Some(metadata.uid), Some(metadata.gid))?;
    fchmod(&file, metadata.mode)?;
    set_xattrs(entry, &file)?;
    nix::sys::stat::futimens(&file, &metadata.modified, &metadata.modified)?;
    Ok(())
}

fn node<R: Read>(
    entry: &Entry<'_, R>,
    folder: &OwnedFd,
    name: &OsStr,
    kind: EntryType,
) -> io::Result<()> {
    let header = entry.header();
    let major = header.device_major()?.unwrap_or(0);
    let minor = header.device_minor()?.unwrap_or(0);
    let flag = match kind {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    if flag == SFlag::S_IFCHR && (major, minor) == (0, 0) {
        return Err(io::Error::other("the overlay's own mark"));
    }
    let device = makedev(major.into(), minor.into());
    Ok(mknodat(
        folder,
        name,
        flag,
        Mode::from_bits_truncate(0o600),
        device,
    )?)
}

/// Hides what a lower layer has.
fn whiteout(folder: &OwnedFd, hidden: &OsStr) -> io::Result<()> {
    let plain = Path::new(hidden)
        .components()
        .eq([Component::Normal(hidden)]);
    if !plain || hidden.as_bytes().starts_with(WHITEOUT) {
        // ".wh..wh.plnk" and its like: notes of an older union file system.
        return Ok(());
    }
    match mknodat(folder, hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
        // What this very layer has put there stays.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes room for an entry: the last one of a name counts.
fn clear(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => {
            let path = Path::new("/proc/self/fd")
                .join(folder.as_raw_fd().to_string())
                .join(name);
            std::fs::remove_dir_all(path)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// File capabilities and what users set; never the overlay's own marks.
fn set_xattrs<R: Read>(entry: &mut Entry<'_, R>, file: &File) -> io::Result<()> {
    let mut wanted: Vec<(OsString, Vec<u8>)> = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else {
                continue;
            };
            let ours = name.starts_with(b"user.overlay.");
            if name == b"security.capability" || (name.starts_with(b"user.") && !ours) {
                wanted.push((
                    OsStr::from_bytes(name).to_owned(),
                    extension.value_bytes().to_owned(),
                ));
            }
        }
    }
    for (name, value) in wanted {
        file.set_xattr(name, &value)?;
    }
    Ok(())
}
