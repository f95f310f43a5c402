//! Pods' pairs of interfaces with the real dataplane on them: netkit where the kernel has it, veth everywhere. Needs root.

use std::{
    fs::File,
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ipnet::IpNet;
use portolan_agent::{
    bpffs,
    network::{
        BoxError, DeviceChoice, DeviceKind, NodeNetwork, PairPodNetwork, PodDataplane, PodDevice,
        PodLink, PodNetwork, PodNetworkConfig, PodNetworkStatus, PodRouting, remove_all,
    },
};
use portolan_dataplane::{
    Config, Dataplane, PodInterface,
    model::{Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName},
};

mod world;

use world::{Namespace, connect, echo, join_uplinks, serve_echo};

const PODS: [&str; 2] = [
    "aaaaaaaa-0000-4000-8000-000000000000",
    "bbbbbbbb-0000-4000-8000-000000000000",
];
const CLUSTER: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];

/// The dataplane of a node, told of pods by the pod network.
struct Live(Mutex<Dataplane>);

#[async_trait]
impl PodDataplane for Live {
    async fn attach_pod(&self, pod: PodLink) -> Result<(), BoxError> {
        let pod = PodInterface {
            host_interface: pod.host_interface,
            addresses: pod.addresses,
            pod_mac: pod.pod_mac,
            netns: pod.netns,
        };
        let mut dataplane = self.0.lock().expect("no panic under the lock");
        Ok(dataplane.attach_pod(&pod)?)
    }

    async fn detach_pod(&self, host_interface: &str) -> Result<(), BoxError> {
        let mut dataplane = self.0.lock().expect("no panic under the lock");
        Ok(dataplane.detach_pod(host_interface)?)
    }
}

struct Node {
    namespace: Namespace,
    /// Whom the world is.
    outside: Namespace,
    state: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let (namespace, outside) = (Namespace::new("node"), Namespace::new("outside"));
        join_uplinks(&namespace, &outside);
        outside.ip("route add 10.244.1.0/24 via 10.89.0.11");
        outside.ip("route add fd00:10:244:1::/64 via fd00:89::11");
        Self {
            namespace,
            outside,
            state: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn pins(&self) -> PathBuf {
        self.state.path().join("bpf")
    }

    fn open_dataplane(&self) -> Dataplane {
        bpffs::ensure(&self.pins()).expect("mounted");
        let object = std::env::var_os("PORTOLAN_EBPF_OBJECT").map(PathBuf::from);
        let addresses = ["10.89.0.11", "fd00:89::11"].map(|text| text.parse().expect("valid"));
        let config = Config::new(object, self.pins().join("node"), addresses.to_vec());
        let mut dataplane = Dataplane::open(config).expect("the dataplane opens");
        dataplane.attach_uplink("eth0").expect("it is there");
        dataplane
    }

    async fn open_pods(
        &self,
        device: PodDevice,
        dataplane: Arc<Live>,
    ) -> Result<PairPodNetwork, portolan_agent::network::NetworkError> {
        let node = NodeNetwork::open("eth0", PodRouting::Routed, &[])
            .await
            .expect("the node's network");
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        let config = PodNetworkConfig {
            state_dir: self.state.path().to_owned(),
            pod_cidrs: cidrs
                .map(|text| text.parse::<IpNet>().expect("a CIDR"))
                .to_vec(),
            node_addresses: Vec::new(),
            mtu: node.pod_mtu(),
            device,
        };
        PairPodNetwork::open(config, dataplane).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (state, pins) = (self.state.path().to_owned(), self.pins());
        self.namespace.run(async || {
            if let Err(error) = remove_all(&state).await {
                eprintln!("left behind in {}: {error:?}", state.display());
            }
        });
        if let Err(error) = bpffs::remove(&pins) {
            eprintln!("{} stays mounted: {error}", pins.display());
        }
    }
}

/// A service of both families in front of a pod, at a port that it listens on.
fn service(pod: &PodNetworkStatus, target: u16) -> Service {
    let frontend = |text: &str| Frontend::Address {
        address: text.parse().expect("an address"),
        port: target,
        scope: Scope::Cluster,
    };
    let frontends = CLUSTER.map(frontend).into_iter();
    Service {
        frontends: frontends
            .chain([Frontend::NodePort { port: 30_080 }])
            .collect(),
        backends: pod
            .addresses
            .iter()
            .map(|address| Backend::new(*address, target, Locality::Node))
            .collect(),
        ..Service::new(ServiceName("default/web/80/TCP".to_owned()), Protocol::Tcp)
    }
}

/// What new pods get if they may have anything, and which wishes this kernel grants.
fn settle(node: &Node, live: &Arc<Live>) -> DeviceChoice {
    node.namespace.run(async || {
        let open = async |wish| node.open_pods(wish, live.clone()).await;
        let auto = open(PodDevice::Auto).await.expect("any kernel has some");
        let veth = open(PodDevice::Veth).await.expect("any kernel has it");
        assert_eq!(veth.device().kind, DeviceKind::Veth);
        assert_eq!(veth.device().fallback, None, "as it was asked for");
        let netkit = open(PodDevice::Netkit).await;
        let choice = auto.device().clone();
        match choice.kind {
            DeviceKind::Netkit => assert_eq!(netkit.expect("it is").device(), &choice),
            DeviceKind::Veth => {
                let error = netkit.err().expect("this kernel makes none");
                assert!(
                    error.to_string().starts_with("create netkit pair"),
                    "{error}"
                );
                let why = choice.fallback.clone().expect("it says why");
                assert!(why.starts_with("create netkit pair"), "{why}");
            }
        }
        choice
    })
}

/// The node's own traffic, the pods' and the world's, over pods' pairs of a kind.
fn carries_everything(device: PodDevice) -> DeviceChoice {
    let node = Node::new();
    let live = Arc::new(Live(Mutex::new(
        node.namespace.run(async || node.open_dataplane()),
    )));
    let choice = settle(&node, &live);
    let [a, b] = node.namespace.run(async || {
        let pods = node.open_pods(device, live.clone()).await.expect("opened");
        let mut attached = Vec::new();
        for uid in PODS {
            attached.push(pods.attach(uid, &[]).await.expect("attached"));
        }
        <[PodNetworkStatus; 2]>::try_from(attached).expect("two of them")
    });
    let details = node.namespace.ip("-d link show ptlaaaaaaaa00");
    let kind = if device == PodDevice::Veth {
        DeviceKind::Veth
    } else {
        choice.kind
    };
    assert!(details.contains(&format!("    {kind}")), "{details}");
    for (family, address) in b.addresses.iter().enumerate() {
        let server = serve_echo(&b.netns, *address);
        let service = service(&b, server.port());
        let mut dataplane = live.0.lock().expect("no panic under the lock");
        dataplane.upsert(&service).expect("a valid service");
        drop(dataplane);
        let cluster: (IpAddr, u16) = (CLUSTER[family].parse().expect("an address"), server.port());
        let outside = node.outside.path();
        let any = if family == 0 {
            "10.89.0.11"
        } else {
            "fd00:89::11"
        };
        let port: (IpAddr, u16) = (any.parse().expect("an address"), 30_080);
        for (from, to) in [
            (&a.netns, server),
            (&a.netns, cluster.into()),
            (&b.netns, cluster.into()),
            (&node.namespace.path(), server),
            (&outside, port.into()),
        ] {
            let mut stream =
                connect(from, to).unwrap_or_else(|error| panic!("{device:?} to {to}: {error}"));
            echo(&mut stream, b"hello");
            echo(&mut stream, &vec![b'x'; 100_000]);
        }
    }
    let counted = live.0.lock().expect("no panic under the lock").services();
    let (_, counters) = &counted.expect("they can be read")[0];
    assert!(counters.local.flows >= 4, "{counters:?}");
    choice
}

#[test]
fn pods_get_netkit_where_the_kernel_has_it() {
    let choice = carries_everything(PodDevice::Auto);
    let how = match choice.kind {
        DeviceKind::Netkit => "native",
        DeviceKind::Veth => "fallback: veth",
    };
    match std::env::var_os("PORTOLAN_FACTS") {
        None => println!("feature netkit {how}"),
        Some(path) => File::options()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("feature netkit {how}\n").as_bytes()))
            .expect("facts can be written down"),
    }
}

#[test]
fn pods_get_veth_when_told() {
    carries_everything(PodDevice::Veth);
}
