//! Hop limits, fragments, IPv6 extension headers and VLAN tags.

use super::*;
use support::rows::{Frame, expired, icmp_error};

/// How much of the transport a fragment holds.
const PART: usize = 48;

impl Rows {
    /// All of them.
    pub fn hard(&mut self) {
        self.hop_limits();
        if self.protocol == protocol::UDP {
            self.fragments();
        }
        self.extensions();
        self.tags();
    }

    /// Packets that may go over one more router, and such that may not.
    fn hop_limits(&mut self) {
        for hops in [0, 1, 2] {
            self.row(&format!("{hops} hops left, pod to pod"), |rows, port| {
                let mut packet = rows.packet((rows.at(CLIENT), port), (rows.at(LOCAL), 999));
                packet.hops = hops;
                if hops < 2 {
                    return vec![Step::unchanged(POD, packet, TC_PASS)];
                }
                let expected = Packet {
                    macs: LOCAL_MACS,
                    ..packet.routed()
                };
                vec![Step::new(POD, packet, TC_REDIRECT, expected.into())]
            });
            for behind in [Behind::Local, Behind::Remote, Behind::Itself] {
                self.hops_of_services(hops, behind);
            }
            self.hops_of_the_world(hops);
        }
    }

    /// A pod's packet to a backend, and the reply.
    fn hops_of_services(&mut self, hops: u8, behind: Behind) {
        self.row(
            &format!("{hops} hops left, pod to {behind:?}"),
            |rows, port| {
                let (packet, sent, opening) = rows.flow(port, behind, true);
                let limited = Packet { hops, ..packet };
                let expected = match hops {
                    2 => Packet { hops: 1, ..sent }.into(),
                    _ => expired(&limited, rows.at(NODE)),
                };
                vec![opening, Step::new(POD, limited, TC_REDIRECT, expected)]
            },
        );
        self.row(
            &format!("{hops} hops left, reply of {behind:?}"),
            |rows, port| {
                let (packet, sent, opening) = rows.flow(port, behind, true);
                let program = if behind == Behind::Remote {
                    UPLINK
                } else {
                    POD
                };
                let limited = Packet {
                    hops,
                    macs: packet.macs,
                    ..sent.reversed()
                };
                if hops < 2 && behind == Behind::Itself {
                    // What it quotes has a port that is known only later.
                    return vec![opening];
                }
                let expected = match hops {
                    2 => limited
                        .leaving(CLIENT_MACS, packet.destination, packet.source)
                        .into(),
                    _ => expired(&limited, rows.at(NODE)),
                };
                vec![opening, Step::new(program, limited, TC_REDIRECT, expected)]
            },
        );
    }

    /// A packet from outside to another node's backend, by tcx and by XDP.
    fn hops_of_the_world(&mut self, hops: u8) {
        self.row(
            &format!("{hops} hops left, world to another node"),
            |rows, port| {
                let (packet, sent, opening) = rows.flow(port, Behind::Remote, false);
                let limited = Packet { hops, ..packet };
                let by_tcx = match hops {
                    2 => Packet {
                        hops: 1,
                        ..sent.clone()
                    }
                    .into(),
                    _ => expired(&limited, rows.at(NODE)),
                };
                let (verdict, by_xdp) = match hops {
                    2 => (
                        XDP_TX,
                        Packet {
                            hops: 1,
                            macs: [OTHER_MAC, NODE_MAC],
                            ..sent
                        }
                        .into(),
                    ),
                    _ => (XDP_TX, expired(&limited, rows.at(NODE))),
                };
                vec![
                    opening,
                    Step::new(UPLINK, limited.clone(), TC_REDIRECT, by_tcx),
                    Step::new(XDP, limited, verdict, by_xdp),
                ]
            },
        );
    }

    /// Datagrams in fragments, in order and not.
    fn fragments(&mut self) {
        for (from_pod, behind) in [
            (true, Behind::Local),
            (true, Behind::Remote),
            (true, Behind::Itself),
            (false, Behind::Local),
            (false, Behind::Remote),
        ] {
            for length in [41, 48, 120, 200] {
                let whence = if from_pod { "pod" } else { "world" };
                self.row(
                    &format!("{length} bytes in fragments, {whence} to {behind:?}"),
                    |rows, port| rows.fragmented(port, length, from_pod, behind),
                );
            }
        }
        self.row("fragments before the first", |rows, port| {
            let (packet, sent, _) = rows.long(port, 120, true, Behind::Local);
            let step = |index| {
                let fragment = Frame::Fragment(packet.clone(), PART, index);
                let forwarded = Frame::Fragment(sent.clone(), PART, index);
                (fragment, forwarded)
            };
            let (first, sent_first) = step(0);
            let (second, sent_second) = step(1);
            vec![
                Step::unchanged(POD, second.clone(), TC_PASS),
                Step::new(POD, first, TC_REDIRECT, sent_first),
                Step::new(POD, second, TC_REDIRECT, sent_second),
            ]
        });
        self.row("fragments to nobody", |rows, port| {
            let (packet, ..) = rows.long(port, 120, true, Behind::Nobody);
            let frames = packet.fragments(PART);
            // Only what the first fragment holds is known to the answer.
            let quoted = rows.packet(packet.source, packet.destination);
            let quoted = Packet {
                id: 0,
                hops: 64,
                ..quoted
            };
            let header = if rows.family == 0 { 28 } else { 48 };
            let quoted = quoted.network(packet.protocol, &packet.transport()[..PART]);
            let answer = Packet {
                macs: [packet.macs[1], packet.macs[0]],
                id: 0,
                hops: 64,
                ..packet.reversed()
            };
            let kind = if rows.family == 0 { [3, 3] } else { [1, 4] };
            let expected = icmp_error(&answer, kind, [0; 4], &quoted[..header]);
            vec![
                Step::new(POD, frames[0].clone(), TC_REDIRECT, expected.into()),
                Step::unchanged(POD, frames[1].clone(), TC_DROP),
            ]
        });
    }

    fn long(
        &self,
        port: u16,
        length: u8,
        from_pod: bool,
        behind: Behind,
    ) -> (Packet, Packet, Step) {
        let (mut packet, mut sent, opening) = self.flow(port, behind, from_pod);
        packet.payload = (0..length).collect();
        // Rows share addresses: their datagrams must not share a number.
        packet.id = port;
        sent.payload.clone_from(&packet.payload);
        sent.id = port;
        (packet, sent, opening)
    }

    fn fragmented(&self, port: u16, length: u8, from_pod: bool, behind: Behind) -> Vec<Step> {
        let (packet, sent, opening) = self.long(port, length, from_pod, behind);
        let program = if from_pod { POD } else { UPLINK };
        let parts = packet.fragments(PART).len();
        let mut steps = vec![opening];
        for index in (0..parts).chain((1..parts).rev()) {
            let fragment = Frame::Fragment(packet.clone(), PART, index);
            let forwarded = Frame::Fragment(sent.clone(), PART, index);
            steps.push(Step::new(program, fragment, TC_REDIRECT, forwarded));
        }
        let answer = Packet {
            macs: packet.macs,
            ..sent.reversed()
        };
        let restored_macs = if from_pod { CLIENT_MACS } else { answer.macs };
        let restored = answer.leaving(restored_macs, packet.destination, packet.source);
        let answers_at = if behind == Behind::Remote {
            UPLINK
        } else {
            POD
        };
        for index in 0..parts {
            let fragment = Frame::Fragment(answer.clone(), PART, index);
            let forwarded = Frame::Fragment(restored.clone(), PART, index);
            steps.push(Step::new(answers_at, fragment, TC_REDIRECT, forwarded));
        }
        steps
    }

    /// Hop-by-hop and destination options before the transport.
    fn extensions(&mut self) {
        if self.family == 0 {
            return;
        }
        let chains: [&[u8]; 6] = [
            &[0],
            &[60],
            &[0, 60],
            &[60, 60],
            &[0, 60, 60],
            &[0, 60, 60, 60],
        ];
        for chain in chains {
            for behind in [Behind::Local, Behind::Remote, Behind::Itself] {
                self.row(
                    &format!("extensions {chain:?}, pod to {behind:?}"),
                    |rows, port| {
                        let (packet, sent, opening) = rows.flow(port, behind, true);
                        let extended = |packet: &Packet| Packet {
                            extensions: chain.to_vec(),
                            ..packet.clone()
                        };
                        let answer = extended(&Packet {
                            macs: packet.macs,
                            ..sent.reversed()
                        });
                        let restored =
                            answer.leaving(CLIENT_MACS, packet.destination, packet.source);
                        let answers_at = if behind == Behind::Remote {
                            UPLINK
                        } else {
                            POD
                        };
                        vec![
                            opening,
                            Step::new(POD, extended(&packet), TC_REDIRECT, extended(&sent).into()),
                            Step::new(answers_at, answer, TC_REDIRECT, restored.into()),
                        ]
                    },
                );
            }
            self.row(&format!("extensions {chain:?} to nobody"), |rows, port| {
                let to = (rows.at(CLUSTER), port_of(Behind::Nobody));
                let mut packet = rows.packet((rows.at(CLIENT), port), to);
                packet.extensions = chain.to_vec();
                let expected = refusal(&packet);
                vec![Step::new(POD, packet, TC_REDIRECT, expected)]
            });
        }
        for chain in [vec![0, 60, 60, 60, 60], vec![43], vec![51]] {
            self.row(&format!("extensions {chain:?}"), |rows, port| {
                let to = (rows.at(CLUSTER), port_of(Behind::Local));
                let mut packet = rows.packet((rows.at(CLIENT), port), to);
                packet.extensions.clone_from(&chain);
                vec![Step::unchanged(POD, packet, TC_PASS)]
            });
        }
    }

    /// Frames of VLANs, which are other interfaces than the one that they were seen at.
    fn tags(&mut self) {
        for tags in [
            vec![[0x8100, 100]],
            vec![[0x88a8, 100]],
            vec![[0x88a8, 7], [0x8100, 100]],
        ] {
            for program in [POD, UPLINK, XDP] {
                self.row(&format!("tags {tags:x?}, {program}"), |rows, port| {
                    let from = if program == POD { CLIENT } else { WORLD };
                    let to = (rows.at(EXTERNAL), port_of(Behind::Remote));
                    let mut packet = rows.packet((rows.at(from), port), to);
                    packet.tags.clone_from(&tags);
                    let pass = if program == XDP { XDP_PASS } else { TC_PASS };
                    vec![Step::unchanged(program, packet, pass)]
                });
            }
        }
    }
}
