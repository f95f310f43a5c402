//! ICMP errors about packets that flows have rewritten: from routers and from ends, about packets of clients and about
//! replies, with and without source NAT.

use super::*;
use support::rows::Quoting;

/// A router on the way.
const ROUTER: [&str; 2] = ["10.89.0.77", "fd00:89::77"];

impl Rows {
    /// Type and code of every error, and a next hop's MTU where it has one.
    fn kinds(&self) -> Vec<([u8; 2], [u8; 4])> {
        let mtu = 1_280_u16.to_be_bytes();
        if self.family == 0 {
            vec![
                ([3, 4], [0, 0, mtu[0], mtu[1]]),
                ([3, 1], [0; 4]),
                ([3, 3], [0; 4]),
                ([4, 0], [0; 4]),
                ([11, 0], [0; 4]),
                ([12, 0], [20, 0, 0, 0]),
            ]
        } else {
            vec![
                ([2, 0], [0, 0, mtu[0], mtu[1]]),
                ([1, 0], [0; 4]),
                ([1, 4], [0; 4]),
                ([3, 0], [0; 4]),
                ([4, 0], [0, 0, 0, 6]),
            ]
        }
    }

    /// All of them.
    pub fn errors(&mut self) {
        let whole = self.whole();
        for (kind, rest) in self.kinds() {
            for from_router in [true, false] {
                let name = format!(
                    "error {kind:?} from {}",
                    if from_router { "a router" } else { "an end" }
                );
                let error = move |outer: Packet, about: Packet| Quoting {
                    outer,
                    kind,
                    rest,
                    about,
                    quoted: whole,
                };
                for behind in [Behind::Remote, Behind::Local, Behind::Itself] {
                    self.row(&format!("{name}: pod to {behind:?}"), |rows, port| {
                        rows.about_a_pods_packet(port, behind, from_router, error)
                    });
                    self.row(
                        &format!("{name}: reply of {behind:?} to a pod"),
                        |rows, port| rows.about_a_reply_to_a_pod(port, behind, from_router, error),
                    );
                }
                for behind in [Behind::Remote, Behind::Local] {
                    self.row(&format!("{name}: world to {behind:?}"), |rows, port| {
                        rows.about_a_packet_from_the_world(port, behind, from_router, error)
                    });
                    self.row(
                        &format!("{name}: reply of {behind:?} to the world"),
                        |rows, port| {
                            rows.about_a_reply_to_the_world(port, behind, from_router, error)
                        },
                    );
                }
            }
        }
        self.other_errors();
    }

    /// As much as errors quote of a transport; of SCTP not the checksum, which is left as it is.
    fn whole(&self) -> usize {
        if self.protocol == protocol::SCTP {
            8
        } else {
            24
        }
    }

    /// Opens a flow: the packet as the client sends it, as it leaves, and the step.
    pub fn flow(&self, port: u16, behind: Behind, from_pod: bool) -> (Packet, Packet, Step) {
        let to = if from_pod {
            (self.at(CLUSTER), port_of(behind))
        } else {
            (self.at(NODE), port_of(behind) + NODE_PORTS)
        };
        let client = (self.at(if from_pod { CLIENT } else { WORLD }), port);
        let packet = self.packet(client, to);
        let rewritten = behind == Behind::Itself || !from_pod && behind == Behind::Remote;
        let source = if rewritten {
            (self.at(NODE), GIVEN)
        } else {
            client
        };
        let macs = match behind {
            Behind::Local => LOCAL_MACS,
            Behind::Itself => CLIENT_MACS,
            _ => packet.macs,
        };
        let sent = packet.leaving(macs, source, target(behind, self.family));
        let program = if from_pod { POD } else { UPLINK };
        let step = Step::new(program, packet.clone(), TC_REDIRECT, sent.clone().into());
        (packet, sent, step)
    }

    /// The ends of an error as those of a packet.
    fn ends(&self, from: IpAddr, to: IpAddr) -> Packet {
        self.packet((from, 1), (to, 1))
    }

    fn about_a_pods_packet(
        &self,
        port: u16,
        behind: Behind,
        from_router: bool,
        error: impl Fn(Packet, Packet) -> Quoting,
    ) -> Vec<Step> {
        let (packet, sent, opening) = self.flow(port, behind, true);
        let from = if from_router {
            self.at(ROUTER)
        } else {
            sent.destination.0
        };
        let error = error(self.ends(from, sent.source.0), sent.clone());
        let seen_from = if from_router {
            from
        } else {
            packet.destination.0
        };
        let ends = [seen_from, packet.source.0];
        let about = Packet {
            hops: sent.hops,
            ..packet
        };
        let expected = error.leaving(CLIENT_MACS, ends, about);
        let program = if from_router || behind == Behind::Remote {
            UPLINK
        } else {
            POD
        };
        vec![
            opening,
            Step::new(program, error, TC_REDIRECT, expected.into()),
        ]
    }

    fn about_a_packet_from_the_world(
        &self,
        port: u16,
        behind: Behind,
        from_router: bool,
        error: impl Fn(Packet, Packet) -> Quoting,
    ) -> Vec<Step> {
        let (packet, sent, opening) = self.flow(port, behind, false);
        let from = if from_router {
            self.at(ROUTER)
        } else {
            sent.destination.0
        };
        let error = error(self.ends(from, sent.source.0), sent.clone());
        let seen_from = if from_router {
            from
        } else {
            packet.destination.0
        };
        let client = packet.source.0;
        let about = Packet {
            hops: sent.hops,
            ..packet
        };
        let expected = error.leaving(error.outer.macs, [seen_from, client], about);
        let program = if from_router || behind == Behind::Remote {
            UPLINK
        } else {
            POD
        };
        vec![
            opening,
            Step::new(program, error, TC_REDIRECT, expected.into()),
        ]
    }

    fn about_a_reply_to_a_pod(
        &self,
        port: u16,
        behind: Behind,
        from_router: bool,
        error: impl Fn(Packet, Packet) -> Quoting,
    ) -> Vec<Step> {
        let (packet, sent, opening) = self.flow(port, behind, true);
        let from = if from_router {
            self.at(ROUTER)
        } else {
            packet.source.0
        };
        let error = error(self.ends(from, packet.destination.0), packet.reversed());
        let seen_from = if from_router { from } else { sent.source.0 };
        let expected = error.leaving(
            if behind == Behind::Remote {
                error.outer.macs
            } else {
                sent.macs
            },
            [seen_from, sent.destination.0],
            Packet {
                hops: packet.hops,
                ..sent.reversed()
            },
        );
        let program = if from_router { UPLINK } else { POD };
        vec![
            opening,
            Step::new(program, error, TC_REDIRECT, expected.into()),
        ]
    }

    fn about_a_reply_to_the_world(
        &self,
        port: u16,
        behind: Behind,
        from_router: bool,
        error: impl Fn(Packet, Packet) -> Quoting,
    ) -> Vec<Step> {
        let (packet, sent, opening) = self.flow(port, behind, false);
        let from = if from_router {
            self.at(ROUTER)
        } else {
            packet.source.0
        };
        let error = error(self.ends(from, packet.destination.0), packet.reversed());
        let seen_from = if from_router { from } else { sent.source.0 };
        let expected = error.leaving(
            if behind == Behind::Remote {
                error.outer.macs
            } else {
                sent.macs
            },
            [seen_from, sent.destination.0],
            Packet {
                hops: packet.hops,
                ..sent.reversed()
            },
        );
        vec![
            opening,
            Step::new(UPLINK, error, TC_REDIRECT, expected.into()),
        ]
    }

    /// Errors that quote as little as they may, less than that, or what belongs to no flow; and what is no error.
    fn other_errors(&mut self) {
        self.short_quotes();
        self.left_alone();
        self.error_by_xdp();
    }

    fn short_quotes(&mut self) {
        let whole = self.whole();
        let (kind, rest) = self.kinds()[0];
        for quoted in [8, 9, 11, 12, 16, 18, 19]
            .into_iter()
            .filter(|quoted| *quoted <= whole)
        {
            self.row(
                &format!("an error that quotes {quoted} bytes"),
                |rows, port| {
                    rows.about_a_pods_packet(port, Behind::Remote, true, |outer, about| Quoting {
                        outer,
                        kind,
                        rest,
                        about,
                        quoted,
                    })
                },
            );
        }
    }

    fn left_alone(&mut self) {
        let (kind, rest) = self.kinds()[0];
        let unchanged = |rows: &Self, port: u16, kind: [u8; 2], quoted: usize| {
            let (_, sent, opening) = rows.flow(port, Behind::Remote, true);
            let outer = rows.ends(rows.at(ROUTER), sent.source.0);
            let error = Quoting {
                outer,
                kind,
                rest,
                about: sent,
                quoted,
            };
            vec![opening, Step::unchanged(UPLINK, error, TC_PASS)]
        };
        for quoted in 0..8 {
            self.row(
                &format!("an error that quotes {quoted} bytes"),
                |rows, port| unchanged(rows, port, kind, quoted),
            );
        }
        let no_errors: &[u8] = if self.family == 0 {
            &[0, 5, 8, 13]
        } else {
            &[0, 5, 128, 129, 135]
        };
        for other in no_errors {
            self.row(&format!("ICMP of type {other}"), |rows, port| {
                unchanged(rows, port, [*other, 0], 24)
            });
        }
        let quoted = self.whole();
        self.row("an error about no flow", |rows, port| {
            let about = rows.packet((rows.at(CLIENT), port), target(Behind::Remote, rows.family));
            let outer = rows.ends(rows.at(ROUTER), rows.at(CLIENT));
            vec![Step::unchanged(
                UPLINK,
                Quoting {
                    outer,
                    kind,
                    rest,
                    about,
                    quoted,
                },
                TC_PASS,
            )]
        });
    }

    fn error_by_xdp(&mut self) {
        let quoted = self.whole();
        let (kind, rest) = self.kinds()[0];
        self.row("an error, XDP", |rows, port| {
            let (packet, sent, opening) = rows.flow(port, Behind::Remote, false);
            let outer = rows.ends(rows.at(ROUTER), sent.source.0);
            let error = Quoting {
                outer,
                kind,
                rest,
                about: sent.clone(),
                quoted,
            };
            let ends = [rows.at(ROUTER), packet.source.0];
            let about = Packet {
                hops: sent.hops,
                ..packet
            };
            let expected = error.leaving([GATEWAY_MAC, NODE_MAC], ends, about);
            vec![opening, Step::new(XDP, error, XDP_TX, expected.into())]
        });
    }
}
