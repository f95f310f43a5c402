//! Mounts that outlive the agent: a container's root, a pod's shared memory, namespaces kept by files.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use super::bundle::Bundle;

/// What mount(2) takes: a page, less the end of the string.
const LONGEST_OPTIONS: usize = 4095;

/// Mounts an image's layers, the lowest first, under a container's own writable layer.
pub fn mount_root(layers: &[PathBuf], bundle: &Bundle) -> io::Result<()> {
    for folder in [bundle.rootfs(), bundle.upper(), bundle.work()] {
        fs::create_dir_all(folder)?;
    }
    // What a container's root is like when the image does not say.
    fs::set_permissions(
        bundle.upper(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let mut lower = String::new();
    for layer in layers.iter().rev() {
        if !lower.is_empty() {
            lower.push(':');
        }
        lower.push_str(&escaped(layer)?);
    }
    // "volatile": nobody reads a container's own layer after a crash of the machine, so nothing waits for the disk.
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},volatile",
        escaped(&bundle.upper())?,
        escaped(&bundle.work())?
    );
    if options.len() > LONGEST_OPTIONS {
        return Err(io::Error::other(format!(
            "{} layers are more than one mount can name",
            layers.len()
        )));
    }
    let target = bundle.rootfs();
    mount(
        Some("overlay"),
        &target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    Ok(())
}

/// The overlay file system splits its options at commas and colons.
fn escaped(path: &Path) -> io::Result<String> {
    let text = path
        .to_str()
        .ok_or_else(|| io::Error::other("the state directory's name is not UTF-8"))?;
    Ok(text
        .replace('\\', "\\\\")
        .replace(':', "\\:")
        .replace(',', "\\,"))
}

/// Mounts memory as a folder. `size` as tmpfs(5) takes it: "64m"; `None` is the kernel's default.
pub fn mount_memory(target: &Path, size: Option<&str>, mode: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let options = format!("mode={mode}{size}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )?;
    Ok(())
}

/// Whether something is mounted on exactly this path.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mounts_below(path)?.iter().any(|mounted| mounted == path))
}

/// Makes namespaces of their own for a pod, and keeps each by a mount on its file: no process need hold them.
pub fn keep_namespaces(hostname: &str, ipc: &Path, uts: &Path) -> io::Result<()> {
    for file in [ipc, uts] {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        unmount(file)?;
        File::create(file)?;
    }
    let (hostname, ipc, uts) = (hostname.to_owned(), ipc.to_owned(), uts.to_owned());
    // A thread of its own ends in the new namespaces; the agent stays in the old.
    let worker = thread::Builder::new()
        .name("namespaces".into())
        .spawn(move || {
            unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
            nix::unistd::sethostname(&hostname)?;
            for (kind, file) in [("ipc", &ipc), ("uts", &uts)] {
                let own = Path::new("/proc/thread-self/ns").join(kind);
                mount(
                    Some(&own),
                    file,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )?;
            }
            Ok::<(), Errno>(())
        })?;
    match worker.join() {
        Ok(result) => Ok(result?),
        Err(_) => Err(io::Error::other(
            "the thread that makes namespaces panicked",
        )),
    }
}

/// Takes a mount away; there may be none, and processes may still use it.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Mounted more than once: each goes.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes away every mount in a folder and on it, the innermost first.
pub fn unmount_all(folder: &Path) -> io::Result<()> {
    let mut mounted = mounts_below(folder)?;
    mounted.reverse();
    for target in mounted {
        unmount(&target)?;
    }
    Ok(())
}

/// In the order in which they were mounted.
fn mounts_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = match folder.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let targets = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(unescaped);
    Ok(targets
        .filter(|target| target.starts_with(&folder))
        .collect())
}

/// /proc/self/mounts writes blanks as octal numbers.
fn unescaped(target: &str) -> PathBuf {
    let plain = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    PathBuf::from(plain.iter().fold(target.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_survive_the_mount_table() {
        assert_eq!(unescaped("/a\\040b"), PathBuf::from("/a b"));
        assert_eq!(escaped(Path::new("/a:b,c")).expect("UTF-8"), "/a\\:b\\,c");
    }
}
