//! The Node object: made when the agent starts, its status kept by the heartbeat.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
        NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{ClusterError, Machine, Pressure, request};
use crate::{errors::Backoff, streams};

/// As many pods as kubelet runs on a node by default.
const POD_CAPACITY: u64 = 110;

/// Memory and disk that pods may not ask for: kubelet's hard eviction thresholds.
const RESERVED_MEMORY: u64 = 100 << 20;
const RESERVED_STORAGE_PERCENT: u64 = 10;

/// What the node is registered with.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// topology.kubernetes.io/zone.
    pub zone: Option<String>,
    /// status.addresses of type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// The machine.
    pub machine: Machine,
}

/// Makes or updates the Node and waits until the control plane has given it pod CIDRs. Tries until it succeeds.
pub async fn register(client: &Client, facts: &NodeFacts) -> Node {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut registered = false;
    loop {
        let attempt = if registered {
            fetch(client, &facts.name).await
        } else {
            ensure_node(client, facts).await
        };
        match attempt {
            Ok(node) if !pod_cidrs(&node).is_empty() => return node,
            Ok(_) => {
                if !registered {
                    tracing::info!(node = facts.name, "registered; waiting for pod CIDRs");
                    registered = true;
                    backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
                }
                tokio::time::sleep(backoff.pause()).await;
            }
            Err(error) => {
                registered = registered && error.code() != Some(404);
                let pause = backoff.pause();
                tracing::warn!(error = %error.chain(), retry_in = ?pause, "not registered yet");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// What the node's pods have their addresses from.
pub fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let list = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    let single = spec.and_then(|spec| spec.pod_cidr.clone());
    let texts = if list.is_empty() {
        single.into_iter().collect()
    } else {
        list
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Reads the Node.
pub async fn fetch(client: &Client, name: &str) -> Result<Node, ClusterError> {
    let api: Api<Node> = Api::all(client.clone());
    request("get node", name, api.get(name)).await
}

/// Makes the Node, not ready yet, or brings the labels of one that exists up to date. Its status is the heartbeat's: an
/// agent that starts again must not make a ready node look lost.
pub async fn ensure_node(client: &Client, facts: &NodeFacts) -> Result<Node, ClusterError> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &facts.name;
    let state = NodeState {
        is_ready: false,
        pressure: Pressure::default(),
    };
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(facts)),
            ..ObjectMeta::default()
        },
        status: Some(status(facts, state, None, jiff::Timestamp::now())),
        ..Node::default()
    };
    let created = request(
        "create node",
        name,
        api.create(&PostParams::default(), &node),
    )
    .await;
    match created {
        Err(error) if error.code() == Some(409) => {
            let body = Patch::Merge(json!({"metadata": {"labels": labels(facts)}}));
            let params = PatchParams::default();
            request("patch node", name, api.patch(name, &params, &body)).await
        }
        created => created,
    }
}

/// Writes the Node's status.
pub async fn patch_status(
    client: &Client,
    name: &str,
    status: &NodeStatus,
) -> Result<Node, ClusterError> {
    let api: Api<Node> = Api::all(client.clone());
    let body = Patch::Merge(json!({"status": status}));
    let params = PatchParams::default();
    request(
        "patch the status of node",
        name,
        api.patch_status(name, &params, &body),
    )
    .await
}

fn labels(facts: &NodeFacts) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), facts.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        (
            "kubernetes.io/arch".to_owned(),
            facts.machine.architecture.to_owned(),
        ),
    ]);
    if let Some(zone) = &facts.zone {
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone.clone());
    }
    labels
}

/// What changes in a node's status while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Whether it can run pods.
    pub is_ready: bool,
    /// How hard it is pressed.
    pub pressure: Pressure,
}

/// The fields of status that are the agent's. Conditions keep their transition times from `before`.
pub fn status(
    facts: &NodeFacts,
    state: NodeState,
    before: Option<&[NodeCondition]>,
    now: jiff::Timestamp,
) -> NodeStatus {
    NodeStatus {
        addresses: Some(addresses(facts)),
        capacity: Some(capacity(&facts.machine)),
        allocatable: Some(allocatable(&facts.machine)),
        conditions: Some(conditions(state, before, now)),
        node_info: Some(node_info(&facts.machine)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(streams::PORT),
            }),
        }),
        ..NodeStatus::default()
    }
}

fn addresses(facts: &NodeFacts) -> Vec<NodeAddress> {
    let internal = facts.addresses.iter().map(|address| NodeAddress {
        type_: "InternalIP".to_owned(),
        address: address.to_string(),
    });
    let hostname = NodeAddress {
        type_: "Hostname".to_owned(),
        address: facts.name.clone(),
    };
    internal.chain([hostname]).collect()
}

fn capacity(machine: &Machine) -> BTreeMap<String, Quantity> {
    resources(machine.cpus, machine.memory, machine.storage)
}

fn allocatable(machine: &Machine) -> BTreeMap<String, Quantity> {
    resources(
        machine.cpus,
        machine.memory.saturating_sub(RESERVED_MEMORY),
        machine.storage / 100 * (100 - RESERVED_STORAGE_PERCENT),
    )
}

fn resources(cpus: u64, memory: u64, storage: u64) -> BTreeMap<String, Quantity> {
    let resources = [
        ("cpu", Quantity(cpus.to_string())),
        ("memory", Quantity(format!("{}Ki", memory >> 10))),
        (
            "ephemeral-storage",
            Quantity(format!("{}Ki", storage >> 10)),
        ),
        ("pods", Quantity(POD_CAPACITY.to_string())),
    ];
    resources
        .map(|(name, quantity)| (name.to_owned(), quantity))
        .into()
}

fn node_info(machine: &Machine) -> NodeSystemInfo {
    let version = env!("CARGO_PKG_VERSION");
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: format!("portolan://{version}"),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: format!("v{version}+portolan"),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.machine_id.clone(),
        ..NodeSystemInfo::default()
    }
}

/// The four conditions, with the reasons that Kubernetes' tools know.
pub fn conditions(
    state: NodeState,
    before: Option<&[NodeCondition]>,
    now: jiff::Timestamp,
) -> Vec<NodeCondition> {
    let NodeState { is_ready, pressure } = state;
    let stated = [
        (
            "MemoryPressure",
            pressure.memory,
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
        ),
        (
            "DiskPressure",
            pressure.disk,
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
        ),
        (
            "PIDPressure",
            pressure.pid,
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
        ),
        ("Ready", is_ready, "KubeletReady", "KubeletNotReady"),
    ];
    let conditions = stated.map(|(type_, holds, reason, otherwise)| {
        let status = if holds { "True" } else { "False" };
        let reason = if holds { reason } else { otherwise };
        let earlier = before.unwrap_or_default().iter();
        let unchanged = earlier
            .filter(|earlier| earlier.type_ == type_ && earlier.status == status)
            .find_map(|earlier| earlier.last_transition_time.clone());
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message(reason).to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(unchanged.unwrap_or(Time(now))),
        }
    });
    conditions.to_vec()
}

/// Whether what the API shows says something else than the node does.
pub fn conditions_differ(own: &[NodeCondition], shown: Option<&[NodeCondition]>) -> bool {
    let shown = shown.unwrap_or_default();
    own.iter().any(|own| {
        let shown = shown.iter().find(|shown| shown.type_ == own.type_);
        shown.is_none_or(|shown| (&shown.status, &shown.reason) != (&own.status, &own.reason))
    })
}

fn message(reason: &str) -> &'static str {
    match reason {
        "KubeletHasInsufficientMemory" => "the node has insufficient memory available",
        "KubeletHasSufficientMemory" => "the node has sufficient memory available",
        "KubeletHasDiskPressure" => "the node has disk pressure",
        "KubeletHasNoDiskPressure" => "the node has no disk pressure",
        "KubeletHasInsufficientPID" => "the node has insufficient PID available",
        "KubeletHasSufficientPID" => "the node has sufficient PID available",
        "KubeletNotReady" => "portolan-agent is starting",
        _ => "portolan-agent is posting ready status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: "n1".to_owned(),
            zone: Some("a".to_owned()),
            addresses: vec![IpAddr::from([10, 89, 0, 11])],
            machine: Machine {
                cpus: 2,
                memory: 1 << 30,
                storage: 100 << 30,
                machine_id: "m".to_owned(),
                boot_id: "b".to_owned(),
                kernel: "6.18.0".to_owned(),
                os_image: "Debian".to_owned(),
                architecture: "amd64",
            },
        }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).expect("a time")
    }

    const READY: NodeState = NodeState {
        is_ready: true,
        pressure: Pressure {
            memory: false,
            disk: false,
            pid: false,
        },
    };

    #[test]
    fn status_speaks_kubernetes() {
        let status = json!(status(&facts(), READY, None, at(1)));
        let address = json!({"type": "InternalIP", "address": "10.89.0.11"});
        assert_eq!(status["addresses"][0], address);
        assert_eq!(status["capacity"]["memory"], "1048576Ki");
        assert_eq!(status["allocatable"]["memory"], "946176Ki");
        assert_eq!(status["capacity"]["pods"], "110");
        assert_eq!(status["conditions"][3]["type"], "Ready");
        assert_eq!(status["conditions"][3]["reason"], "KubeletReady");
        assert_eq!(labels(&facts())["topology.kubernetes.io/zone"], "a");
    }

    #[test]
    fn transition_times_change_with_the_status_alone() {
        let first = conditions(READY, None, at(1));
        let mut pressed = READY;
        pressed.pressure.disk = true;
        let second = conditions(pressed, Some(&first), at(2));
        let of = |conditions: &[NodeCondition], type_: &str| {
            let found = conditions.iter().find(|condition| condition.type_ == type_);
            found.and_then(|condition| condition.last_transition_time.clone())
        };
        assert_eq!(of(&second, "Ready"), Some(Time(at(1))));
        assert_eq!(of(&second, "DiskPressure"), Some(Time(at(2))));
        assert_eq!(second[1].reason.as_deref(), Some("KubeletHasDiskPressure"));
    }

    #[test]
    fn a_node_that_was_thought_lost_differs() {
        let own = conditions(READY, None, at(1));
        let later = conditions(READY, None, at(2));
        assert!(!conditions_differ(&own, Some(&later)), "times alone");
        let mut unknown = own.clone();
        unknown[3].status = "Unknown".to_owned();
        assert!(conditions_differ(&own, Some(&unknown)));
        assert!(conditions_differ(&own, None));
    }

    #[test]
    fn pod_cidrs_of_both_families() {
        let node: Node = serde_json::from_value(json!({
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]}
        }))
        .expect("a node");
        assert_eq!(pod_cidrs(&node).len(), 2);
        assert!(pod_cidrs(&Node::default()).is_empty());
    }
}
