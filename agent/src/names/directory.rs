//! The cluster's Services as names and environments need them.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use serde::{Deserialize, Serialize};

/// The label of a slice that names its Service.
const OWNER: &str = "kubernetes.io/service-name";

/// Everything by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    services: BTreeMap<String, BTreeMap<String, Service>>,
    /// The endpoints of headless Services, by slice.
    slices: BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<Endpoint>>>>,
    /// The names of addresses.
    #[serde(skip)]
    reverse: HashMap<IpAddr, String>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// spec.clusterIPs; none of a headless one.
    pub addresses: Vec<IpAddr>,
    /// spec.ports.
    pub ports: Vec<Port>,
    /// spec.externalName.
    pub external: Option<String>,
    /// spec.publishNotReadyAddresses.
    pub publish_not_ready: bool,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// May be empty.
    pub name: String,
    /// "TCP", "UDP", "SCTP".
    pub protocol: String,
    /// Where clients knock.
    pub port: u16,
}

/// One endpoint of a headless Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its own name in the Service's domain, or its address with dashes.
    pub host: String,
    /// Where it is.
    pub address: Option<IpAddr>,
    /// What it listens on.
    pub ports: Vec<Port>,
}

impl Directory {
    /// Puts a Service in, or takes it out.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<Service>) {
        let full = format!("{name}.{namespace}.svc.cluster.local");
        let all = self.services.entry(namespace.to_owned()).or_default();
        let old = match service {
            Some(service) => {
                for address in &service.addresses {
                    self.reverse.insert(*address, full.clone());
                }
                let kept = service.addresses.clone();
                let old = all.insert(name.to_owned(), service);
                old.map(|mut old| {
                    old.addresses.retain(|address| !kept.contains(address));
                    old
                })
            }
            None => all.remove(name),
        };
        if all.is_empty() {
            self.services.remove(namespace);
        }
        for address in old.into_iter().flat_map(|old| old.addresses) {
            if self.reverse.get(&address) == Some(&full) {
                self.reverse.remove(&address);
            }
        }
    }

    /// Puts a slice of a headless Service's endpoints in, or takes it out.
    pub fn set_slice(
        &mut self,
        (namespace, service): (&str, &str),
        slice: &str,
        endpoints: Option<Vec<Endpoint>>,
    ) {
        let full = |endpoint: &Endpoint| {
            let host = &endpoint.host;
            format!("{host}.{service}.{namespace}.svc.cluster.local")
        };
        let services = self.slices.entry(namespace.to_owned()).or_default();
        let slices = services.entry(service.to_owned()).or_default();
        for endpoint in slices.remove(slice).into_iter().flatten() {
            if let Some(address) = endpoint.address
                && self.reverse.get(&address) == Some(&full(&endpoint))
            {
                self.reverse.remove(&address);
            }
        }
        if let Some(endpoints) = endpoints {
            for endpoint in &endpoints {
                if let Some(address) = endpoint.address {
                    self.reverse.insert(address, full(endpoint));
                }
            }
            slices.insert(slice.to_owned(), endpoints);
        }
    }

    /// Forgets all Services, before a whole list of them comes.
    pub fn clear_services(&mut self) {
        self.services.clear();
        self.index();
    }

    /// Forgets all slices, before a whole list of them comes.
    pub fn clear_slices(&mut self) {
        self.slices.clear();
        self.index();
    }

    /// Finds the names of addresses anew.
    pub fn index(&mut self) {
        self.reverse.clear();
        for (namespace, services) in &self.services {
            for (name, service) in services {
                for address in &service.addresses {
                    let full = format!("{name}.{namespace}.svc.cluster.local");
                    self.reverse.insert(*address, full);
                }
            }
        }
        for (namespace, services) in &self.slices {
            for (service, slices) in services {
                for endpoint in slices.values().flatten() {
                    if let Some(address) = endpoint.address {
                        let host = &endpoint.host;
                        let full = format!("{host}.{service}.{namespace}.svc.cluster.local");
                        self.reverse.insert(address, full);
                    }
                }
            }
        }
    }

    /// The Services of a namespace; `None`: there is no such namespace, or nothing in it.
    pub fn namespace(&self, namespace: &str) -> Option<&BTreeMap<String, Service>> {
        self.services.get(namespace)
    }

    /// A Service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(namespace)?.get(name)
    }

    /// A headless Service's endpoints.
    pub fn endpoints(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Endpoint> {
        let slices = self.slices.get(namespace).and_then(|all| all.get(service));
        slices.into_iter().flat_map(BTreeMap::values).flatten()
    }

    /// The name of an address.
    pub fn name_of(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }
}

impl Service {
    /// From the API's.
    pub fn of(service: &core::Service) -> Service {
        let default = core::ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&default);
        let listed = spec.cluster_ips.iter().flatten();
        let ports = spec.ports.iter().flatten().map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: u16::try_from(port.port).unwrap_or_default(),
        });
        Service {
            // "None" is no address.
            addresses: listed.filter_map(|text| text.parse().ok()).collect(),
            ports: ports.collect(),
            external: (spec.type_.as_deref() == Some("ExternalName"))
                .then(|| spec.external_name.clone())
                .flatten()
                .map(|name| name.trim_end_matches('.').to_ascii_lowercase()),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        }
    }
}

/// Whose slice it is: namespace and Service.
pub fn owner(slice: &EndpointSlice) -> Option<(String, String)> {
    let namespace = slice.metadata.namespace.clone()?;
    let service = slice.metadata.labels.as_ref()?.get(OWNER)?;
    Some((namespace, service.clone()))
}

/// The endpoints of a slice that names are given to. A slice says "ready" also of those that are published before.
pub fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port
                .port
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or_default(),
        })
        .collect();
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|own| own.ready).unwrap_or(true)
    });
    ready
        .filter_map(|endpoint| {
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let dashed = || address.to_string().replace(['.', ':'], "-");
            Some(Endpoint {
                host: endpoint.hostname.clone().unwrap_or_else(dashed),
                address: Some(address),
                ports: ports.clone(),
            })
        })
        .collect()
}
