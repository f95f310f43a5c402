//! What the cluster's domain holds: names of Services, of headless Services' endpoints, and of addresses. As Kubernetes'
//! specification of DNS has it (github.com/kubernetes/dns, docs/specification.md). Pure.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    directory::{Directory, Endpoint, Port, Service},
    message::{Answer, Code, Data, Record, kind},
};

/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";
/// Seconds for which clients may keep what they are told.
const TTL: u32 = 5;

/// The answer, where this zone has one; `None`: others may know.
pub fn answer(directory: &Directory, name: &str, kind: u16) -> Option<Answer> {
    if let Some(address) = reversed(name) {
        let target = directory.name_of(address)?;
        let pointer = record(name, Data::Pointer(target.to_owned()));
        let records = matches!(kind, kind::PTR | kind::ANY).then_some(pointer);
        return Some(found(records.into_iter().collect()));
    }
    let inner = match name.strip_suffix(DOMAIN)? {
        "" => "",
        inner => inner.strip_suffix('.')?,
    };
    let mut labels: Vec<&str> = inner.split('.').filter(|label| !label.is_empty()).collect();
    labels.reverse();
    let records = match labels.as_slice() {
        [] | ["svc"] => Some(Vec::new()),
        ["svc", namespace] => directory.namespace(namespace).map(|_| Vec::new()),
        ["svc", namespace, service, rest @ ..] => {
            let place = Place {
                directory,
                namespace,
                name: service,
                service: directory.service(namespace, service),
            };
            place.records(name, kind, rest)
        }
        ["pod", _, dashed] => undashed(dashed).map(|address| {
            let wanted = is_family(&address, kind);
            let own = record(name, Data::Address(address));
            wanted.then_some(own).into_iter().collect()
        }),
        _ => None,
    };
    Some(records.map_or_else(none, found))
}

/// A Service that is asked for.
struct Place<'a> {
    directory: &'a Directory,
    namespace: &'a str,
    name: &'a str,
    service: Option<&'a Service>,
}

impl Place<'_> {
    /// What is known of `asked`, whose labels beyond the Service are `rest`; `None`: there is no such name.
    fn records(&self, asked: &str, kind: u16, rest: &[&str]) -> Option<Vec<Record>> {
        let service = self.service?;
        match rest {
            [] => Some(self.whole(service, asked, kind)),
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                let wanted = |own: &Port| {
                    own.name == port[1..] && own.protocol.eq_ignore_ascii_case(&protocol[1..])
                };
                let all = self.ports(service, asked, wanted);
                if all.is_empty() {
                    return None;
                }
                Some(if matches!(kind, kind::SRV | kind::ANY) {
                    all
                } else {
                    Vec::new()
                })
            }
            [host] => {
                let mut named = self
                    .endpoints()
                    .filter(|endpoint| endpoint.host.eq_ignore_ascii_case(host))
                    .peekable();
                named.peek()?;
                let addresses = named.filter_map(|endpoint| endpoint.address);
                Some(of_family(asked, kind, addresses))
            }
            _ => None,
        }
    }

    fn whole(&self, service: &Service, asked: &str, kind: u16) -> Vec<Record> {
        if let Some(external) = &service.external {
            return vec![record(asked, Data::Alias(external.clone()))];
        }
        match kind {
            kind::SRV => self.ports(service, asked, |_| true),
            _ if service.addresses.is_empty() => {
                let addresses = self.endpoints().filter_map(|endpoint| endpoint.address);
                of_family(asked, kind, addresses)
            }
            _ => of_family(asked, kind, service.addresses.iter().copied()),
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.directory.endpoints(self.namespace, self.name)
    }

    fn ports(&self, service: &Service, asked: &str, wanted: impl Fn(&Port) -> bool) -> Vec<Record> {
        let own = format!("{}.{}.svc.{DOMAIN}", self.name, self.namespace);
        let one = |port: u16, target: String| record(asked, Data::Service { port, target });
        if !service.addresses.is_empty() {
            let ports = service.ports.iter().filter(|port| wanted(port));
            return ports.map(|port| one(port.port, own.clone())).collect();
        }
        let each = self.endpoints().flat_map(|endpoint| {
            let ports = endpoint.ports.iter().filter(|port| wanted(port));
            ports.map(|port| one(port.port, format!("{}.{own}", endpoint.host)))
        });
        let mut all: Vec<Record> = each.collect();
        // A dual-stack pod is in two slices and has one name.
        let mut seen = Vec::new();
        all.retain(|record| {
            let is_new = !seen.contains(&record.data);
            seen.push(record.data.clone());
            is_new
        });
        all
    }
}

fn record(name: &str, data: Data) -> Record {
    Record {
        name: name.to_owned(),
        ttl: TTL,
        data,
    }
}

fn is_family(address: &IpAddr, kind: u16) -> bool {
    match kind {
        kind::A => address.is_ipv4(),
        kind::AAAA => address.is_ipv6(),
        kind::ANY => true,
        _ => false,
    }
}

fn of_family(name: &str, kind: u16, addresses: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    addresses
        .filter(|address| is_family(address, kind))
        .map(|address| record(name, Data::Address(address)))
        .collect()
}

fn authority() -> Record {
    record(DOMAIN, Data::Authority)
}

/// The name is there, whether it has such records or not.
fn found(records: Vec<Record>) -> Answer {
    Answer {
        code: Code::Fine,
        authority: records.is_empty().then(authority),
        records,
        additional: Vec::new(),
    }
}

fn none() -> Answer {
    Answer {
        code: Code::NoName,
        authority: Some(authority()),
        records: Vec::new(),
        additional: Vec::new(),
    }
}

/// "10-244-0-2", "fd00-10--2".
fn undashed(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>();
    v4.map(IpAddr::V4)
        .or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// The address that a name below in-addr.arpa or ip6.arpa is about.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(inner) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<&str> = inner.split('.').rev().collect();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let inner = name.strip_suffix(".ip6.arpa")?;
    let digits: String = inner.split('.').rev().collect();
    if digits.len() != 32 || inner.len() != 63 {
        return None;
    }
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(number)))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn directory() -> Directory {
        let port = |name: &str, protocol: &str, port: u16| Port {
            name: name.into(),
            protocol: protocol.into(),
            port,
        };
        let mut directory = Directory::default();
        let web = Service {
            addresses: vec![
                [10, 96, 0, 7].into(),
                "fd00::7".parse().expect("an address"),
            ],
            ports: vec![port("http", "TCP", 80), port("dns", "UDP", 53)],
            ..Service::default()
        };
        directory.set_service("shop", "web", Some(web));
        directory.set_service("shop", "db", Some(Service::default()));
        let outside = Service {
            external: Some("example.org".into()),
            ..Service::default()
        };
        directory.set_service("shop", "outside", Some(outside));
        let endpoint = |host: &str, last: u8| Endpoint {
            host: host.into(),
            address: Some([10, 244, 0, last].into()),
            ports: vec![port("sql", "TCP", 5432)],
        };
        let endpoints = vec![endpoint("db-0", 2), endpoint("10-244-0-3", 3)];
        directory.set_slice(("shop", "db"), "db-x", Some(endpoints));
        directory
    }

    /// An answer in a line: "fine" and its records, or "none".
    fn told(name: &str, kind: u16) -> String {
        let Some(answer) = answer(&directory(), name, kind) else {
            return "others".into();
        };
        assert_eq!(answer.records.is_empty(), answer.authority.is_some());
        let mut text = match answer.code {
            Code::Fine => "fine".to_owned(),
            Code::NoName => "none".to_owned(),
            code => format!("{code:?}"),
        };
        for record in answer.records {
            match record.data {
                Data::Address(address) => write!(text, " {address}"),
                Data::Alias(name) => write!(text, " ={name}"),
                Data::Pointer(name) => write!(text, " ->{name}"),
                Data::Service { port, target } => write!(text, " {target}:{port}"),
                Data::Authority => write!(text, " SOA"),
            }
            .expect("strings take anything");
        }
        text
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        let v6 = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        for (name, kind, expected) in [
            ("web.shop.svc.cluster.local", kind::A, "fine 10.96.0.7"),
            ("web.shop.svc.cluster.local", kind::AAAA, "fine fd00::7"),
            ("web.shop.svc.cluster.local", kind::PTR, "fine"),
            ("nothing.shop.svc.cluster.local", kind::A, "none"),
            ("web.other.svc.cluster.local", kind::A, "none"),
            ("shop.svc.cluster.local", kind::A, "fine"),
            ("cluster.local", kind::SOA, "fine"),
            (
                "db.shop.svc.cluster.local",
                kind::A,
                "fine 10.244.0.2 10.244.0.3",
            ),
            ("db-0.db.shop.svc.cluster.local", kind::A, "fine 10.244.0.2"),
            ("db-0.db.shop.svc.cluster.local", kind::AAAA, "fine"),
            ("db-1.db.shop.svc.cluster.local", kind::A, "none"),
            (
                "10-244-0-3.db.shop.svc.cluster.local",
                kind::A,
                "fine 10.244.0.3",
            ),
            (
                "outside.shop.svc.cluster.local",
                kind::A,
                "fine =example.org",
            ),
            (
                "_http._tcp.web.shop.svc.cluster.local",
                kind::SRV,
                "fine web.shop.svc.cluster.local:80",
            ),
            ("_http._udp.web.shop.svc.cluster.local", kind::SRV, "none"),
            (
                "_sql._tcp.db.shop.svc.cluster.local",
                kind::SRV,
                "fine db-0.db.shop.svc.cluster.local:5432 10-244-0-3.db.shop.svc.cluster.local:5432",
            ),
            (
                "10-244-9-9.shop.pod.cluster.local",
                kind::A,
                "fine 10.244.9.9",
            ),
            (
                "7.0.96.10.in-addr.arpa",
                kind::PTR,
                "fine ->web.shop.svc.cluster.local",
            ),
            (
                "2.0.244.10.in-addr.arpa",
                kind::PTR,
                "fine ->db-0.db.shop.svc.cluster.local",
            ),
            ("9.9.9.9.in-addr.arpa", kind::PTR, "others"),
            (v6, kind::PTR, "fine ->web.shop.svc.cluster.local"),
            ("example.org", kind::A, "others"),
            ("notcluster.local", kind::A, "others"),
        ] {
            assert_eq!(told(name, kind), expected, "{name}");
        }
    }

    #[test]
    fn names_go_with_their_services() {
        let mut directory = directory();
        directory.set_service("shop", "web", None);
        directory.set_slice(("shop", "db"), "db-x", None);
        for name in [
            "web.shop.svc.cluster.local",
            "db-0.db.shop.svc.cluster.local",
        ] {
            let answer = answer(&directory, name, kind::A).expect("of this zone");
            assert_eq!(answer.code, Code::NoName, "{name}");
        }
        assert_eq!(
            answer(&directory, "7.0.96.10.in-addr.arpa", kind::PTR),
            None
        );
        assert_eq!(
            answer(&directory, "2.0.244.10.in-addr.arpa", kind::PTR),
            None
        );
    }
}
