//! The packets of the microbenchmarks: how they begin, and how they must end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_abi::{
    address::{V4, V6},
    bytes::{Be16, Be32},
    checksum::{fold, pseudo_header, sum},
    drive::{CLIENT_PORT, CLIENT_V4, Drive, FRAME_BYTES, SERVICE_V4, client_of, service_of},
    parse::{ETHER_V4, ETHER_V6, Packet, ParseAddress, field},
    protocol, tcp,
};

/// The port that clients knock at.
pub const SERVICE_PORT: u16 = 80;
/// The port that backends listen on.
pub const BACKEND_PORT: u16 = 8_080;
/// How many hosts the backends are on.
const HOSTS: u32 = 1_000;

/// A family and a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub v6: bool,
    pub protocol: u8,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self {
            v6: false,
            protocol: protocol::TCP,
        },
        Self {
            v6: false,
            protocol: protocol::UDP,
        },
        Self {
            v6: true,
            protocol: protocol::TCP,
        },
        Self {
            v6: true,
            protocol: protocol::UDP,
        },
    ];

    /// As benchmarks are named by it.
    pub fn name(self) -> &'static str {
        match (self.v6, self.protocol == protocol::TCP) {
            (false, true) => "ipv4_tcp",
            (false, false) => "ipv4_udp",
            (true, true) => "ipv6_tcp",
            (true, false) => "ipv6_udp",
        }
    }
}

/// The first client's address.
pub fn client(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from(0xfd00_0064_u128 << 96).into()
    } else {
        Ipv4Addr::from(CLIENT_V4).into()
    }
}

/// A service's address.
pub fn service(kind: Kind, number: u32) -> IpAddr {
    if kind.v6 {
        Ipv6Addr::from(0xfd00_0080 << 96 | u128::from(number)).into()
    } else {
        Ipv4Addr::from(SERVICE_V4 | number).into()
    }
}

/// The address of a service's backend.
pub fn backend(kind: Kind, service: u32) -> IpAddr {
    let host = 1 + service % HOSTS;
    if kind.v6 {
        Ipv6Addr::from(0xfd00_0001 << 96 | u128::from(host)).into()
    } else {
        Ipv4Addr::from(0x0a01_0000 | host).into()
    }
}

/// The addresses of all hosts.
pub fn hosts(kind: Kind) -> impl Iterator<Item = IpAddr> {
    (0..HOSTS).map(move |service| backend(kind, service))
}

/// What the generator is told to make packets of a kind, with TCP's flags.
pub fn drive(kind: Kind, flags: u8, services: u32, flows: u32, address_bits: u32) -> Drive {
    let mut frame = [0_u8; FRAME_BYTES];
    let transport = if kind.v6 {
        field::V6_TRANSPORT
    } else {
        field::V4_VERSION + 20
    };
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let ether = if kind.v6 { ETHER_V6 } else { ETHER_V4 };
    put16(&mut frame, field::ETHER_TYPE, ether);
    let length = u16::try_from(FRAME_BYTES - transport).expect("a short packet");
    if kind.v6 {
        frame[field::V6_VERSION] = 0x60;
        put16(&mut frame, field::V6_LENGTH, Be16::new(length));
        frame[field::V6_NEXT] = kind.protocol;
        frame[field::V6_HOP_LIMIT] = 64;
        // Client and service differ in their last four bytes, which the generator fills in.
        frame[field::V6_SOURCE..][..4].copy_from_slice(&0xfd00_0064_u32.to_be_bytes());
        frame[field::V6_DESTINATION..][..4].copy_from_slice(&0xfd00_0080_u32.to_be_bytes());
    } else {
        frame[field::V4_VERSION] = 0x45;
        put16(&mut frame, field::V4_LENGTH, Be16::new(20 + length));
        frame[field::V4_TTL] = 64;
        frame[field::V4_PROTOCOL] = kind.protocol;
    }
    put16(
        &mut frame,
        transport + field::DESTINATION_PORT,
        Be16::new(SERVICE_PORT),
    );
    if kind.protocol == protocol::TCP {
        frame[transport + field::TCP_OFFSET] = 5 << 4;
        frame[transport + field::TCP_FLAGS] = flags;
    } else {
        put16(&mut frame, transport + field::UDP_LENGTH, Be16::new(length));
    }
    let addresses = if kind.v6 {
        sum(&frame[field::V6_SOURCE..field::V6_TRANSPORT])
    } else {
        0
    };
    let pseudo = pseudo_header(V4::default(), V4::default(), kind.protocol, length);
    let covered = addresses + pseudo + sum(&frame[transport..]);
    let mut words = [0; FRAME_BYTES / 8];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    Drive {
        random: 0x2545_f491_4f6c_dd1d,
        made: 0,
        next: 0,
        flow_mask: flows - 1,
        services,
        in_order: 0,
        address_bits,
        reserved: 0,
        header_sum: u32::from(fold(sum(&frame[field::V4_VERSION..][..20]))),
        transport_sum: u32::from(fold(covered)),
        frame: words,
    }
}

fn put16(frame: &mut [u8], at: usize, value: Be16) {
    frame[at..at + 2].copy_from_slice(&value.0.to_ne_bytes());
}

/// Flags of a packet within a connection, and of one that opens it.
pub const WITHIN: u8 = tcp::ACK;
pub const OPENING: u8 = tcp::SYN;

/// Why a packet is not what the dataplane must make of one of the generator's.
pub fn check(kind: Kind, drive: &Drive, bytes: &[u8], to: [u8; 6]) -> Result<(), String> {
    if bytes.len() != FRAME_BYTES {
        return Err(format!("{} bytes came out", bytes.len()));
    }
    if bytes[..6] != to {
        return Err(format!("it went to {:02x?}", &bytes[..6]));
    }
    let (flow, destination) = if kind.v6 {
        let packet = parsed::<V6>(bytes)?;
        let source = Ipv6Addr::from(packet.source.octets());
        let low = u32::try_from(u128::from(source) & 0xffff_ffff).expect("32 bits");
        let flow = flow_of(low, packet.source_port, drive.address_bits)?;
        (flow, IpAddr::from(packet.destination.octets()))
    } else {
        if fold(sum(&bytes[field::V4_VERSION..][..20])) != 0xffff {
            return Err("the header's checksum is wrong".into());
        }
        let packet = parsed::<V4>(bytes)?;
        let low = Be32::get(packet.source.0) ^ CLIENT_V4;
        let flow = flow_of(low, packet.source_port, drive.address_bits)?;
        (flow, IpAddr::from(packet.destination.octets()))
    };
    let expected = backend(kind, service_of(flow, drive.services));
    if destination != expected {
        return Err(format!("it went to {destination}, not to {expected}"));
    }
    Ok(())
}

fn flow_of(low: u32, port: Be16, address_bits: u32) -> Result<u32, String> {
    let above = port.get().wrapping_sub(CLIENT_PORT);
    let flow = low | u32::from(above) << address_bits;
    if client_of(flow, address_bits) == (low, port.get()) {
        Ok(flow)
    } else {
        Err("its source is no client".into())
    }
}

fn parsed<A: ParseAddress>(bytes: &[u8]) -> Result<Packet<A>, String> {
    let packet = A::parse(bytes).map_err(|error| format!("it does not parse: {error:?}"))?;
    if packet.destination_port != Be16::new(BACKEND_PORT) {
        return Err("its port was not rewritten".into());
    }
    let pseudo = pseudo_header(
        packet.source,
        packet.destination,
        packet.protocol,
        packet.transport_length,
    );
    if fold(pseudo + sum(&bytes[packet.transport..])) != 0xffff {
        return Err("the transport's checksum is wrong".into());
    }
    Ok(packet)
}
