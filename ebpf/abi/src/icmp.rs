//! ICMP errors about packets that a flow has rewritten (RFC 792, RFC 4443): each goes to whoever sent the packet, about
//! the packet as it was sent (RFC 5508). Path MTU discovery lives by this.
//!
//! ```text
//!   client -> frontend  ==>  client (or node) -> backend           the packet
//!   client <- X : "client -> frontend"  <==  X : "client (or node) -> backend"   an error about it
//! ```
//!
//! [`crate::quoted`] finds the flow.

use crate::{
    address::Address,
    bytes::Be16,
    checksum::{self, Difference},
    ip::{Ip, ReadIp},
    parse::{Bytes, NETWORK, Packet, field},
    protocol,
    rewrite::Rewrite,
};

const ICMP_HEADER: usize = 8;
/// What every error quotes of the transport at least.
const LEAST: usize = 8;

/// Unreachable, source quench, time exceeded, parameter problem.
const V4_ERRORS: u32 = 1 << 3 | 1 << 4 | 1 << 11 | 1 << 12;
/// Unreachable, packet too big, time exceeded, parameter problem.
const V6_ERRORS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// An ICMP error about a packet of a transport that services have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcmpError<A> {
    /// Who sent it: the quoted packet's destination, or a router on its way.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// The quoted packet turned around. Its `transport` is where the quoted transport header begins in the frame.
    pub about: Packet<A>,
    /// Whether the transport's checksum is quoted, too.
    pub has_checksum: bool,
    /// IPv4's header checksum.
    pub header_checksum: Be16,
    /// The quoted IPv4 header's checksum.
    pub quoted_checksum: Be16,
    /// The error's own checksum.
    pub checksum: Be16,
    /// Where the ICMP header begins in the frame.
    pub icmp: usize,
}

/// What is to be written into the frame of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits<A> {
    /// Source and destination.
    pub ends: [A; 2],
    /// IPv4's header checksum.
    pub header_checksum: Be16,
    /// The error's own checksum.
    pub checksum: Be16,
    /// The quoted packet's source and destination.
    pub quoted_ends: [A; 2],
    /// The quoted IPv4 header's checksum.
    pub quoted_checksum: Be16,
    /// The quoted packet's source and destination port.
    pub quoted_ports: [Be16; 2],
    /// The quoted transport's checksum.
    pub transport_checksum: Be16,
}

/// Reads the error that a packet's ICMP message is; nothing if it is none about a packet of a flow's.
// Not as a value: what would be undefined in it without an error, the verifier refuses to see copied.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a place among headers")]
pub fn read<A: ReadIp, B: Bytes>(
    bytes: B,
    packet: &Packet<A>,
    quoted: &mut Ip<A>,
    error: &mut IcmpError<A>,
) -> Option<()> {
    let icmp = packet.transport;
    let errors = if A::IS_V6 { V6_ERRORS } else { V4_ERRORS };
    if !is_one_of(bytes.u8(icmp)?, errors) {
        return None;
    }
    A::read_ip(bytes, icmp + ICMP_HEADER, quoted)?;
    // What follows the first fragment has no ports.
    if quoted.follows() {
        return None;
    }
    let end = NETWORK as u32 + packet.length;
    let at = quoted.carries;
    let checksum_at = match quoted.protocol {
        protocol::TCP => field::TCP_CHECKSUM,
        protocol::UDP => field::UDP_CHECKSUM,
        // Its checksum is none that can follow the change without the whole packet.
        protocol::SCTP => usize::from(u16::MAX),
        _ => return None,
    };
    if (at + LEAST) as u32 > end {
        return None;
    }
    let about = &mut error.about;
    error.has_checksum = (at + checksum_at + 2) as u32 <= end;
    about.checksum = if error.has_checksum {
        Be16(bytes.u16(at + checksum_at)?)
    } else {
        Be16(0)
    };
    about.source = quoted.destination;
    about.destination = quoted.source;
    about.source_port = Be16(bytes.u16(at + field::DESTINATION_PORT)?);
    about.destination_port = Be16(bytes.u16(at + field::SOURCE_PORT)?);
    about.protocol = quoted.protocol;
    about.transport = at;
    about.hops = packet.hops;
    error.source = packet.source;
    error.destination = packet.destination;
    error.header_checksum = if A::IS_V6 {
        Be16(0)
    } else {
        Be16(bytes.u16(field::V4_CHECKSUM)?)
    };
    error.quoted_checksum = quoted.checksum;
    error.checksum = Be16(bytes.u16(icmp + 2)?);
    error.icmp = icmp;
    Some(())
}

#[inline(always)]
const fn is_one_of(kind: u8, kinds: u32) -> bool {
    kind < 32 && kinds >> kind & 1 != 0
}

impl<A: Address> IcmpError<A> {
    /// Whether it was the quoted packet's destination that sent the error, not a router.
    #[inline(always)]
    fn is_from_end(&self) -> bool {
        self.source == self.about.source
    }

    /// What the error becomes, given what the quoted packet turned around becomes. A router's address is kept.
    #[inline(always)]
    pub fn edit(&self, rewrite: &Rewrite<A>, edits: &mut Edits<A>) {
        let about = &self.about;
        let source = if self.is_from_end() {
            rewrite.source
        } else {
            self.source
        };
        let ends = Difference::NONE
            .address(self.source, source)
            .address(self.destination, rewrite.destination);
        let addresses = rewrite.addresses(about);
        let ports = rewrite.ports(about);
        let quoted_checksum = checksum::apply(self.quoted_checksum, addresses);
        let whole = addresses.and(ports);
        let transport_checksum = if about.protocol == protocol::UDP {
            checksum::apply_udp(about.checksum, whole)
        } else {
            checksum::apply(about.checksum, whole)
        };
        let mut difference = addresses.and(ports);
        if self.has_checksum {
            difference = difference.port(about.checksum, transport_checksum);
        }
        // IPv4 quotes a header with a checksum of its own; IPv6's errors sum up their own addresses, too.
        difference = if A::IS_V6 {
            difference.and(ends)
        } else {
            difference.port(self.quoted_checksum, quoted_checksum)
        };
        edits.ends = [source, rewrite.destination];
        edits.header_checksum = checksum::apply(self.header_checksum, ends);
        edits.checksum = checksum::apply(self.checksum, difference);
        edits.quoted_ends = [rewrite.destination, rewrite.source];
        edits.quoted_checksum = quoted_checksum;
        edits.quoted_ports = [rewrite.destination_port, rewrite.source_port];
        edits.transport_checksum = transport_checksum;
    }
}

/// Where in the frame of an error each of its [`Edits`] belongs.
pub mod place {
    use super::{ICMP_HEADER, IcmpError, field};
    use crate::{address::Address, parse::NETWORK, protocol};

    /// Source and destination.
    #[inline(always)]
    pub const fn ends<A: Address>() -> usize {
        NETWORK + of_addresses::<A>()
    }

    #[inline(always)]
    const fn of_addresses<A: Address>() -> usize {
        if A::IS_V6 { 8 } else { 12 }
    }

    /// The error's own checksum.
    #[inline(always)]
    pub const fn checksum<A>(error: &IcmpError<A>) -> usize {
        error.icmp + 2
    }

    /// The quoted packet's source and destination.
    #[inline(always)]
    pub const fn quoted_ends<A: Address>(error: &IcmpError<A>) -> usize {
        error.icmp + ICMP_HEADER + of_addresses::<A>()
    }

    /// The quoted IPv4 header's checksum.
    #[inline(always)]
    pub const fn quoted_checksum<A>(error: &IcmpError<A>) -> usize {
        error.icmp + ICMP_HEADER + 10
    }

    /// The quoted transport's checksum.
    #[inline(always)]
    pub const fn transport_checksum<A>(error: &IcmpError<A>) -> usize {
        let at = if error.about.protocol == protocol::TCP {
            field::TCP_CHECKSUM
        } else {
            field::UDP_CHECKSUM
        };
        error.about.transport + at
    }
}
