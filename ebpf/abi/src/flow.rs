//! The flow table's layout: an array of buckets, eight slots each, one slot a flow.
//!
//! A bucket is chosen by a hash of the client's address, port and protocol, so that the packets of the client and the
//! replies find the same slot. A slot is the client's and the frontend's addresses and one [`Meta`] word; for IPv4
//! that is 16 bytes, so that a bucket is two cache lines of four slots; for IPv6 a slot is a cache line of its own.
//!
//! The meta word says whether the slot is used. A writer holds the bucket's lock (a bit of slot 0's meta), clears the
//! victim's meta, writes the addresses, then publishes the new meta. A reader matches, then reads meta again.

use crate::{
    address::{Address, V4, V6},
    assert_layout,
    backend::MAX_BACKENDS,
    bytes::Be16,
    protocol,
};

/// Slots in a bucket.
pub const SLOTS: u32 = 8;

/// An IPv4 flow. The addresses are one word, so that they are read at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct SlotV4 {
    /// The client in the low half, the frontend in the high half.
    pub addresses: u64,
    /// [`Meta`].
    pub meta: u64,
}

/// An IPv6 flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct SlotV6 {
    /// [`Meta`].
    pub meta: u64,
    /// The client.
    pub client: V6,
    /// The frontend.
    pub frontend: V6,
    /// Zero.
    pub reserved: [u64; 3],
}

/// A value of the IPv4 flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct BucketV4 {
    /// Its slots.
    pub slots: [SlotV4; SLOTS as usize],
}

/// A value of the IPv6 flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct BucketV6 {
    /// Its slots.
    pub slots: [SlotV6; SLOTS as usize],
}

assert_layout!(SlotV4, size = 16, align = 16, fields = [u64, u64]);
assert_layout!(
    SlotV6,
    size = 64,
    align = 64,
    fields = [u64, V6, V6, [u64; 3]]
);
assert_layout!(BucketV4, size = 128, align = 128, fields = [[SlotV4; 8]]);
assert_layout!(BucketV6, size = 512, align = 64, fields = [[SlotV6; 8]]);

impl SlotV4 {
    /// The addresses word of a flow.
    #[inline(always)]
    pub const fn addresses(client: V4, frontend: V4) -> u64 {
        client.0.0 as u64 | (frontend.0.0 as u64) << 32
    }
}

/// How far a flow has come: four bits of its meta word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage(pub u8);

impl Stage {
    /// No flow.
    pub const EMPTY: Self = Self(0);
    /// TCP: only the client has been heard.
    pub const TCP_SYN: Self = Self(1);
    /// TCP: the backend has answered.
    pub const TCP_REPLIED: Self = Self(2);
    /// TCP: both are talking.
    pub const TCP_ESTABLISHED: Self = Self(3);
    /// TCP: the client has said its last word.
    pub const TCP_CLIENT_FIN: Self = Self(4);
    /// TCP: the backend has said its last word.
    pub const TCP_BACKEND_FIN: Self = Self(5);
    /// TCP: both have.
    pub const TCP_CLOSED: Self = Self(6);
    /// TCP: one of them has reset it.
    pub const TCP_RESET: Self = Self(7);
    /// UDP: only the client has been heard.
    pub const UDP_NEW: Self = Self(8);
    /// UDP: the backend has answered.
    pub const UDP_REPLIED: Self = Self(9);
    /// ICMP echo: only requests have been seen.
    pub const ECHO_NEW: Self = Self(10);
    /// ICMP echo: a request has been answered.
    pub const ECHO_REPLIED: Self = Self(11);
    /// SCTP: only the client has been heard.
    pub const SCTP_INIT: Self = Self(12);
    /// SCTP: the backend has answered.
    pub const SCTP_ESTABLISHED: Self = Self(13);
    /// SCTP: one end is shutting the association down.
    pub const SCTP_SHUTDOWN: Self = Self(14);
    /// SCTP: it is down, or was aborted.
    pub const SCTP_OVER: Self = Self(15);
    /// How many stages there are.
    pub const COUNT: u8 = 16;

    /// Whether the backend has been heard: such a flow is given up last.
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        self.is_in(Self::CONFIRMED)
    }

    /// Whether the flow is over and waits only for stragglers.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.is_in(Self::OVER)
    }

    /// Whether one end has said its last word, so that neither can be opening this connection any more.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.is_in(Self::CLOSING)
    }

    // Sets of stages as bits, and numbers by stage as fields of a word: one shift instead of a branch a stage. The
    // verifier follows every branch, in each of the eight slots of a bucket.
    const CONFIRMED: u64 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14;
    const OVER: u64 = 1 << 6 | 1 << 7 | 1 << 15;
    const CLOSING: u64 = 1 << 4 | 1 << 5 | 1 << 14 | Self::OVER;
    const SLOW: u64 = 1 << 3 | 1 << 13;
    /// Flows without a connection. After a rest the hash leads their next packet to the same backend again.
    const CONNECTIONLESS: u64 = 1 << 9 | 1 << 11;
    /// How many ticks without a packet are a rest.
    const REST: u64 = 16;
    const LIFETIMES: u64 = {
        let by_stage = [
            0, 60, 60, 120, 120, 120, 60, 10, 30, 120, 30, 30, 60, 120, 60, 10,
        ];
        let mut word = 0;
        let mut stage = 0;
        while stage < by_stage.len() {
            word |= (by_stage[stage] / 10) << (stage * 4);
            stage += 1;
        }
        word
    };

    /// Whether it is one of a set, which has a bit for each stage.
    #[inline(always)]
    pub const fn is_in(self, set: u64) -> bool {
        self.bit(set) != 0
    }

    #[inline(always)]
    const fn bit(self, set: u64) -> u64 {
        set >> (self.0 & 0xf) & 1
    }

    /// What giving up a flow of the stage would cost, `since` ticks after its last packet: nothing for no flow, then the
    /// order of [`crate::flow_table::Victim`]. A flow without a connection that rests is worth no more than one that
    /// waits for its first answer, which then is the younger and stays: its answer would find no way back.
    #[inline(always)]
    pub const fn worth(self, stale: u64, since: u64) -> u64 {
        let used = self.bit(!1);
        let live = used & !(self.bit(Self::OVER) | stale);
        let rests = self.bit(Self::CONNECTIONLESS) & (Self::REST.wrapping_sub(since) >> 63);
        used + live + (live & self.bit(Self::CONFIRMED) & !rests)
    }

    const TCP: u64 = 0xfe;
    const UDP: u64 = 1 << 8 | 1 << 9;
    const ECHO: u64 = 1 << 10 | 1 << 11;
    const SCTP: u64 = 0xf << 12;

    /// The stages of a protocol's flows, for [`Self::is_in`].
    #[inline(always)]
    pub const fn all_of(protocol: u8) -> u64 {
        match protocol {
            protocol::TCP => Self::TCP,
            protocol::UDP => Self::UDP,
            protocol::ICMP => Self::ECHO,
            protocol::SCTP => Self::SCTP,
            _ => 0,
        }
    }

    /// Whether a flow of the stage is one of a protocol.
    #[inline(always)]
    pub const fn is_of(self, protocol: u8) -> bool {
        self.is_in(Self::all_of(protocol))
    }

    /// The IANA number of the flow's protocol; 0 for an empty slot.
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        match self.0 {
            1..=7 => protocol::TCP,
            8..=9 => protocol::UDP,
            10..=11 => protocol::ICMP,
            12..=15 => protocol::SCTP,
            _ => 0,
        }
    }

    /// A word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP_SYN => "syn",
            Self::TCP_REPLIED => "replied",
            Self::TCP_ESTABLISHED | Self::SCTP_ESTABLISHED => "established",
            Self::TCP_CLIENT_FIN => "client-fin",
            Self::TCP_BACKEND_FIN => "backend-fin",
            Self::TCP_CLOSED => "closed",
            Self::TCP_RESET => "reset",
            Self::UDP_NEW => "udp",
            Self::UDP_REPLIED => "udp-replied",
            Self::ECHO_NEW => "echo",
            Self::ECHO_REPLIED => "echo-replied",
            Self::SCTP_INIT => "init",
            Self::SCTP_SHUTDOWN => "shutdown",
            Self::SCTP_OVER => "over",
            _ => "empty",
        }
    }

    /// The logarithm of its tick in nanoseconds: about a second, or about a minute where flows idle for hours.
    #[inline(always)]
    const fn tick_shift(self) -> u64 {
        30 + 6 * self.bit(Self::SLOW)
    }

    /// After how many ticks without a packet the flow has aged.
    #[inline(always)]
    pub const fn lifetime(self) -> u64 {
        (Self::LIFETIMES >> ((self.0 as u64 & 0xf) * 4) & 0xf) * 10
    }

    /// The age field of a packet seen now, `now` being nanoseconds of the monotonic clock.
    #[inline(always)]
    pub const fn age_of(self, now: u64) -> u64 {
        (now >> self.tick_shift()) & Meta::AGE_MAX
    }
}

/// A flow's meta word: ports, backend id, stage, age, and in slot 0 the bucket's lock.
///
/// ```text
///  63    62..56  55..52  51......32  31.........16  15.......0
///  lock   age    stage    backend    frontend port  client port   (ports as they lie in packets)
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Meta(pub u64);

impl Meta {
    /// The lock of the bucket; meaningful in slot 0 only.
    pub const LOCK: u64 = 1 << 63;
    /// The largest age.
    pub const AGE_MAX: u64 = 0x7f;
    const AGE_SHIFT: u32 = 56;
    const STAGE_SHIFT: u32 = 52;
    const BACKEND_SHIFT: u32 = 32;
    const PORTS: u64 = 0xffff_ffff;

    /// The word of a flow that a packet has just been seen of.
    #[inline(always)]
    pub const fn new(ports: Ports, backend: u32, stage: Stage, now: u64) -> Self {
        Self(
            ports.word()
                | (backend as u64 & (MAX_BACKENDS as u64 - 1)) << Self::BACKEND_SHIFT
                | (stage.0 as u64) << Self::STAGE_SHIFT
                | stage.age_of(now) << Self::AGE_SHIFT,
        )
    }

    /// How far the flow has come.
    #[inline(always)]
    pub const fn stage(self) -> Stage {
        Stage((self.0 >> Self::STAGE_SHIFT & 0xf) as u8)
    }

    /// The backend's id.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> Self::BACKEND_SHIFT) as u32 & (MAX_BACKENDS - 1)
    }

    /// The flow's ports.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "each port is sixteen bits")]
    pub const fn ports(self) -> Ports {
        Ports {
            client: Be16(self.0 as u16),
            frontend: Be16((self.0 >> 16) as u16),
        }
    }

    /// The client's port.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low sixteen bits")]
    pub const fn client_port(self) -> Be16 {
        Be16(self.0 as u16)
    }

    /// Whether both ports are these, whatever else the word says.
    #[inline(always)]
    pub const fn has_ports(self, ports: Ports) -> bool {
        self.0 & Self::PORTS == ports.word()
    }

    /// The word without the lock.
    #[inline(always)]
    #[must_use]
    pub const fn unlocked(self) -> Self {
        Self(self.0 & !Self::LOCK)
    }

    /// Whether two words speak of the same flow to the same backend; age, stage and lock may differ.
    #[inline(always)]
    pub const fn is_same_flow(self, other: Self) -> bool {
        (self.0 ^ other.0) & (Self::PORTS | (MAX_BACKENDS as u64 - 1) << Self::BACKEND_SHIFT) == 0
            && other.stage().0 != 0
    }

    /// Ticks of its stage since the one before that in which a packet was noted last. So a packet that another CPU noted
    /// in the tick after `now` was read counts as none, not as the most there can be.
    #[inline(always)]
    pub const fn since(self, now: u64) -> u64 {
        (self.stage().age_of(now) + 1).wrapping_sub(self.0 >> Self::AGE_SHIFT) & Self::AGE_MAX
    }

    /// Ticks of its stage since the last packet that was noted.
    pub const fn idle(self, now: u64) -> u64 {
        self.since(now).saturating_sub(1)
    }

    /// The same in nanoseconds, rounded to a tick.
    pub const fn idle_nanoseconds(self, now: u64) -> u64 {
        self.idle(now) << self.stage().tick_shift()
    }

    /// Whether the flow has aged.
    #[inline(always)]
    pub const fn is_stale(self, now: u64) -> bool {
        self.staleness(now) != 0
    }

    /// The same as a number, 1 or 0.
    #[inline(always)]
    pub const fn staleness(self, now: u64) -> u64 {
        (self.stage().lifetime() + 1).wrapping_sub(self.since(now)) >> 63
    }

    /// The same flow in a stage, seen now.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, stage: Stage, now: u64) -> Self {
        let kept = self.0 & (Self::LOCK | ((1 << Self::STAGE_SHIFT) - 1));
        Self(kept | (stage.0 as u64) << Self::STAGE_SHIFT | stage.age_of(now) << Self::AGE_SHIFT)
    }
}

/// The two ports of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The client's.
    pub client: Be16,
    /// That which it knocked at.
    pub frontend: Be16,
}

impl Ports {
    #[inline(always)]
    const fn word(self) -> u64 {
        self.client.0 as u64 | (self.frontend.0 as u64) << 16
    }
}

/// One bucket of a table as the code that runs on it reaches it: atomically, a word at a time.
pub trait Bucket<A: Address>: Copy {
    /// A slot's meta word; ordered before every read that follows.
    fn meta(&self, slot: u32) -> Meta;
    /// A slot's client.
    fn client(&self, slot: u32) -> A;
    /// A slot's frontend.
    fn frontend(&self, slot: u32) -> A;
    /// Whether a slot's flow is one between a client and a frontend.
    #[inline(always)]
    fn is_between(&self, slot: u32, client: A, frontend: A) -> bool {
        self.client(slot) == client && self.frontend(slot) == frontend
    }
    /// Puts `new` into a slot's meta word if it is `old`; whether it was.
    fn exchange(&self, slot: u32, old: Meta, new: Meta) -> bool;
    /// Sets the bucket's lock, which is [`Meta::LOCK`] of slot 0; whether it was free.
    fn try_lock(&self) -> bool;
    /// Clears the bucket's lock, whatever else slot 0's meta says by now.
    fn unlock(&self);
    /// Puts a meta word in, ordered after every write before it. The bucket's lock must be held.
    fn publish(&self, slot: u32, meta: Meta);
    /// The same number, or [`u32::MAX`]. A kernel's verifier is to forget what it knows of it, and thereby on which of the many ways through a
    /// search it has come to be what it is.
    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        number
    }
    /// Writes a slot's addresses. The bucket's lock must be held and the slot's meta be empty.
    fn write(&self, slot: u32, client: A, frontend: A);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAGES: [Stage; 15] = [
        Stage::TCP_SYN,
        Stage::TCP_REPLIED,
        Stage::TCP_ESTABLISHED,
        Stage::TCP_CLIENT_FIN,
        Stage::TCP_BACKEND_FIN,
        Stage::TCP_CLOSED,
        Stage::TCP_RESET,
        Stage::UDP_NEW,
        Stage::UDP_REPLIED,
        Stage::ECHO_NEW,
        Stage::ECHO_REPLIED,
        Stage::SCTP_INIT,
        Stage::SCTP_ESTABLISHED,
        Stage::SCTP_SHUTDOWN,
        Stage::SCTP_OVER,
    ];

    #[test]
    fn a_stage_is_of_its_own_protocol_alone() {
        let protocols = [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::SCTP];
        for stage in 0..Stage::COUNT {
            for protocol in protocols {
                let stage = Stage(stage);
                assert_eq!(stage.is_of(protocol), stage.protocol() == protocol);
            }
        }
    }

    proptest! {
        #[test]
        fn a_meta_word_gives_back_what_it_was_made_of(client: u16, frontend: u16, backend in 0..MAX_BACKENDS, stage in 0..STAGES.len(), now: u64) {
            let ports = Ports { client: Be16(client), frontend: Be16(frontend) };
            let meta = Meta::new(ports, backend, STAGES[stage], now);
            prop_assert_eq!(meta.ports(), ports);
            prop_assert_eq!(meta.backend(), backend);
            prop_assert_eq!(meta.stage(), STAGES[stage]);
            prop_assert_eq!(meta.idle(now), 0);
            prop_assert_eq!(meta, meta.unlocked());
        }

        #[test]
        fn a_flow_ages_after_its_lifetime_and_not_before(stage in 0..STAGES.len(), now in 0..1_u64 << 60, ticks in 0..127_u64) {
            let stage = STAGES[stage];
            let meta = Meta::new(Ports { client: Be16(1), frontend: Be16(2) }, 3, stage, now);
            let later = now + (ticks << stage.tick_shift());
            prop_assert_eq!(meta.is_stale(later), ticks > stage.lifetime());
        }

        #[test]
        fn a_packet_noted_after_the_clock_was_read_is_fresh(stage in 0..STAGES.len(), now in 1_u64 << 36..1_u64 << 60) {
            let stage = STAGES[stage];
            let meta = Meta::new(Ports { client: Be16(1), frontend: Be16(2) }, 3, stage, now);
            let before = now - (1 << stage.tick_shift());
            prop_assert_eq!(meta.idle(before), 0);
            prop_assert!(!meta.is_stale(before));
        }

        #[test]
        fn moving_on_keeps_the_flow(now: u64, stage in 0..STAGES.len(), next in 0..STAGES.len()) {
            let meta = Meta::new(Ports { client: Be16(9), frontend: Be16(8) }, 77, STAGES[stage], now);
            let moved = Meta(meta.0 | Meta::LOCK).at(STAGES[next], now);
            prop_assert!(meta.is_same_flow(moved));
            prop_assert_eq!(moved.stage(), STAGES[next]);
            prop_assert_eq!(moved.0 & Meta::LOCK, Meta::LOCK);
        }
    }
}
