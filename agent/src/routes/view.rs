//! Service ports as the dataplane of one node must know them.

use std::{collections::BTreeMap, net::IpAddr};

use portolan_dataplane::model::{Backend, Distribution, Locality, ReturnPath, Service};

use super::convert::{EndpointRoute, NodeRoute, ServiceRoute};
use crate::names;

/// Which node this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its name.
    pub node: String,
    /// Its zone; empty when it has none.
    pub zone: String,
    /// How packets get back for services that do not say it.
    pub return_path: ReturnPath,
    /// Where this node's own name server listens, which stands behind the cluster's while nobody else does.
    pub name_server: Vec<IpAddr>,
}

/// Whose hints decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Node,
    Zone,
}

impl Here {
    fn locality_of(&self, endpoint: &EndpointRoute) -> Locality {
        if !endpoint.node.is_empty() && endpoint.node == self.node {
            Locality::Node
        } else if !endpoint.zone.is_empty() && endpoint.zone == self.zone {
            Locality::Zone
        } else {
            Locality::Elsewhere
        }
    }

    fn is_hinted(&self, topology: Topology, endpoint: &EndpointRoute) -> bool {
        match topology {
            Topology::Node => endpoint.hinted_nodes.contains(&self.node),
            Topology::Zone => endpoint.hinted_zones.contains(&self.zone),
        }
    }

    /// Whose hints count for this node, as kube-proxy has it: hints of nodes before those of zones, and either only if
    /// every ready endpoint has some and one of them is for this node.
    fn topology_of<'a>(
        &self,
        endpoints: impl Iterator<Item = &'a EndpointRoute> + Clone,
    ) -> Option<Topology> {
        let ready = endpoints.filter(|endpoint| !endpoint.terminating);
        [Topology::Node, Topology::Zone]
            .into_iter()
            .find(|topology| {
                let all_say = ready.clone().all(|endpoint| match topology {
                    Topology::Node => !endpoint.hinted_nodes.is_empty(),
                    Topology::Zone => !endpoint.hinted_zones.is_empty(),
                });
                all_say
                    && ready
                        .clone()
                        .any(|endpoint| self.is_hinted(*topology, endpoint))
            })
    }
}

impl ServiceRoute {
    /// The service as the dataplane of one node must know it. `nodes` are those of the routing table.
    pub fn seen_from(&self, here: &Here, nodes: &BTreeMap<String, NodeRoute>) -> Service {
        let family = |is_v4: bool| {
            let endpoints = self.endpoints.iter();
            endpoints.filter(move |endpoint| endpoint.address.is_ipv4() == is_v4)
        };
        // A dual-stack service is two to kube-proxy, and each has its own hints.
        let [v4, v6] = [true, false].map(|is_v4| here.topology_of(family(is_v4)));
        let backends = self.endpoints.iter().map(|endpoint| {
            let topology = if endpoint.address.is_ipv4() { v4 } else { v6 };
            Backend {
                terminating: endpoint.terminating,
                weight: endpoint.weight,
                node: node_address(nodes, endpoint),
                hinted_elsewhere: topology
                    .is_some_and(|topology| !here.is_hinted(topology, endpoint)),
                ..Backend::new(endpoint.address, endpoint.port, here.locality_of(endpoint))
            }
        });
        let backends = backends.chain(self.name_server(here));
        let hints_decide = v4.is_some() || v6.is_some();
        Service {
            frontends: self.frontends.clone(),
            backends: backends.collect(),
            internal_policy: self.internal_policy,
            external_policy: self.external_policy,
            distribution: match self.distribution {
                Distribution::LoadAware if hints_decide => Distribution::Even,
                asked => asked,
            },
            algorithm: self.algorithm,
            affinity_seconds: self.affinity_seconds,
            source_ranges: self.source_ranges.clone(),
            return_path: self.return_path.unwrap_or(here.return_path),
            publish_not_ready: self.publish_not_ready,
            ..Service::new(self.name.clone(), self.protocol)
        }
    }

    fn name_server(&self, here: &Here) -> impl Iterator<Item = Backend> {
        let is_own = self.endpoints.is_empty() && names::is_name_server(&self.name.0);
        let addresses = here.name_server.iter().filter(move |_| is_own);
        addresses.map(|address| Backend::new(*address, names::PORT, Locality::Node))
    }

    /// Whether what the node's dataplane knows of it depends on the nodes' addresses.
    pub fn concerns_nodes(&self) -> bool {
        self.return_path == Some(ReturnPath::Direct)
    }
}

/// The address of an endpoint's node, of the endpoint's family.
fn node_address(nodes: &BTreeMap<String, NodeRoute>, endpoint: &EndpointRoute) -> Option<IpAddr> {
    let addresses = &nodes.get(&endpoint.node)?.addresses;
    addresses
        .iter()
        .find(|address| address.is_ipv4() == endpoint.address.is_ipv4())
        .copied()
}

#[cfg(test)]
mod tests {
    use portolan_dataplane::model::{Algorithm, Protocol, ServiceName, TrafficPolicy};

    use super::*;

    /// A service of endpoints like "n1/a" (node and zone) with ":z=a" and ":n=n1" for hints and "!" for terminating.
    fn route(text: &str) -> ServiceRoute {
        let endpoint = |(number, word): (usize, &str)| {
            let mut parts = word.trim_end_matches('!').split(':');
            let place = parts.next().and_then(|place| place.split_once('/'));
            let (node, zone) = place.expect("a node and a zone");
            let hints = |kind: &str| {
                let prefix = format!("{kind}=");
                let hints = word.trim_end_matches('!').split(':');
                let hints = hints.filter_map(|part| part.strip_prefix(prefix.as_str()));
                hints.map(str::to_owned).collect::<Vec<_>>()
            };
            EndpointRoute {
                address: IpAddr::from([10, 244, 0, u8::try_from(number).expect("few")]),
                port: 8080,
                node: node.to_owned(),
                zone: zone.to_owned(),
                terminating: word.ends_with('!'),
                weight: 100,
                hinted_zones: hints("z"),
                hinted_nodes: hints("n"),
            }
        };
        ServiceRoute {
            name: ServiceName("default/web:80/TCP".to_owned()),
            protocol: Protocol::Tcp,
            frontends: Vec::new(),
            endpoints: text.split_whitespace().enumerate().map(endpoint).collect(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            distribution: Distribution::LoadAware,
            algorithm: Algorithm::default(),
            return_path: None,
            affinity_seconds: None,
            source_ranges: Vec::new(),
            publish_not_ready: false,
            health_check_port: None,
        }
    }

    fn seen(text: &str, node: &str, zone: &str) -> Service {
        let here = Here {
            node: node.to_owned(),
            zone: zone.to_owned(),
            return_path: ReturnPath::default(),
            name_server: Vec::new(),
        };
        route(text).seen_from(&here, &BTreeMap::new())
    }

    #[test]
    fn localities_depend_on_where_one_stands() {
        let localities = |node, zone| -> Vec<_> {
            let service = seen("n1/a n2/a n3/b", node, zone);
            let backends = service.backends.iter();
            backends.map(|backend| backend.locality).collect()
        };
        assert_eq!(
            localities("n1", "a"),
            [Locality::Node, Locality::Zone, Locality::Elsewhere]
        );
        assert_eq!(localities("n9", ""), [Locality::Elsewhere; 3]);
    }

    #[test]
    fn hints_count_only_if_all_have_them_and_one_is_for_here() {
        for (text, kept, distribution) in [
            // Hints of zones.
            ("n1/a:z=a n2/a:z=a n3/b:z=b", vec![0, 1], Distribution::Even),
            // One ready endpoint without a hint: none counts.
            (
                "n1/a:z=a n2/a n3/b:z=b",
                vec![0, 1, 2],
                Distribution::LoadAware,
            ),
            // One that ends needs none.
            ("n1/a:z=a n2/a! n3/b:z=b", vec![0], Distribution::Even),
            // None for this zone.
            ("n2/b:z=b n3/b:z=b", vec![0, 1], Distribution::LoadAware),
            // Hints of nodes stand above those of zones.
            (
                "n1/a:z=a:n=n1 n2/a:z=a:n=n2 n3/b:z=b:n=n3",
                vec![0],
                Distribution::Even,
            ),
            // None for this node: those of zones count.
            ("n2/a:z=a:n=n2 n3/b:z=b:n=n3", vec![0], Distribution::Even),
            // Not all have hints of nodes: those of zones count.
            (
                "n1/a:z=a:n=n1 n2/a:z=a n3/b:z=b:n=n3",
                vec![0, 1],
                Distribution::Even,
            ),
        ] {
            let service = seen(text, "n1", "a");
            let left: Vec<_> = (0..)
                .zip(&service.backends)
                .filter(|(_, backend)| !backend.hinted_elsewhere)
                .map(|(number, _)| number)
                .collect();
            assert_eq!((left, service.distribution), (kept, distribution), "{text}");
        }
    }

    #[test]
    fn a_distribution_that_was_asked_for_stays() {
        let mut route = route("n1/a:z=a n3/b:z=b");
        route.distribution = Distribution::SameZone;
        let here = Here {
            node: "n1".to_owned(),
            zone: "a".to_owned(),
            return_path: ReturnPath::default(),
            name_server: Vec::new(),
        };
        let service = route.seen_from(&here, &BTreeMap::new());
        assert_eq!(service.distribution, Distribution::SameZone);
        assert!(service.backends[1].hinted_elsewhere);
    }

    #[test]
    fn endpoints_know_their_nodes_address_of_their_family() {
        let addresses: Vec<IpAddr> = ["fd00:89::12", "10.89.0.12"]
            .map(|text| text.parse().expect("an address"))
            .to_vec();
        let node = NodeRoute {
            name: "n2".to_owned(),
            zone: String::new(),
            addresses: addresses.clone(),
            pod_cidrs: Vec::new(),
        };
        let here = Here {
            node: "n1".to_owned(),
            zone: String::new(),
            return_path: ReturnPath::default(),
            name_server: Vec::new(),
        };
        let nodes = BTreeMap::from([("n2".to_owned(), node)]);
        let service = route("n2/ n3/").seen_from(&here, &nodes);
        assert_eq!(service.backends[0].node, Some(addresses[1]));
        assert_eq!(service.backends[1].node, None);
    }

    #[test]
    fn the_nodes_name_server_stands_behind_the_clusters_until_others_do() {
        let here = Here {
            node: "n1".into(),
            zone: "a".into(),
            return_path: ReturnPath::SourceNat,
            name_server: vec![[10, 89, 0, 11].into()],
        };
        let backends = |name: &str, endpoints: &str| {
            let mut route = route(endpoints);
            route.name = ServiceName(name.to_owned());
            let seen = route.seen_from(&here, &BTreeMap::new()).backends;
            let all = seen.iter();
            all.map(|backend| {
                (
                    format!("{}:{}", backend.address, backend.port),
                    backend.locality,
                )
            })
            .collect::<Vec<_>>()
        };
        let own = ("10.89.0.11:10053".to_owned(), Locality::Node);
        assert_eq!(backends("kube-system/kube-dns:53/UDP", ""), [own]);
        assert!(backends("kube-system/kube-dns-2:53/UDP", "").is_empty());
        let others = backends("kube-system/kube-dns:53/UDP", "n2/b");
        assert_eq!((others.len(), others[0].1), (1, Locality::Elsewhere));
    }
}
