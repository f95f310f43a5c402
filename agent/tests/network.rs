//! The pod network in real namespaces: two nodes joined by a veth pair, pods on both. Needs root.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use async_trait::async_trait;
use ipnet::IpNet;
use portolan_agent::network::{
    BoxError, NodeNetwork, PairPodNetwork, PeerNode, PodDataplane, PodDevice, PodLink, PodNetwork,
    PodNetworkConfig, PodNetworkStatus, PodRouting, remove_all,
};

mod world;

use world::{Namespace, PATIENCE, connect, echo, join_uplinks, own_namespace, serve_echo};

/// Remembers what it was told.
#[derive(Default)]
struct RecordingDataplane(Mutex<Vec<String>>);

#[async_trait]
impl PodDataplane for RecordingDataplane {
    async fn attach_pod(&self, pod: PodLink) -> Result<(), BoxError> {
        let mut calls = self.0.lock().expect("no panic under the lock");
        calls.push(format!("attach {}", pod.host_interface));
        Ok(())
    }

    async fn detach_pod(&self, host_interface: &str) -> Result<(), BoxError> {
        let mut calls = self.0.lock().expect("no panic under the lock");
        calls.push(format!("detach {host_interface}"));
        Ok(())
    }
}

/// One node: its namespace, state directory and pod CIDRs.
struct Node {
    namespace: Namespace,
    state: tempfile::TempDir,
    number: u8,
    routing: PodRouting,
    /// Its addresses' families, if not both.
    only_v6: bool,
    dataplane: Arc<RecordingDataplane>,
}

impl Node {
    fn new(number: u8) -> Self {
        Self {
            namespace: Namespace::new(&format!("n{number}")),
            state: tempfile::tempdir().expect("a temporary directory"),
            number,
            routing: PodRouting::Routed,
            only_v6: false,
            dataplane: Arc::default(),
        }
    }

    fn cidrs(&self) -> Vec<IpNet> {
        let n = self.number;
        vec![
            format!("10.244.{n}.0/24").parse().expect("a CIDR"),
            format!("fd00:10:244:{n}::/64").parse().expect("a CIDR"),
        ]
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let n = 10 + self.number;
        let both = [
            IpAddr::from([10, 89, 0, n]),
            format!("fd00:89::{n}").parse().expect("an address"),
        ];
        both[usize::from(self.only_v6)..].to_vec()
    }

    async fn open(&self) -> NodeNetwork {
        NodeNetwork::open("eth0", self.routing, &self.addresses())
            .await
            .expect("the node's network")
    }

    fn as_peer(&self) -> PeerNode {
        PeerNode {
            name: format!("n{}", self.number),
            addresses: self.addresses(),
            pod_cidrs: self.cidrs(),
        }
    }

    async fn open_pods(&self) -> (NodeNetwork, PairPodNetwork) {
        let node = self.open().await;
        node.claim_pod_cidrs(&self.cidrs()).await.expect("claimed");
        let config = PodNetworkConfig {
            state_dir: self.state.path().to_owned(),
            pod_cidrs: self.cidrs(),
            node_addresses: self.addresses(),
            mtu: node.pod_mtu(),
            device: PodDevice::default(),
        };
        let pods = PairPodNetwork::open(config, self.dataplane.clone())
            .await
            .expect("the pod network");
        (node, pods)
    }

    fn attach(&self, uid: &str, peers: &[PeerNode]) -> PodNetworkStatus {
        self.namespace.run(async || {
            let (node, pods) = self.open_pods().await;
            let problems = node.reconcile_peers(peers).await;
            assert!(problems.is_empty(), "{problems:?}");
            pods.attach(uid, &[]).await.expect("attached")
        })
    }

    fn detach(&self, uid: &str) {
        self.namespace.run(async || {
            let (_, pods) = self.open_pods().await;
            pods.detach(uid).await.expect("detached");
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let state = self.state.path().to_owned();
        self.namespace.run(async || {
            if let Err(error) = remove_all(&state).await {
                eprintln!("left behind in {}: {error:?}", state.display());
            }
        });
    }
}

fn two_nodes() -> (Node, Node) {
    let nodes = (Node::new(1), Node::new(2));
    join_uplinks(&nodes.0.namespace, &nodes.1.namespace);
    nodes
}

fn uid(letter: char) -> String {
    format!(
        "{}-0000-4000-8000-000000000000",
        letter.to_string().repeat(8)
    )
}

fn reaches(from: &Path, pod: &PodNetworkStatus) {
    for address in &pod.addresses {
        let server = serve_echo(&pod.netns, *address);
        let mut stream = connect(from, server).unwrap_or_else(|error| panic!("{server}: {error}"));
        echo(&mut stream, b"hello");
    }
}

#[test]
fn pods_reach_each_other_and_their_nodes_in_both_families() {
    let (one, two) = two_nodes();
    let before = own_namespace();
    let a = one.attach(&uid('a'), &[two.as_peer()]);
    let b = one.attach(&uid('b'), &[two.as_peer()]);
    let c = two.attach(&uid('c'), &[one.as_peer()]);
    assert_eq!(own_namespace(), before);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &b)] {
        reaches(&from.netns, to);
    }
    reaches(&one.namespace.path(), &a);
    reaches(&one.namespace.path(), &c);
    for address in one.addresses() {
        let server = serve_echo(&one.namespace.path(), address);
        echo(
            &mut connect(&a.netns, server).expect("the node answers"),
            b"up",
        );
        echo(
            &mut connect(&c.netns, server).expect("the other node answers"),
            b"up",
        );
    }
}

#[test]
fn attaching_again_keeps_what_is_there_and_its_connections() {
    let (one, two) = two_nodes();
    let a = one.attach(&uid('a'), &[two.as_peer()]);
    let c = two.attach(&uid('c'), &[one.as_peer()]);
    let server = serve_echo(&c.netns, c.addresses[0]);
    let mut stream = connect(&a.netns, server).expect("connected");
    echo(&mut stream, b"before");
    assert_eq!(one.attach(&uid('a'), &[two.as_peer()]), a);
    assert_eq!(two.attach(&uid('c'), &[one.as_peer()]), c);
    echo(&mut stream, b"after");
    let calls = one.dataplane.0.lock().expect("no panic under the lock");
    assert_eq!(*calls, ["attach ptlaaaaaaaa00", "attach ptlaaaaaaaa00"]);
}

#[test]
fn what_a_crash_left_half_made_is_finished() {
    let (one, two) = two_nodes();
    // A mount point with nothing mounted, and a veth whose other end never reached its namespace.
    fs::create_dir_all(one.state.path().join("netns")).expect("created");
    fs::write(one.state.path().join("netns").join(uid('a')), "").expect("written");
    one.namespace
        .ip("link add ptlaaaaaaaa00 type veth peer name astray");
    let a = one.attach(&uid('a'), &[two.as_peer()]);
    reaches(&one.namespace.path(), &a);
    assert!(!one.namespace.ip("link show").contains("astray"));
}

#[test]
fn detaching_leaves_nothing_and_is_idempotent() {
    let (one, two) = two_nodes();
    let a = one.attach(&uid('a'), &[two.as_peer()]);
    one.detach(&uid('a'));
    one.detach(&uid('a'));
    assert!(!one.namespace.ip("link show").contains(": ptl"));
    assert!(!a.netns.exists());
    for family in ["-4", "-6"] {
        let routes = one.namespace.ip(&format!("{family} route show proto 112"));
        assert!(!routes.contains("dev ptl"), "{routes}");
    }
    assert_ne!(one.attach(&uid('b'), &[]).addresses, a.addresses);
}

#[test]
fn a_freed_address_answers_unreachable_at_once() {
    let (one, two) = two_nodes();
    let a = one.attach(&uid('a'), &[two.as_peer()]);
    let c = two.attach(&uid('c'), &[one.as_peer()]);
    one.detach(&uid('a'));
    for address in &a.addresses {
        let begin = Instant::now();
        connect(&c.netns, (*address, 80).into()).expect_err("nobody has the address");
        assert!(begin.elapsed() < PATIENCE / 2, "{address} was silent");
    }
}

#[test]
fn routes_follow_the_nodes() {
    let (one, two) = two_nodes();
    one.attach(&uid('a'), &[two.as_peer()]);
    let routes = || {
        one.namespace.ip("-4 route show proto 112") + &one.namespace.ip("-6 route show proto 112")
    };
    assert!(
        routes().contains("10.244.2.0/24 via 10.89.0.12 dev eth0"),
        "{}",
        routes()
    );
    assert!(
        routes().contains("fd00:10:244:2::/64 via fd00:89::12 dev eth0"),
        "{}",
        routes()
    );

    let reconcile = |peer: PeerNode| {
        one.namespace.run(async || {
            let node = one.open().await;
            node.reconcile_peers(&[peer]).await
        })
    };
    let mut moved = two.as_peer();
    moved.addresses = vec![
        IpAddr::from([10, 89, 0, 76]),
        "fd00:89::76".parse().expect("an address"),
    ];
    let problems = reconcile(moved.clone());
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(routes().matches("via").count(), 2, "{}", routes());
    assert_eq!(routes().matches("::76 ").count(), 1, "{}", routes());

    moved.addresses = vec![IpAddr::from([10, 89, 0, 77])];
    let problems = reconcile(moved);
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "find a way to fd00:10:244:2::/64 of node n2"
    );
    assert!(
        routes().contains("10.244.2.0/24 via 10.89.0.77"),
        "{}",
        routes()
    );
    assert!(!routes().contains("fd00:10:244:2::/64"), "{}", routes());

    let a = one.attach(&uid('a'), &[]);
    assert!(!routes().contains("via"), "{}", routes());
    assert!(
        routes().contains("unreachable 10.244.1.0/24"),
        "{}",
        routes()
    );
    reaches(&one.namespace.path(), &a);
}

#[test]
fn pods_reach_each_other_through_the_tunnel_over_either_family() {
    for (only_v6, mtu) in [(false, 1_450), (true, 1_430)] {
        let (mut one, mut two) = two_nodes();
        for node in [&mut one, &mut two] {
            node.routing = PodRouting::Vxlan;
            node.only_v6 = only_v6;
        }
        let a = one.attach(&uid('a'), &[two.as_peer()]);
        let c = two.attach(&uid('c'), &[one.as_peer()]);
        for (from, to) in [(&a, &c), (&c, &a)] {
            reaches(&from.netns, to);
        }
        reaches(&one.namespace.path(), &c);
        let links = one.namespace.ip("link show");
        assert!(
            links
                .lines()
                .any(|line| line.contains("ptlaaaaaaaa00") && line.contains(&format!("mtu {mtu}"))),
            "{links}"
        );
        // More than a packet holds, both ways.
        for address in &c.addresses {
            let server = serve_echo(&c.netns, *address);
            let mut stream = connect(&a.netns, server).expect("connected");
            echo(&mut stream, &vec![b'x'; 100_000]);
        }
        for family in ["-4", "-6"] {
            let routes = one
                .namespace
                .ip(&format!("{family} route show proto 112 dev eth0"));
            assert_eq!(routes, "", "nothing of pods by the uplink");
        }
    }
}

#[test]
fn the_tunnel_follows_the_nodes_and_goes_with_its_option() {
    let (mut one, two) = two_nodes();
    one.routing = PodRouting::Vxlan;
    one.attach(&uid('a'), &[two.as_peer()]);
    let ways = || {
        let output = std::process::Command::new("bridge")
            .args([
                "-n",
                one.namespace.name(),
                "fdb",
                "show",
                "dev",
                "portolan-vxlan",
            ])
            .output()
            .expect("iproute2 is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(ways().contains("dst 10.89.0.12 "), "{}", ways());
    let mut moved = two.as_peer();
    moved.addresses[0] = IpAddr::from([10, 89, 0, 76]);
    let reconcile = |peer: &PeerNode| {
        one.namespace.run(async || {
            one.open()
                .await
                .reconcile_peers(std::slice::from_ref(peer))
                .await
        })
    };
    let problems = reconcile(&moved);
    assert!(problems.is_empty(), "{problems:?}");
    assert!(ways().contains("dst 10.89.0.76 "), "{}", ways());
    assert!(!ways().contains("dst 10.89.0.12 "), "{}", ways());
    let neighbours = one
        .namespace
        .ip("neighbour show dev portolan-vxlan nud permanent");
    assert!(neighbours.contains("10.244.2.0 "), "{neighbours}");
    assert!(!neighbours.contains("10.89.0.12 "), "{neighbours}");

    moved.addresses.remove(0);
    let problems = reconcile(&moved);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].to_string(), "find a way to node n2");
    let routes = one.namespace.ip("route show proto 112 dev portolan-vxlan");
    assert_eq!(routes, "");

    one.routing = PodRouting::Routed;
    one.attach(&uid('a'), &[two.as_peer()]);
    assert!(!one.namespace.ip("link show").contains("portolan-vxlan"));
    let routes = one.namespace.ip("route show proto 112");
    assert!(
        routes.contains("10.244.2.0/24 via 10.89.0.12 dev eth0"),
        "{routes}"
    );
}

#[test]
fn teardown_leaves_nothing() {
    let (one, two) = two_nodes();
    one.attach(&uid('a'), &[two.as_peer()]);
    one.attach(&uid('b'), &[two.as_peer()]);
    let state = one.state.path().to_owned();
    one.namespace.run(async || {
        remove_all(&state).await.expect("removed");
        NodeNetwork::remove_routes().await.expect("removed");
    });
    assert!(!one.namespace.ip("link show").contains(": ptl"));
    assert_eq!(one.namespace.ip("-4 route show proto 112"), "");
    assert_eq!(one.namespace.ip("-6 route show proto 112"), "");
    let left: Vec<_> = fs::read_dir(state.join("netns"))
        .expect("the directory")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_missing_uplink_is_named() {
    let namespace = Namespace::new("alone");
    let error = namespace
        .run(async || {
            NodeNetwork::open("eth7", PodRouting::Routed, &[])
                .await
                .err()
        })
        .expect("no such interface");
    assert_eq!(
        error.to_string(),
        "there is no interface eth7 in this network namespace"
    );
}
