//! Tables of packets for each program: what goes in, the verdict, and what must come out, over BPF_PROG_TEST_RUN.

mod errors;
mod hard;
mod malformed;
mod martian;
mod services;
mod shapes;
#[path = "../support/mod.rs"]
mod support;

use std::net::IpAddr;

use portolan_abi::{protocol, tcp};
use portolan_dataplane::model::Protocol;
use support::{
    bench::{
        BALANCER, Behind, Bench, CLIENT_MACS, EXTERNAL, GATEWAY_MAC, LOCAL_MACS, NODE_MAC,
        NODE_PORTS, OTHER_MAC, WORLD, port_of, target,
    },
    lab::{CLIENT, CLUSTER, LOCAL, NODE, REMOTE, address},
    model::{TC_DROP, TC_PASS, TC_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX},
    packet::Packet,
    rows::{Frame, Row, Step, refusal},
};

const POD: &str = "pod_egress";
const UPLINK: &str = "uplink_ingress";
const XDP: &str = "xdp_uplink";
/// The program that sees what the node's own processes send; here always at the uplink.
const PROCESSES: &str = "node_egress";

/// The port that source NAT has given in the row: known only once a packet has come out.
const GIVEN: u16 = support::rows::GIVEN;

/// The rows of one family and one protocol.
struct Rows {
    family: usize,
    protocol: u8,
    made: Vec<Row>,
}

impl Rows {
    fn at(&self, addresses: [&str; 2]) -> IpAddr {
        address(addresses[self.family])
    }

    /// A row. Each has a client port of its own, so that no row meets the flow of another.
    fn row(&mut self, name: &str, steps: impl FnOnce(&Self, u16) -> Vec<Step>) {
        let port = 20_000 + u16::try_from(self.made.len()).expect("few rows");
        let row = Row {
            name: format!(
                "ip{} protocol {}: {name}",
                [4, 6][self.family],
                self.protocol
            ),
            steps: steps(self, port),
        };
        self.made.push(row);
    }

    fn packet(&self, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
        Packet::new(self.protocol, from, to)
    }
}

#[test]
fn every_packet_comes_out_as_its_row_says() {
    let mut rows = Vec::new();
    for family in 0..2 {
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            let mut some = Rows {
                family,
                protocol,
                made: Vec::new(),
            };
            some.pods();
            some.outside();
            some.by_xdp();
            some.without_service();
            some.shapes();
            some.options();
            some.flags();
            some.malformed();
            some.martians();
            some.processes();
            some.errors();
            some.hard();
            rows.extend(some.made);
        }
    }
    if support::kernel() < (5, 14) {
        // A run of XDP comes in at no interface there that leads anywhere; what XDP sends on, real sockets see.
        rows.retain(|row| !(row.name.contains("world to Remote") && row.name.ends_with("XDP")));
    }
    assert!(rows.len() >= 300, "only {} rows", rows.len());
    let failures = Bench::run(
        |_| {},
        |mut bench| {
            bench.serve(Protocol::Tcp);
            bench.serve(Protocol::Udp);
            bench.serve(Protocol::Sctp);
            rows.iter()
                .filter_map(|row| row.failure(&bench))
                .collect::<Vec<_>>()
        },
    );
    println!("{} rows", rows.len());
    assert!(
        failures.is_empty(),
        "{} of {} rows fail:\n{}",
        failures.len(),
        rows.len(),
        failures[..failures.len().min(10)].join("\n")
    );
}

#[test]
fn a_pod_that_was_detached_can_be_attached_again_at_once() {
    Bench::run(
        |_| {},
        |mut bench| {
            for _ in 0..50 {
                bench
                    .dataplane
                    .detach_pod("ptllocal")
                    .expect("it is attached");
                bench.attach_pods().expect("it can be attached again");
            }
        },
    );
}
