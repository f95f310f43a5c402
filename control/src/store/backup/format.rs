//! How a backup is laid out.
//!
//! ```text
//! "portolan-backup-1\n"  revision i64
//! entries: key length u32, value length u32, key, value
//! u32::MAX, number of entries u64
//! SHA-256 of all before
//! ```
//!
//! Numbers are little-endian.

use std::io::{self, Read};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::store::Revision;

const MARK: &[u8; 18] = b"portolan-backup-1\n";
const END: u32 = u32::MAX;
const SUM_LENGTH: usize = 32;
/// More than any key or value of the store.
const LENGTH_LIMIT: u32 = 16 << 20;

/// What is wrong with a backup.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It does not begin as one.
    #[error("it is no backup of this program's")]
    Foreign,
    /// It ends too early.
    #[error("it ends before its end: it was cut off")]
    Truncated,
    /// Its sum or its lengths are wrong.
    #[error("its checksum does not match: it was changed")]
    Changed,
    /// The file can't be read.
    #[error("it can't be read")]
    Read(#[source] io::Error),
}

/// Makes a backup's bytes.
#[derive(Default)]
pub(super) struct Encoder {
    sum: Sha256,
    entries: u64,
}

impl Encoder {
    /// What a backup of this revision begins with.
    pub fn begin(&mut self, revision: Revision, out: &mut Vec<u8>) {
        self.add(&[MARK, &revision.to_le_bytes()], out);
    }

    /// A key with its value.
    pub fn entry(&mut self, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len())
                .expect("the store takes nothing that large")
                .to_le_bytes()
        };
        self.entries += 1;
        self.add(&[&length(key), &length(value), key, value], out);
    }

    /// What it ends with.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        let entries = self.entries.to_le_bytes();
        self.add(&[&END.to_le_bytes(), &entries], out);
        out.extend_from_slice(&std::mem::take(&mut self.sum).finalize());
    }

    fn add(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) {
        for part in parts {
            self.sum.update(part);
            out.extend_from_slice(part);
        }
    }
}

/// Reads a backup entry by entry, and checks it at the end.
pub(super) struct Reader<R> {
    input: R,
    sum: Sha256,
    revision: Revision,
    entries: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning.
    pub fn begin(input: R) -> Result<Self, Fault> {
        let mut reader = Self {
            input,
            sum: Sha256::new(),
            revision: 0,
            entries: 0,
            ended: false,
        };
        let mark: [u8; MARK.len()] = reader.array()?;
        if mark != *MARK {
            return Err(Fault::Foreign);
        }
        reader.revision = Revision::from_le_bytes(reader.array()?);
        Ok(reader)
    }

    /// The revision that the backup shows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The next entry; `None` at the end, once the sum is found right.
    pub fn entry(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let key = u32::from_le_bytes(self.array()?);
        if key == END {
            self.ended = true;
            return self.end().map(|()| None);
        }
        let value = u32::from_le_bytes(self.array()?);
        if key > LENGTH_LIMIT || value > LENGTH_LIMIT {
            return Err(Fault::Changed);
        }
        self.entries += 1;
        Ok(Some((self.bytes(key)?, self.bytes(value)?)))
    }

    fn end(&mut self) -> Result<(), Fault> {
        let entries = u64::from_le_bytes(self.array()?);
        let expected: [u8; SUM_LENGTH] = std::mem::take(&mut self.sum).finalize().into();
        let sum: [u8; SUM_LENGTH] = self.array()?;
        let mut beyond = [0];
        let more = self.input.read(&mut beyond).map_err(Fault::Read)?;
        if sum != expected || entries != self.entries || more > 0 {
            return Err(Fault::Changed);
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u32) -> Result<Bytes, Fault> {
        let length = usize::try_from(length).map_err(|_| Fault::Changed)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes.into())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Fault> {
        let filled = self.input.read_exact(bytes);
        filled.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Truncated,
            _ => Fault::Read(error),
        })?;
        self.sum.update(&*bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Vec<u8> {
        let mut encoder = Encoder::default();
        let mut out = Vec::new();
        encoder.begin(7, &mut out);
        encoder.entry(b"/a", b"one", &mut out);
        encoder.entry(b"/b", b"", &mut out);
        encoder.end(&mut out);
        out
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Fault> {
        let mut reader = Reader::begin(bytes)?;
        assert_eq!(reader.revision(), 7);
        std::iter::from_fn(|| reader.entry().transpose()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let entries = read(&backup()).unwrap();
        let entry = |key: &'static str, value: &'static str| (Bytes::from(key), Bytes::from(value));
        assert_eq!(entries, [entry("/a", "one"), entry("/b", "")]);
    }

    #[test]
    fn a_part_of_a_backup_is_none() {
        let whole = backup();
        for length in 0..whole.len() {
            let mut reader = match Reader::begin(&whole[..length]) {
                Ok(reader) => reader,
                Err(fault) => {
                    assert!(matches!(fault, Fault::Truncated), "{length}: {fault:?}");
                    continue;
                }
            };
            let entries: Result<Vec<_>, _> =
                std::iter::from_fn(|| reader.entry().transpose()).collect();
            assert!(matches!(entries, Err(Fault::Truncated)), "{length}");
        }
    }

    #[test]
    fn a_changed_backup_is_none() {
        let whole = backup();
        for place in MARK.len() + 8..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            read(&changed).unwrap_err();
        }
        read(&[whole, vec![0]].concat()).unwrap_err();
    }
}
