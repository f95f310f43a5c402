//! Loopback addresses are on no wire (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3), whatever a packet is and whoever sends it.

use super::*;

/// A process's own addresses.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

impl Rows {
    /// By each program, from one and to one, to a service and to none.
    pub fn martians(&mut self) {
        for (program, own, verdict) in [
            (POD, CLIENT, TC_DROP),
            (UPLINK, WORLD, TC_DROP),
            (XDP, WORLD, XDP_DROP),
        ] {
            for (name, from, to) in [
                ("from a loopback address", LOOPBACK, EXTERNAL),
                ("to a loopback address", own, LOOPBACK),
            ] {
                for (place, port) in [
                    ("node port", NODE_PORTS + port_of(Behind::Remote)),
                    ("service", port_of(Behind::Remote)),
                    ("nobody", 999),
                ] {
                    self.row(&format!("{name}, {place}, {program}"), |rows, client| {
                        let packet = rows.packet((rows.at(from), client), (rows.at(to), port));
                        vec![Step::unchanged(program, packet, verdict)]
                    });
                }
                self.row(&format!("{name}, fragments, {program}"), |rows, client| {
                    let mut packet = rows.packet((rows.at(from), client), (rows.at(to), 999));
                    packet.payload = vec![7; 64];
                    [0, 1]
                        .map(|index| {
                            let fragment = Frame::Fragment(packet.clone(), 32, index);
                            Step::unchanged(program, fragment, verdict)
                        })
                        .to_vec()
                });
            }
        }
    }

    /// What a process sends from a loopback address leaves by the uplink as the node's, if at all.
    pub fn processes(&mut self) {
        for (from, to, verdict) in [
            (LOOPBACK, WORLD, TC_DROP),
            (NODE, LOOPBACK, TC_DROP),
            (NODE, WORLD, TC_PASS),
        ] {
            self.row(
                &format!("process at {} to {}", from[0], to[0]),
                |rows, port| {
                    let packet = rows.packet((rows.at(from), port), (rows.at(to), 999));
                    vec![Step::unchanged(PROCESSES, packet, verdict)]
                },
            );
        }
        self.row(
            "process at a loopback address to a service",
            |rows, port| {
                let client = (rows.at(LOOPBACK), port);
                let frontend = (rows.at(CLUSTER), port_of(Behind::Local));
                let (node, backend) = ((rows.at(NODE), GIVEN), target(Behind::Local, rows.family));
                let packet = rows.packet(client, frontend);
                let mut forwarded = packet.leaving(LOCAL_MACS, node, backend);
                forwarded.hops = packet.hops;
                let answer = rows.packet(backend, node).flagged(tcp::SYN | tcp::ACK);
                let mut restored = answer.leaving([[0; 6]; 2], frontend, client);
                restored.hops = answer.hops;
                vec![
                    Step::new(PROCESSES, packet, TC_REDIRECT, forwarded.into()),
                    Step::new(POD, answer, TC_REDIRECT, restored.into()),
                ]
            },
        );
    }
}

#[test]
fn what_has_a_loopback_address_is_counted_by_its_reason() {
    Bench::run(
        |_| {},
        |bench| {
            let counted = |reason: &str| {
                let drops = bench.dataplane.drops().expect("the counters can be read");
                let found = drops.iter().find(|drop| drop.reason == reason);
                found.expect("there is such a reason").packets
            };
            for family in 0..2 {
                let [host, pod, loopback] =
                    [WORLD, CLIENT, LOOPBACK].map(|at| (address(at[family]), 7));
                for (program, from, to, reason) in [
                    (UPLINK, loopback, host, "martian"),
                    (UPLINK, host, loopback, "martian"),
                    (XDP, loopback, host, "martian"),
                    (XDP, host, loopback, "martian"),
                    (PROCESSES, loopback, host, "martian"),
                    (POD, pod, loopback, "martian"),
                    (POD, loopback, host, "spoofed_source"),
                ] {
                    let before = counted(reason);
                    let frame = Packet::new(protocol::UDP, from, to).bytes();
                    let interface = bench.interface_of(program, &frame);
                    bench
                        .dataplane
                        .run(program, &frame, interface)
                        .expect("the program runs");
                    assert_eq!(
                        counted(reason),
                        before + 1,
                        "{program}, {} to {}",
                        from.0,
                        to.0
                    );
                }
            }
        },
    );
}
