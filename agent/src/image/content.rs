//! Content on its way: hashed while it is read, and decompressed by what it begins with.
#![forbid(unsafe_code)]

use std::io::{self, BufRead as _, BufReader, Read};

use sha2::{Digest as _, Sha256};

/// Hashes what is read through it.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Hashing<R> {
        Hashing {
            inner,
            hash: Sha256::new(),
        }
    }

    /// Reads what is left, and names all of it: "sha256:...".
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(name(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// The digest of `content`: "sha256:...".
pub fn digest(content: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(content);
    name(hash)
}

fn name(hash: Sha256) -> String {
    use std::fmt::Write as _;
    let mut name = String::from("sha256:");
    for byte in hash.finalize() {
        write!(name, "{byte:02x}").expect("a String takes all that is written");
    }
    name
}

/// The tar inside `reader`, which may be compressed with gzip or zstd.
pub fn decompressed<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}
