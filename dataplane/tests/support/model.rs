//! The model of the kernel programs: the same decisions of portolan-abi over plain memory, with what the programs do
//! around them (verdicts, rewriting, counting) written down a second time.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use portolan_abi::{
    address::{V4, V6},
    affinity::{AffinityEntry, AffinityKey},
    backend::{Backend, delivery},
    bytes::Be16,
    checksum,
    choice::Load,
    config,
    counters::{ClassCount, ServiceCount},
    drop_reason::{DropReason, Event},
    echo,
    flow::Meta,
    fragment::{self, Fragment, Noted},
    icmp::{self, Edits, IcmpError},
    ip::{self, Ip, kind},
    martian,
    masquerade::masquerade,
    network,
    outcome::{Action, Outcome},
    parse::{Bytes, ETHER_V4, ETHER_V6, NETWORK, Packet, field},
    protocol, quoted, refusal,
    rewrite::Rewrite,
    route::route,
    sender,
    tables::{Hook, Stages},
    tcp,
};

use super::{
    family::Family,
    memory::Flows,
    rewriting::{answer, change, change_error, put, put_head, sum_offset, to_node, to_pod},
    tables::{self, Tables},
};

mod tcx;
mod xdp;

/// The next program, then the stack.
pub const TC_PASS: i32 = -1;
/// Dropped.
pub const TC_DROP: i32 = 2;
/// Redirected.
pub const TC_REDIRECT: i32 = 7;
/// Dropped.
pub const XDP_DROP: i32 = 1;
/// Up to the stack.
pub const XDP_PASS: i32 = 2;
/// Out of the interface that it came in by.
pub const XDP_TX: i32 = 3;

/// The MAC addresses of the next hop to an address, if XDP may send there: as the kernel's routing would say.
pub type NextHop = fn(IpAddr) -> Option<[[u8; 6]; 2]>;

/// What a frame holds.
enum Read<A> {
    /// A packet of a transport that services have.
    Packet(Packet<A>),
    /// An ICMP error about one.
    Error(Packet<A>, IcmpError<A>),
    /// A fragment whose ports are not known.
    Follows,
    /// Something else.
    Foreign,
}

/// The model.
#[derive(Debug)]
pub struct Model {
    /// What it shares with the programs.
    pub tables: Tables,
    /// Its flow tables: IPv4's, IPv6's, and the same for source NAT.
    pub flows: [Flows; 4],
    /// Which buckets of which flow table the last packet looked at.
    pub touched: RefCell<Vec<(usize, usize)>>,
    /// Datagrams of which the first fragment has been seen.
    fragments: RefCell<Vec<Noted>>,
    /// How busy backends are.
    pub loads: RefCell<Vec<Load>>,
    /// Which backend clients had last.
    pub affinities: RefCell<HashMap<AffinityKey, AffinityEntry>>,
    /// The interface that the packet was seen at.
    interface: Cell<u32>,
    /// Nanoseconds of the coarse monotonic clock.
    pub now: Cell<u64>,
    /// By reason.
    pub drops: RefCell<Vec<u64>>,
    /// By event.
    pub events: RefCell<Vec<u64>>,
    /// By service.
    pub counts: RefCell<Vec<ServiceCount>>,
    next_hop: NextHop,
}

impl Model {
    /// A model of programs over these tables.
    pub fn new(tables: Tables, services: u32, next_hop: NextHop) -> Self {
        let flows = [
            Flows::of(&tables.flows_v4),
            Flows::of(&tables.flows_v6),
            Flows::of(&tables.source_nat_v4),
            Flows::of(&tables.source_nat_v6),
        ];
        Self {
            tables,
            flows,
            fragments: RefCell::new(vec![Noted::default(); fragment::PLACES as usize]),
            loads: RefCell::default(),
            affinities: RefCell::default(),
            interface: Cell::default(),
            touched: RefCell::default(),
            now: Cell::default(),
            drops: RefCell::new(vec![0; DropReason::ALL.len()]),
            events: RefCell::new(vec![0; Event::ALL.len()]),
            counts: RefCell::new(vec![ServiceCount::default(); services as usize]),
            next_hop,
        }
    }

    /// Takes over what the programs have written.
    pub fn copy(&self, pins: &Path) {
        *self.counts.borrow_mut() = tables::counts(pins);
        *self.affinities.borrow_mut() = tables::affinities(pins);
        *self.loads.borrow_mut() = self.loads_of_programs().collect();
        self.copy_flows();
    }

    /// How busy the programs say that backends are.
    pub fn loads_of_programs(&self) -> impl Iterator<Item = Load> {
        let loads = &self.tables.loads;
        (0..loads.len()).filter_map(|index| loads.get(index).copied())
    }

    /// Takes over the programs' flow tables.
    pub fn copy_flows(&self) {
        self.flows[0].copy(&self.tables.flows_v4);
        self.flows[1].copy(&self.tables.flows_v6);
        self.flows[2].copy(&self.tables.source_nat_v4);
        self.flows[3].copy(&self.tables.source_nat_v6);
    }

    /// The first bucket that differs from the programs', of all or of those that the last packet looked at: which
    /// table, which bucket.
    pub fn difference(&self, all: bool) -> Option<(usize, usize)> {
        let differs = |(table, bucket): &(usize, usize)| {
            let flows = &self.flows[*table];
            let range = bucket * flows.stride..(bucket + 1) * flows.stride;
            let mut pairs = flows.words[range.clone()]
                .iter()
                .zip(&self.theirs(*table)[range]);
            pairs.any(|(mine, theirs)| mine.get() != theirs.load(Ordering::Relaxed))
        };
        if all {
            let buckets = (0..4)
                .flat_map(|table| (0..self.flows[table].len()).map(move |bucket| (table, bucket)));
            buckets.into_iter().find(differs)
        } else {
            self.touched
                .borrow()
                .iter()
                .find(|place| differs(place))
                .copied()
        }
    }

    /// Changes the meta words of a bucket, in the model and in the programs' tables.
    pub fn change_metas(&self, table: usize, bucket: usize, change: impl Fn(Meta) -> Meta) {
        let flows = &self.flows[table];
        let (slot, meta) = if flows.stride == 16 { (2, 1) } else { (8, 0) };
        for word in (bucket * flows.stride + meta..(bucket + 1) * flows.stride).step_by(slot) {
            let old = Meta(flows.words[word].get());
            if old.0 != 0 {
                flows.words[word].set(change(old).0);
                self.theirs(table)[word].store(change(old).0, Ordering::Relaxed);
            }
        }
    }

    fn theirs(&self, table: usize) -> &[AtomicU64] {
        match table {
            0 => self.tables.flows_v4.words(),
            1 => self.tables.flows_v6.words(),
            2 => self.tables.source_nat_v4.words(),
            _ => self.tables.source_nat_v6.words(),
        }
    }

    /// A bucket's words in the program's table and in the model's, for people.
    pub fn describe(&self, table: usize, bucket: usize) -> String {
        let flows = &self.flows[table];
        let range = bucket * flows.stride..(bucket + 1) * flows.stride;
        let pairs = self.theirs(table)[range.clone()]
            .iter()
            .zip(&flows.words[range]);
        let lines: Vec<String> = pairs
            .map(|(theirs, mine)| (theirs.load(Ordering::Relaxed), mine.get()))
            .map(|(theirs, mine)| {
                format!(
                    "    {theirs:016x} {mine:016x} {}",
                    if theirs == mine { "" } else { "<-" }
                )
            })
            .collect();
        lines.join("\n")
    }

    /// What the program of a name does to a frame seen at an interface: its verdict, and the packet as it leaves it.
    pub fn run(&self, program: &str, frame: &[u8], interface: u32) -> (i32, Vec<u8>) {
        self.interface.set(interface);
        self.touched.borrow_mut().clear();
        let mut frame = frame.to_vec();
        let verdict = match program {
            "pod_egress" => self.tcx(&mut frame, Hook::POD),
            "uplink_ingress" => self.tcx(&mut frame, Hook::UPLINK),
            "node_egress" => self.tcx(&mut frame, Hook::NODE),
            "xdp_uplink" => self.xdp(&mut frame),
            other => panic!("there is no program {other}"),
        };
        (verdict, frame)
    }

    /// A bucket of a flow table; notes that it was looked at.
    pub fn bucket(&self, table: usize, index: usize) -> Option<&[Cell<u64>]> {
        self.touched.borrow_mut().push((table, index));
        self.flows[table].bucket(index)
    }

    fn dropped(&self, reason: u32) {
        self.drops.borrow_mut()[reason as usize] += 1;
    }

    fn event(&self, event: u32) {
        self.events.borrow_mut()[event as usize] += 1;
    }

    fn count(&self, service: u32, change: impl FnOnce(&mut ServiceCount)) {
        if let Some(count) = self.counts.borrow_mut().get_mut(service as usize) {
            change(count);
        }
    }

    fn of_class(&self, backend: &Backend, change: impl FnOnce(&mut ClassCount)) {
        let class = usize::from(backend.class.min(2));
        self.count(backend.service, |count| change(&mut count.classes[class]));
    }

    fn opened(&self, outcome: Outcome, backend: &Backend) {
        if outcome.is_opened() {
            self.of_class(backend, |count| count.flows += 1);
        }
        if outcome.event() != 0 {
            self.event(outcome.event() - 1);
        }
    }

    fn forwarded<A>(&self, backend: &Backend, packet: &Packet<A>) {
        self.of_class(backend, |count| {
            count.packets += 1;
            count.bytes += u64::from(packet.length);
            count.resets += u64::from(packet.tcp_flags & tcp::RST != 0);
        });
    }

    /// A backend.
    pub fn backend(&self, id: u32) -> Option<&Backend> {
        self.tables.backends.get(id as usize)
    }

    /// The node's configuration.
    pub fn config(&self) -> &config::NodeConfig {
        self.tables.config.get(0).expect("there is one")
    }
}
