//! What the decisions read and write. The kernel programs have it over maps, tests over vectors.

use crate::{
    address::Address,
    affinity::{AffinityEntry, AffinityKey},
    backend::Backend,
    choice::{Load, Place},
    client,
    flow::Bucket,
    masquerade, open,
    outcome::Outcome,
    parse::Packet,
    quoted, reply,
    rewrite::Rewrite,
    service::{ServiceEntry, ServiceKey},
};

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came out of a pod of this node, or of a process on the node itself.
    Pod,
    /// It came in at the uplink.
    Uplink,
    /// Another node sent it here, where its backend is.
    Tunnel,
}

/// How a hook wants packets to be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Hook(pub u32);

impl Hook {
    /// It sees what comes out of pods.
    pub const POD: Self = Self(0);
    /// It sees what comes in at the uplink.
    pub const UPLINK: Self = Self(1);
    /// The same, but it forwards only what leaves the node again, and must not touch any other flow.
    pub const TRANSIT: Self = Self(3);
    /// It sees what other nodes send here as clients beyond the cluster sent it to them.
    pub const TUNNEL: Self = Self(5);
    /// It sees what processes on the node itself send, on its way out of the node's stack.
    pub const NODE: Self = Self(8);

    /// Where it sees packets.
    #[inline(always)]
    pub const fn origin(self) -> Origin {
        if self.0 & 1 == 0 {
            Origin::Pod
        } else if self.is_tunnel() {
            Origin::Tunnel
        } else {
            Origin::Uplink
        }
    }

    /// Whether it sees packets at the uplink.
    #[inline(always)]
    pub const fn is_uplink(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it sees what other nodes send here.
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        self.0 & 4 != 0
    }

    /// Whether it sees what processes on the node itself send.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether it forwards only what leaves the node again.
    #[inline(always)]
    pub const fn is_transit_only(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The maps as one family's decisions see them.
pub trait Tables<A: Address> {
    /// A bucket of a flow table.
    type Bucket: Bucket<A>;

    /// Stirred into every hash.
    fn seed(&self) -> u64;
    /// Nanoseconds of the monotonic clock, in whole jiffies.
    fn now(&self) -> u64;
    /// The address that source NAT gives; zero if there is none.
    fn node_address(&self) -> A;
    /// The bucket of the flow table that a hash leads to.
    fn flows(&self, hash: u64) -> Option<Self::Bucket>;
    /// A bucket of the source NAT table.
    fn source_nat(&self, bucket: u32) -> Option<Self::Bucket>;
    /// The service behind an address and port.
    fn service(&self, key: &ServiceKey<A>) -> Option<&ServiceEntry>;
    /// A backend id in the choice map.
    fn choice(&self, place: Place) -> Option<u32>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// Of [`crate::choice::ALL`] new flows of a service, how many are to leave its preferred backends.
    fn away(&self, service: u32) -> u32;
    /// Whether what pods send beyond the cluster leaves with the node's address.
    #[inline(always)]
    fn masquerades(&self) -> bool {
        false
    }
    /// [`crate::network::kind`] of the network that an address is in; 0 if none is known.
    #[inline(always)]
    fn network(&self, _address: A) -> u32 {
        0
    }
    /// The cookie of the node's own network namespace.
    #[inline(always)]
    fn node_netns(&self) -> u64 {
        0
    }
    /// The address of the pod whose network namespace has a cookie; zero if there is none.
    #[inline(always)]
    fn client(&self, _netns: u64) -> A {
        A::default()
    }
    /// How busy a backend is.
    fn load(&self, backend: u32) -> Option<Load>;
    /// Counts a connection that begins.
    fn add_connection(&self, backend: u32);
    /// Whether a client is in a set of source ranges.
    fn is_in_ranges(&self, set: u32, client: A) -> bool;
    /// Which backend a client had last.
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry>;
    /// Notes which backend a client has; nothing happens where there is no room.
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry);
}

/// The stages of a decision, each of which looks at one bucket. Kernel programs make each a function that the verifier
/// looks at once, not once for every way that leads to it.
pub trait Stages<A: Address>: Tables<A> + Sized {
    /// [`client::in_flows`].
    #[inline(always)]
    fn client_in_flows(&self, packet: &Packet<A>, hash: u64, hook: Hook) -> Outcome {
        client::in_flows(packet, hash, hook, self)
    }

    /// [`client::in_source_nat`].
    #[inline(always)]
    fn client_in_source_nat(
        &self,
        packet: &Packet<A>,
        hash: u64,
        hook: Hook,
        second: bool,
    ) -> Outcome {
        client::in_source_nat(packet, hash, hook, second, self)
    }

    /// [`reply::from_flows`].
    #[inline(always)]
    fn reply_from_flows(
        &self,
        packet: &Packet<A>,
        hook: Hook,
        rewrite: &mut Rewrite<A>,
    ) -> Outcome {
        reply::from_flows(packet, hook, self, rewrite)
    }

    /// [`reply::from_source_nat`].
    #[inline(always)]
    fn reply_from_source_nat(&self, packet: &Packet<A>, rewrite: &mut Rewrite<A>) -> Outcome {
        reply::from_source_nat(packet, self, rewrite)
    }

    /// [`quoted::by_port`].
    #[inline(always)]
    fn quoted_by_port(&self, about: &Packet<A>, rewrite: &mut Rewrite<A>) -> Outcome {
        quoted::by_port(about, self, rewrite)
    }

    /// [`quoted::in_source_nat`].
    #[inline(always)]
    fn quoted_in_source_nat(
        &self,
        about: &Packet<A>,
        hash: u64,
        rewrite: &mut Rewrite<A>,
    ) -> Outcome {
        quoted::in_source_nat(about, hash, self, rewrite)
    }

    /// [`quoted::in_flows`].
    #[inline(always)]
    fn quoted_in_flows(&self, about: &Packet<A>, hash: u64, rewrite: &mut Rewrite<A>) -> Outcome {
        quoted::in_flows(about, hash, self, rewrite)
    }

    /// [`quoted::reply`].
    #[inline(always)]
    fn quoted_reply(&self, about: &Packet<A>, rewrite: &mut Rewrite<A>) -> Outcome {
        quoted::reply(about, self, rewrite)
    }

    /// [`open::choose_for`].
    #[inline(always)]
    fn choose(&self, packet: &Packet<A>, hash: u64, hook: Hook) -> Outcome {
        open::choose_for(packet, hash, hook, self)
    }

    /// [`masquerade::in_source_nat`].
    #[inline(always)]
    fn world(&self, packet: &Packet<A>, hash: u64) -> Outcome {
        masquerade::in_source_nat(packet, hash, self)
    }

    /// [`open::give_slot`].
    #[inline(always)]
    fn give_slot(&self, packet: &Packet<A>, hash: u64, backend: u32, leaves: u32) -> Outcome {
        open::give_slot(packet, hash, backend, leaves, self)
    }

    /// [`open::give_port`].
    #[inline(always)]
    fn give_port(
        &self,
        packet: &Packet<A>,
        hash: u64,
        backend: u32,
        leaves: u32,
        attempt: u32,
    ) -> Outcome {
        open::give_port(packet, hash, backend, leaves, attempt, self)
    }
}
