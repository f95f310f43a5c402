//! The pinned maps as another process sees them, for the model of the programs: arrays as words in shared memory, hash
//! maps as copies.

use std::{
    collections::HashMap,
    hash::Hash,
    marker::PhantomData,
    mem,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

use aya::maps::{HashMap as KernelMap, Map, MapData, PerCpuArray, lpm_trie::LpmTrie};
use portolan_abi::{
    address::{V4, V6},
    affinity::{AffinityEntry, AffinityKey},
    backend::Backend,
    choice::{ChoiceLine, Load, Share},
    config::NodeConfig,
    counters::ServiceCount,
    flow::{BucketV4, BucketV6},
    fragment::Noted,
    pod::PodEntry,
    sender::SenderEntry,
    service::{ServiceEntry, ServiceKey},
    source_range::RangeMember,
};

/// Structures of integers, which any bytes of their size are valid for.
///
/// # Safety
/// Only for types without padding and of which every bit pattern is valid.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: portolan-abi asserts that these structures of integers have no padding.
            unsafe impl Plain for $type {}
        )*
    };
}

// SAFETY: integers have both properties.
unsafe impl<const N: usize> Plain for [u64; N] {}

plain!(
    AffinityEntry,
    AffinityKey,
    Backend,
    BucketV4,
    BucketV6,
    ChoiceLine,
    Load,
    NodeConfig,
    Noted,
    PodEntry,
    RangeMember,
    SenderEntry,
    ServiceCount,
    Share,
    ServiceEntry,
    ServiceKey<V4>,
    ServiceKey<V6>,
    V4,
    V6
);

/// An array map's values, shared with the kernel.
#[derive(Debug)]
pub struct Shared<T> {
    start: NonNull<libc::c_void>,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Shared<T> {
    fn open(path: &Path, length: u32) -> Self {
        let data = MapData::from_pin(path).expect("the map is pinned");
        let length = length as usize;
        let bytes = length * mem::size_of::<T>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = data.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping of the kernel's choosing.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(
            start,
            libc::MAP_FAILED,
            "{} cannot be mapped",
            path.display()
        );
        let start = NonNull::new(start).expect("the kernel maps nothing at zero");
        Self {
            start,
            length,
            values: PhantomData,
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// A value, if there is one of that index. Nobody writes it while a test looks.
    pub fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: the index is within the mapping, and any bytes are a valid value.
        (index < self.length).then(|| unsafe { &*self.start.as_ptr().cast::<T>().add(index) })
    }

    /// All of it by words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the words are within the mapping.
        unsafe {
            slice::from_raw_parts(
                self.start.as_ptr().cast(),
                self.length * mem::size_of::<T>() / 8,
            )
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives it.
        unsafe { libc::munmap(self.start.as_ptr(), self.length * mem::size_of::<T>()) };
    }
}

fn plain<T: Plain, const N: usize>(bytes: [u8; N]) -> T {
    assert_eq!(N, mem::size_of::<T>());
    // SAFETY: there are as many bytes as the value has, and any are valid.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

fn entries<K: Plain + Eq + Hash, V: Plain, const KEY: usize, const VALUE: usize>(
    path: &Path,
) -> HashMap<K, V> {
    let map = Map::HashMap(MapData::from_pin(path).expect("the map is pinned"));
    let map: KernelMap<_, [u8; KEY], [u8; VALUE]> =
        map.try_into().expect("a hash map of such keys and values");
    map.iter()
        .map(|entry| entry.expect("nobody changes the map meanwhile"))
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

/// An entry of a longest-prefix map: how many bits of a member count, the member, and what it is.
pub type Range = (u32, [u8; 20], u32);

fn ranges(path: &Path) -> Vec<Range> {
    let map = Map::LpmTrie(MapData::from_pin(path).expect("the map is pinned"));
    let map: LpmTrie<_, [u8; 20], u32> = map.try_into().expect("a trie of such members");
    map.iter()
        .map(|entry| entry.expect("nobody changes the map meanwhile"))
        .map(|(key, value)| (key.prefix_len(), key.data(), value))
        .collect()
}

/// Of the entries that a member is in, what the longest is.
pub fn longest(of: &[Range], member: &RangeMember) -> Option<u32> {
    let words = member.address.map(u32::to_ne_bytes).concat();
    let bytes = [&member.set.to_ne_bytes(), words.as_slice()].concat();
    let is_in = |(length, range, _): &&Range| {
        (0..*length as usize).all(|bit| (bytes[bit / 8] ^ range[bit / 8]) << (bit % 8) & 0x80 == 0)
    };
    of.iter()
        .filter(is_in)
        .max_by_key(|(length, ..)| *length)
        .map(|(.., value)| *value)
}

/// What the programs read but never write.
#[derive(Debug)]
pub struct Tables {
    /// The node.
    pub config: Shared<NodeConfig>,
    /// The choice tables.
    pub choices: Shared<ChoiceLine>,
    /// The backends.
    pub backends: Shared<Backend>,
    /// The IPv4 flows.
    pub flows_v4: Shared<BucketV4>,
    /// The IPv6 flows.
    pub flows_v6: Shared<BucketV6>,
    /// IPv4's source NAT.
    pub source_nat_v4: Shared<BucketV4>,
    /// IPv6's source NAT.
    pub source_nat_v6: Shared<BucketV6>,
    /// Datagrams of which the first fragment has been seen.
    pub fragments: Shared<Noted>,
    /// How busy backends are.
    pub loads: Shared<Load>,
    /// What share of new flows leaves the node.
    pub shares: Shared<Share>,
    /// Which addresses pods send with.
    pub senders: Shared<SenderEntry>,
    /// Source ranges: how many bits of a member count, and the member.
    pub ranges: Vec<Range>,
    /// Networks, with their kinds.
    pub networks: Vec<Range>,
    /// IPv4's services, as they were at the last [`Self::reread`].
    pub services_v4: HashMap<ServiceKey<V4>, ServiceEntry>,
    /// IPv6's services.
    pub services_v6: HashMap<ServiceKey<V6>, ServiceEntry>,
    /// The node's pods by IPv4 address.
    pub pods_v4: HashMap<V4, PodEntry>,
    /// The node's pods by IPv6 address.
    pub pods_v6: HashMap<V6, PodEntry>,
}

impl Tables {
    /// The maps that are pinned in a folder, whose sizes are as in a configuration.
    pub fn open(pins: &Path, capacity: &portolan_dataplane::Capacity) -> Self {
        let slots = portolan_abi::flow::SLOTS;
        let at = |name: &str| pins.join(name);
        let mut tables = Self {
            config: Shared::open(&at("CONFIG"), 1),
            choices: Shared::open(&at("CHOICES"), capacity.choice_lines),
            backends: Shared::open(&at("BACKENDS"), capacity.backends),
            flows_v4: Shared::open(&at("FLOWS_V4"), capacity.flows_v4 / slots),
            flows_v6: Shared::open(&at("FLOWS_V6"), capacity.flows_v6 / slots),
            source_nat_v4: Shared::open(&at("SNAT_V4"), portolan_abi::source_nat::BUCKETS),
            source_nat_v6: Shared::open(&at("SNAT_V6"), portolan_abi::source_nat::BUCKETS),
            fragments: Shared::open(&at("FRAGMENTS"), portolan_abi::fragment::PLACES),
            loads: Shared::open(&at("LOADS"), capacity.backends),
            shares: Shared::open(&at("SHARES"), capacity.services),
            senders: Shared::open(&at("SENDERS"), portolan_abi::sender::SENDERS),
            ranges: Vec::new(),
            networks: Vec::new(),
            services_v4: HashMap::new(),
            services_v6: HashMap::new(),
            pods_v4: HashMap::new(),
            pods_v6: HashMap::new(),
        };
        tables.reread(pins);
        tables
    }

    /// Copies the hash maps again, after a change of services or pods.
    pub fn reread(&mut self, pins: &Path) {
        let at = |name: &str| pins.join(name);
        self.services_v4 = entries::<_, _, 12, 64>(&at("SERVICES_V4"));
        self.services_v6 = entries::<_, _, 24, 64>(&at("SERVICES_V6"));
        self.ranges = ranges(&at("RANGES"));
        self.networks = ranges(&at("NETWORKS"));
        self.pods_v4 = entries::<_, _, 4, 16>(&at("PODS_V4"));
        self.pods_v6 = entries::<_, _, 16, 16>(&at("PODS_V6"));
    }
}

/// Which backend clients had last, as the programs have it.
pub fn affinities(pins: &Path) -> HashMap<AffinityKey, AffinityEntry> {
    entries::<_, _, 24, 8>(&pins.join("AFFINITY"))
}

/// What all CPUs counted, by service id.
pub fn counts(pins: &Path) -> Vec<ServiceCount> {
    const SIZE: usize = size_of::<ServiceCount>();
    let map = Map::PerCpuArray(MapData::from_pin(pins.join("COUNTS")).expect("the map is pinned"));
    let map: PerCpuArray<_, [u8; SIZE]> = map.try_into().expect("an array of such values");
    map.iter()
        .map(|values| {
            // All of its fields are words that are summed.
            let mut sum = [0_u64; SIZE / 8];
            for bytes in values.expect("an array has all its values").iter() {
                let words: [u64; SIZE / 8] = plain(*bytes);
                for (sum, word) in sum.iter_mut().zip(words) {
                    *sum += word;
                }
            }
            plain::<_, SIZE>(
                sum.map(u64::to_ne_bytes)
                    .concat()
                    .try_into()
                    .expect("as many bytes"),
            )
        })
        .collect()
}

/// Nanoseconds of the clock that the programs read.
pub fn coarse_now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is valid for writes.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).expect("a machine's uptime");
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).expect("below a second")
}
