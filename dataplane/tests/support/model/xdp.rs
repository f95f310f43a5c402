//! What the model does as the XDP program.

use portolan_abi::open::is_transit;

use super::*;

impl Model {
    pub(super) fn xdp(&self, frame: &mut Vec<u8>) -> i32 {
        if self.config().flags & config::flags::XDP_TRANSMIT == 0 {
            return XDP_PASS;
        }
        match frame.as_slice().u16(field::ETHER_TYPE).map(Be16) {
            Some(ETHER_V4) => self.xdp_family::<V4>(frame),
            Some(ETHER_V6) => self.xdp_family::<V6>(frame),
            _ => XDP_PASS,
        }
    }

    fn xdp_family<A: Family>(&self, frame: &mut Vec<u8>) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        if let Some(ends) = A::ends(frame.as_slice())
            && !martian::may_arrive(ends, Hook::TRANSIT)
        {
            self.dropped(DropReason::Martian.index());
            return XDP_DROP;
        }
        let packet = match self.read::<A>(frame) {
            // Only tcx tells echoes from other messages.
            Read::Packet(packet) if packet.protocol == protocol::ICMP => return XDP_PASS,
            Read::Packet(packet) => packet,
            Read::Error(_, error) => return self.xdp_error(frame, &error),
            Read::Follows | Read::Foreign => return XDP_PASS,
        };
        if refusal::is_partial(&packet) {
            return XDP_PASS;
        }
        let mut rewrite = Rewrite::default();
        let outcome = route(&packet, Hook::TRANSIT, &self, &mut rewrite);
        match outcome.action() {
            Action::Forward => {
                let Some(backend) = self.backend(outcome.number()) else {
                    return XDP_PASS;
                };
                self.opened(outcome, backend);
                if packet.is_expired() {
                    return self.xdp_expire(frame, &packet);
                }
                if backend.delivery == delivery::DIRECT {
                    return self.xdp_encapsulate(frame, &packet, backend);
                }
                rewrite.to_backend(
                    &packet,
                    backend,
                    outcome.port(),
                    A::node_address(self.config()),
                );
                self.transmit(frame, &packet, &rewrite, outcome.number())
            }
            Action::Reply if A::pod(&self.tables, rewrite.destination).is_none() => {
                if packet.is_expired() {
                    return self.xdp_expire(frame, &packet);
                }
                self.transmit(frame, &packet, &rewrite, outcome.number())
            }
            Action::Refuse if packet.protocol == protocol::SCTP => XDP_PASS,
            Action::Refuse if refusal::is_answerable(&packet) => {
                self.count(outcome.number(), |count| count.refused += 1);
                self.dropped(outcome.reason());
                self.event(Event::XdpRefused.index());
                answer(frame, &packet);
                XDP_TX
            }
            Action::Refuse | Action::Drop => {
                self.dropped(outcome.reason());
                XDP_DROP
            }
            _ => XDP_PASS,
        }
    }

    /// Sends a packet as it is to the node of its backend.
    fn xdp_encapsulate<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet<A>,
        backend: &Backend,
    ) -> i32 {
        let node = A::from_words(backend.node);
        let Some(hop) = (self.next_hop)(node.ip()) else {
            return XDP_PASS;
        };
        self.put_outer(frame, packet, backend);
        put(frame, 0, &hop.concat());
        self.forwarded(backend, packet);
        self.event(Event::XdpForwarded.index());
        XDP_TX
    }

    /// Tells the sender of a packet that it has been over as many routers as it may.
    fn xdp_expire<A: Family>(&self, frame: &mut Vec<u8>, packet: &Packet<A>) -> i32 {
        match self.expire(frame, packet) {
            TC_DROP => XDP_DROP,
            _ => XDP_TX,
        }
    }

    /// An ICMP error, if it is one about a packet of a flow's and leaves the node again.
    fn xdp_error<A: Family>(&self, frame: &mut [u8], error: &IcmpError<A>) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        let mut rewrite = Rewrite::default();
        let outcome = quoted::find(&error.about, &self, &mut rewrite);
        let leaves = match outcome.action() {
            Action::Forward => self.backend(outcome.number()).is_some_and(|backend| {
                let source_nat = outcome.port() != Be16(0);
                backend.delivery != delivery::DIRECT && is_transit(backend.delivery, source_nat)
            }),
            Action::Reply => A::pod(&self.tables, rewrite.destination).is_none(),
            _ => false,
        };
        let Some(hop) = (self.next_hop)(rewrite.destination.ip()).filter(|_| leaves) else {
            return XDP_PASS;
        };
        let mut edits = Edits::default();
        error.edit(&rewrite, &mut edits);
        change_error(frame, error, &edits);
        put(frame, 0, &hop.concat());
        self.event(Event::ErrorTranslated.index());
        self.event(Event::XdpForwarded.index());
        XDP_TX
    }

    fn transmit<A: Family>(
        &self,
        frame: &mut [u8],
        packet: &Packet<A>,
        rewrite: &Rewrite<A>,
        backend: u32,
    ) -> i32 {
        let Some(hop) = (self.next_hop)(rewrite.destination.ip()) else {
            return XDP_PASS;
        };
        let whole = rewrite.addresses(packet).and(rewrite.ports(packet));
        change(
            frame,
            packet,
            rewrite,
            1,
            [rewrite.addresses(packet), checksum::Difference::NONE],
        );
        if packet.protocol != protocol::SCTP && packet.transport != 0 {
            // By one difference, not two as the helpers for socket buffers do it: zero has two forms.
            let at = packet.transport + sum_offset(packet.protocol);
            let sum = if packet.protocol == protocol::TCP {
                checksum::apply(packet.checksum, whole)
            } else {
                checksum::apply_udp(packet.checksum, whole)
            };
            put(frame, at, &sum.0.to_ne_bytes());
        }
        put(frame, 0, &hop.concat());
        if let Some(backend) = self.backend(backend) {
            self.forwarded(backend, packet);
        }
        self.event(Event::XdpForwarded.index());
        XDP_TX
    }
}
