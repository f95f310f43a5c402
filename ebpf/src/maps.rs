//! The maps, all pinned by name, and what the decisions read of them. Their sizes are set by the loader.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::generated::bpf_jiffies64,
    macros::map,
    maps::{
        Array, HashMap, PerCpuArray, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{TcContext, XdpContext},
};
use portolan_abi::{
    address::{V4, V6},
    affinity::{AffinityEntry, AffinityKey},
    backend::Backend,
    choice::{ChoiceLine, LANES, Load, Place, Share},
    config::{NodeConfig, flags},
    counters::ServiceCount,
    drop_reason::{DropReason, Event},
    flow::{Bucket, BucketV4, BucketV6},
    fragment::{self, Fragment, Noted},
    icmp::{Edits, IcmpError},
    ip::{Ip, ReadIp},
    namespace::NamespaceEntry,
    network,
    parse::{Packet, ParseAddress},
    pod::PodEntry,
    refusal::{self, Refuse},
    rewrite::Rewrite,
    sender::{self, OfSender, SENDERS as SENDER_COUNT, SenderEntry},
    service::{ServiceEntry, ServiceKey, ServiceRecord},
    socket_table::SocketBucket,
    source_nat,
    source_range::{self, RangeMember},
    tables::Tables,
    too_big::TooBig,
    tunnel::Encapsulate,
};

use crate::{
    bucket::{self, MapBucketV4, MapBucketV6},
    lock::Lock,
    socket_bucket::MapSockets,
};

#[map]
static CONFIG: Array<NodeConfig> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static SERVICES_V4: HashMap<ServiceKey<V4>, ServiceEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static SERVICES_V6: HashMap<ServiceKey<V6>, ServiceEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static CHOICES: Array<ChoiceLine> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static LOADS: Array<Load> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static SHARES: Array<Share> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static RANGES: LpmTrie<RangeMember, u32> = LpmTrie::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static NETWORKS: LpmTrie<RangeMember, u32> = LpmTrie::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static AFFINITY: HashMap<AffinityKey, AffinityEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: Array<Backend> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static FLOWS_V4: Array<BucketV4> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static FLOWS_V6: Array<BucketV6> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static SNAT_V4: Array<BucketV4> = Array::pinned(source_nat::BUCKETS, BPF_F_MMAPABLE);
#[map]
static SNAT_V6: Array<BucketV6> = Array::pinned(source_nat::BUCKETS, BPF_F_MMAPABLE);
#[map]
static PODS_V4: HashMap<V4, PodEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static PODS_V6: HashMap<V6, PodEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static FRAGMENTS: Array<Noted> = Array::pinned(fragment::PLACES, BPF_F_MMAPABLE);
#[map]
static SENDERS: Array<SenderEntry> = Array::pinned(SENDER_COUNT, BPF_F_MMAPABLE);
#[map]
static NAMESPACES: HashMap<u64, NamespaceEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);
#[map]
static SOCKETS: Array<SocketBucket> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
pub static COUNTS: PerCpuArray<ServiceCount> = PerCpuArray::pinned(1, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::COUNT, 0);
#[map]
pub static EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(Event::COUNT, 0);
/// Room for an answer, which the stack has not.
#[map]
static SCRATCH: PerCpuArray<refusal::Frame> = PerCpuArray::with_max_entries(1, 0);
/// What [`crate::slow`] works on, for which the stack has no room.
#[map]
static SLOW_V4: PerCpuArray<Slow<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SLOW_V6: PerCpuArray<Slow<V6>> = PerCpuArray::with_max_entries(1, 0);
/// Where a number is put to be read again: see [`forget`].
#[map]
static FORGOTTEN: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// The slow programs: an array for each type of program. Userspace puts them there before it attaches
/// any other. Either may be of another generation than the program that calls it: what passes between them is the packet
/// alone, and where it was seen.
#[map]
static SLOW_TC: ProgramArray = ProgramArray::pinned(1, 0);
#[map]
static SLOW_XDP: ProgramArray = ProgramArray::pinned(1, 0);
/// Written and read by userspace alone: what belongs to a service's id.
#[map]
static RECORDS: HashMap<u32, ServiceRecord> = HashMap::pinned(1, BPF_F_NO_PREALLOC);

/// What a jiffy is on this kernel; the loader writes it.
#[unsafe(no_mangle)]
static NANOSECONDS_PER_JIFFY: u64 = 1_000_000;
/// The jiffy in which the monotonic clock began; the loader writes it.
#[unsafe(no_mangle)]
static FIRST_JIFFY: u64 = 0xffff_ffff - 300_000 + 1;

/// A packet that takes more to read, and what becomes of it.
#[derive(Clone, Copy)]
pub struct Slow<A> {
    /// Its IP header.
    pub ip: Ip<A>,
    /// The packet.
    pub packet: Packet<A>,
    /// Which datagram it is a part of.
    pub fragment: Fragment,
    /// What it leaves with; for an error, what the packet that it quotes would leave with, turned around.
    pub rewrite: Rewrite<A>,
    /// The IP header that an ICMP error quotes.
    pub quoted: Ip<A>,
    /// The error.
    pub error: IcmpError<A>,
    /// What becomes of the error.
    pub edits: Edits<A>,
}

/// A family with its maps.
pub trait Family:
    ParseAddress + ReadIp + Encapsulate + Refuse + OfSender + TooBig + 'static
{
    /// A bucket of its flow tables.
    type Bucket: Bucket<Self>;

    /// Its source NAT address.
    fn node_address(config: &NodeConfig) -> Self;
    /// The address of the pod whose network namespace has a cookie.
    fn of_namespace(netns: u64) -> Option<Self>;
    /// The bucket of its flow table that a hash leads to.
    fn flows(config: &NodeConfig, hash: u64) -> Option<Self::Bucket>;
    /// A bucket of its source NAT table.
    fn source_nat(index: u32) -> Option<Self::Bucket>;
    /// The service behind a key.
    fn service(key: &ServiceKey<Self>) -> Option<&'static ServiceEntry>;
    /// The pod of this node that has an address.
    fn pod(&self) -> Option<&'static PodEntry>;
    /// This CPU's room for a packet that takes more to read, as the last one left it.
    fn slow() -> Option<&'static mut Slow<Self>>;
}

impl Family for V4 {
    type Bucket = MapBucketV4;

    #[inline(always)]
    fn node_address(config: &NodeConfig) -> Self {
        config.node_v4
    }

    #[inline(always)]
    fn of_namespace(netns: u64) -> Option<Self> {
        // SAFETY: userspace replaces entries as a whole, and a replaced one outlives this program run.
        unsafe { NAMESPACES.get(&netns) }.map(|entry| entry.v4)
    }

    #[inline(always)]
    fn flows(config: &NodeConfig, hash: u64) -> Option<MapBucketV4> {
        let index = (hash >> 32) as u32 & config.flow_mask_v4;
        let bucket = FLOWS_V4.get_ptr_mut(index)?;
        Some(MapBucketV4(bucket, Lock::of(index)))
    }

    #[inline(always)]
    fn source_nat(index: u32) -> Option<MapBucketV4> {
        let bucket = SNAT_V4.get_ptr_mut(index)?;
        Some(MapBucketV4(bucket, Lock::of(index)))
    }

    #[inline(always)]
    fn service(key: &ServiceKey<Self>) -> Option<&'static ServiceEntry> {
        // SAFETY: userspace replaces entries as a whole, and a replaced one outlives this program run.
        unsafe { SERVICES_V4.get(key) }
    }

    #[inline(always)]
    fn pod(&self) -> Option<&'static PodEntry> {
        // SAFETY: as for services.
        unsafe { PODS_V4.get(self) }
    }

    #[inline(always)]
    fn slow() -> Option<&'static mut Slow<Self>> {
        let slow = SLOW_V4.get_ptr_mut(0)?;
        // SAFETY: the memory is this CPU's own; each program run takes it once, and none interrupts another.
        Some(unsafe { &mut *slow })
    }
}

impl Family for V6 {
    type Bucket = MapBucketV6;

    #[inline(always)]
    fn node_address(config: &NodeConfig) -> Self {
        config.node_v6
    }

    #[inline(always)]
    fn of_namespace(netns: u64) -> Option<Self> {
        // SAFETY: as for the other family.
        unsafe { NAMESPACES.get(&netns) }.map(|entry| entry.v6)
    }

    #[inline(always)]
    fn flows(config: &NodeConfig, hash: u64) -> Option<MapBucketV6> {
        let index = (hash >> 32) as u32 & config.flow_mask_v6;
        let bucket = FLOWS_V6.get_ptr_mut(index)?;
        Some(MapBucketV6(bucket, Lock::of(index)))
    }

    #[inline(always)]
    fn source_nat(index: u32) -> Option<MapBucketV6> {
        let bucket = SNAT_V6.get_ptr_mut(index)?;
        Some(MapBucketV6(bucket, Lock::of(index)))
    }

    #[inline(always)]
    fn service(key: &ServiceKey<Self>) -> Option<&'static ServiceEntry> {
        // SAFETY: userspace replaces entries as a whole, and a replaced one outlives this program run.
        unsafe { SERVICES_V6.get(key) }
    }

    #[inline(always)]
    fn pod(&self) -> Option<&'static PodEntry> {
        // SAFETY: as for services.
        unsafe { PODS_V6.get(self) }
    }

    #[inline(always)]
    fn slow() -> Option<&'static mut Slow<Self>> {
        let slow = SLOW_V6.get_ptr_mut(0)?;
        // SAFETY: the memory is this CPU's own; each program run takes it once, and none interrupts another.
        Some(unsafe { &mut *slow })
    }
}

/// The node's configuration.
#[inline(always)]
pub fn config() -> Option<&'static NodeConfig> {
    CONFIG.get(0)
}

/// Whether what came out of a pod's interface may go on.
#[inline(always)]
pub fn may_send<A: Family>(interface: u32, source: A, destination: A) -> bool {
    sender::may_send(
        SENDERS.get(sender::place(interface)),
        interface,
        source,
        destination,
        |address| address.pod().map_or(0, |pod| pod.interface),
    )
}

/// The maps of one packet's family.
#[derive(Clone, Copy)]
pub struct Maps {
    /// The node's configuration.
    pub config: &'static NodeConfig,
}

impl<A: Family> Tables<A> for Maps {
    type Bucket = A::Bucket;

    #[inline(always)]
    fn seed(&self) -> u64 {
        self.config.seed
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: numbers that the loader has written before the program was loaded; the helper takes nothing.
        unsafe {
            let jiffy = (&raw const NANOSECONDS_PER_JIFFY).read_volatile();
            let first = (&raw const FIRST_JIFFY).read_volatile();
            (bpf_jiffies64() - first) * jiffy
        }
    }

    #[inline(always)]
    fn node_address(&self) -> A {
        A::node_address(self.config)
    }

    #[inline(always)]
    fn flows(&self, hash: u64) -> Option<A::Bucket> {
        A::flows(self.config, hash)
    }

    #[inline(always)]
    fn source_nat(&self, bucket: u32) -> Option<A::Bucket> {
        A::source_nat(bucket)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey<A>) -> Option<&ServiceEntry> {
        A::service(key)
    }

    #[inline(always)]
    fn choice(&self, place: Place) -> Option<u32> {
        let line = CHOICES.get_ptr(place.line)?;
        // SAFETY: the mask keeps the lane within the line; userspace writes lanes whole.
        Some(unsafe {
            line.cast::<u32>()
                .add(place.lane as usize & (LANES - 1))
                .read_volatile()
        })
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn away(&self, service: u32) -> u32 {
        match SHARES.get_ptr(service) {
            // SAFETY: the pointer is into the map's value; userspace writes the word whole.
            Some(share) => unsafe { addr_of!((*share).away).read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn load(&self, backend: u32) -> Option<Load> {
        let load = LOADS.get_ptr(backend)?;
        // SAFETY: the pointer is into the map's value, whose two words need not be of one moment.
        Some(unsafe { load.read_volatile() })
    }

    #[inline(always)]
    fn add_connection(&self, backend: u32) {
        if let Some(load) = LOADS.get_ptr_mut(backend) {
            // SAFETY: the pointer is into the map's value, and the instruction touches the word alone.
            unsafe { bucket::add(addr_of_mut!((*load).connections), 1) };
        }
    }

    #[inline(always)]
    fn is_in_ranges(&self, set: u32, client: A) -> bool {
        let key = Key::new(source_range::WHOLE, RangeMember::new(set, client));
        RANGES.get(&key).is_some()
    }

    #[inline(always)]
    fn node_netns(&self) -> u64 {
        self.config.netns
    }

    #[inline(always)]
    fn client(&self, netns: u64) -> A {
        A::of_namespace(netns).unwrap_or_default()
    }

    #[inline(always)]
    fn masquerades(&self) -> bool {
        self.config.flags & flags::MASQUERADE != 0 && self.config.uplink != 0
    }

    #[inline(always)]
    fn network(&self, address: A) -> u32 {
        let key = Key::new(source_range::WHOLE, RangeMember::new(network::SET, address));
        NETWORKS.get(&key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        // SAFETY: the entry is copied at once; it is replaced as a whole, and a replaced one outlives this run.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) {
        // Without room the client's address decides alone, as it did just now.
        let _ = AFFINITY.insert(key, entry, 0);
    }
}

/// Goes on to the slow program at tcx; returns only if there is none. To be called by a program's main function alone:
/// kernels bound the stack of any other that calls it.
#[inline(always)]
pub fn hand_over_tc(context: &TcContext) {
    // SAFETY: callers have nothing to be dropped.
    unsafe { SLOW_TC.tail_call(context, 0) };
}

/// The same at XDP.
#[inline(always)]
pub fn hand_over_xdp(context: &XdpContext) {
    // SAFETY: callers have nothing to be dropped.
    unsafe { SLOW_XDP.tail_call(context, 0) };
}

/// The same number, of which the verifier knows nothing any more: what is read from a map may be any. To the verifier, a
/// number that decides anything is as many as there are ways on which it comes to be. [`u32::MAX`] if there is no such map.
#[inline(always)]
pub fn forget(number: u32) -> u32 {
    let Some(memory) = FORGOTTEN.get_ptr_mut(0) else {
        return u32::MAX;
    };
    // SAFETY: the memory is this CPU's own, and no program that uses it interrupts another between the two.
    unsafe {
        memory.write_volatile(number);
        memory.read_volatile()
    }
}

/// What is noted at a datagram's place.
#[inline(always)]
pub fn noted(place: u32) -> Noted {
    match FRAGMENTS.get_ptr(place) {
        // SAFETY: the pointer is into the map's value; its two words need not be of one moment, as both say whose
        // they are.
        Some(noted) => unsafe { noted.read_volatile() },
        None => Noted::default(),
    }
}

/// Notes what a datagram's first fragment says.
#[inline(always)]
pub fn note(place: u32, noted: Noted) {
    if let Some(entry) = FRAGMENTS.get_ptr_mut(place) {
        // SAFETY: as in `noted`.
        unsafe { entry.write_volatile(noted) };
    }
}

/// A backend by its id.
#[inline(always)]
pub fn backend(id: u32) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// A bucket of the map of sockets.
#[inline(always)]
pub fn sockets(bucket: u32) -> Option<MapSockets> {
    SOCKETS.get_ptr_mut(bucket).map(MapSockets)
}

/// This CPU's room for an answer, as the last answer left it.
#[inline(always)]
pub fn scratch() -> Option<&'static mut refusal::Frame> {
    let frame = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the memory is this CPU's own; each program run takes it once, and none interrupts another.
    Some(unsafe { &mut *frame })
}
