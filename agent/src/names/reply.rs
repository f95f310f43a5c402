//! Reads DNS messages: names, records, and the answers of other servers.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::message::{Data, HEADER, LONGEST_NAME, Record, kind};

/// An answer of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code as it came: there are more than this server says.
    pub code: u8,
    /// Whether it was too long for UDP.
    pub is_cut: bool,
    /// Where in it times to live stand.
    pub ttls: Vec<usize>,
    /// The shortest of them.
    pub ttl: Option<u32>,
    /// Aliases and addresses.
    pub records: Vec<Record>,
}

impl Reply {
    /// Understands the answer to a request; `None` when it is none.
    pub fn parse(bytes: &[u8], request: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let id = reader.u16()?;
        let flags = reader.u16()?;
        if flags & 0x8000 == 0 || id.to_be_bytes() != request.get(..2)? || reader.u16()? != 1 {
            return None;
        }
        let counts: Vec<u16> = (0..3).map_while(|_| reader.u16()).collect();
        reader.name(false)?;
        reader.skip(4)?;
        // The question must be the one that was asked, letter by letter.
        if bytes.get(HEADER..reader.at)? != request.get(HEADER..reader.at)? {
            return None;
        }
        let mut reply = Self {
            code: bytes[3] & 0x0f,
            is_cut: flags & 0x0200 != 0,
            ttls: Vec::new(),
            ttl: None,
            records: Vec::new(),
        };
        let count: usize = counts.iter().map(|count| usize::from(*count)).sum();
        for _ in 0..count {
            let record = reader.record()?;
            if record.kind == kind::OPT {
                continue;
            }
            reply.ttls.push(record.ttl_at);
            reply.ttl = Some(reply.ttl.unwrap_or(u32::MAX).min(record.ttl));
            if let Some(data) = record.data(bytes) {
                reply.records.push(Record {
                    name: record.name,
                    ttl: record.ttl,
                    data,
                });
            }
        }
        Some(reply)
    }
}

/// A record as it came.
pub struct RawRecord {
    name: String,
    /// Its type.
    pub kind: u16,
    /// Its class, which says something else in a record about the message itself.
    pub class: u16,
    ttl: u32,
    ttl_at: usize,
    data_at: usize,
    length: usize,
}

impl RawRecord {
    fn data(&self, message: &[u8]) -> Option<Data> {
        let data = message.get(self.data_at..self.data_at + self.length)?;
        match self.kind {
            kind::A => {
                let octets: [u8; 4] = data.try_into().ok()?;
                Some(Data::Address(Ipv4Addr::from(octets).into()))
            }
            kind::AAAA => {
                let octets: [u8; 16] = data.try_into().ok()?;
                Some(Data::Address(Ipv6Addr::from(octets).into()))
            }
            kind::CNAME => {
                let mut reader = Reader {
                    bytes: message,
                    at: self.data_at,
                };
                reader.name(true).map(Data::Alias)
            }
            _ => None,
        }
    }
}

/// Reads a message from its start.
pub struct Reader<'a> {
    bytes: &'a [u8],
    /// How far.
    pub at: usize,
}

impl<'a> Reader<'a> {
    /// From the first byte on.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn skip(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let found = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(found)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        let found = self.skip(2)?;
        Some(u16::from_be_bytes([found[0], found[1]]))
    }

    /// A name in lower case. Pointers go backwards only, so that each ends.
    pub fn name(&mut self, may_point: bool) -> Option<String> {
        let mut name = String::new();
        let mut behind = None;
        let mut lowest = self.at;
        loop {
            let length = self.skip(1)?[0];
            match length {
                0 => break,
                1..=63 => {
                    if !name.is_empty() {
                        name.push('.');
                    }
                    for &byte in self.skip(usize::from(length))? {
                        // A dot within a label is no border between two.
                        let letter = if byte == b'.' { 0xff } else { byte };
                        name.push(char::from(letter.to_ascii_lowercase()));
                    }
                    if name.len() > LONGEST_NAME * 2 {
                        return None;
                    }
                }
                192.. if may_point => {
                    let low = self.skip(1)?[0];
                    let place = usize::from(length & 0x3f) << 8 | usize::from(low);
                    behind.get_or_insert(self.at);
                    if place >= lowest {
                        return None;
                    }
                    lowest = place;
                    self.at = place;
                }
                _ => return None,
            }
        }
        if let Some(behind) = behind {
            self.at = behind;
        }
        Some(name)
    }

    /// A whole record.
    pub fn record(&mut self) -> Option<RawRecord> {
        let name = self.name(true)?;
        let kind = self.u16()?;
        let class = self.u16()?;
        let ttl_at = self.at;
        let ttl: [u8; 4] = self.skip(4)?.try_into().ok()?;
        let length = usize::from(self.u16()?);
        let data_at = self.at;
        self.skip(length)?;
        Some(RawRecord {
            name,
            kind,
            class,
            ttl: u32::from_be_bytes(ttl),
            ttl_at,
            data_at,
            length,
        })
    }
}
