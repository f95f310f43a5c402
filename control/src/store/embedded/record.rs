//! How one change is laid out in the log.

use bytes::Bytes;

use crate::store::{Change, KeyValue, LeaseId, Revision};

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
/// kind, create revision, previous revision, lease, length of the key.
const HEADER: usize = 1 + 8 + 8 + 8 + 4;

/// One change, as stored under its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Whether the change ended the key.
    pub deleted: bool,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The revision of the key's change before this one, deletions included; 0 when there was none.
    pub previous: Revision,
    /// The lease that the key lives under.
    pub lease: Option<LeaseId>,
    /// The key.
    pub key: &'a [u8],
    /// The value; empty for a deletion.
    pub value: &'a [u8],
}

/// A record that this program did not write, or that the disk has changed.
#[derive(Debug, thiserror::Error)]
#[error("the record of revision {0} is damaged")]
pub(super) struct Damaged(pub Revision);

impl<'a> Record<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.key.len() + self.value.len());
        bytes.push(if self.deleted { KIND_DELETE } else { KIND_PUT });
        bytes.extend_from_slice(&self.create_revision.to_le_bytes());
        bytes.extend_from_slice(&self.previous.to_le_bytes());
        let lease = self.lease.map_or(0, |lease| lease.0);
        bytes.extend_from_slice(&lease.to_le_bytes());
        let key_length =
            u32::try_from(self.key.len()).expect("keys are bounded by the value limit");
        bytes.extend_from_slice(&key_length.to_le_bytes());
        bytes.extend_from_slice(self.key);
        bytes.extend_from_slice(self.value);
        bytes
    }

    pub fn decode(revision: Revision, bytes: &'a [u8]) -> Result<Self, Damaged> {
        Self::split(bytes).ok_or(Damaged(revision))
    }

    fn split(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (create_revision, rest) = rest.split_first_chunk::<8>()?;
        let (previous, rest) = rest.split_first_chunk::<8>()?;
        let (lease, rest) = rest.split_first_chunk::<8>()?;
        let (key_length, rest) = rest.split_first_chunk::<4>()?;
        let key_length = usize::try_from(u32::from_le_bytes(*key_length)).ok()?;
        let (key, value) = rest.split_at_checked(key_length)?;
        let deleted = match *kind {
            KIND_PUT => false,
            KIND_DELETE => true,
            _ => return None,
        };
        let lease = i64::from_le_bytes(*lease);
        Some(Self {
            deleted,
            create_revision: i64::from_le_bytes(*create_revision),
            previous: i64::from_le_bytes(*previous),
            lease: (lease != 0).then_some(LeaseId(lease)),
            key,
            value,
        })
    }

    /// The key as it was after this change.
    pub fn key_value(&self, revision: Revision) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(self.key),
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create_revision,
            mod_revision: revision,
        }
    }

    /// What a watcher sees of this change.
    pub fn change(&self, revision: Revision, previous: Option<KeyValue>) -> Change {
        if self.deleted {
            Change::Delete {
                key: Bytes::copy_from_slice(self.key),
                revision,
                previous,
            }
        } else {
            Change::Put {
                current: self.key_value(revision),
                previous,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record {
            deleted: false,
            create_revision: 7,
            previous: 9,
            lease: Some(LeaseId(3)),
            key: b"/a",
            value: b"value",
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(12, &bytes).unwrap(), record);
        for cut in 0..HEADER + 2 {
            Record::decode(12, &bytes[..cut]).unwrap_err();
        }
    }
}
