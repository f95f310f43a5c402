//! Ports of the node's addresses that lead to a pod: `hostPort` of its containers.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;
use portolan_dataplane::model::{
    Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName,
};

use super::PodLink;

/// A port of the node's addresses, or of one of them, that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The one address; `None`: all of the node's.
    pub address: Option<IpAddr>,
    /// The port there.
    pub port: u16,
    /// The transport's Kubernetes name: TCP, UDP or SCTP.
    pub protocol: String,
    /// The port that the pod listens on.
    pub target: u16,
}

impl HostPort {
    /// Those of a pod that has a network of its own.
    pub fn of(spec: &PodSpec) -> Vec<Self> {
        let ports = spec
            .containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
                let address = port.host_ip.as_ref().and_then(|text| text.parse().ok());
                Some(Self {
                    address: address.filter(|address: &IpAddr| !address.is_unspecified()),
                    port: number(port.host_port?)?,
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    target: number(port.container_port)?,
                })
            })
            .collect()
    }

    /// The port as the dataplane knows it: a service whose only backend is the pod.
    pub fn service(&self, pod: &PodLink) -> Service {
        let place = self
            .address
            .map_or_else(String::new, |address| format!("{address}:"));
        let name = format!(
            "{}{place}{}/{}",
            Self::prefix(&pod.host_interface),
            self.port,
            self.protocol
        );
        let protocol = match self.protocol.as_str() {
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let frontend = match self.address {
            None => Frontend::NodePort { port: self.port },
            Some(address) => Frontend::Address {
                address,
                port: self.port,
                scope: Scope::External,
            },
        };
        let backend = |address: &IpAddr| Backend::new(*address, self.target, Locality::Node);
        Service {
            frontends: vec![frontend],
            backends: pod.addresses.iter().map(backend).collect(),
            ..Service::new(ServiceName(name), protocol)
        }
    }

    /// How the names of a pod's services begin. No service of the routing table is called so: those are in namespaces.
    fn prefix(host_interface: &str) -> String {
        format!("{PREFIX}{host_interface}/")
    }
}

const PREFIX: &str = "host-port:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_is_a_service_of_the_one_pod() {
        let spec = serde_json::from_value(serde_json::json!({"containers": [
            {"name": "a", "ports": [
                {"containerPort": 80, "hostPort": 8080},
                {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "10.89.0.11"},
                {"containerPort": 9090}]},
            {"name": "b"}]}))
        .expect("a pod's spec");
        let ports = HostPort::of(&spec);
        assert_eq!(ports.len(), 2);
        let pod = PodLink {
            host_interface: "ptl1".to_owned(),
            addresses: vec!["10.244.1.7".parse().expect("an address")],
            pod_mac: [0; 6],
            netns: 0,
            host_ports: ports.clone(),
        };
        let first = ports[0].service(&pod);
        assert_eq!(first.name.0, "host-port:ptl1/8080/TCP");
        assert_eq!(first.frontends, [Frontend::NodePort { port: 8080 }]);
        assert_eq!(first.backends[0].port, 80);
        let second = ports[1].service(&pod);
        assert_eq!(second.protocol, Protocol::Udp);
        assert!(matches!(
            second.frontends[0],
            Frontend::Address {
                port: 5353,
                scope: Scope::External,
                ..
            }
        ));
        assert!(first.name.0.starts_with(&HostPort::prefix("ptl1")));
    }
}
