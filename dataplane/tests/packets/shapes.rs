//! Packets that concern no service, payloads of every kind of length, IPv4 options, TCP's flags.

use super::*;

impl Rows {
    /// What concerns no service.
    pub fn without_service(&mut self) {
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
                        Packet {
                            macs,
                            ..packet.routed()
                        }
                        .into(),
                    )],
                    None => vec![Step::unchanged(program, packet, pass)],
                }
            });
        }
    }

    /// Payloads of every kind of length, and datagrams without a checksum.
    pub fn shapes(&mut self) {
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
                    ..packet.routed()
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
                    ..packet.routed()
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
                    ..packet.routed()
                };
                vec![Step::new(POD, packet, TC_REDIRECT, forwarded.into())]
            });
        }
    }

    /// IPv4 headers with options.
    pub fn options(&mut self) {
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
                    ..packet.routed()
                };
                let mut answer = rows.packet(to, packet.source).flagged(tcp::SYN | tcp::ACK);
                answer.options = vec![1; words * 4];
                let restored = Packet {
                    macs: CLIENT_MACS,
                    source: packet.destination,
                    ..answer.routed()
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
                    ..packet.routed()
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
    pub fn flags(&mut self) {
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
}
