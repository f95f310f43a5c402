//! Services at all their addresses, from all sides, by each program: first packets, known flows, replies and refusals.

use super::*;

/// The addresses of services that the world may knock at, and what is added to their ports.
const OUTER: [(&str, [&str; 2], u16); 3] = [
    ("external IP", EXTERNAL, 0),
    ("load balancer", BALANCER, 0),
    ("node port", NODE, NODE_PORTS),
];

impl Rows {
    /// What a pod's packet to a service becomes, over all of the service's addresses.
    pub fn pods(&mut self) {
        let addresses = [[("cluster IP", CLUSTER, 0)].as_slice(), &OUTER].concat();
        for (name, addresses, above) in addresses {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::Itself,
                Behind::OutOfReach,
            ] {
                // A pod that knocks at an address of the world is no worse off than at the cluster IP.
                let refused = behind == Behind::Nobody
                    || behind == Behind::OutOfReach && name == "cluster IP";
                self.row(&format!("pod to {behind:?} by {name}"), |rows, port| {
                    let to = (rows.at(addresses), port_of(behind) + above);
                    let packet = rows.packet((rows.at(CLIENT), port), to);
                    if refused {
                        let expected = refusal(&packet);
                        return vec![Step::new(POD, packet, TC_REDIRECT, expected)];
                    }
                    rows.pod_is_served(&packet, behind)
                });
            }
        }
    }

    /// The first packet, another that meets the flow, and the reply.
    fn pod_is_served(&self, packet: &Packet, behind: Behind) -> Vec<Step> {
        let to = target(behind, self.family);
        let (macs, source, answers_at) = match behind {
            Behind::Itself => (CLIENT_MACS, (self.at(NODE), GIVEN), POD),
            Behind::Local => (LOCAL_MACS, packet.source, POD),
            _ => (packet.macs, packet.source, UPLINK),
        };
        let forwarded = packet.leaving(macs, source, to);
        let answer = self.packet(to, source).flagged(tcp::SYN | tcp::ACK);
        let restored = answer.leaving(CLIENT_MACS, packet.destination, packet.source);
        vec![
            Step::new(POD, packet.clone(), TC_REDIRECT, forwarded.clone().into()),
            Step::new(
                POD,
                packet.flagged(tcp::ACK),
                TC_REDIRECT,
                forwarded.flagged(tcp::ACK).into(),
            ),
            Step::new(answers_at, answer, TC_REDIRECT, restored.into()),
        ]
    }

    /// What a packet from outside becomes at tcx on the uplink.
    pub fn outside(&mut self) {
        for (name, addresses, above) in OUTER {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::OutOfReach,
            ] {
                self.row(
                    &format!("world to {behind:?} by {name}, tcx"),
                    |rows, port| {
                        let to = (rows.at(addresses), port_of(behind) + above);
                        let packet = rows.packet((rows.at(WORLD), port), to);
                        match behind {
                            Behind::Local | Behind::Remote => rows.world_is_served(&packet, behind),
                            Behind::OutOfReach => vec![Step::unchanged(UPLINK, packet, TC_DROP)],
                            _ => vec![Step::new(
                                UPLINK,
                                packet.clone(),
                                TC_REDIRECT,
                                refusal(&packet),
                            )],
                        }
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

    fn world_is_served(&self, packet: &Packet, behind: Behind) -> Vec<Step> {
        let to = target(behind, self.family);
        let (macs, source, answers_at) = match behind {
            Behind::Local => (LOCAL_MACS, packet.source, POD),
            _ => (packet.macs, (self.at(NODE), GIVEN), UPLINK),
        };
        let forwarded = packet.leaving(macs, source, to);
        let answer = self.packet(to, source).flagged(tcp::SYN | tcp::ACK);
        let restored = answer.leaving(answer.macs, packet.destination, packet.source);
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
            Step::new(answers_at, answer, TC_REDIRECT, restored.into()),
        ]
    }

    /// The same by XDP, which leaves alone what is for a pod of this node.
    pub fn by_xdp(&mut self) {
        for (name, addresses, above) in OUTER {
            for behind in [
                Behind::Local,
                Behind::Remote,
                Behind::Nobody,
                Behind::OutOfReach,
            ] {
                self.row(
                    &format!("world to {behind:?} by {name}, XDP"),
                    |rows, port| {
                        let to = (rows.at(addresses), port_of(behind) + above);
                        let packet = rows.packet((rows.at(WORLD), port), to);
                        match behind {
                            Behind::Local => vec![Step::unchanged(XDP, packet, XDP_PASS)],
                            Behind::Remote => rows.xdp_serves(&packet),
                            Behind::OutOfReach => vec![Step::unchanged(XDP, packet, XDP_DROP)],
                            // Left to tcx.
                            _ if rows.protocol == protocol::SCTP => {
                                vec![Step::unchanged(XDP, packet, XDP_PASS)]
                            }
                            _ => vec![Step::new(XDP, packet.clone(), XDP_TX, refusal(&packet))],
                        }
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

    fn xdp_serves(&self, packet: &Packet) -> Vec<Step> {
        let (source, to) = ((self.at(NODE), GIVEN), target(Behind::Remote, self.family));
        let forwarded = packet.leaving([OTHER_MAC, NODE_MAC], source, to);
        let answer = self.packet(to, source).flagged(tcp::SYN | tcp::ACK);
        let restored = answer.leaving([GATEWAY_MAC, NODE_MAC], packet.destination, packet.source);
        let by_tcx = answer.leaving(answer.macs, packet.destination, packet.source);
        vec![
            Step::new(XDP, packet.clone(), XDP_TX, forwarded.clone().into()),
            Step::new(
                XDP,
                packet.flagged(tcp::ACK),
                XDP_TX,
                forwarded.flagged(tcp::ACK).into(),
            ),
            Step::new(XDP, answer.clone(), XDP_TX, restored.into()),
            // What XDP began, tcx goes on with.
            Step::new(UPLINK, answer, TC_REDIRECT, by_tcx.into()),
        ]
    }
}
