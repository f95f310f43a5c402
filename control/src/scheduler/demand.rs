//! What a pod asks of a node, read from its spec once.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, NodeSelectorTerm, Pod, PodSpec, PreferredSchedulingTerm, Toleration,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    quantity,
    terms::{Labels, Wishes},
};
use crate::{
    api::ObjectKey,
    controllers::{cache::key_of, meta, pods},
};

/// An amount of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Everything else, by name: "ephemeral-storage", "example.com/gpu".
    pub other: BTreeMap<String, i64>,
}

impl Amounts {
    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            match name.as_str() {
                "cpu" => amounts.cpu = quantity::thousandths(quantity),
                "memory" => amounts.memory = quantity::units(quantity),
                other => {
                    let amount = quantity::units(quantity);
                    if amount > 0 {
                        amounts.other.insert(other.to_owned(), amount);
                    }
                }
            }
        }
        amounts
    }

    fn add(&mut self, more: &Self) {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        for (name, amount) in &more.other {
            let sum = self.other.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    fn raise_to(&mut self, least: &Self) {
        self.cpu = self.cpu.max(least.cpu);
        self.memory = self.memory.max(least.memory);
        for (name, amount) in &least.other {
            let most = self.other.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// A port of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// "TCP", "UDP" or "SCTP".
    pub protocol: String,
    /// The address that it is taken on; "0.0.0.0" is all of them.
    pub address: String,
    /// The number.
    pub port: i32,
}

impl HostPort {
    /// Whether both can't be had on one node.
    pub fn clashes_with(&self, other: &Self) -> bool {
        const ALL: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == ALL || other.address == ALL)
    }
}

/// See the file's front page.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Which pod.
    pub key: ObjectKey,
    /// metadata.uid.
    pub uid: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Who goes first.
    pub priority: i32,
    /// What it must have.
    pub amounts: Amounts,
    /// As `amounts`, with something assumed for pods that name nothing, so that these spread too.
    pub weight: (i64, i64),
    /// spec.nodeSelector.
    pub node_selector: BTreeMap<String, String>,
    /// Terms of which one must hold; `None` when any node will do.
    pub required: Option<Vec<NodeSelectorTerm>>,
    /// Terms that had better hold.
    pub preferred: Vec<PreferredSchedulingTerm>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node.
    pub host_ports: Vec<HostPort>,
    /// The uid of its controller; pods of one controller are spread out.
    pub owner: Option<String>,
    /// metadata.labels.
    pub labels: Labels,
    /// What it asks about other pods.
    pub wishes: Wishes,
    /// The claims of volumes that it uses, in its namespace.
    pub claims: Vec<String>,
    /// Whether it is on its way out.
    pub is_terminating: bool,
    /// Since when it runs.
    pub started: Option<Timestamp>,
    /// Whether pods of lower priority may have to make way for it.
    pub may_preempt: bool,
    /// The node where others made way for it.
    pub nominated: Option<String>,
}

/// What a pod without a CPU request is taken to need when nodes are compared, in thousandths.
const ASSUMED_CPU: i64 = 100;
/// What a pod without a memory request is taken to need when nodes are compared, in bytes.
const ASSUMED_MEMORY: i64 = 200 << 20;

impl Demand {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let status = pod.status.as_ref();
        let amounts = amounts(spec);
        let or = |amount: i64, assumed: i64| if amount == 0 { assumed } else { amount };
        let node_affinity = spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref());
        Self {
            key: key_of(&pod.metadata),
            uid: meta::uid(&pod.metadata).to_owned(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            priority: spec.priority.unwrap_or(0),
            weight: (
                or(amounts.cpu, ASSUMED_CPU),
                or(amounts.memory, ASSUMED_MEMORY),
            ),
            amounts,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required: node_affinity
                .and_then(|affinity| {
                    affinity
                        .required_during_scheduling_ignored_during_execution
                        .as_ref()
                })
                .map(|required| required.node_selector_terms.clone()),
            preferred: node_affinity
                .and_then(|affinity| {
                    affinity
                        .preferred_during_scheduling_ignored_during_execution
                        .clone()
                })
                .unwrap_or_default(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports: host_ports(spec),
            owner: meta::controller_of(&pod.metadata).map(|owner| owner.uid.clone()),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            wishes: Wishes::of(pod, spec),
            claims: claims(pod, spec),
            is_terminating: meta::is_terminating(&pod.metadata),
            started: status
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            nominated: status
                .and_then(|status| status.nominated_node_name.clone())
                .filter(|node| !node.is_empty()),
        }
    }

    /// Whether a reading of the same pod, which has a node, counts for the same.
    pub fn counts_as(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.labels == other.labels
            && self.is_terminating == other.is_terminating
            && self.amounts == other.amounts
            && self.started == other.started
    }
}

/// Whether a pod takes room on a node.
pub fn takes_room(pod: &Pod) -> bool {
    !pods::is_finished(pod)
}

/// Whether a pod waits for this scheduler.
pub fn waits(pod: &Pod, scheduler: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pods::node(pod).is_none()
        && pods::is_active(pod)
        && spec.scheduler_name.as_deref().unwrap_or(scheduler) == scheduler
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// What a pod needs at its most: all containers at once, or an init container beside the sidecars before it.
fn amounts(spec: &PodSpec) -> Amounts {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        Amounts::of(resources.and_then(|resources| resources.requests.as_ref()))
    };
    let mut sidecars = Amounts::default();
    let mut most = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let asked = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&asked);
            most.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&asked);
            most.raise_to(&beside);
        }
    }
    let mut together = sidecars;
    for container in &spec.containers {
        together.add(&of(container));
    }
    together.raise_to(&most);
    together.add(&Amounts::of(spec.overhead.as_ref()));
    together
}

/// The claims that a pod names, and those that are made for it alone.
pub fn claims(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let volumes = spec.volumes.iter().flatten();
    let claims = volumes.filter_map(|volume| {
        let own = || format!("{}-{}", meta::name(&pod.metadata), volume.name);
        let named = volume.persistent_volume_claim.as_ref();
        named
            .map(|claim| claim.claim_name.clone())
            .or_else(|| volume.ephemeral.as_ref().map(|_| own()))
    });
    claims.collect()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let on_host = spec.host_network == Some(true);
    spec.containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.or(on_host.then_some(port.container_port))?;
            let address = port.host_ip.clone().filter(|address| !address.is_empty());
            (number > 0).then(|| HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: address.unwrap_or_else(|| "0.0.0.0".to_owned()),
                port: number,
            })
        })
        .collect()
}

/// What a node offers, read from its status.
pub fn offer(list: Option<&BTreeMap<String, Quantity>>) -> (Amounts, i64) {
    let mut amounts = Amounts::of(list);
    let pods = amounts.other.remove("pods").unwrap_or(0);
    (amounts, pods)
}
