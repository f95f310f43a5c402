//! The differential test: random services and random packets through the programs and through the model of them.
//! Verdicts, packets, flow tables and counters must agree.
//!
//! `PORTOLAN_DIFFERENTIAL_PACKETS` says how many packets (200,000 unless told otherwise; a long run takes 10,000,000),
//! `PORTOLAN_DIFFERENTIAL_SEED` which ones: a disagreement prints the seed that leads to it.

mod support;

use std::{net::IpAddr, sync::atomic::Ordering};

use portolan_abi::flow::Meta;
use portolan_dataplane::Error;
use support::{
    bench::{Bench, GATEWAY_MAC, NODE_MAC, OTHER_MAC},
    generator::{Generator, PROGRAMS},
    lab::{self, address},
    model::{Model, XDP_TX},
    packet::dump,
    tables::{Tables, affinities, coarse_now, counts},
};

/// About a second: the tick of flows' ages.
const TICK: u64 = 1 << 30;
/// What session affinity counts by.
const SECOND: u64 = 1_000_000_000;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}"))
    })
}

/// What the bench's routing says of an address.
fn next_hop(to: IpAddr) -> Option<[[u8; 6]; 2]> {
    let in_network = |network: &str| {
        network
            .parse::<ipnet::IpNet>()
            .expect("a network")
            .contains(&to)
    };
    if to == address(lab::OTHER[0])
        || to == address(lab::OTHER[1])
        || in_network("10.244.2.0/24")
        || in_network("fd00:244:2::/64")
    {
        return Some([OTHER_MAC, NODE_MAC]);
    }
    if support::bench::GATEWAY.map(address).contains(&to) {
        return Some([GATEWAY_MAC, NODE_MAC]);
    }
    let pods = [lab::CLIENT, lab::LOCAL].into_iter().flatten().map(address);
    let here = [
        "10.89.0.0/24",
        "127.0.0.0/8",
        "169.254.1.1/32",
        "fd00:89::/64",
        "fe80::/10",
        "ff00::/8",
        "::1/128",
    ];
    if pods.into_iter().any(|pod| pod == to) || here.into_iter().any(in_network) {
        return None;
    }
    Some([GATEWAY_MAC, NODE_MAC])
}

/// The programs and their model, side by side.
struct Pair {
    bench: Bench,
    model: Model,
    generator: Generator,
    seed: u64,
    /// Packets during which the clock ticked: what they do to ages is anybody's guess.
    ticked: u64,
    sent: u64,
}

impl Pair {
    fn new(mut bench: Bench, seed: u64) -> Self {
        let networks = support::generator::networks();
        bench
            .dataplane
            .set_networks(&networks)
            .expect("they have room");
        let pins = bench.pins.pins();
        let capacity = &bench.dataplane.config().capacity;
        let tables = Tables::open(&pins, capacity);
        // The second word of the configuration: the same buckets for the same seed.
        tables.config.words()[1].store(seed | 1, Ordering::Relaxed);
        let model = Model::new(tables, capacity.services, next_hop);
        model.copy(&pins);
        Self {
            bench,
            model,
            generator: Generator::new(seed),
            seed,
            ticked: 0,
            sent: 0,
        }
    }

    /// Sends a frame through both.
    fn send(&mut self, program: &'static str, frame: &[u8]) {
        // A tick amid a packet must stay rare, and the programs' clock is up to a jiffy off this one.
        while [TICK, SECOND].iter().any(|tick| {
            let edge = tick / 32;
            !(edge..=tick - edge).contains(&(coarse_now() % tick))
        }) {
            std::thread::yield_now();
        }
        let before = coarse_now();
        let interface = self.bench.interface_of(program, frame);
        let run = match self.bench.dataplane.run(program, frame, interface) {
            Ok(run) => run,
            // The kernel makes no socket buffer of a packet whose IP header is cut.
            Err(Error::Kernel { .. }) if program != "xdp_uplink" && frame.len() < 54 => return,
            Err(error) => panic!("{error}: {error:?}\n    {}", dump(frame)),
        };
        let after = coarse_now();
        let ticked = [TICK, SECOND]
            .iter()
            .any(|tick| after / tick != before / tick);
        self.sent += 1;
        self.model.now.set(before);
        let (verdict, packet) = self.model.run(program, frame, interface);
        assert!(
            verdict == run.verdict && packet == run.packet,
            "{} disagree after {} packets of seed {}: the program says {}, the model {verdict}\n  sent\n    {}\n  program\n    {}\n  model\n    {}",
            program,
            self.sent,
            self.seed,
            run.verdict,
            dump(frame),
            dump(&run.packet),
            dump(&packet),
        );
        if ticked {
            self.ticked += 1;
            self.model.copy(&self.bench.pins.pins());
        }
        self.agree_on_flows(self.sent.is_multiple_of(5_000), program, frame);
        if matches!(run.verdict, 7 | XDP_TX) {
            self.generator.remember(&run.packet);
        }
    }

    fn agree_on_flows(&self, all: bool, program: &str, frame: &[u8]) {
        if let Some((table, bucket)) = self.model.difference(all) {
            panic!(
                "bucket {bucket} of table {table} differs after {} packets of seed {}, the last for {program}\n    {}\n{}",
                self.sent,
                self.seed,
                dump(frame),
                self.model.describe(table, bucket)
            );
        }
    }

    /// What was counted agrees.
    fn agree_on_counts(&self) {
        let by_programs = counts(&self.bench.pins.pins());
        for (id, (theirs, mine)) in by_programs
            .iter()
            .zip(self.model.counts.borrow().iter())
            .enumerate()
        {
            assert_eq!(
                theirs, mine,
                "service {id} after {} packets of seed {}",
                self.sent, self.seed
            );
        }
        let affinities = affinities(&self.bench.pins.pins());
        assert_eq!(
            affinities,
            *self.model.affinities.borrow(),
            "affinities, seed {}",
            self.seed
        );
        let loads = self.model.loads_of_programs();
        for (id, (theirs, mine)) in loads.zip(self.model.loads.borrow().iter()).enumerate() {
            assert_eq!(theirs, *mine, "backend {id}, seed {}", self.seed);
        }
        let drops: Vec<u64> = self
            .bench
            .dataplane
            .drops()
            .expect("readable")
            .iter()
            .map(|count| count.packets)
            .collect();
        assert_eq!(
            drops,
            *self.model.drops.borrow(),
            "drops, seed {}",
            self.seed
        );
        let events: Vec<u64> = self
            .bench
            .dataplane
            .events()
            .expect("readable")
            .iter()
            .map(|count| count.count)
            .collect();
        assert_eq!(
            events,
            *self.model.events.borrow(),
            "events, seed {}",
            self.seed
        );
    }

    /// Changes some services, and lets the model see it.
    fn change_services(&mut self) {
        self.agree_on_counts();
        for _ in 0..self.generator.random().u8(1..6) {
            let service = self.generator.service();
            let name = self.generator.service_name();
            let backend = service.backends.first().map(|backend| backend.address);
            let done = match (self.generator.random().u8(..10), backend) {
                (0 | 1, _) => self.bench.dataplane.delete(&name),
                (2, Some(at)) => self.bench.dataplane.withdraw_backend(at).map(drop),
                (3, Some(at)) => self.bench.dataplane.restore_backend(at).map(drop),
                (4, _) => self.bench.dataplane.detach_pod("ptllocal"),
                (5, _) => self.bench.attach_pods(),
                _ => self.bench.dataplane.upsert(&service),
            };
            match done {
                Ok(()) | Err(Error::FrontendTaken { .. }) => {}
                Err(error) => panic!("seed {}: {error}: {error:?}", self.seed),
            }
        }
        let pins = self.bench.pins.pins();
        self.model.tables.reread(&pins);
        for share in self.model.tables.shares.words() {
            // The first half of the word: of 65,536 flows, how many leave.
            share.store(self.generator.random().u64(..65_536), Ordering::Relaxed);
        }
        self.model.copy(&pins);
    }

    /// Makes the flows of a bucket older, in both.
    fn age(&mut self) {
        let table = self.generator.random().usize(..4);
        let bucket = self.generator.random().usize(..64);
        let ticks = self.generator.random().u64(1..128);
        self.model.change_metas(table, bucket, |meta| {
            let age = (meta.0 >> 56).wrapping_sub(ticks) & Meta::AGE_MAX;
            Meta(meta.0 & !(Meta::AGE_MAX << 56) | age << 56)
        });
    }
}

/// A dataplane so small that buckets fill up.
fn small(config: &mut portolan_dataplane::Config) {
    config.capacity.flows_v4 = 512;
    config.capacity.flows_v6 = 512;
    config.capacity.backends = 4_096;
    config.capacity.choice_lines = 4_096;
    config.masquerade = true;
}

#[test]
fn random_packets_come_out_as_the_model_says() {
    let packets = from_environment("PORTOLAN_DIFFERENTIAL_PACKETS", 200_000);
    let seed = from_environment("PORTOLAN_DIFFERENTIAL_SEED", coarse_now());
    Bench::run(small, |bench| {
        let mut pair = Pair::new(bench, seed);
        pair.change_services();
        while pair.sent < packets {
            match pair.generator.random().u32(..2_000) {
                0 => pair.change_services(),
                1..20 => pair.age(),
                _ => {}
            }
            let (program, frame) = pair.generator.frame();
            pair.send(program, &frame);
        }
        pair.agree_on_flows(true, "any", &[]);
        pair.agree_on_counts();
        println!(
            "{} packets of seed {seed}, {} of them while the clock ticked",
            pair.sent, pair.ticked
        );
        assert!(
            pair.ticked * 100 < pair.sent,
            "the clock ticked during {} of {} packets",
            pair.ticked,
            pair.sent
        );
    });
}

#[test]
fn packets_cut_at_every_byte_come_out_as_the_model_says() {
    let seed = from_environment("PORTOLAN_DIFFERENTIAL_SEED", coarse_now());
    Bench::run(small, |bench| {
        let mut pair = Pair::new(bench, seed);
        for _ in 0..20 {
            pair.change_services();
        }
        for program in PROGRAMS {
            for _ in 0..40 {
                let frame = pair.generator.packet(program).bytes();
                // The program interface refuses what is shorter than an Ethernet header.
                for length in 14..=frame.len() {
                    pair.send(program, &frame[..length]);
                }
            }
        }
        pair.agree_on_flows(true, "any", &[]);
    });
}
