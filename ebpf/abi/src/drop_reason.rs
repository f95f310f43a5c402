//! Why packets were dropped, and what happened in the flow table: one enum each, from which the counters' indexes,
//! the words of the command line and the labels of metrics derive.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal, $description:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name {
            $(#[doc = $description] $variant,)+
        }

        impl $name {
            /// All of them, by index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many there are: the size of the map that counts them.
            #[expect(clippy::cast_possible_truncation, reason = "there are a handful")]
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The place of its counter.
            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }

            /// Its name in output and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, in a sentence.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $description,)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet went no further.
    DropReason {
        NoBackend = "no_backend", "No backend could take the flow: the client got a TCP reset or an ICMP port unreachable instead.";
        BackendGone = "backend_gone", "The flow's backend no longer exists: the client got a TCP reset instead.";
        NotExternal = "not_external", "A client beyond the node knocked at an address that only pods may use.";
        NoLocalBackend = "no_local_backend", "A client beyond the cluster knocked where the policy is Local and only other nodes have backends.";
        OutOfRange = "out_of_range", "A client knocked at a load balancer's address from outside of its source ranges.";
        PortsExhausted = "ports_exhausted", "Every port that source NAT could give to the flow belongs to a live flow.";
        NoNodeAddress = "no_node_address", "Source NAT was needed but the node has no address of the packet's family.";
        TableBusy = "table_busy", "Another CPU held the flow's bucket for too long, and the flow cannot do without a slot.";
        RewriteFailed = "rewrite_failed", "The kernel refused to change the packet after part of it had been changed.";
        HopsExhausted = "hops_exhausted", "A packet had been over as many routers as it may: its sender got an ICMP time exceeded instead.";
        SpoofedSource = "spoofed_source", "A pod sent with a source address that is not its own.";
        TunnelStranger = "tunnel_stranger", "Someone who is no node of the cluster sent a packet to the tunnel between the nodes.";
        TooBig = "too_big", "A packet did not fit into the uplink with its outer header: the client got an ICMP error that says how long it may be.";
        Martian = "martian", "A packet came over a wire, or was to leave by one, with a loopback address as its source or destination.";
        RefusalFailed = "refusal_failed", "A reset or an ICMP error could not be made from the packet.";
    }
}

reasons! {
    /// What happened to the flow table that an operator wants to know of.
    Event {
        EvictedUnconfirmed = "evicted_unconfirmed", "A full bucket gave the slot of a flow without replies to a new flow.";
        EvictedConfirmed = "evicted_confirmed", "A full bucket gave the slot of the longest idle live flow to a new flow.";
        ForwardedWithoutSlot = "forwarded_without_slot", "A packet was forwarded by hash alone because its bucket was busy.";
        SocketLeftToPackets = "socket_left_to_packets", "A socket had no room for another translation, or its service asks for the client's address: its packets are translated one by one.";
        Encapsulated = "encapsulated", "A client's packet was sent as it is to the node of its backend.";
        Decapsulated = "decapsulated", "A client's packet came from another node as the client had sent it.";
        XdpForwarded = "xdp_forwarded", "A packet was rewritten and sent out again by XDP.";
        ErrorTranslated = "error_translated", "An ICMP error about a packet of a flow was brought to whoever sent the packet.";
        FragmentUnknown = "fragment_unknown", "A fragment came before its datagram's first and was left to the node's stack.";
        XdpRefused = "xdp_refused", "A client was refused by XDP.";
        ReportLost = "report_lost", "A report of a watched packet found the ring buffer full: its reader is too slow.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn indexes_are_dense_and_names_unique() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(u32::try_from(index), Ok(reason.index()));
            assert!(reason.description().ends_with('.'));
        }
        for (index, event) in Event::ALL.iter().enumerate() {
            assert_eq!(u32::try_from(index), Ok(event.index()));
        }
    }
}
