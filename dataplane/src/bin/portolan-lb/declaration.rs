//! The file that says what the host is to do: YAML, of which JSON is a part.
//!
//! ```yaml
//! addresses: [192.0.2.1, "2001:db8::1"]   # the host's own: node ports, and the source of what is source-NATed
//! devices:
//!   - name: eth0
//!     role: uplink                        # where clients and other hosts are: XDP and tcx
//!     xdp: auto                           # auto, native, generic or off
//!   - name: veth7
//!     role: port                          # towards a container or virtual machine: tcx, delivered without the stack
//!     addresses: [10.0.0.7]
//!     mac: 02:00:00:00:00:07              # of its far end
//! services:
//!   - name: web
//!     protocol: TCP                       # TCP, UDP or SCTP
//!     listen: ["192.0.2.80:80", "node-port 30080"]
//!     backends:
//!       - address: 10.0.0.7:8080
//!       - address: 10.0.1.7:8080
//!         weight: 50                      # hundredths of an ordinary backend's share
//!         draining: true                  # finishes its flows, gets no new ones
//!     return-path: source-nat             # source-nat, gateway or direct
//!     algorithm: maglev                   # maglev or least-connections
//!     affinity-seconds: 600
//!     source-ranges: [198.51.100.0/24]
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use portolan_dataplane::{
    PodInterface,
    model::{
        Algorithm, Backend, Frontend, Locality, Protocol, ReturnPath, Scope, Service, ServiceName,
        XdpMode,
    },
};
use serde::Deserialize;
use serde_saphyr::Spanned;

/// What the file says, checked.
#[derive(Debug, PartialEq)]
pub struct Declaration {
    pub addresses: Vec<IpAddr>,
    pub uplink: Option<Uplink>,
    pub ports: Vec<PodInterface>,
    pub services: Vec<Service>,
}

#[derive(Debug, PartialEq)]
pub struct Uplink {
    pub name: String,
    /// None: in the driver, else in the stack.
    pub xdp: Option<XdpMode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    devices: Vec<RawDevice>,
    #[serde(default)]
    services: Vec<RawService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawDevice {
    name: Spanned<String>,
    role: Spanned<String>,
    #[serde(default)]
    xdp: Option<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    mac: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawService {
    name: Spanned<String>,
    protocol: Spanned<String>,
    #[serde(default)]
    listen: Vec<Spanned<String>>,
    #[serde(default)]
    backends: Vec<RawBackend>,
    #[serde(default)]
    return_path: ReturnPath,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default)]
    affinity_seconds: Option<u32>,
    #[serde(default)]
    source_ranges: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawBackend {
    address: Spanned<String>,
    #[serde(default)]
    weight: Option<Spanned<i64>>,
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    node: Option<Spanned<String>>,
}

/// Reads and checks a file.
pub fn read(path: &Path) -> Result<Declaration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Checks a text; an error names the line and the field.
pub fn parse(text: &str) -> Result<Declaration> {
    let raw: RawFile = serde_saphyr::from_str(text)?;
    let mut declaration = Declaration {
        addresses: each(&raw.addresses, "addresses", value)?,
        uplink: None,
        ports: Vec::new(),
        services: Vec::new(),
    };
    for (index, device) in raw.devices.iter().enumerate() {
        add_device(&mut declaration, device, &format!("devices[{index}]"))?;
    }
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    let mut fronts: BTreeMap<String, u64> = BTreeMap::new();
    for (index, service) in raw.services.iter().enumerate() {
        let field = format!("services[{index}]");
        if let Some(line) = names.insert(&service.name.value, line(&service.name)) {
            return wrong(
                &service.name,
                &format!("{field}.name"),
                &format!("is that of the service in line {line}"),
            );
        }
        let checked = of_service(service, &field, &declaration)?;
        for (at, listen) in service.listen.iter().enumerate() {
            let front = format!("{} {:?}", listen.value, checked.protocol);
            if let Some(line) = fronts.insert(front, line(listen)) {
                let field = format!("{field}.listen[{at}]");
                return wrong(listen, &field, &format!("is taken by line {line}"));
            }
        }
        declaration.services.push(checked);
    }
    Ok(declaration)
}

fn line<T>(at: &Spanned<T>) -> u64 {
    at.referenced.line()
}

fn wrong<T, V: std::fmt::Debug>(at: &Spanned<V>, field: &str, what: &str) -> Result<T> {
    bail!("line {}: {field}: {:?} {what}", line(at), at.value)
}

/// A text that has to be a value of some kind.
fn value<V: std::str::FromStr>(at: &Spanned<String>, field: &str) -> Result<V> {
    match at.value.parse() {
        Ok(value) => Ok(value),
        Err(_) => wrong(at, field, &format!("is no {}", kind::<V>())),
    }
}

/// What a type is, for people.
fn kind<V>() -> &'static str {
    let name = std::any::type_name::<V>();
    match name.rsplit("::").next().unwrap_or(name) {
        "IpAddr" => "IP address",
        "IpNet" => "network (ADDRESS/BITS)",
        "SocketAddr" => "ADDRESS:PORT (an IPv6 address stands in brackets)",
        "u16" => "port",
        other => other,
    }
}

fn each<V>(
    list: &[Spanned<String>],
    field: &str,
    read: impl Fn(&Spanned<String>, &str) -> Result<V>,
) -> Result<Vec<V>> {
    let entries = list.iter().enumerate();
    entries
        .map(|(index, entry)| read(entry, &format!("{field}[{index}]")))
        .collect()
}

fn add_device(declaration: &mut Declaration, device: &RawDevice, field: &str) -> Result<()> {
    let name = device.name.value.clone();
    match device.role.value.as_str() {
        "uplink" => {
            if declaration.uplink.is_some() {
                return wrong(
                    &device.role,
                    &format!("{field}.role"),
                    "is taken: a host has one uplink",
                );
            }
            let xdp = match device.xdp.as_ref().map(|xdp| (xdp, xdp.value.as_str())) {
                None | Some((_, "auto")) => None,
                Some((_, "native")) => Some(XdpMode::Native),
                Some((_, "generic")) => Some(XdpMode::Generic),
                Some((_, "off")) => Some(XdpMode::Absent),
                Some((at, _)) => {
                    return wrong(
                        at,
                        &format!("{field}.xdp"),
                        "is none of auto, native, generic, off",
                    );
                }
            };
            declaration.uplink = Some(Uplink { name, xdp });
        }
        "port" => {
            let Some(mac) = &device.mac else {
                return wrong(
                    &device.name,
                    &format!("{field}.mac"),
                    "is a port and needs the MAC address of its far end",
                );
            };
            declaration.ports.push(PodInterface {
                host_interface: name,
                addresses: each(&device.addresses, &format!("{field}.addresses"), value)?,
                pod_mac: of_mac(mac, &format!("{field}.mac"))?,
                netns: 0,
            });
        }
        _ => {
            return wrong(
                &device.role,
                &format!("{field}.role"),
                "is neither uplink nor port",
            );
        }
    }
    Ok(())
}

fn of_mac(at: &Spanned<String>, field: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = at
        .value
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(mac) => Ok(mac),
        None => wrong(at, field, "is no MAC address"),
    }
}

fn of_service(raw: &RawService, field: &str, around: &Declaration) -> Result<Service> {
    let protocol = match raw.protocol.value.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => {
            return wrong(
                &raw.protocol,
                &format!("{field}.protocol"),
                "is none of TCP, UDP and SCTP",
            );
        }
    };
    let mut backends = Vec::new();
    for (index, backend) in raw.backends.iter().enumerate() {
        backends.push(of_backend(
            backend,
            &format!("{field}.backends[{index}]"),
            around,
        )?);
    }
    let source_ranges: Vec<IpNet> =
        each(&raw.source_ranges, &format!("{field}.source-ranges"), value)?;
    let scope = if source_ranges.is_empty() {
        Scope::External
    } else {
        Scope::LoadBalancer
    };
    let frontend = |at: &Spanned<String>, field: &str| of_frontend(at, field, scope);
    Ok(Service {
        frontends: each(&raw.listen, &format!("{field}.listen"), frontend)?,
        backends,
        algorithm: raw.algorithm,
        affinity_seconds: raw.affinity_seconds,
        source_ranges,
        return_path: raw.return_path,
        ..Service::new(ServiceName(raw.name.value.clone()), protocol)
    })
}

fn of_frontend(at: &Spanned<String>, field: &str, scope: Scope) -> Result<Frontend> {
    if let Some(port) = at.value.strip_prefix("node-port ") {
        return match port.trim().parse() {
            Ok(port) if port != 0 => Ok(Frontend::NodePort { port }),
            _ => wrong(at, field, "has no valid port"),
        };
    }
    let address: SocketAddr = value(at, field)?;
    if address.port() == 0 {
        return wrong(at, field, "has port 0");
    }
    Ok(Frontend::Address {
        address: address.ip(),
        port: address.port(),
        scope,
    })
}

fn of_backend(raw: &RawBackend, field: &str, around: &Declaration) -> Result<Backend> {
    let address: SocketAddr = value(&raw.address, &format!("{field}.address"))?;
    if address.port() == 0 {
        return wrong(&raw.address, &format!("{field}.address"), "has port 0");
    }
    let weight = match &raw.weight {
        None => Backend::ORDINARY_WEIGHT,
        Some(at) => match u32::try_from(at.value) {
            Ok(weight) if weight <= 10_000 => weight,
            _ => return wrong(at, &format!("{field}.weight"), "is not between 0 and 10000"),
        },
    };
    let is_here = around
        .ports
        .iter()
        .any(|port| port.addresses.contains(&address.ip()));
    let locality = if is_here || around.addresses.contains(&address.ip()) {
        Locality::Node
    } else {
        Locality::Elsewhere
    };
    let node = raw
        .node
        .as_ref()
        .map(|node| value(node, &format!("{field}.node")))
        .transpose()?;
    Ok(Backend {
        weight,
        terminating: raw.draining,
        node,
        ..Backend::new(address.ip(), address.port(), locality)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
addresses: [192.0.2.1]
devices:
  - {name: eth0, role: uplink, xdp: generic}
  - {name: veth7, role: port, addresses: [10.0.0.7], mac: '02:00:00:00:00:07'}
services:
  - name: web
    protocol: TCP
    listen: ['192.0.2.80:80', 'node-port 30080', '[2001:db8::80]:80']
    backends: [{address: '10.0.0.7:8080'}, {address: '10.0.1.7:8080', weight: 50, draining: true}]
    return-path: gateway
";

    #[test]
    fn a_good_file_becomes_services_and_devices() {
        let read = parse(GOOD).expect("a good file");
        assert_eq!(read.uplink.expect("an uplink").xdp, Some(XdpMode::Generic));
        assert_eq!(read.ports[0].pod_mac, [2, 0, 0, 0, 0, 7]);
        let web = &read.services[0];
        assert_eq!(web.frontends.len(), 3);
        assert_eq!(web.frontends[1], Frontend::NodePort { port: 30_080 });
        assert_eq!(web.backends[0].locality, Locality::Node);
        assert_eq!(
            (web.backends[1].weight, web.backends[1].terminating),
            (50, true)
        );
        assert_eq!(web.return_path, ReturnPath::Gateway);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_field() {
        for (from, to, expected) in [
            (
                "10.0.0.7:8080",
                "10.0.0.700:8080",
                "line 10: services[0].backends[0].address",
            ),
            (
                "weight: 50",
                "weight: -1",
                "line 10: services[0].backends[1].weight",
            ),
            (
                "protocol: TCP",
                "protocol: ICMP",
                "line 8: services[0].protocol",
            ),
            (
                "192.0.2.80:80",
                "192.0.2.80",
                "line 9: services[0].listen[0]",
            ),
            (
                "node-port 30080",
                "192.0.2.80:80",
                "line 9: services[0].listen[1]",
            ),
            ("role: port", "role: por", "line 5: devices[1].role"),
            ("xdp: generic", "xdp: fast", "line 4: devices[0].xdp"),
            ("return-path", "return-pathh", "return-pathh"),
        ] {
            let error = parse(&GOOD.replace(from, to)).expect_err("a bad file");
            let text = format!("{error:#}");
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn names_are_unique() {
        let twice = format!("{GOOD}  - {{name: web, protocol: UDP}}\n");
        let text = format!("{:#}", parse(&twice).expect_err("a name twice"));
        assert!(
            text.contains("line 12") && text.contains("line 7"),
            "{text}"
        );
    }
}
