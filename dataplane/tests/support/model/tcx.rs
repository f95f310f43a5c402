//! What the model does as the tcx programs.

use super::*;

impl Model {
    pub(super) fn tcx(&self, frame: &mut Vec<u8>, hook: Hook) -> i32 {
        match frame.as_slice().u16(field::ETHER_TYPE).map(Be16) {
            Some(ETHER_V4) => {
                let hook = self.arrival::<V4>(frame, hook);
                self.tcx_family::<V4>(frame, hook)
            }
            Some(ETHER_V6) => {
                let hook = self.arrival::<V6>(frame, hook);
                self.tcx_family::<V6>(frame, hook)
            }
            _ => TC_PASS,
        }
    }

    /// Takes off the outer header that another node may have given a packet.
    fn arrival<A: Family>(&self, frame: &mut Vec<u8>, hook: Hook) -> Hook
    where
        for<'a> &'a Self: Stages<A>,
    {
        if hook != Hook::UPLINK || !A::is_outer(frame.as_slice()) {
            return hook;
        }
        let Some((from, to)) = A::ends(frame.as_slice()) else {
            return hook;
        };
        let kind = portolan_abi::tables::Tables::<A>::network(&self, from);
        let is_nodes = kind & network::kind::NODE != 0;
        let header = A::OVERHEAD as usize;
        // The kernel leaves no packet without an IP header, the least of which are as long as the outer ones.
        if to != A::node_address(self.config()) || !is_nodes || frame.len() < NETWORK + 2 * header {
            return hook;
        }
        frame.drain(NETWORK..NETWORK + header);
        self.event(Event::Decapsulated.index());
        Hook::TUNNEL
    }

    fn tcx_family<A: Family>(&self, frame: &mut Vec<u8>, hook: Hook) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        if let Some(ends) = A::ends(frame.as_slice()) {
            if hook == Hook::POD && !self.may_send::<A>(ends) {
                self.dropped(DropReason::SpoofedSource.index());
                return TC_DROP;
            }
            if !martian::may_arrive(ends, hook) {
                self.dropped(DropReason::Martian.index());
                return TC_DROP;
            }
        }
        let packet = match self.read::<A>(frame) {
            Read::Packet(packet) => packet,
            Read::Error(packet, error) => return self.tcx_error(frame, (&packet, &error), hook),
            Read::Follows => {
                self.event(Event::FragmentUnknown.index());
                return self.pass::<A>(frame, hook);
            }
            Read::Foreign => return self.pass::<A>(frame, hook),
        };
        let mut rewrite = Rewrite::default();
        let outcome = route(&packet, hook, &self, &mut rewrite);
        match outcome.action() {
            Action::Forward => self.to_backend(frame, &packet, (outcome, hook), rewrite),
            Action::Reply => {
                if let Some(backend) = self.backend(outcome.number()) {
                    self.forwarded(backend, &packet);
                }
                self.to_client(frame, &packet, &rewrite, (outcome, hook))
            }
            Action::Refuse => {
                self.dropped(outcome.reason());
                if !refusal::is_answerable(&packet) {
                    return TC_DROP;
                }
                if !answer(frame, &packet) {
                    self.dropped(DropReason::RefusalFailed.index());
                    return TC_DROP;
                }
                self.count(outcome.number(), |count| count.refused += 1);
                if hook.is_node() {
                    return to_node(frame);
                }
                TC_REDIRECT
            }
            Action::Drop => {
                self.dropped(outcome.reason());
                TC_DROP
            }
            _ if hook.is_node() => self.pass::<A>(frame, hook),
            Action::Pass | Action::Unknown | Action::Rechoose => {
                match A::pod(&self.tables, packet.destination) {
                    Some(pod) if !packet.is_expired() => {
                        put_head(frame, &packet, &Rewrite::unchanged(&packet), 1);
                        to_pod(frame, [pod.pod_mac, pod.host_mac])
                    }
                    None if hook == Hook::POD && !packet.is_expired() => self.leave(frame, &packet),
                    _ => TC_PASS,
                }
            }
        }
    }

    /// Leaves a packet to the stack. Runs of the node's own program are at the uplink, never at the loopback interface.
    fn pass<A: Family>(&self, frame: &[u8], hook: Hook) -> i32 {
        if hook.is_node() && A::ends(frame).is_some_and(|ends| !martian::may_leave(ends)) {
            self.dropped(DropReason::Martian.index());
            return TC_DROP;
        }
        TC_PASS
    }

    /// What a pod sends beyond the cluster.
    fn leave<A: Family>(&self, frame: &mut [u8], packet: &Packet<A>) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        if !portolan_abi::tables::Tables::<A>::masquerades(&self) {
            return TC_PASS;
        }
        let outcome = masquerade(packet, &self);
        match outcome.action() {
            Action::Forward => {
                let rewrite = Rewrite {
                    source: A::node_address(self.config()),
                    source_port: outcome.port(),
                    ..Rewrite::unchanged(packet)
                };
                let delta = [rewrite.addresses(packet), rewrite.ports(packet)];
                change(frame, packet, &rewrite, 1, delta);
                TC_REDIRECT
            }
            Action::Drop => {
                self.dropped(outcome.reason());
                TC_DROP
            }
            _ => TC_PASS,
        }
    }

    /// Sends a packet as it is to the node of its backend.
    fn encapsulate<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet<A>,
        backend: &Backend,
    ) -> i32 {
        let mtu = self.config().uplink_mtu;
        assert!(packet.length + A::OVERHEAD <= mtu, "no packet is so long");
        self.put_outer(frame, packet, backend);
        TC_REDIRECT
    }

    pub(super) fn put_outer<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet<A>,
        backend: &Backend,
    ) {
        let ends = (A::node_address(self.config()), A::from_words(backend.node));
        let outer = A::bytes(A::outer(ends.0, ends.1, packet.length));
        frame.splice(NETWORK..NETWORK, outer);
        self.event(Event::Encapsulated.index());
    }

    /// Reads what a frame holds. What takes more to read is read at once, as it comes to the same.
    pub(super) fn read<A: Family>(&self, frame: &[u8]) -> Read<A>
    where
        for<'a> &'a Self: Stages<A>,
    {
        let (mut header, mut packet, mut fragment) =
            (Ip::default(), Packet::default(), Fragment::default());
        let seed = self.config().seed;
        let kind = ip::read(frame, seed, &mut header, &mut packet, &mut fragment);
        let noted = &mut self.fragments.borrow_mut()[fragment.place() as usize];
        match kind {
            kind::PACKET => {
                if fragment.tag != 0 {
                    *noted = fragment.note(&packet, self.now.get());
                }
                Read::Packet(packet)
            }
            kind::FOLLOWS if fragment.recall(*noted, &mut packet, self.now.get()) => {
                Read::Packet(packet)
            }
            kind::FOLLOWS => Read::Follows,
            kind::MESSAGE => {
                let mut error = IcmpError::default();
                if icmp::read(frame, &packet, &mut header, &mut error).is_some() {
                    return Read::Error(packet, error);
                }
                let echoes = portolan_abi::tables::Tables::<A>::masquerades(&self);
                match echo::read(frame, &mut packet) {
                    Some(()) if echoes => Read::Packet(packet),
                    _ => Read::Foreign,
                }
            }
            _ => Read::Foreign,
        }
    }

    /// Tells the sender of a packet that it has been over as many routers as it may.
    pub(super) fn expire<A: Family>(&self, frame: &mut Vec<u8>, packet: &Packet<A>) -> i32 {
        self.dropped(DropReason::HopsExhausted.index());
        let mut answer = [0; refusal::LONGEST];
        let node = A::node_address(self.config());
        if refusal::expired(frame.as_slice(), packet, node, &mut answer).is_none() {
            return TC_DROP;
        }
        *frame = answer[..A::UNREACHABLE].to_vec();
        TC_REDIRECT
    }

    /// An ICMP error, if it is one about a packet of a flow's.
    fn tcx_error<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        (packet, error): (&Packet<A>, &IcmpError<A>),
        hook: Hook,
    ) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        let mut rewrite = Rewrite::default();
        let outcome = quoted::find(&error.about, &self, &mut rewrite);
        if !matches!(outcome.action(), Action::Forward | Action::Reply) {
            return self.pass::<A>(frame, hook);
        }
        let backend = self.backend(outcome.number());
        if let Some(backend) = backend
            && outcome.action() == Action::Forward
            && backend.delivery == delivery::DIRECT
            && hook.is_uplink()
        {
            return self.encapsulate(frame, packet, backend);
        }
        let mut edits = Edits::default();
        error.edit(&rewrite, &mut edits);
        change_error(frame, error, &edits);
        self.event(Event::ErrorTranslated.index());
        match backend {
            Some(backend) if outcome.action() == Action::Forward => {
                self.deliver(frame, backend, (outcome, hook))
            }
            _ => self.give_back(frame, rewrite.destination, (outcome, hook)),
        }
    }

    fn may_send<A: Family>(&self, (source, destination): (A, A)) -> bool {
        let interface = self.interface.get();
        let entry = self.tables.senders.get(sender::place(interface) as usize);
        sender::may_send(entry, interface, source, destination, |address| {
            A::pod(&self.tables, address).map_or(0, |pod| pod.interface)
        })
    }

    fn to_backend<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet<A>,
        (outcome, hook): (Outcome, Hook),
        mut rewrite: Rewrite<A>,
    ) -> i32
    where
        for<'a> &'a Self: Stages<A>,
    {
        let Some(backend) = self.backend(outcome.number()) else {
            return TC_PASS;
        };
        self.opened(outcome, backend);
        let routers = u8::from(backend.delivery != delivery::STACK && !hook.is_node());
        if routers != 0 && packet.is_expired() {
            return self.expire(frame, packet);
        }
        self.forwarded(backend, packet);
        if backend.delivery == delivery::DIRECT && hook.is_uplink() {
            return self.encapsulate(frame, packet, backend);
        }
        rewrite.to_backend(
            packet,
            backend,
            outcome.port(),
            A::node_address(self.config()),
        );
        change(
            frame,
            packet,
            &rewrite,
            routers,
            [rewrite.addresses(packet), rewrite.ports(packet)],
        );
        self.deliver(frame, backend, (outcome, hook))
    }

    fn deliver(
        &self,
        frame: &mut [u8],
        backend: &Backend,
        (outcome, hook): (Outcome, Hook),
    ) -> i32 {
        match backend.delivery {
            delivery::PEER => to_pod(frame, [backend.pod_mac, backend.host_mac]),
            way if delivery::leaves(way) && self.config().uplink != 0 => TC_REDIRECT,
            delivery::STACK if hook.is_node() || outcome.port().0 != 0 => to_node(frame),
            _ => TC_PASS,
        }
    }

    fn to_client<A: Family>(
        &self,
        frame: &mut Vec<u8>,
        packet: &Packet<A>,
        rewrite: &Rewrite<A>,
        (outcome, hook): (Outcome, Hook),
    ) -> i32 {
        let routers = u8::from(!outcome.is_to_node() && !hook.is_node());
        if routers != 0 && packet.is_expired() {
            return self.expire(frame, packet);
        }
        let delta = [rewrite.addresses(packet), rewrite.ports(packet)];
        change(frame, packet, rewrite, routers, delta);
        self.give_back(frame, rewrite.destination, (outcome, hook))
    }

    fn give_back<A: Family>(
        &self,
        frame: &mut [u8],
        client: A,
        (outcome, hook): (Outcome, Hook),
    ) -> i32 {
        if outcome.is_to_node() {
            return to_node(frame);
        }
        if hook.is_node() && !outcome.takes_port() {
            return TC_PASS;
        }
        match A::pod(&self.tables, client) {
            Some(pod) => to_pod(frame, [pod.pod_mac, pod.host_mac]),
            None if self.config().uplink != 0 => TC_REDIRECT,
            None => TC_PASS,
        }
    }
}
