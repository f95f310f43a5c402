//! Tables of packets for each program: what goes in, the verdict, and what must come out, over BPF_PROG_TEST_RUN.

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
    rows::{Row, Step, refusal},
};

const POD: &str = "pod_egress";
const UPLINK: &str = "uplink_ingress";
const XDP: &str = "xdp_uplink";

/// The port that source NAT has given in the row: known only once a packet has come out.
const GIVEN: u16 = support::rows::GIVEN;

/// The rows of one family and one protocol.
struct Rows {
    family: usize,
    protocol: u8,
    rows: Vec<Row>,
}

impl Rows {
    fn at(&self, addresses: [&str; 2]) -> IpAddr {
        address(addresses[self.family])
    }

    /// A row. Each has a client port of its own, so that no row meets the flow of another.
    fn row(&mut self, name: &str, steps: impl FnOnce(&Self, u16) -> Vec<Step>) {
        let port = 20_000 + u16::try_from(self.rows.len()).expect("few rows");
        let row = Row {
            name: format!(
                "ip{} protocol {}: {name}",
                [4, 6][self.family],
                self.protocol
            ),
            steps: steps(self, port),
        };
        self.rows.push(row);
    }

    fn packet(&self, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
        Packet::new(self.protocol, from, to)
    }

    /// What a pod's packet to a service becomes, over all of the service's addresses.
    fn from_pods(&mut self) {
        for (name, addresses, above) in [
            ("cluster IP", CLUSTER, 0),
            ("external IP", EXTERNAL, 0),
            ("load balancer", BALANCER, 0),
            ("node port", NODE, NODE_PORTS),
        ] {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::Itself,
                Behind::OutOfReach,
            ] {
                self.row(&format!("pod to {behind:?} by {name}"), |rows, port| {
                    let client = (rows.at(CLIENT), port);
                    let packet = rows.packet(client, (rows.at(addresses), port_of(behind) + above));
                    let to = target(behind, rows.family);
                    // A pod that knocks at an address of the world is no worse off than at the cluster IP.
                    let refused = behind == Behind::Nobody
                        || behind == Behind::OutOfReach && name == "cluster IP";
                    let expected = match behind {
                        _ if refused => refusal(&packet),
                        Behind::Itself => Packet {
                            macs: CLIENT_MACS,
                            source: (rows.at(NODE), GIVEN),
                            destination: to,
                            ..packet.clone()
                        }
                        .into(),
                        Behind::Local => Packet {
                            macs: LOCAL_MACS,
                            destination: to,
                            ..packet.clone()
                        }
                        .into(),
                        _ => Packet {
                            destination: to,
                            ..packet.clone()
                        }
                        .into(),
                    };
                    let first = Step::new(POD, packet.clone(), TC_REDIRECT, expected.clone());
                    if refused {
                        return vec![first];
                    }
                    // The second packet meets the flow; then comes the reply.
                    let again = packet.flagged(tcp::ACK);
                    let mut steps = vec![
                        first,
                        Step::new(POD, again, TC_REDIRECT, expected.flagged(tcp::ACK)),
                    ];
                    let answer = rows
                        .packet(
                            to,
                            if behind == Behind::Itself {
                                (rows.at(NODE), GIVEN)
                            } else {
                                client
                            },
                        )
                        .flagged(tcp::SYN | tcp::ACK);
                    let restored = Packet {
                        macs: CLIENT_MACS,
                        source: packet.destination,
                        destination: client,
                        ..answer.clone()
                    };
                    let from = if behind == Behind::Remote || behind == Behind::OutOfReach {
                        UPLINK
                    } else {
                        POD
                    };
                    steps.push(Step::new(from, answer, TC_REDIRECT, restored.into()));
                    steps
                });
            }
        }
    }

    /// What a packet from outside becomes at tcx on the uplink.
    fn from_outside(&mut self) {
        for (name, addresses, above) in [
            ("external IP", EXTERNAL, 0),
            ("load balancer", BALANCER, 0),
            ("node port", NODE, NODE_PORTS),
        ] {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::OutOfReach,
            ] {
                self.row(
                    &format!("world to {behind:?} by {name}, tcx"),
                    |rows, port| {
                        let client = (rows.at(WORLD), port);
                        let packet =
                            rows.packet(client, (rows.at(addresses), port_of(behind) + above));
                        let to = target(behind, rows.family);
                        let (source, macs) = match behind {
                            Behind::Local => (client, LOCAL_MACS),
                            Behind::Remote => ((rows.at(NODE), GIVEN), packet.macs),
                            _ => {
                                return vec![Step::new(
                                    UPLINK,
                                    packet.clone(),
                                    TC_REDIRECT,
                                    refusal(&packet),
                                )];
                            }
                        };
                        let forwarded = Packet {
                            macs,
                            source,
                            destination: to,
                            ..packet.clone()
                        };
                        let answer = rows.packet(to, source).flagged(tcp::SYN | tcp::ACK);
                        let restored = Packet {
                            source: packet.destination,
                            destination: client,
                            ..answer.clone()
                        };
                        let from = if behind == Behind::Local { POD } else { UPLINK };
                        vec![
                            Step::new(
                                UPLINK,
                                packet.clone(),
                                TC_REDIRECT,
                                forwarded.clone().into(),
                            ),
                            Step::new(
                                UPLINK,
                                packet.flagged(tcp::ACK),
                                TC_REDIRECT,
                                forwarded.flagged(tcp::ACK).into(),
                            ),
                            Step::new(from, answer, TC_REDIRECT, restored.into()),
                        ]
                    },
                );
            }
        }
        self.row("world to cluster IP, tcx", |rows, port| {
            let packet = rows.packet(
                (rows.at(WORLD), port),
                (rows.at(CLUSTER), port_of(Behind::Local)),
            );
            vec![Step::unchanged(UPLINK, packet, TC_DROP)]
        });
    }

    /// The same by XDP, which leaves alone what is for a pod of this node.
    fn by_xdp(&mut self) {
        for (name, addresses, above) in [
            ("external IP", EXTERNAL, 0),
            ("load balancer", BALANCER, 0),
            ("node port", NODE, NODE_PORTS),
        ] {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::OutOfReach,
            ] {
                self.row(
                    &format!("world to {behind:?} by {name}, XDP"),
                    |rows, port| {
                        let client = (rows.at(WORLD), port);
                        let packet =
                            rows.packet(client, (rows.at(addresses), port_of(behind) + above));
                        let to = target(behind, rows.family);
                        match behind {
                            Behind::Local => return vec![Step::unchanged(XDP, packet, XDP_PASS)],
                            Behind::Remote => {}
                            _ => {
                                return vec![Step::new(
                                    XDP,
                                    packet.clone(),
                                    XDP_TX,
                                    refusal(&packet),
                                )];
                            }
                        }
                        let source = (rows.at(NODE), GIVEN);
                        let forwarded = Packet {
                            macs: [OTHER_MAC, NODE_MAC],
                            source,
                            destination: to,
                            ..packet.clone()
                        };
                        let answer = rows.packet(to, source).flagged(tcp::SYN | tcp::ACK);
                        let restored = Packet {
                            macs: [GATEWAY_MAC, NODE_MAC],
                            source: packet.destination,
                            destination: client,
                            ..answer.clone()
                        };
                        vec![
                            Step::new(XDP, packet.clone(), XDP_TX, forwarded.clone().into()),
                            Step::new(
                                XDP,
                                packet.flagged(tcp::ACK),
                                XDP_TX,
                                forwarded.flagged(tcp::ACK).into(),
                            ),
                            Step::new(XDP, answer.clone(), XDP_TX, restored.clone().into()),
                            // What XDP began, tcx goes on with.
                            Step::new(
                                UPLINK,
                                answer,
                                TC_REDIRECT,
                                Packet {
                                    macs: packet.macs,
                                    ..restored
                                }
                                .into(),
                            ),
                        ]
                    },
                );
            }
        }
        self.row("world to cluster IP, XDP", |rows, port| {
            let packet = rows.packet(
                (rows.at(WORLD), port),
                (rows.at(CLUSTER), port_of(Behind::Local)),
            );
            vec![Step::unchanged(XDP, packet, XDP_DROP)]
        });
    }

    /// What concerns no service.
    fn without_service(&mut self) {
        let unknown = 999;
        for (name, program, from, to, expected) in [
            ("pod to pod", POD, CLIENT, LOCAL, Some(LOCAL_MACS)),
            ("pod to itself", POD, CLIENT, CLIENT, Some(CLIENT_MACS)),
            ("pod to another node's pod", POD, CLIENT, REMOTE, None),
            ("pod to the node", POD, CLIENT, NODE, None),
            ("pod to the world", POD, CLIENT, WORLD, None),
            (
                "pod to a port that no service has",
                POD,
                CLIENT,
                CLUSTER,
                None,
            ),
            ("world to pod", UPLINK, WORLD, LOCAL, Some(LOCAL_MACS)),
            (
                "another node's pod to pod",
                UPLINK,
                REMOTE,
                CLIENT,
                Some(CLIENT_MACS),
            ),
            ("world to the node", UPLINK, WORLD, NODE, None),
            (
                "world to a port that no service has",
                UPLINK,
                WORLD,
                EXTERNAL,
                None,
            ),
            ("world to pod, XDP", XDP, WORLD, LOCAL, None),
            ("world to the node, XDP", XDP, WORLD, NODE, None),
            ("world through the node, XDP", XDP, WORLD, REMOTE, None),
        ] {
            self.row(name, |rows, port| {
                let packet = rows.packet((rows.at(from), port), (rows.at(to), unknown));
                let pass = if program == XDP { XDP_PASS } else { TC_PASS };
                match expected {
                    Some(macs) => vec![Step::new(
                        program,
                        packet.clone(),
                        TC_REDIRECT,
                        Packet { macs, ..packet }.into(),
                    )],
                    None => vec![Step::unchanged(program, packet, pass)],
                }
            });
        }
    }

    /// Payloads of every kind of length, and datagrams without a checksum.
    fn shapes(&mut self) {
        for length in [0, 1, 2, 3, 17, 512, 1_399, 1_400] {
            self.row(&format!("{length} bytes, tcx"), |rows, port| {
                let mut packet = rows.packet(
                    (rows.at(CLIENT), port),
                    (rows.at(CLUSTER), port_of(Behind::Local)),
                );
                packet.payload = (0..length)
                    .map(|byte| u8::try_from(byte % 251).expect("below 251"))
                    .collect();
                let forwarded = Packet {
                    macs: LOCAL_MACS,
                    destination: target(Behind::Local, rows.family),
                    ..packet.clone()
                };
                vec![Step::new(POD, packet, TC_REDIRECT, forwarded.into())]
            });
            self.row(&format!("{length} bytes, XDP"), |rows, port| {
                let mut packet = rows.packet(
                    (rows.at(WORLD), port),
                    (rows.at(NODE), port_of(Behind::Remote) + NODE_PORTS),
                );
                packet.payload = (0..length)
                    .map(|byte| u8::try_from(byte % 251).expect("below 251"))
                    .collect();
                let forwarded = Packet {
                    macs: [OTHER_MAC, NODE_MAC],
                    source: (rows.at(NODE), GIVEN),
                    destination: target(Behind::Remote, rows.family),
                    ..packet.clone()
                };
                vec![Step::new(XDP, packet, XDP_TX, forwarded.into())]
            });
        }
        if self.protocol == protocol::UDP && self.family == 0 {
            self.row("no checksum, tcx", |rows, port| {
                let mut packet = rows.packet(
                    (rows.at(CLIENT), port),
                    (rows.at(CLUSTER), port_of(Behind::Local)),
                );
                packet.unchecked = true;
                let forwarded = Packet {
                    macs: LOCAL_MACS,
                    destination: target(Behind::Local, rows.family),
                    ..packet.clone()
                };
                vec![Step::new(POD, packet, TC_REDIRECT, forwarded.into())]
            });
        }
    }

    /// IPv4 headers with options.
    fn options(&mut self) {
        if self.family == 1 {
            return;
        }
        for words in 1..=10 {
            self.row(&format!("{words} words of options, tcx"), |rows, port| {
                let mut packet = rows.packet(
                    (rows.at(CLIENT), port),
                    (rows.at(CLUSTER), port_of(Behind::Local)),
                );
                packet.options = vec![1; words * 4];
                let to = target(Behind::Local, rows.family);
                let forwarded = Packet {
                    macs: LOCAL_MACS,
                    destination: to,
                    ..packet.clone()
                };
                let mut answer = rows.packet(to, packet.source).flagged(tcp::SYN | tcp::ACK);
                answer.options = vec![1; words * 4];
                let restored = Packet {
                    macs: CLIENT_MACS,
                    source: packet.destination,
                    ..answer.clone()
                };
                vec![
                    Step::new(POD, packet, TC_REDIRECT, forwarded.into()),
                    Step::new(POD, answer, TC_REDIRECT, restored.into()),
                ]
            });
            self.row(&format!("{words} words of options, XDP"), |rows, port| {
                let mut packet = rows.packet(
                    (rows.at(WORLD), port),
                    (rows.at(NODE), port_of(Behind::Remote) + NODE_PORTS),
                );
                packet.options = vec![1; words * 4];
                let (source, destination) =
                    ((rows.at(NODE), GIVEN), target(Behind::Remote, rows.family));
                let forwarded = Packet {
                    macs: [OTHER_MAC, NODE_MAC],
                    source,
                    destination,
                    ..packet.clone()
                };
                vec![Step::new(XDP, packet, XDP_TX, forwarded.into())]
            });
            self.row(
                &format!("{words} words of options, refused"),
                |rows, port| {
                    let mut packet = rows.packet(
                        (rows.at(CLIENT), port),
                        (rows.at(CLUSTER), port_of(Behind::Nobody)),
                    );
                    packet.options = vec![1; words * 4];
                    let expected = refusal(&packet);
                    vec![Step::new(POD, packet, TC_REDIRECT, expected)]
                },
            );
        }
    }

    /// TCP: what each combination of flags meets where nobody serves. A reset is never answered.
    fn flags(&mut self) {
        if self.protocol != protocol::TCP {
            return;
        }
        for flags in 0..32 {
            self.row(&format!("flags {flags:#04x} to nobody"), |rows, port| {
                let packet = rows
                    .packet(
                        (rows.at(CLIENT), port),
                        (rows.at(CLUSTER), port_of(Behind::Nobody)),
                    )
                    .flagged(flags);
                if flags & tcp::RST != 0 {
                    return vec![Step::unchanged(POD, packet, TC_DROP)];
                }
                let expected = refusal(&packet);
                vec![Step::new(POD, packet, TC_REDIRECT, expected)]
            });
        }
    }

    /// Headers that contradict themselves or that the programs do not know: left alone.
    fn malformed(&mut self) {
        let transport = if self.protocol == protocol::TCP {
            20
        } else {
            8
        };
        for (program, to, from) in [
            (POD, CLUSTER, CLIENT),
            (UPLINK, EXTERNAL, WORLD),
            (XDP, EXTERNAL, WORLD),
        ] {
            let network = if self.family == 0 { 34 } else { 54 };
            let mut spoiled: Vec<(String, Box<dyn Fn(&mut Vec<u8>)>)> = vec![
                (
                    "another frame type".to_owned(),
                    Box::new(|frame| frame[13] = 0x06),
                ),
                (
                    "another version".to_owned(),
                    Box::new(|frame| frame[14] ^= 0x20),
                ),
                (
                    "a length beyond the frame".to_owned(),
                    Box::new(move |frame| {
                        let at = if network == 34 { 17 } else { 19 };
                        frame[at] += 1;
                    }),
                ),
                (
                    "a length too short for the transport".to_owned(),
                    Box::new(move |frame| {
                        let (at, length) = if network == 34 {
                            (16, 20 + transport - 1)
                        } else {
                            (18, transport - 1)
                        };
                        frame[at..at + 2]
                            .copy_from_slice(&u16::try_from(length).expect("small").to_be_bytes());
                    }),
                ),
                (
                    "another protocol".to_owned(),
                    Box::new(move |frame| frame[if network == 34 { 23 } else { 20 }] = 47),
                ),
            ];
            if self.family == 0 {
                spoiled.push((
                    "a header of four words".to_owned(),
                    Box::new(|frame| frame[14] = 0x44),
                ));
            }
            if self.protocol == protocol::TCP {
                spoiled.push((
                    "a TCP header of four words".to_owned(),
                    Box::new(move |frame| frame[network + 12] = 0x40),
                ));
            }
            // BPF_PROG_TEST_RUN makes no socket buffer whose IP header is cut.
            let first = if program == XDP { 14 } else { network };
            for length in first..network + transport {
                spoiled.push((
                    format!("cut to {length} bytes"),
                    Box::new(move |frame| frame.truncate(length)),
                ));
            }
            for (name, spoil) in spoiled {
                self.row(&format!("{name}, {program}"), |rows, port| {
                    let packet = rows.packet(
                        (rows.at(from), port),
                        (rows.at(to), port_of(Behind::Remote)),
                    );
                    let mut frame = packet.bytes();
                    spoil(&mut frame);
                    let pass = if program == XDP { XDP_PASS } else { TC_PASS };
                    vec![Step {
                        program,
                        frame: frame.clone().into(),
                        verdict: pass,
                        expected: frame.into(),
                    }]
                });
            }
        }
    }
}

#[test]
fn every_packet_comes_out_as_its_row_says() {
    let mut rows = Vec::new();
    for family in 0..2 {
        for protocol in [protocol::TCP, protocol::UDP] {
            let mut some = Rows {
                family,
                protocol,
                rows: Vec::new(),
            };
            some.from_pods();
            some.from_outside();
            some.by_xdp();
            some.without_service();
            some.shapes();
            some.options();
            some.flags();
            some.malformed();
            rows.extend(some.rows);
        }
    }
    assert!(rows.len() >= 300, "only {} rows", rows.len());
    let failures = Bench::run(
        |_| {},
        |mut bench| {
            bench.serve(Protocol::Tcp);
            bench.serve(Protocol::Udp);
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
