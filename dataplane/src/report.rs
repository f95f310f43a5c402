//! What the programs tell of single packets, in words: the filter of a watch, and what became of a packet.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use portolan_abi::{
    address::{Address, V4, V6},
    bytes::Be16,
    outcome::{Action, Outcome},
    report::{self, Report, Tuple, Watch, about},
    tcp,
};
use serde::{Deserialize, Serialize};

use crate::{
    choice::locality_of,
    frontends,
    maps::Maps,
    model::{Locality, Protocol, ServiceName},
    sys,
};

/// Which packets somebody wants to hear of. What is absent matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Every packet, not only those with which flows open and end.
    pub packets: bool,
    /// The packets that open flows.
    pub opened: bool,
    /// The packets that end flows: a reset, or the second FIN.
    pub ended: bool,
    /// An address among those of the packet, before or after it was rewritten.
    pub address: Option<IpAddr>,
    /// A second one.
    pub peer: Option<IpAddr>,
    /// A port among those of the packet, before or after it was rewritten.
    pub port: Option<u16>,
    /// The transport.
    pub protocol: Option<Protocol>,
}

impl Filter {
    /// As the programs read it.
    pub(crate) fn to_watch(self) -> Watch {
        let mut wanted = 0;
        for (is_wanted, what) in [
            (self.packets, about::PACKET),
            (self.opened, about::FLOW_OPENED),
            (self.ended, about::FLOW_ENDED),
        ] {
            if is_wanted {
                wanted |= what;
            }
        }
        let words = |address: Option<IpAddr>| match address {
            None => [0; 2],
            Some(IpAddr::V4(address)) => V4::from_octets(address.octets()).words(),
            Some(IpAddr::V6(address)) => V6::from_octets(address.octets()).words(),
        };
        Watch {
            addresses: [words(self.address), words(self.peer)],
            about: wanted,
            port: Be16::new(self.port.unwrap_or(0)),
            protocol: self.protocol.map_or(0, frontends::number),
            reserved: 0,
        }
    }
}

/// What was decided on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// No service is concerned.
    NoService,
    /// A service chose a backend for a new flow.
    NewFlow,
    /// The flow is known: to its backend.
    KnownFlow,
    /// The flow is known: back to its client, as if the frontend had sent it.
    Reply,
    /// The client was told at once that nobody serves it.
    Refused,
    /// The packet went no further.
    Dropped,
}

impl Decision {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoService => "no service",
            Self::NewFlow => "new flow",
            Self::KnownFlow => "known flow",
            Self::Reply => "reply",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// What the kernel did with a packet after the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It goes on through the stack.
    Pass,
    /// Straight into a pod, out of another interface, or back where it came from.
    Redirect,
    /// Out of the interface that it came in by, by XDP.
    Transmit,
    /// Gone.
    Drop,
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "up the stack",
            Self::Redirect => "redirected",
            Self::Transmit => "sent back out",
            Self::Drop => "dropped",
        }
    }
}

/// What one program did with one packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketReport {
    /// Nanoseconds of the monotonic clock.
    pub monotonic_ns: u64,
    /// The program: `pod_egress`, `uplink_ingress`, `node_egress` or `xdp_uplink`; `socket` for a call of a socket's.
    pub program: String,
    /// The interface that the packet came in by; `-` for a socket, which has no port of its own yet either.
    pub interface: String,
    /// The transport.
    pub protocol: Protocol,
    /// TCP's flags, "SYN ACK"; empty for others.
    pub tcp_flags: String,
    /// The length from the IP header on.
    pub length: u32,
    /// Where the packet came from and went to.
    pub before: (SocketAddr, SocketAddr),
    /// The same after it was rewritten.
    pub after: (SocketAddr, SocketAddr),
    /// What was decided.
    pub decision: Decision,
    /// Why, if it was refused or dropped: a name of the enum of drop reasons.
    pub reason: Option<String>,
    /// The service, if one is concerned and still exists.
    pub service: Option<ServiceName>,
    /// The backend's class, if there is one.
    pub locality: Option<Locality>,
    /// Whether the packet ended its flow.
    pub ended: bool,
    /// What the kernel did next.
    pub verdict: Verdict,
}

impl fmt::Display for PacketReport {
    /// One line: when and where, the packet as it came and left, what was decided, what the kernel did.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.monotonic_ns / 1_000_000_000;
        let micros = self.monotonic_ns / 1_000 % 1_000_000;
        let protocol = format!("{:?}", self.protocol).to_uppercase();
        write!(
            formatter,
            "{seconds}.{micros:06} {:<14} {:<15} {protocol} {} > {}",
            self.program, self.interface, self.before.0, self.before.1
        )?;
        if !self.tcp_flags.is_empty() {
            write!(formatter, " [{}]", self.tcp_flags)?;
        }
        write!(formatter, " {} B  {}", self.length, self.decision.name())?;
        if let Some(reason) = &self.reason {
            write!(formatter, " ({reason})")?;
        }
        if let Some(service) = &self.service {
            write!(formatter, " of {}", service.0)?;
        }
        if self.before != self.after {
            write!(formatter, ", now {} > {}", self.after.0, self.after.1)?;
        }
        let end = if self.ended { ", the flow's end" } else { "" };
        write!(formatter, "{end}: {}", self.verdict.name())
    }
}

/// A report in words.
pub(crate) fn in_words(
    report: &Report,
    maps: &Maps,
    names: &BTreeMap<u32, ServiceName>,
) -> PacketReport {
    let outcome = Outcome(report.outcome);
    let decision = decision(outcome);
    let backend = match outcome.action() {
        Action::Forward | Action::Reply if outcome.number() < maps.backends.len() => {
            Some(maps.backends.get(outcome.number()))
        }
        _ => None,
    };
    let service = match outcome.action() {
        Action::Refuse => Some(outcome.number()),
        _ => backend.map(|backend| backend.service),
    };
    PacketReport {
        monotonic_ns: report.time,
        program: program(report.program).to_owned(),
        interface: match report.interface {
            0 => "-".to_owned(),
            index => sys::name_of(index).unwrap_or_else(|_| format!("interface {index}")),
        },
        protocol: frontends::protocol(report.protocol),
        tcp_flags: tcp_flags(report.tcp_flags),
        length: report.length,
        before: ends(report.family, &report.before),
        after: ends(report.family, &report.after),
        decision,
        reason: match decision {
            Decision::Refused | Decision::Dropped => reason(outcome),
            _ => None,
        },
        service: service.and_then(|id| names.get(&id).cloned()),
        locality: backend.map(|backend| locality_of(backend.class)),
        ended: outcome.is_ended(),
        verdict: verdict(report.program, report.verdict),
    }
}

fn decision(outcome: Outcome) -> Decision {
    match outcome.action() {
        Action::Forward if outcome.is_opened() => Decision::NewFlow,
        Action::Forward => Decision::KnownFlow,
        Action::Reply => Decision::Reply,
        Action::Refuse => Decision::Refused,
        Action::Drop => Decision::Dropped,
        Action::Pass | Action::Unknown | Action::Rechoose => Decision::NoService,
    }
}

fn reason(outcome: Outcome) -> Option<String> {
    portolan_abi::drop_reason::DropReason::ALL
        .get(outcome.reason() as usize)
        .map(|reason| reason.name().to_owned())
}

fn program(number: u8) -> &'static str {
    match number {
        report::program::POD_EGRESS => "pod_egress",
        report::program::UPLINK_INGRESS => "uplink_ingress",
        report::program::NODE_EGRESS => "node_egress",
        report::program::XDP_UPLINK => "xdp_uplink",
        report::program::SOCKET => "socket",
        _ => "unknown",
    }
}

/// `enum xdp_action` for XDP, `TC_ACT_*` of linux/pkt_cls.h for tcx.
fn verdict(program: u8, verdict: i32) -> Verdict {
    if program == report::program::SOCKET {
        return if verdict == 1 {
            Verdict::Pass
        } else {
            Verdict::Drop
        };
    }
    let is_xdp = program == report::program::XDP_UPLINK;
    match (is_xdp, verdict) {
        (true, 0 | 1) | (false, 2) => Verdict::Drop,
        (true, 3) => Verdict::Transmit,
        (true, 4) | (false, 7) => Verdict::Redirect,
        _ => Verdict::Pass,
    }
}

fn ends(family: u8, tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    let address = |words| {
        if family == 6 {
            IpAddr::from(V6::from_words(words).octets())
        } else {
            IpAddr::from(V4::from_words(words).octets())
        }
    };
    (
        SocketAddr::new(address(tuple.source), tuple.source_port.get()),
        SocketAddr::new(address(tuple.destination), tuple.destination_port.get()),
    )
}

fn tcp_flags(flags: u8) -> String {
    let names = [
        (tcp::SYN, "SYN"),
        (tcp::ACK, "ACK"),
        (tcp::FIN, "FIN"),
        (tcp::RST, "RST"),
    ];
    let set = names
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| name);
    set.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_of_both_kinds_of_program_are_told_apart() {
        use report::program::{POD_EGRESS, XDP_UPLINK};
        for (program, number, expected) in [
            (XDP_UPLINK, 1, Verdict::Drop),
            (XDP_UPLINK, 2, Verdict::Pass),
            (XDP_UPLINK, 3, Verdict::Transmit),
            (POD_EGRESS, -1, Verdict::Pass),
            (POD_EGRESS, 2, Verdict::Drop),
            (POD_EGRESS, 7, Verdict::Redirect),
        ] {
            assert_eq!(verdict(program, number), expected, "{program} {number}");
        }
    }

    #[test]
    fn a_report_is_one_line() {
        let at = |text: &str| text.parse().expect("an address and a port");
        let report = PacketReport {
            monotonic_ns: 12_000_345_678,
            program: "pod_egress".to_owned(),
            interface: "ptl1".to_owned(),
            protocol: Protocol::Tcp,
            tcp_flags: "SYN".to_owned(),
            length: 60,
            before: (at("10.244.1.1:40000"), at("10.96.0.1:80")),
            after: (at("10.244.1.1:40000"), at("10.244.1.2:8080")),
            decision: Decision::NewFlow,
            reason: None,
            service: Some(ServiceName("default/web:80/TCP".to_owned())),
            locality: Some(Locality::Node),
            ended: false,
            verdict: Verdict::Redirect,
        };
        assert_eq!(
            report.to_string(),
            "12.000345 pod_egress     ptl1            TCP 10.244.1.1:40000 > 10.96.0.1:80 [SYN] 60 B  \
             new flow of default/web:80/TCP, now 10.244.1.1:40000 > 10.244.1.2:8080: redirected"
        );
    }

    #[test]
    fn a_filter_of_nothing_wants_nothing() {
        assert_eq!(Filter::default().to_watch(), Watch::default());
    }
}
