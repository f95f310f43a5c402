//! The addresses and ports that a packet leaves with.

use crate::{
    address::Address,
    backend::Backend,
    bytes::Be16,
    checksum::{self, Difference},
    parse::Packet,
};

/// The addresses and ports that a packet leaves with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// Its source.
    pub source: A,
    /// Its destination.
    pub destination: A,
    /// Its source port.
    pub source_port: Be16,
    /// Its destination port.
    pub destination_port: Be16,
}

impl<A: Address> Rewrite<A> {
    /// What a packet has already.
    #[inline(always)]
    pub fn unchanged(packet: &Packet<A>) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
        }
    }

    /// A client's packet as its backend must see it; with a port, the source is the node.
    #[inline(always)]
    pub fn to_backend(
        &mut self,
        packet: &Packet<A>,
        backend: &Backend,
        port: Be16,
        node_address: A,
    ) {
        self.destination = A::from_words(backend.address);
        self.destination_port = backend.port;
        if port == Be16(0) {
            self.source = packet.source;
            self.source_port = packet.source_port;
        } else {
            self.source = node_address;
            self.source_port = port;
        }
    }

    /// What becomes of the word of an IPv4 header with time to live, protocol and checksum, as it lies in the packet, when
    /// the packet goes over so many routers, 0 or 1.
    #[inline(always)]
    pub fn head(&self, packet: &Packet<A>, word: u32, routers: u8) -> u32 {
        // The time to live stands in the word's first byte, so that one less is one less of the word.
        let passed = Difference::less(u16::from(routers));
        let difference = self.addresses(packet).and(passed);
        let checksum = checksum::apply(Be16((word >> 16) as u16), difference);
        (word & 0xffff).wrapping_sub(u32::from(routers)) & 0xffff | u32::from(checksum.0) << 16
    }

    /// What the change of addresses does to the checksums of IPv4 and of the transport.
    #[inline(always)]
    pub fn addresses(&self, packet: &Packet<A>) -> Difference {
        Difference::NONE
            .address(packet.source, self.source)
            .address(packet.destination, self.destination)
    }

    /// What the change of ports does to the checksum of the transport.
    #[inline(always)]
    pub fn ports(&self, packet: &Packet<A>) -> Difference {
        Difference::NONE
            .port(packet.source_port, self.source_port)
            .port(packet.destination_port, self.destination_port)
    }
}
