//! Rows of packet tables: steps of a packet in, a verdict and a packet out.

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
            Self::Bytes(_) => self.clone(),
        }
    }

    fn bytes(&self, given: u16) -> Vec<u8> {
        match self {
            Self::Packet(packet) => {
                let mut packet = packet.clone();
                for end in [&mut packet.source, &mut packet.destination] {
                    if end.1 == GIVEN {
                        end.1 = given;
                    }
                }
                packet.bytes()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    fn gives_port(&self) -> bool {
        matches!(self, Self::Packet(packet) if packet.source.1 == GIVEN)
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
    pub fn new(program: &'static str, packet: Packet, verdict: i32, expected: Frame) -> Self {
        Self {
            program,
            frame: packet.into(),
            verdict,
            expected,
        }
    }

    /// A packet that comes out as it went in.
    pub fn unchanged(program: &'static str, packet: Packet, verdict: i32) -> Self {
        Self::new(program, packet.clone(), verdict, packet.into())
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
                Frame::Packet(_) => wrong_checksum(&run.packet),
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
    let is_v4 = packet.source.0.is_ipv4();
    let kind: [u8; 2] = if is_v4 { [3, 3] } else { [1, 4] };
    icmp_error(&answer, kind, [0; 4], &quote(packet)).into()
}

/// What an ICMP error of ours quotes of a packet: its header as if it had just been sent, and the transport's first
/// eight bytes.
pub fn quote(packet: &Packet) -> Vec<u8> {
    let sent = Packet {
        id: 0,
        hops: 64,
        options: Vec::new(),
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
