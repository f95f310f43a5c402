//! Archives in the format that both the kernel and busybox unpack: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

/// An archive that is being written. Everything in it belongs to root.
pub struct Archive<W> {
    to: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            inode: 0,
        }
    }

    /// A folder; those above it must have been written before. Names have no slash in front.
    pub fn folder(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, FOLDER | permissions, (0, 0), &[])
    }

    /// A file.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | permissions, (0, 0), content)
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive, and fills it to whole blocks of a disk.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.fill(512)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_long = |_| io::Error::other(format!("{name} is too large for an archive"));
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        self.inode += 1;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.write(b"070701")?;
        for field in fields {
            self.write(format!("{field:08X}").as_bytes())?;
        }
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.fill(4)?;
        self.write(content)?;
        self.fill(4)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn fill(&mut self, block: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(block) {
            self.write(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command;

    #[test]
    fn busybox_unpacks_what_is_written() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("a", 0o755).expect("memory");
        archive.file("a/b", 0o750, b"content").expect("memory");
        archive.link("a/c", "b").expect("memory");
        let bytes = archive.finish().expect("memory");
        assert_eq!(bytes.len() % 512, 0);
        let list =
            command::output_with_input(Command::new("busybox").args(["cpio", "-tv"]), &bytes)
                .expect("busybox reads it");
        for line in ["drwxr-xr-x", "-rwxr-x---", "a/c -> b"] {
            assert!(list.contains(line), "{list}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device of every Linux");
        let mut archive = Archive::new(full);
        let error = archive.file("a", 0o644, b"content").expect_err("no space");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
