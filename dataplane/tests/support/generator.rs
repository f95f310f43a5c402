//! Random services and random packets, so made that they meet: few addresses, few ports, answers to what came out.

use std::net::IpAddr;

use fastrand::Rng;
use portolan_abi::{protocol, tcp};
use portolan_dataplane::model::{
    Algorithm, Backend, Distribution, Frontend, Locality, Network, NetworkRole, Protocol,
    ReturnPath, Scope, Service, ServiceName, TrafficPolicy,
};

use super::{
    bench::{BALANCER, EXTERNAL, WORLD},
    lab::{CLIENT, CLUSTER, LOCAL, NODE, OTHER, REMOTE, TARGET, address},
    packet::Packet,
};

/// The programs.
pub const PROGRAMS: [&str; 4] = ["pod_egress", "uplink_ingress", "node_egress", "xdp_uplink"];
/// A process's own addresses.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];
/// The addresses that services have.
const FRONTENDS: [[&str; 2]; 3] = [CLUSTER, EXTERNAL, BALANCER];
/// The ports that services have at their addresses; node ports are 30,000 above.
const PORTS: std::ops::Range<u16> = 80..84;
/// What the node knows of the networks around it.
pub fn networks() -> Vec<Network> {
    [
        ("10.244.0.0/16", NetworkRole::Inside),
        ("fd00:244::/32", NetworkRole::Inside),
        ("10.89.0.0/24", NetworkRole::Inside),
        ("10.89.0.12/32", NetworkRole::Node),
        ("fd00:89::/64", NetworkRole::Inside),
        ("fd00:89::12/128", NetworkRole::Node),
    ]
    .map(|(prefix, role)| Network {
        prefix: prefix.parse().expect("a network"),
        role,
    })
    .to_vec()
}

/// How many services there may be.
const SERVICES: u8 = 12;
/// How many packets that came out are remembered.
const MEMORY: usize = 256;

/// A source of services and packets.
#[derive(Debug)]
pub struct Generator {
    random: Rng,
    came_out: Vec<Vec<u8>>,
    /// Fragments that are still to be sent.
    pending: Vec<(&'static str, Vec<u8>)>,
}

impl Generator {
    /// The same seed gives the same services, and the same packets as long as the programs answer the same.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            came_out: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Its randomness.
    pub fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    /// The name of a service that may exist.
    pub fn service_name(&mut self) -> ServiceName {
        ServiceName(format!("random/{}", self.random.u8(..SERVICES)))
    }

    /// A service; its addresses may be another's already.
    pub fn service(&mut self) -> Service {
        let protocol = self.one(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        let mut service = Service::new(self.service_name(), protocol);
        for _ in 0..self.random.u8(1..4) {
            let port = self.random.u16(PORTS);
            service.frontends.push(if self.random.u8(..3) == 0 {
                Frontend::NodePort {
                    port: 30_000 + port,
                }
            } else {
                let which = self.random.usize(..FRONTENDS.len());
                let scope = [Scope::Cluster, Scope::External, Scope::LoadBalancer][which];
                let family = self.random.usize(..2);
                Frontend::Address {
                    address: address(FRONTENDS[which][family]),
                    port,
                    scope,
                }
            });
        }
        let policies = [
            TrafficPolicy::Cluster,
            TrafficPolicy::Cluster,
            TrafficPolicy::Local,
        ];
        service.internal_policy = self.one(&policies);
        service.external_policy = self.one(&policies);
        service.distribution = self.one(&[
            Distribution::LoadAware,
            Distribution::SameNode,
            Distribution::SameZone,
            Distribution::Even,
        ]);
        service.algorithm = self.one(&[
            Algorithm::Maglev,
            Algorithm::Maglev,
            Algorithm::LeastConnections,
        ]);
        service.return_path = self.one(&[
            ReturnPath::SourceNat,
            ReturnPath::SourceNat,
            ReturnPath::Direct,
            ReturnPath::Gateway,
        ]);
        service.affinity_seconds = self.one(&[None, None, Some(1), Some(60)]);
        if self.random.u8(..3) == 0 {
            service.source_ranges = ["198.51.100.0/29", "2001:db8:7::/125"]
                .map(|range| range.parse().expect("a range"))
                .to_vec();
        }
        for _ in 0..self.random.u8(..6) {
            let backend = self.backend();
            if !service
                .backends
                .iter()
                .any(|other| (other.address, other.port) == (backend.address, backend.port))
            {
                service.backends.push(backend);
            }
        }
        service
    }

    fn backend(&mut self) -> Backend {
        let family = self.random.usize(..2);
        let (at, locality) = match self.random.u8(..8) {
            0 => (address(CLIENT[family]), Locality::Node),
            1 => (address(LOCAL[family]), Locality::Node),
            2 => (address(NODE[family]), Locality::Node),
            _ => (
                self.remote(family),
                self.one(&[Locality::Zone, Locality::Elsewhere]),
            ),
        };
        Backend {
            terminating: self.random.u8(..8) == 0,
            weight: self.one(&[100, 100, 100, 30, 250]),
            node: (locality != Locality::Node).then(|| address(OTHER[family])),
            ..Backend::new(at, TARGET + self.random.u16(..3), locality)
        }
    }

    fn remote(&mut self, family: usize) -> IpAddr {
        match address(REMOTE[family]) {
            IpAddr::V4(address) => (address.to_bits() + self.random.u32(..6))
                .to_be_bytes()
                .into(),
            IpAddr::V6(address) => (address.to_bits() + u128::from(self.random.u32(..6)))
                .to_be_bytes()
                .into(),
        }
    }

    fn world(&mut self, family: usize) -> IpAddr {
        match address(WORLD[family]) {
            IpAddr::V4(address) => (address.to_bits() + self.random.u32(..16))
                .to_be_bytes()
                .into(),
            IpAddr::V6(address) => (address.to_bits() + u128::from(self.random.u32(..16)))
                .to_be_bytes()
                .into(),
        }
    }

    /// Remembers a frame that a program sent on, so that it may be answered.
    pub fn remember(&mut self, frame: &[u8]) {
        if self.came_out.len() < MEMORY {
            self.came_out.push(frame.to_vec());
        } else {
            self.came_out[self.random.usize(..MEMORY)] = frame.to_vec();
        }
    }

    /// A frame, and the program that sees it.
    pub fn frame(&mut self) -> (&'static str, Vec<u8>) {
        if !self.pending.is_empty() && self.random.bool() {
            let which = self.random.usize(..self.pending.len());
            return self.pending.swap_remove(which);
        }
        let program = self.one(&PROGRAMS);
        let mut frame = match self.random.u8(..10) {
            0 if self.random.bool() => self.echo(program),
            0 => self.fragmented(program),
            1..5 => self.packet(program).bytes(),
            5..8 if !self.came_out.is_empty() => self.answer(),
            8 if !self.came_out.is_empty() => self.error(),
            _ if !self.came_out.is_empty() => {
                self.came_out[self.random.usize(..self.came_out.len())].clone()
            }
            _ => self.packet(program).bytes(),
        };
        if self.random.u8(..4) == 0 {
            self.spoil(&mut frame);
        }
        (program, frame)
    }

    /// A packet that makes sense.
    pub fn packet(&mut self, program: &str) -> Packet {
        let family = self.random.usize(..2);
        let source = match self.random.u8(..8) {
            0 => address(LOCAL[family]),
            1 => self.remote(family),
            2 => address(NODE[family]),
            3..6 if program == "pod_egress" => address(CLIENT[family]),
            3..6 if program == "node_egress" => address(NODE[family]),
            6 if program == "node_egress" || self.random.u8(..8) == 0 => address(LOOPBACK[family]),
            _ => self.world(family),
        };
        let port = self.random.u16(PORTS);
        let destination = match self.random.u8(..10) {
            0 => (address(LOCAL[family]), TARGET),
            1 => (self.remote(family), TARGET + self.random.u16(..3)),
            2 => (self.world(family), port),
            3 if program == "node_egress" || self.random.u8(..8) == 0 => {
                (address(LOOPBACK[family]), 30_000 + port)
            }
            3..6 => (address(NODE[family]), 30_000 + port),
            _ => (address(self.one(&FRONTENDS)[family]), port),
        };
        let number = self.one(&[protocol::TCP, protocol::UDP, protocol::SCTP]);
        let mut packet = Packet::new(
            number,
            (source, 40_000 + self.random.u16(..24)),
            destination,
        );
        packet.flags = self.flags();
        packet.hops = self.one(&[64, 64, 63, 2, 1, 0, 255]);
        packet.numbers = [self.random.u32(..), self.random.u32(..)];
        packet.payload = (0..self.random.usize(..40))
            .map(|_| self.random.u8(..))
            .collect();
        packet.unchecked = self.random.u8(..10) == 0;
        if self.random.u8(..8) == 0 {
            let chain: &[u8] =
                self.one(&[&[0][..], &[60], &[0, 60], &[0, 60, 60, 60], &[43], &[44]]);
            packet.extensions = chain.to_vec();
        }
        if self.random.u8(..6) == 0 {
            packet.options = vec![1; self.random.usize(..=10) * 4];
        }
        packet
    }

    /// A ping, or the answer to one.
    fn echo(&mut self, program: &str) -> Vec<u8> {
        let packet = self.packet(program);
        let kinds = if packet.source.0.is_ipv4() {
            [8, 0]
        } else {
            [128, 129]
        };
        let kind = self.one(&kinds);
        let [high, low] = (40_000 + self.random.u16(..8)).to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, high, low, 0, 1];
        message.extend(&packet.payload);
        packet.around_icmp(message)
    }

    /// The first fragment of a packet, or another; the others are to follow.
    fn fragmented(&mut self, program: &'static str) -> Vec<u8> {
        let mut packet = self.packet(program);
        packet.id = self.random.u16(..64);
        packet.extensions.clear();
        let frames = packet.fragments(self.one(&[8, 16, 24]));
        self.pending
            .extend(frames.into_iter().map(|frame| (program, frame)));
        self.pending.truncate(64);
        let which = if self.random.u8(..4) == 0 {
            self.pending.len() - 1
        } else {
            0
        };
        self.pending.remove(which).1
    }

    fn flags(&mut self) -> u8 {
        let usual = [
            tcp::SYN,
            tcp::SYN,
            tcp::SYN | tcp::ACK,
            tcp::ACK,
            tcp::ACK,
            tcp::FIN | tcp::ACK,
            tcp::RST,
            tcp::RST | tcp::ACK,
        ];
        match self.random.u8(..20) {
            0 => self.random.u8(..),
            _ => self.one(&usual),
        }
    }

    /// An ICMP error about what came out, from its destination or from anybody.
    fn error(&mut self) -> Vec<u8> {
        let quoted = self.came_out[self.random.usize(..self.came_out.len())].clone();
        let ends = match quoted.get(12..14) {
            Some([0x08, 0x00]) => quoted.get(26..34).map(|at| {
                let octets = |from: usize| <[u8; 4]>::try_from(&at[from..from + 4]).expect("four");
                (IpAddr::from(octets(0)), IpAddr::from(octets(4)))
            }),
            Some([0x86, 0xdd]) => quoted.get(22..54).map(|at| {
                let octets = |from: usize| <[u8; 16]>::try_from(&at[from..from + 16]).expect("16");
                (IpAddr::from(octets(0)), IpAddr::from(octets(16)))
            }),
            _ => None,
        };
        let Some((source, destination)) = ends else {
            return quoted;
        };
        let family = usize::from(source.is_ipv6());
        let from = if self.random.bool() {
            destination
        } else {
            self.world(family)
        };
        let outer = Packet::new(protocol::UDP, (from, 1), (source, 1));
        let kinds: &[[u8; 2]] = if family == 0 {
            &[[3, 4], [3, 3], [11, 0], [8, 0]]
        } else {
            &[[2, 0], [1, 4], [3, 0], [128, 0]]
        };
        let kind = self.one(kinds);
        let end = (14 + self.random.usize(20..120)).min(quoted.len());
        let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 5, 20];
        message.extend(&quoted[14..end]);
        outer.around_icmp(message)
    }

    /// What came out, sent back: addresses and ports change places. Checksums stay right, but for new flags of TCP.
    fn answer(&mut self) -> Vec<u8> {
        let mut frame = self.came_out[self.random.usize(..self.came_out.len())].clone();
        let (address, size, transport) = match frame.get(12..15) {
            Some([0x08, 0x00, version]) => (26, 4, 14 + usize::from(version & 0xf) * 4),
            Some([0x86, 0xdd, _]) => (22, 16, 54),
            _ => return frame,
        };
        let flags = self.flags();
        if frame.len() < transport + 14 {
            return frame;
        }
        let (first, second) = frame[address..address + 2 * size].split_at_mut(size);
        first.swap_with_slice(second);
        if matches!(frame[if size == 4 { 23 } else { 20 }], 4 | 41) {
            // As if this node were the other: what it has sent there comes here.
            return frame;
        }
        let (first, second) = frame[transport..transport + 4].split_at_mut(2);
        first.swap_with_slice(second);
        if frame[if size == 4 { 23 } else { 20 }] == protocol::TCP {
            frame[transport + 13] = flags;
        }
        frame
    }

    /// Flips bits, cuts, appends or overwrites.
    pub fn spoil(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.random.u8(1..4) {
            // Headers are of more interest than what follows them.
            let end = frame.len().min(self.one(&[40, 80, 2_000]));
            let at = self.random.usize(12.min(end - 1)..end);
            match self.random.u8(..8) {
                0..4 => frame[at] ^= 1 << self.random.u8(..8),
                4 | 5 => frame[at] = self.random.u8(..),
                6 => frame.truncate(self.random.usize(14..=frame.len().max(15))),
                _ => frame.extend(
                    (0..self.random.usize(..20)).map(|byte| u8::try_from(byte).unwrap_or_default()),
                ),
            }
        }
    }
}
