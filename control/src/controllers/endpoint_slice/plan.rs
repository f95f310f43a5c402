//! Which EndpointSlices a Service should have, and how to get there from those it has; no IO. An endpoint stays in the
//! slice that it is in, so that a change touches as few slices as can be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
            ForZone,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::controllers::{meta, pods};
use crate::routing::options;

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] on the slices of this controller.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The most endpoints in a slice.
pub const MOST: usize = 100;

/// What a round knows.
pub struct View<'a> {
    /// The Service; it has a selector.
    pub service: &'a Service,
    /// The pods that it selects.
    pub pods: &'a [Arc<Pod>],
    /// Zones by node name.
    pub zones: &'a BTreeMap<String, String>,
    /// The slices that this controller made for the Service.
    pub slices: &'a [Arc<EndpointSlice>],
}

/// One write.
#[derive(Clone, Debug)]
pub enum Action {
    /// Makes a slice.
    Create(Box<EndpointSlice>),
    /// Changes a slice.
    Update {
        /// As it is.
        old: Arc<EndpointSlice>,
        /// As it should be.
        new: Box<EndpointSlice>,
    },
    /// Deletes a slice.
    Delete(Arc<EndpointSlice>),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, slice) = match self {
            Self::Create(slice) => ("create", slice.as_ref()),
            Self::Update { new, .. } => ("update", new.as_ref()),
            Self::Delete(slice) => return write!(f, "delete {}", meta::name(&slice.metadata)),
        };
        write!(
            f,
            "{verb} {} {}",
            meta::name(&slice.metadata),
            slice.address_type
        )?;
        let annotations = slice.metadata.annotations.iter().flatten();
        for (_, weights) in annotations.filter(|(name, _)| *name == options::WEIGHTS) {
            write!(f, " weights {weights}")?;
        }
        for port in slice.ports.iter().flatten() {
            let name = port.name.as_deref().unwrap_or_default();
            let protocol = port.protocol.as_deref().unwrap_or_default();
            write!(f, " {name}:{}/{protocol}", port.port.unwrap_or(0))?;
        }
        for endpoint in slice.endpoints.iter().flatten() {
            write!(f, "\n  {}", endpoint.addresses.join(","))?;
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            for (word, holds) in [
                ("ready", conditions.ready),
                ("serving", conditions.serving),
                ("terminating", conditions.terminating),
            ] {
                if holds == Some(true) {
                    write!(f, " {word}")?;
                }
            }
            for zone in endpoint
                .hints
                .iter()
                .flat_map(|hints| hints.for_zones.iter().flatten())
            {
                write!(f, " for-zone {}", zone.name)?;
            }
            for node in endpoint
                .hints
                .iter()
                .flat_map(|hints| hints.for_nodes.iter().flatten())
            {
                write!(f, " for-node {}", node.name)?;
            }
            let node = endpoint.node_name.as_deref().unwrap_or("-");
            write!(
                f,
                " on {node} in {}",
                endpoint.zone.as_deref().unwrap_or("-")
            )?;
        }
        Ok(())
    }
}

/// The ports of a group of endpoints, in an order that does not depend on the pods'.
type Ports = Vec<EndpointPort>;
/// Slices stand together when they have the same family and ports; the ports' text makes them comparable.
type Group = (&'static str, String);

/// Plans a round: new and changed slices first, so that no endpoint is gone in between.
pub fn plan(view: &View<'_>) -> Vec<Action> {
    let mut wanted = wanted(view);
    let mut by_group: BTreeMap<Group, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut stale = Vec::new();
    for slice in view.slices {
        let ports = slice.ports.clone().unwrap_or_default();
        let family = if slice.address_type == "IPv6" {
            "IPv6"
        } else {
            "IPv4"
        };
        let group = (family, text_of(&ports));
        if wanted.contains_key(&group) {
            by_group.entry(group).or_default().push(Arc::clone(slice));
        } else {
            stale.push(Arc::clone(slice));
        }
    }
    let mut names: BTreeSet<String> = view
        .slices
        .iter()
        .map(|slice| meta::name(&slice.metadata).to_owned())
        .collect();
    let mut actions = Vec::new();
    for (group, (ports, endpoints)) in &mut wanted {
        let mut slices = by_group.remove(group).unwrap_or_default();
        slices.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
        fill(
            view,
            group.0,
            ports,
            endpoints,
            &slices,
            &mut names,
            &mut actions,
        );
    }
    actions.extend(stale.into_iter().map(Action::Delete));
    actions.sort_by_key(|action| matches!(action, Action::Delete(_)));
    actions
}

/// The endpoints that there should be, by group and address. A family without any has one empty slice.
fn wanted(view: &View<'_>) -> BTreeMap<Group, (Ports, BTreeMap<String, Endpoint>)> {
    let mut groups: BTreeMap<Group, (Ports, BTreeMap<String, Endpoint>)> = BTreeMap::new();
    for family in families(view.service) {
        let mut any = false;
        for pod in view.pods {
            if pods::is_finished(pod) {
                continue;
            }
            let Some(address) = address(pod, family) else {
                continue;
            };
            let ports = ports(view.service, pod);
            let endpoint = endpoint(view, pod, &address);
            let group = groups
                .entry((family, text_of(&ports)))
                .or_insert_with(|| (ports, BTreeMap::new()));
            group.1.insert(address, endpoint);
            any = true;
        }
        if !any {
            groups.insert((family, text_of(&[])), (Vec::new(), BTreeMap::new()));
        }
    }
    groups
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let mut families: Vec<_> = spec
        .and_then(|spec| spec.ip_families.as_ref())
        .into_iter()
        .flatten()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if families.is_empty() {
        families.push("IPv4");
    }
    families
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed
        .chain(status.pod_ip.as_deref())
        .find(|ip| {
            ip.parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))
        })
        .map(str::to_owned)
}

fn endpoint(view: &View<'_>, pod: &Pod, address: &str) -> Endpoint {
    let spec = view.service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let serving = pods::is_ready(pod);
    let terminating = meta::is_terminating(&pod.metadata);
    let node = pods::node(pod);
    let zone = node.and_then(|node| view.zones.get(node).cloned());
    let is_ready = publish || (serving && !terminating);
    let pod_spec = pod.spec.as_ref();
    let hostname = pod_spec
        .filter(|spec| spec.subdomain.as_deref() == Some(meta::name(&view.service.metadata)))
        .and_then(|spec| spec.hostname.clone());
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: node.map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        hints: hints(view.service, node, zone.as_deref()).filter(|_| is_ready),
        zone,
        ..Endpoint::default()
    }
}

/// Whose clients a ready endpoint is for, as spec.trafficDistribution has it (KEP-2433, KEP-3015).
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let name = |text: &str| text.to_owned();
    let zones = zone.map(|zone| vec![ForZone { name: name(zone) }]);
    let hints = match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => EndpointHints {
            for_zones: Some(zones?),
            for_nodes: None,
        },
        "PreferSameNode" => EndpointHints {
            for_zones: zones,
            for_nodes: Some(vec![ForNode { name: name(node?) }]),
        },
        _ => return None,
    };
    Some(hints)
}

/// The annotation that says the weights of a slice's endpoints; none if all are ordinary.
fn weights(view: &View<'_>, endpoints: &[Endpoint]) -> Option<String> {
    let weight_of = |endpoint: &Endpoint| {
        let target = endpoint.target_ref.as_ref()?;
        let pod = view
            .pods
            .iter()
            .find(|pod| pod.metadata.uid == target.uid)?;
        let annotations = pod.metadata.annotations.as_ref()?;
        options::weight(annotations.get(options::WEIGHT)?)
    };
    let weights: BTreeMap<&String, u32> = endpoints
        .iter()
        .filter_map(|endpoint| Some((endpoint.addresses.first()?, weight_of(endpoint)?)))
        .collect();
    (!weights.is_empty()).then(|| serde_json::json!(weights).to_string())
}

/// A slice's annotations with those weights in the place of older ones.
fn annotated(
    old: Option<&BTreeMap<String, String>>,
    weights: Option<String>,
) -> Option<BTreeMap<String, String>> {
    let mut annotations = old.cloned().unwrap_or_default();
    annotations.remove(options::WEIGHTS);
    annotations.extend(weights.map(|weights| (options::WEIGHTS.to_owned(), weights)));
    (!annotations.is_empty()).then_some(annotations)
}

/// The Service's ports as this pod offers them; one whose named port the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|candidate| {
                    candidate.name.as_deref() == Some(name)
                        && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|found| found.container_port)
        }
    }
}

fn text_of(ports: &[EndpointPort]) -> String {
    let mut texts: Vec<_> = ports
        .iter()
        .map(|port| {
            format!(
                "{}:{}/{}/{}",
                port.name.as_deref().unwrap_or_default(),
                port.port.unwrap_or(0),
                port.protocol.as_deref().unwrap_or_default(),
                port.app_protocol.as_deref().unwrap_or_default()
            )
        })
        .collect();
    texts.sort();
    texts.join(" ")
}

/// Brings the slices of one group to the wanted endpoints, which are used up.
fn fill(
    view: &View<'_>,
    family: &'static str,
    ports: &Ports,
    wanted: &mut BTreeMap<String, Endpoint>,
    slices: &[Arc<EndpointSlice>],
    names: &mut BTreeSet<String>,
    actions: &mut Vec<Action>,
) {
    let was_empty = wanted.is_empty();
    let mut contents: Vec<Vec<Endpoint>> = slices
        .iter()
        .map(|slice| {
            let addresses = slice.endpoints.iter().flatten();
            addresses
                .filter_map(|endpoint| wanted.remove(endpoint.addresses.first()?))
                .take(MOST)
                .collect()
        })
        .collect();
    let mut left = std::mem::take(wanted).into_values();
    for content in &mut contents {
        content.extend(left.by_ref().take(MOST.saturating_sub(content.len())));
    }
    let mut is_kept = false;
    for (slice, content) in slices.iter().zip(contents) {
        if content.is_empty() && (is_kept || !was_empty) {
            actions.push(Action::Delete(Arc::clone(slice)));
            continue;
        }
        is_kept = true;
        let new = EndpointSlice {
            metadata: ObjectMeta {
                labels: Some(labels(view.service)),
                annotations: annotated(
                    slice.metadata.annotations.as_ref(),
                    weights(view, &content),
                ),
                ..slice.metadata.clone()
            },
            address_type: slice.address_type.clone(),
            endpoints: Some(content),
            ports: Some(ports.clone()),
        };
        let same_ports = slice.ports.as_deref().unwrap_or_default() == ports.as_slice();
        let same_endpoints = slice.endpoints.as_deref().unwrap_or_default()
            == new.endpoints.as_deref().unwrap_or_default();
        let same_metadata = slice.metadata.labels == new.metadata.labels
            && slice.metadata.annotations.clone().unwrap_or_default()
                == new.metadata.annotations.clone().unwrap_or_default();
        if !(same_ports && same_endpoints && same_metadata) {
            actions.push(Action::Update {
                old: Arc::clone(slice),
                new: Box::new(new),
            });
        }
    }
    let mut left: Vec<_> = left.collect();
    while !left.is_empty() || (was_empty && !is_kept) {
        is_kept = true;
        let rest = left.split_off(left.len().min(MOST));
        let full = std::mem::replace(&mut left, rest);
        let slice = new_slice(view, family, ports, full, names);
        actions.push(Action::Create(Box::new(slice)));
    }
}

fn new_slice(
    view: &View<'_>,
    family: &'static str,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    names: &mut BTreeSet<String>,
) -> EndpointSlice {
    let metadata = &view.service.metadata;
    // A name that follows from what the slice is for: made twice by mistake, it is refused the second time.
    let name = (0..=u32::MAX)
        .map(|number| {
            let seed = format!("{}/{family}/{number}", meta::uid(metadata));
            let suffix = meta::letters(meta::hash(&seed));
            format!("{}-{suffix}", meta::name(metadata))
        })
        .find(|name| !names.contains(name))
        .unwrap_or_default();
    names.insert(name.clone());
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: metadata.namespace.clone(),
            labels: Some(labels(view.service)),
            annotations: annotated(None, weights(view, &endpoints)),
            owner_references: Some(vec![meta::controller_reference("v1", "Service", metadata)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.clone()),
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(
        SERVICE_NAME.to_owned(),
        meta::name(&service.metadata).to_owned(),
    );
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}
