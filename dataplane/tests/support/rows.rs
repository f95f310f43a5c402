//! Rows of packet tables: steps of a packet in, a verdict and a packet out.

use std::net::IpAddr;

use portolan_abi::{protocol, tcp};

use super::{
    bench::Bench,
    packet::{Packet, dump, wrong_checksum},
};

/// In a row, the port that source NAT has given: known once a packet with it has come out.
pub const GIVEN: u16 = 0;

/// A packet, or the bytes of one that no [`Packet`] describes.
#[derive(Clone, Debug)]
pub enum Frame {
    /// What it says.
    Packet(Packet),
    /// What it is.
    Bytes(Vec<u8>),
    /// An ICMP error about a packet.
    Error(Quoting),
    /// One of a packet's fragments: how many bytes each has, and which it is.
    Fragment(Packet, usize, usize),
}

/// An ICMP error about a packet.
#[derive(Clone, Debug)]
pub struct Quoting {
    /// Its ends, as those of a packet.
    pub outer: Packet,
    /// Type and code.
    pub kind: [u8; 2],
    /// What it says beside them.
    pub rest: [u8; 4],
    /// The packet that it is about.
    pub about: Packet,
    /// How many bytes of that packet's transport it quotes.
    pub quoted: usize,
}

impl Quoting {
    /// As it leaves a program: other ends, about another packet.
    #[must_use]
    pub fn leaving(&self, macs: [[u8; 6]; 2], ends: [IpAddr; 2], about: Packet) -> Self {
        let mut outer = self.outer.leaving(macs, (ends[0], 1), (ends[1], 1));
        // Errors are brought on their way, not routed.
        outer.hops = self.outer.hops;
        Self {
            outer,
            about,
            ..self.clone()
        }
    }

    fn bytes(&self, given: u16) -> Vec<u8> {
        let about = resolve(&self.about, given);
        let mut quoted = about.network(about.protocol, &about.transport());
        let header = if about.source.0.is_ipv4() {
            20 + about.options.len()
        } else {
            40
        };
        quoted.truncate(header + self.quoted);
        icmp_error(&self.outer, self.kind, self.rest, &quoted)
    }
}

fn resolve(packet: &Packet, given: u16) -> Packet {
    let mut packet = packet.clone();
    for end in [&mut packet.source, &mut packet.destination] {
        if end.1 == GIVEN {
            end.1 = given;
        }
    }
    packet
}

impl From<Quoting> for Frame {
    fn from(error: Quoting) -> Self {
        Self::Error(error)
    }
}

impl From<Packet> for Frame {
    fn from(packet: Packet) -> Self {
        Self::Packet(packet)
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl Frame {
    /// With other flags of TCP.
    #[must_use]
    pub fn flagged(&self, flags: u8) -> Self {
        match self {
            Self::Packet(packet) => packet.flagged(flags).into(),
            Self::Bytes(_) | Self::Error(_) | Self::Fragment(..) => self.clone(),
        }
    }

    fn bytes(&self, given: u16) -> Vec<u8> {
        match self {
            Self::Packet(packet) => resolve(packet, given).bytes(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Error(error) => error.bytes(given),
            Self::Fragment(packet, size, index) => {
                resolve(packet, given).fragments(*size).swap_remove(*index)
            }
        }
    }

    fn gives_port(&self) -> bool {
        matches!(self, Self::Packet(packet) | Self::Fragment(packet, _, 0) if packet.source.1 == GIVEN)
    }
}

/// One packet through one program.
#[derive(Clone, Debug)]
pub struct Step {
    /// The program's name.
    pub program: &'static str,
    /// What goes in.
    pub frame: Frame,
    /// What the program must return.
    pub verdict: i32,
    /// What must come out.
    pub expected: Frame,
}

impl Step {
    /// A packet that comes out changed.
    pub fn new(
        program: &'static str,
        packet: impl Into<Frame>,
        verdict: i32,
        expected: Frame,
    ) -> Self {
        Self {
            program,
            frame: packet.into(),
            verdict,
            expected,
        }
    }

    /// A packet that comes out as it went in.
    pub fn unchanged(program: &'static str, packet: impl Into<Frame>, verdict: i32) -> Self {
        let frame = packet.into();
        Self::new(program, frame.clone(), verdict, frame)
    }
}

/// Steps that build on each other.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// In their order.
    pub steps: Vec<Step>,
}

impl Row {
    /// What goes wrong, if anything does.
    pub fn failure(&self, bench: &Bench) -> Option<String> {
        let mut given = GIVEN;
        for (number, step) in (1..).zip(&self.steps) {
            let sent = step.frame.bytes(given);
            let interface = bench.interface_of(step.program, &sent);
            let run = bench
                .dataplane
                .run(step.program, &sent, interface)
                .expect("the program runs");
            if step.expected.gives_port() && given == GIVEN {
                let at = if sent[12..14] == [8, 0] {
                    14 + usize::from(sent[14] & 0xf) * 4
                } else if sent[20] == 44 {
                    62
                } else {
                    54
                };
                given = u16::from_be_bytes([run.packet[at], run.packet[at + 1]]);
                if given < portolan_abi::source_nat::FIRST_PORT {
                    return Some(format!(
                        "{}, step {number}: port {given} is none of source NAT's\n    {}",
                        self.name,
                        dump(&run.packet)
                    ));
                }
            }
            let expected = step.expected.bytes(given);
            let wrong = match step.frame {
                Frame::Packet(_) | Frame::Error(_) | Frame::Fragment(..) => {
                    wrong_checksum(&run.packet)
                }
                Frame::Bytes(_) => None,
            };
            if run.verdict != step.verdict || run.packet != expected || wrong.is_some() {
                return Some(format!(
                    "{}, step {number} ({}): verdict {} for {}, {}\n  sent\n    {}\n  got\n    {}\n  not\n    {}",
                    self.name,
                    step.program,
                    run.verdict,
                    step.verdict,
                    wrong.unwrap_or_else(|| "checksums right".to_owned()),
                    dump(&sent),
                    dump(&run.packet),
                    dump(&expected),
                ));
            }
        }
        None
    }
}

/// What a client gets whom nobody serves: a reset, or an ICMP error that says "port unreachable".
pub fn refusal(packet: &Packet) -> Frame {
    let mut answer = Packet {
        macs: [packet.macs[1], packet.macs[0]],
        id: 0,
        hops: 64,
        options: Vec::new(),
        extensions: Vec::new(),
        payload: Vec::new(),
        ..packet.reversed()
    };
    if packet.protocol == protocol::TCP {
        let occupied = packet.payload.len()
            + usize::from(packet.flags & tcp::SYN != 0)
            + usize::from(packet.flags & tcp::FIN != 0);
        let occupied = u32::try_from(occupied).expect("a packet's length");
        let acknowledged = packet.flags & tcp::ACK != 0;
        answer.flags = if acknowledged {
            tcp::RST
        } else {
            tcp::RST | tcp::ACK
        };
        answer.numbers = if acknowledged {
            [packet.numbers[1], 0]
        } else {
            [0, packet.numbers[0] + occupied]
        };
        answer.window = 0;
        return answer.into();
    }
    if packet.protocol == protocol::SCTP {
        let is_init = packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        let tag = packet.numbers[usize::from(!is_init)];
        answer.flags = tcp::RST;
        answer.numbers = [0, tag];
        answer.reflects = !is_init;
        answer.bare = true;
        return answer.into();
    }
    let is_v4 = packet.source.0.is_ipv4();
    let kind: [u8; 2] = if is_v4 { [3, 3] } else { [1, 4] };
    icmp_error(&answer, kind, [0; 4], &quote(packet)).into()
}

/// What the sender of a packet gets that has been over as many routers as it may.
pub fn expired(packet: &Packet, node: IpAddr) -> Frame {
    let answer = Packet {
        macs: [packet.macs[1], packet.macs[0]],
        source: (node, 1),
        destination: packet.source,
        id: 0,
        hops: 64,
        options: Vec::new(),
        extensions: Vec::new(),
        ..packet.clone()
    };
    let kind: [u8; 2] = if node.is_ipv4() { [11, 0] } else { [3, 0] };
    icmp_error(&answer, kind, [0; 4], &quote(packet)).into()
}

/// What an ICMP error of ours quotes of a packet: its header as if it had just been sent, and the transport's first
/// eight bytes.
pub fn quote(packet: &Packet) -> Vec<u8> {
    let sent = Packet {
        id: 0,
        hops: 64,
        options: Vec::new(),
        extensions: Vec::new(),
        ..packet.clone()
    };
    let mut quoted = sent.network(sent.protocol, &sent.transport());
    quoted.truncate(if packet.source.0.is_ipv4() { 28 } else { 48 });
    quoted
}

/// The frame of an ICMP error between the ends of `outer`.
pub fn icmp_error(outer: &Packet, kind: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut message = kind.to_vec();
    message.extend([0, 0]);
    message.extend(rest);
    message.extend(quoted);
    outer.around_icmp(message)
}
