//! DNS messages, as far as a resolver of stub resolvers needs them (RFC 1035, 2782, 6891).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::reply::Reader;

/// Types of records.
pub mod kind {
    pub const A: u16 = 1;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;
}

/// The class of all that is asked.
const INTERNET: u16 = 1;
/// A question's name stands right behind the header's twelve bytes.
const QUESTION: u16 = 0xc00c;
/// Bytes of a header.
pub const HEADER: usize = 12;
/// What a client takes over UDP that does not say more.
pub const SHORT: usize = 512;
/// What is sent over UDP at most: no path cuts it into fragments.
pub const LONG: usize = 1232;
/// No name has more bytes.
pub const LONGEST_NAME: usize = 255;

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// There is an answer, or there is the name and nothing of that type.
    Fine = 0,
    /// The question can't be understood.
    Malformed = 1,
    /// Nobody could tell.
    Failed = 2,
    /// There is no such name.
    NoName = 3,
    /// Something else than a question.
    NotDone = 4,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Goes back as it came.
    pub id: u16,
    /// In lower case, without the last dot.
    pub name: String,
    /// The type.
    pub kind: u16,
    /// The question as it came.
    question: Vec<u8>,
    recursion: bool,
    /// What the client takes over UDP, if it says so.
    size: Option<u16>,
}

/// A request that is not answered as a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// Too short to answer, or itself an answer.
    Noise,
    /// With its id and what is wrong with it.
    Refused(u16, Code),
}

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An address.
    Address(IpAddr),
    /// Another name of the same.
    Alias(String),
    /// The name of an address.
    Pointer(String),
    /// A port of a host.
    Service {
        /// Where.
        port: u16,
        /// On which host.
        target: String,
    },
    /// Who knows the zone.
    Authority,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of what.
    pub name: String,
    /// Good for so many seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// An answer of the node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub code: Code,
    /// What was asked for.
    pub records: Vec<Record>,
    /// What will be asked for next.
    pub additional: Vec<Record>,
    /// The zone whose authority says that there is nothing.
    pub authority: Option<Record>,
}

impl Query {
    /// Understands a request.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unasked> {
        let mut reader = Reader::new(bytes);
        let header = (0..6).map_while(|_| reader.u16()).collect::<Vec<_>>();
        let &[id, flags, questions, answers, authorities, additional] = header.as_slice() else {
            return Err(Unasked::Noise);
        };
        if flags & 0x8000 != 0 {
            return Err(Unasked::Noise);
        }
        if flags & 0x7800 != 0 {
            return Err(Unasked::Refused(id, Code::NotDone));
        }
        let malformed = Unasked::Refused(id, Code::Malformed);
        if questions != 1 {
            return Err(malformed);
        }
        let name = reader.name(false).ok_or(malformed)?;
        let kind = reader.u16().ok_or(malformed)?;
        let class = reader.u16().ok_or(malformed)?;
        let question = bytes[HEADER..reader.at].to_vec();
        if class != INTERNET {
            return Err(Unasked::Refused(id, Code::NotDone));
        }
        let mut size = None;
        let others = usize::from(answers) + usize::from(authorities) + usize::from(additional);
        for _ in 0..others {
            let record = reader.record().ok_or(malformed)?;
            if record.kind == kind::OPT {
                size = Some(record.class);
            }
        }
        Ok(Self {
            id,
            name,
            kind,
            question,
            recursion: flags & 0x0100 != 0,
            size,
        })
    }

    /// A question of the node's own, for another server.
    pub fn ask(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [id, 0x0100, 1, 0, 0, 1] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        write_name(&mut bytes, name);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&INTERNET.to_be_bytes());
        write_size(&mut bytes);
        bytes
    }

    /// What two requests have in common that have the same answer.
    pub fn key(&self) -> Vec<u8> {
        let mut key = self.question.to_ascii_lowercase();
        key.push(u8::from(self.size.is_some()));
        key
    }

    /// Bytes that the client takes over UDP.
    pub fn limit(&self) -> usize {
        let asked = self.size.map_or(SHORT, usize::from);
        asked.clamp(SHORT, LONG)
    }

    /// The answer's bytes. What is longer than `limit` is cut off: the client then asks over TCP.
    pub fn answer(&self, answer: &Answer, limit: usize) -> Vec<u8> {
        let whole = self.encode(answer, false);
        if whole.len() <= limit {
            return whole;
        }
        let short = Answer {
            records: Vec::new(),
            additional: Vec::new(),
            ..answer.clone()
        };
        self.encode(&short, true)
    }

    /// An answer that only says how it went.
    pub fn refuse(&self, code: Code) -> Vec<u8> {
        let answer = Answer {
            code,
            records: Vec::new(),
            additional: Vec::new(),
            authority: None,
        };
        self.encode(&answer, false)
    }

    fn encode(&self, answer: &Answer, is_cut: bool) -> Vec<u8> {
        let own = answer.authority.is_some() || !answer.records.is_empty();
        let flags = 0x8080
            | u16::from(own) << 10
            | u16::from(is_cut) << 9
            | u16::from(self.recursion) << 8
            | answer.code as u16;
        let count = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(SHORT);
        for word in [
            self.id,
            flags,
            1,
            count(answer.records.len()),
            u16::from(answer.authority.is_some()),
            count(answer.additional.len()) + u16::from(self.size.is_some()),
        ] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(&self.question);
        for record in answer.records.iter().chain(&answer.authority) {
            self.write(&mut bytes, record);
        }
        for record in &answer.additional {
            self.write(&mut bytes, record);
        }
        if self.size.is_some() {
            write_size(&mut bytes);
        }
        bytes
    }

    fn write(&self, bytes: &mut Vec<u8>, record: &Record) {
        if record.name == self.name {
            bytes.extend_from_slice(&QUESTION.to_be_bytes());
        } else {
            write_name(bytes, &record.name);
        }
        let mut data = Vec::new();
        let kind = match &record.data {
            Data::Address(IpAddr::V4(address)) => {
                data.extend_from_slice(&address.octets());
                kind::A
            }
            Data::Address(IpAddr::V6(address)) => {
                data.extend_from_slice(&address.octets());
                kind::AAAA
            }
            Data::Alias(name) => {
                write_name(&mut data, name);
                kind::CNAME
            }
            Data::Pointer(name) => {
                write_name(&mut data, name);
                kind::PTR
            }
            Data::Service { port, target } => {
                // Priority and weight: all alike.
                data.extend_from_slice(&[0, 0, 0, 100]);
                data.extend_from_slice(&port.to_be_bytes());
                write_name(&mut data, target);
                kind::SRV
            }
            Data::Authority => {
                write_name(&mut data, &format!("ns.dns.{}", record.name));
                write_name(&mut data, &format!("hostmaster.{}", record.name));
                // Serial, refresh, retry, expire, and how long "there is none" is good.
                for number in [1, 7200, 1800, 86400, record.ttl] {
                    data.extend_from_slice(&number.to_be_bytes());
                }
                kind::SOA
            }
        };
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&INTERNET.to_be_bytes());
        bytes.extend_from_slice(&record.ttl.to_be_bytes());
        let length = u16::try_from(data.len()).expect("a few names are short");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&data);
    }
}

/// Answers a request that is no question.
pub fn refuse(id: u16, code: Code) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes[2..4].copy_from_slice(&(0x8080 | code as u16).to_be_bytes());
    bytes
}

/// Says that this side understands EDNS, and how long its messages are.
fn write_size(bytes: &mut Vec<u8>) {
    bytes.push(0);
    bytes.extend_from_slice(&kind::OPT.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(LONG).expect("a short length").to_be_bytes());
    bytes.extend_from_slice(&[0; 6]);
}

fn write_name(bytes: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        bytes.push(u8::try_from(label.len()).expect("at most 63"));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::reply::Reply, *};

    fn asked(name: &str, kind: u16) -> Query {
        Query::parse(&Query::ask(7, name, kind)).expect("a question")
    }

    #[test]
    fn questions_are_understood_in_any_case() {
        let query = asked("Web.Default.SVC", kind::A);
        assert_eq!(
            (query.name.as_str(), query.kind, query.id),
            ("web.default.svc", kind::A, 7)
        );
        assert_eq!(query.limit(), LONG);
        // The answer carries the question as it came.
        let answer = query.refuse(Code::NoName);
        assert!(
            answer.windows(4).any(|bytes| bytes == b"\x03Web"),
            "{answer:?}"
        );
        assert_eq!(Query::parse(&[0; 5]), Err(Unasked::Noise));
        let mut broken = Query::ask(7, "a", kind::A);
        broken.truncate(HEADER + 2);
        assert_eq!(
            Query::parse(&broken),
            Err(Unasked::Refused(7, Code::Malformed))
        );
    }

    #[test]
    fn answers_are_understood_again() {
        let query = asked("a.b", kind::A);
        let records = vec![
            Record {
                name: "a.b".into(),
                ttl: 30,
                data: Data::Alias("c.d".into()),
            },
            Record {
                name: "c.d".into(),
                ttl: 5,
                data: Data::Address([10, 0, 0, 1].into()),
            },
        ];
        let answer = Answer {
            code: Code::Fine,
            records: records.clone(),
            additional: Vec::new(),
            authority: None,
        };
        let bytes = query.answer(&answer, LONG);
        let reply = Reply::parse(&bytes, &Query::ask(7, "a.b", kind::A)).expect("an answer");
        assert_eq!((reply.code, reply.ttl, reply.is_cut), (0, Some(5), false));
        assert_eq!(reply.records, records);
        assert_eq!(Reply::parse(&bytes, &Query::ask(8, "a.b", kind::A)), None);
        assert_eq!(Reply::parse(&bytes, &Query::ask(7, "a.c", kind::A)), None);
        let cut = query.answer(&answer, 20);
        let reply = Reply::parse(&cut, &Query::ask(7, "a.b", kind::A)).expect("an answer");
        assert!(reply.is_cut && reply.records.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(Query::parse(&bytes));
            drop(Reply::parse(&bytes, &bytes));
        }
    }
}
