//! Packets as bytes: made from what they say, with every checksum whole, and checked the same way.

use std::net::IpAddr;

use portolan_abi::{
    address::{Address, V4, V6},
    checksum, protocol, tcp,
};

/// An Ethernet frame with an IP packet of TCP or UDP in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The destination's MAC address, then the source's.
    pub macs: [[u8; 6]; 2],
    /// Tags between the MAC addresses and the frame's type: type and contents of each.
    pub tags: Vec<[u16; 2]>,
    /// Who sends, from which port.
    pub source: (IpAddr, u16),
    /// To whom, to which port.
    pub destination: (IpAddr, u16),
    /// The IANA number.
    pub protocol: u8,
    /// IPv4's identification, IPv6's flow label.
    pub id: u16,
    /// TCP's flags.
    pub flags: u8,
    /// TCP's sequence and acknowledgement numbers.
    pub numbers: [u32; 2],
    /// TCP's window.
    pub window: u16,
    /// IPv4's time to live, IPv6's hop limit.
    pub hops: u8,
    /// IPv4's options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6's extension headers by their numbers, eight bytes each.
    pub extensions: Vec<u8>,
    /// What the transport carries.
    pub payload: Vec<u8>,
    /// An ABORT of SCTP whose tag is that of the packet that it answers.
    pub reflects: bool,
    /// A chunk of SCTP without a value.
    pub bare: bool,
    /// UDP over IPv4 may go without a checksum.
    pub unchecked: bool,
}

impl Packet {
    /// A packet with a short payload, as a host sends it.
    pub fn new(protocol: u8, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            macs: [[2, 0, 0, 0, 0, 0xaa], [2, 0, 0, 0, 0, 0xbb]],
            tags: Vec::new(),
            source,
            destination,
            protocol,
            id: 0x1234,
            flags: portolan_abi::tcp::SYN,
            numbers: [1_000, 2_000],
            window: 4_096,
            hops: 63,
            options: Vec::new(),
            extensions: Vec::new(),
            payload: b"portolan".to_vec(),
            reflects: false,
            bare: false,
            unchecked: false,
        }
    }

    /// The way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ..self.clone()
        }
    }

    /// As it leaves a program: other MAC addresses, other ends.
    #[must_use]
    pub fn leaving(
        &self,
        macs: [[u8; 6]; 2],
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Self {
        Self {
            macs,
            source,
            destination,
            ..self.routed()
        }
    }

    /// As a router passes it on.
    #[must_use]
    pub fn routed(&self) -> Self {
        Self {
            hops: self.hops - 1,
            ..self.clone()
        }
    }

    /// The frames of its fragments, `size` bytes of the transport in each but the last: a multiple of eight.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let transport = self.transport();
        let last = (transport.len() - 1) / size;
        let frame = |(index, part): (usize, &[u8])| {
            let more = u16::from(index != last);
            let offset = short(index * size / 8);
            let mut frame = self.macs.concat();
            if self.source.0.is_ipv4() {
                frame.extend([0x08, 0x00]);
                let at = frame.len();
                frame.extend(self.network(self.protocol, part));
                let bits = (more << 13 | offset).to_be_bytes();
                frame[at + 6..at + 8].copy_from_slice(&bits);
                frame[at + 10..at + 12].fill(0);
                let header = 20 + self.options.len();
                let sum = !checksum::fold(checksum::sum(&frame[at..at + header]));
                frame[at + 10..at + 12].copy_from_slice(&sum.to_ne_bytes());
            } else {
                frame.extend([0x86, 0xdd]);
                let bits = (offset << 3 | more).to_be_bytes();
                let id = u32::from(self.id).to_be_bytes();
                let header = [self.protocol, 0, bits[0], bits[1]];
                let inner = [&header, id.as_slice(), part].concat();
                frame.extend(self.network(44, &inner));
            }
            frame
        };
        transport.chunks(size).enumerate().map(frame).collect()
    }

    /// With TCP's flags.
    #[must_use]
    pub fn flagged(&self, flags: u8) -> Self {
        Self {
            flags,
            ..self.clone()
        }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame: Vec<u8> = self.macs.concat();
        for tag in &self.tags {
            frame.extend(tag.iter().flat_map(|word| word.to_be_bytes()));
        }
        frame.extend(if self.source.0.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        frame.extend(self.network(self.protocol, &self.transport()));
        frame
    }

    /// A frame between the same ends with an ICMP message, whose checksum is computed.
    pub fn around_icmp(&self, mut message: Vec<u8>) -> Vec<u8> {
        let is_v4 = self.source.0.is_ipv4();
        let number = if is_v4 {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        message[2..4].fill(0);
        let sum = if is_v4 {
            !checksum::fold(checksum::sum(&message))
        } else {
            transport_sum(self.source.0, self.destination.0, number, &message)
        };
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        let mut frame: Vec<u8> = self.macs.concat();
        frame.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(self.network(number, &message));
        frame
    }

    /// An IP packet from and to the same addresses around something else.
    pub fn network(&self, protocol: u8, inner: &[u8]) -> Vec<u8> {
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = u8::try_from(5 + self.options.len() / 4).expect("at most 15 words");
                let length = short(usize::from(words) * 4 + inner.len()).to_be_bytes();
                let id = self.id.to_be_bytes();
                let mut header = vec![
                    0x40 | words,
                    0,
                    length[0],
                    length[1],
                    id[0],
                    id[1],
                    0x40,
                    0,
                    self.hops,
                    protocol,
                    0,
                    0,
                ];
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = !checksum::fold(checksum::sum(&header));
                header[10..12].copy_from_slice(&sum.to_ne_bytes());
                header.extend(inner);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extended = Vec::new();
                let mut next = protocol;
                for kind in self.extensions.iter().rev() {
                    // Padding of six bytes.
                    let header = [next, 0, 1, 4, 0, 0, 0, 0];
                    extended.splice(0..0, header);
                    next = *kind;
                }
                let length = short(extended.len() + inner.len()).to_be_bytes();
                let id = self.id.to_be_bytes();
                let mut header = vec![0x60, 0, id[0], id[1], length[0], length[1], next, self.hops];
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(extended);
                header.extend(inner);
                header
            }
            _ => panic!("a packet has addresses of one family"),
        }
    }

    /// The transport's header and data.
    pub fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.1.to_be_bytes());
        bytes.extend(self.destination.1.to_be_bytes());
        let at = match self.protocol {
            protocol::TCP => {
                bytes.extend(self.numbers.iter().flat_map(|number| number.to_be_bytes()));
                bytes.extend([0x50, self.flags]);
                bytes.extend(self.window.to_be_bytes());
                bytes.extend([0; 4]);
                16
            }
            protocol::UDP => {
                bytes.extend(short(8 + self.payload.len()).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            protocol::SCTP => return self.sctp(bytes),
            other => panic!("no transport has the number {other}"),
        };
        bytes.extend(&self.payload);
        if !self.unchecked {
            let sum = transport_sum(self.source.0, self.destination.0, self.protocol, &bytes);
            let sum = if sum == 0 && self.protocol == protocol::UDP {
                0xffff
            } else {
                sum
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        }
        bytes
    }
}

impl Packet {
    /// SCTP behind its ports: one chunk, whose kind TCP's flags say.
    fn sctp(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let has = |flags| self.flags & flags != 0;
        let kind = if has(tcp::RST) {
            6
        } else if has(tcp::SYN) {
            if has(tcp::ACK) { 2 } else { 1 }
        } else if has(tcp::FIN) {
            7
        } else {
            0
        };
        bytes.extend(self.numbers[1].to_be_bytes());
        bytes.extend([0; 4]);
        // The tag that an INIT asks for comes first.
        let value = [&self.numbers[0].to_be_bytes(), self.payload.as_slice()].concat();
        bytes.extend([kind, u8::from(self.reflects)]);
        let value = if self.bare { Vec::new() } else { value };
        bytes.extend(short(4 + value.len()).to_be_bytes());
        bytes.extend(value);
        let crc = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&crc);
        bytes
    }
}

/// RFC 9260, appendix A, as simply as can be.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                crc >> 1 ^ 0x82f6_3b78
            }
        })
    })
}

/// A length that a packet can have.
fn short(length: usize) -> u16 {
    u16::try_from(length).expect("a packet's length has sixteen bits")
}

/// What a transport's checksum is over bytes, or zero if they hold the right one.
pub fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let length = short(bytes.len());
    let pseudo = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => pseudo(
            v4(source.octets()),
            v4(destination.octets()),
            protocol,
            length,
        ),
        (IpAddr::V6(source), IpAddr::V6(destination)) => pseudo(
            v6(source.octets()),
            v6(destination.octets()),
            protocol,
            length,
        ),
        _ => panic!("a packet has addresses of one family"),
    };
    !checksum::fold(pseudo + checksum::sum(bytes))
}

fn pseudo<A: Address>(source: A, destination: A, protocol: u8, length: u16) -> u64 {
    checksum::pseudo_header(source, destination, protocol, length)
}

fn v4(octets: [u8; 4]) -> V4 {
    V4::from_octets(octets)
}

fn v6(octets: [u8; 16]) -> V6 {
    V6::from_octets(octets)
}

/// Where the network header of a frame begins, and its family's number in the frame.
fn network_of(frame: &[u8]) -> (usize, u16) {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes([frame[at], frame[at + 1]]);
        if !matches!(kind, 0x8100 | 0x88a8) {
            return (at + 2, kind);
        }
        at += 4;
    }
}

/// What is wrong with the checksums of a frame, computed anew over all of it.
pub fn wrong_checksum(frame: &[u8]) -> Option<String> {
    let (at, kind) = network_of(frame);
    wrong_in_network(&frame[at..], kind == 0x0800)
}

fn wrong_in_network(packet: &[u8], is_v4: bool) -> Option<String> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = if is_v4 {
        let header = usize::from(packet[0] & 0xf) * 4;
        let sum = !checksum::fold(checksum::sum(&packet[..header]));
        if sum != 0 {
            return Some(format!("IPv4's checksum is off by {sum:#06x}"));
        }
        if packet[6] & 0x3f != 0 || packet[7] != 0 {
            // The transport's checksum is over all fragments.
            return None;
        }
        let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
        (
            octets(12).into(),
            octets(16).into(),
            packet[9],
            &packet[header..length],
        )
    } else {
        let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes");
        let (mut next, mut header) = (packet[6], 40);
        while matches!(next, 0 | 60) {
            next = packet[header];
            header += (usize::from(packet[header + 1]) + 1) * 8;
        }
        (
            octets(8).into(),
            octets(24).into(),
            next,
            &packet[header..length],
        )
    };
    let sum = match protocol {
        protocol::UDP if transport[6..8] == [0, 0] => (!is_v4).then_some(0xffff)?,
        protocol::ICMP => !checksum::fold(checksum::sum(transport)),
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
            transport_sum(source, destination, protocol, transport)
        }
        protocol::SCTP => {
            let mut zeroed = transport.to_vec();
            zeroed[8..12].fill(0);
            u16::from(crc32c(&zeroed).to_le_bytes() != transport[8..12])
        }
        _ => 0,
    };
    (sum != 0).then(|| format!("the checksum of protocol {protocol} is off by {sum:#06x}"))
}

/// A frame for people who have to find out what is wrong with it.
pub fn dump(frame: &[u8]) -> String {
    let lines = frame.chunks(16).map(|line| {
        let bytes: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.concat()
    });
    lines.collect::<Vec<_>>().join("\n    ")
}
