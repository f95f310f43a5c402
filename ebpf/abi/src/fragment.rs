//! Fragments. Only a datagram's first has ports; they are noted by what all its fragments have in common, and those that
//! follow are routed as if they had them. One that comes before the first is left to the node's stack and counted.

use crate::{address::Address, assert_layout, bytes::Be16, hash::mix, ip::Ip, parse::Packet};

/// How many datagrams are noted; a power of two. One that falls on another's place takes it.
pub const PLACES: u32 = 8_192;

/// For how many ticks of about a second fragments may follow the first: what IP allows for reassembly (RFC 8200).
const LIFETIME: u64 = 60;

/// A datagram's place: both words tell whose it is, so that a reader who meets a writer sees that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Noted {
    /// The datagram's [`Fragment::tag`].
    pub tag: u64,
    /// Its ports, the low bits of its tag, and when it was noted.
    pub ports: u64,
}

assert_layout!(Noted, size = 16, align = 8, fields = [u64, u64]);

/// Which datagram a packet is a part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// What all of a datagram's fragments have in common, as a number; 0 for a whole packet.
    pub tag: u64,
}

impl Fragment {
    /// That of a packet with such a header.
    #[inline(always)]
    pub fn new<A: Address>(seed: u64, ip: &Ip<A>) -> Self {
        let (from, to) = (ip.source.words(), ip.destination.words());
        let ends = mix(mix(mix(mix(seed, from[0]), from[1]), to[0]), to[1]);
        let tag = mix(ends, u64::from(ip.id) << 8 | u64::from(ip.protocol));
        Self { tag: tag | 1 }
    }

    /// The datagram's place in the map.
    #[inline(always)]
    pub const fn place(self) -> u32 {
        (self.tag >> 32) as u32 & (PLACES - 1)
    }

    /// What is noted of a first fragment.
    #[inline(always)]
    pub const fn note<A: Copy>(self, packet: &Packet<A>, now: u64) -> Noted {
        let ports = packet.source_port.0 as u64 | (packet.destination_port.0 as u64) << 16;
        Noted {
            tag: self.tag,
            ports: ports | (self.tag & 0xff_ffff) << 32 | (now >> 30) << 56,
        }
    }

    /// Gives a fragment the ports that its datagram's first had; whether they are known.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "each port is sixteen bits")]
    pub fn recall<A>(self, noted: Noted, packet: &mut Packet<A>, now: u64) -> bool {
        let age = (now >> 30).wrapping_sub(noted.ports >> 56) & 0xff;
        let is_it =
            noted.tag == self.tag && (noted.ports >> 32) & 0xff_ffff == self.tag & 0xff_ffff;
        packet.source_port = Be16(noted.ports as u16);
        packet.destination_port = Be16((noted.ports >> 16) as u16);
        is_it && age <= LIFETIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::V4;

    fn packet(port: u16) -> Packet<V4> {
        Packet {
            source_port: Be16::new(port),
            destination_port: Be16::new(80),
            ..Packet::default()
        }
    }

    fn fragment(id: u32) -> Fragment {
        let ip = Ip {
            source: V4::from_octets([10, 0, 0, 1]),
            destination: V4::from_octets([10, 0, 0, 2]),
            protocol: crate::protocol::UDP,
            id,
            ..Ip::default()
        };
        Fragment::new(7, &ip)
    }

    #[test]
    fn fragments_get_the_ports_of_their_own_first() {
        let second = 1 << 30;
        let datagram = fragment(42);
        let noted = datagram.note(&packet(1_000), 100 * second);
        let mut later = Packet::default();
        assert!(datagram.recall(noted, &mut later, 101 * second));
        assert_eq!(later, packet(1_000));
        let other = fragment(43);
        assert!(!other.recall(noted, &mut later, 101 * second));
        assert!(
            !datagram.recall(noted, &mut later, 170 * second),
            "what was noted has aged"
        );
        let torn = Noted {
            ports: other.note(&packet(9), 100 * second).ports,
            ..noted
        };
        assert!(!datagram.recall(torn, &mut later, 100 * second));
    }
}
