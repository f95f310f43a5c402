//! What the programs tell of single packets while somebody watches: entries of the ring buffer of reports.

use crate::{
    address::Address, assert_layout, bytes::Be16, outcome::Outcome, parse::Packet, rewrite::Rewrite,
};

/// What a report is about: bits of [`Report::about`] and of [`Watch::about`].
pub mod about {
    /// A packet that the watcher's filter chose.
    pub const PACKET: u32 = 1 << 0;
    /// A packet that opened a flow.
    pub const FLOW_OPENED: u32 = 1 << 1;
    /// A packet that ended a flow: a reset, or the second of its two FINs.
    pub const FLOW_ENDED: u32 = 1 << 2;
}

/// Which program reports.
pub mod program {
    /// `pod_egress`.
    pub const POD_EGRESS: u8 = 0;
    /// `uplink_ingress`.
    pub const UPLINK_INGRESS: u8 = 1;
    /// `xdp_uplink`.
    pub const XDP_UPLINK: u8 = 2;
    /// `node_egress`.
    pub const NODE_EGRESS: u8 = 3;
    /// The socket hooks: a call, not a packet.
    pub const SOCKET: u8 = 4;
}

/// The addresses and ports of a packet, in the words of [`Address::words`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    /// The source address.
    pub source: [u64; 2],
    /// The destination address.
    pub destination: [u64; 2],
    /// The source port.
    pub source_port: Be16,
    /// The destination port.
    pub destination_port: Be16,
    /// Zero.
    pub reserved: [u8; 4],
}

assert_layout!(
    Tuple,
    size = 40,
    align = 8,
    fields = [[u64; 2], [u64; 2], Be16, Be16, [u8; 4]]
);

/// What one program did with one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// [`Outcome`].
    pub outcome: u64,
    /// The packet as it came.
    pub before: Tuple,
    /// The packet as it left.
    pub after: Tuple,
    /// [`about`]: why this is reported.
    pub about: u32,
    /// What the program returned.
    pub verdict: i32,
    /// The interface that the packet came in by.
    pub interface: u32,
    /// The packet's length from the IP header on.
    pub length: u32,
    /// [`program`].
    pub program: u8,
    /// 4 or 6.
    pub family: u8,
    /// The IANA number.
    pub protocol: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

assert_layout!(
    Report,
    size = 120,
    align = 8,
    fields = [
        u64, u64, Tuple, Tuple, u32, i32, u32, u32, u8, u8, u8, u8, [u8; 4]
    ]
);

/// Which packets are wanted: what is zero matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// Two addresses, each of which must be among the four of a packet before and after.
    pub addresses: [[u64; 2]; 2],
    /// [`about`]: what is wanted.
    pub about: u32,
    /// A port that must be among the four of a packet before and after.
    pub port: Be16,
    /// The IANA number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

assert_layout!(
    Watch,
    size = 40,
    align = 8,
    fields = [[[u64; 2]; 2], u32, Be16, u8, u8]
);

impl Tuple {
    /// Becomes that of a packet as it came. In place, as a program's stack is short.
    #[inline(always)]
    pub fn set_before<A: Address>(&mut self, packet: &Packet<A>) {
        self.source = packet.source.words();
        self.destination = packet.destination.words();
        self.source_port = packet.source_port;
        self.destination_port = packet.destination_port;
        self.reserved = [0; 4];
    }

    /// Becomes that of a packet as it left. In place, as a program's stack is short.
    #[inline(always)]
    pub fn set_after<A: Address>(&mut self, rewrite: &Rewrite<A>) {
        self.source = rewrite.source.words();
        self.destination = rewrite.destination.words();
        self.source_port = rewrite.source_port;
        self.destination_port = rewrite.destination_port;
        self.reserved = [0; 4];
    }

    #[inline(always)]
    const fn has_address(&self, address: [u64; 2]) -> bool {
        is_same(self.source, address) || is_same(self.destination, address)
    }

    #[inline(always)]
    const fn has_port(&self, port: Be16) -> bool {
        self.source_port.0 == port.0 || self.destination_port.0 == port.0
    }
}

#[inline(always)]
const fn is_same(one: [u64; 2], other: [u64; 2]) -> bool {
    one[0] == other[0] && one[1] == other[1]
}

impl Watch {
    /// Why a packet is to be reported, by its report but for [`Report::about`]; 0 if it is not.
    #[inline(always)]
    pub const fn reasons(&self, report: &Report) -> u32 {
        let outcome = Outcome(report.outcome);
        let mut reasons = about::PACKET;
        if outcome.is_opened() {
            reasons |= about::FLOW_OPENED;
        }
        if outcome.is_ended() {
            reasons |= about::FLOW_ENDED;
        }
        reasons &= self.about;
        if reasons != 0 && self.matches(report) {
            reasons
        } else {
            0
        }
    }

    #[inline(always)]
    const fn matches(&self, report: &Report) -> bool {
        let (before, after) = (&report.before, &report.after);
        (self.protocol == 0 || self.protocol == report.protocol)
            && (self.port.0 == 0 || before.has_port(self.port) || after.has_port(self.port))
            && has_address(before, after, self.addresses[0])
            && has_address(before, after, self.addresses[1])
    }
}

#[inline(always)]
const fn has_address(before: &Tuple, after: &Tuple, address: [u64; 2]) -> bool {
    is_same(address, [0; 2]) || before.has_address(address) || after.has_address(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::V4, drop_reason::DropReason, protocol};

    fn packet() -> Packet<V4> {
        Packet {
            source: V4::from_octets([10, 0, 0, 1]),
            destination: V4::from_octets([10, 96, 0, 1]),
            source_port: Be16::new(40_000),
            destination_port: Be16::new(80),
            checksum: Be16(0),
            transport_length: 20,
            transport: 34,
            length: 40,
            protocol: protocol::TCP,
            tcp_flags: 0,
            hops: 64,
        }
    }

    fn rewrite() -> Rewrite<V4> {
        Rewrite {
            source: packet().source,
            destination: V4::from_octets([10, 0, 0, 2]),
            source_port: packet().source_port,
            destination_port: Be16::new(8_080),
        }
    }

    fn report(outcome: Outcome) -> Report {
        let mut report = Report {
            outcome: outcome.0,
            protocol: packet().protocol,
            ..Report::default()
        };
        report.before.set_before(&packet());
        report.after.set_after(&rewrite());
        report
    }

    fn address(last: [u8; 4]) -> [u64; 2] {
        V4::from_octets(last).words()
    }

    #[test]
    fn a_filter_matches_both_ends_before_and_after() {
        let forward = Outcome::forward(7, Be16(0));
        let reasons = |watch: Watch| watch.reasons(&report(forward));
        let all = Watch {
            about: about::PACKET,
            ..Watch::default()
        };
        assert_eq!(reasons(all), about::PACKET);
        for (address, port, protocol, wanted) in [
            (address([10, 0, 0, 1]), 0, 0, true),
            (address([10, 96, 0, 1]), 80, protocol::TCP, true),
            (address([10, 0, 0, 2]), 8_080, 0, true),
            (address([10, 0, 0, 3]), 0, 0, false),
            ([0; 2], 81, 0, false),
            ([0; 2], 0, protocol::UDP, false),
        ] {
            let watch = Watch {
                addresses: [address, [0; 2]],
                port: Be16::new(port),
                protocol,
                ..all
            };
            assert_eq!(reasons(watch) != 0, wanted, "{watch:?}");
        }
        let pair = Watch {
            addresses: [address([10, 0, 0, 1]), address([10, 0, 0, 3])],
            ..all
        };
        assert_eq!(reasons(pair), 0, "both addresses must be there");
    }

    #[test]
    fn flow_events_are_told_from_other_packets() {
        let watch = Watch {
            about: about::FLOW_OPENED | about::FLOW_ENDED,
            ..Watch::default()
        };
        let reasons = |outcome| watch.reasons(&report(outcome));
        let forward = Outcome::forward(7, Be16(0));
        assert_eq!(reasons(forward), 0);
        assert_eq!(reasons(forward.opened()), about::FLOW_OPENED);
        assert_eq!(reasons(forward.ended_if(true)), about::FLOW_ENDED);
        assert_eq!(reasons(Outcome::reply(7).ended_if(true)), about::FLOW_ENDED);
        assert_eq!(reasons(Outcome::drop(DropReason::NoBackend)), 0);
    }
}
