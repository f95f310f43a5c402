//! A cluster whose nodes have a tunnel between them: `up --network vxlan`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, load::in_namespace};
use serde_json::Value;

use crate::{life::Stage, traffic};

const DEVICE: &str = "portolan-vxlan";

/// Pods by their own addresses, the Service from a pod and from outside; what crosses between the nodes is in the tunnel.
pub fn pods_and_services_are_reached_through_it(stage: &Stage) -> Result<()> {
    let cluster = stage.tunnelled()?;
    for node in ["n1", "n2"] {
        let status = cluster.agent(node, "status")?;
        ensure!(
            status["pod_network"] == "vxlan",
            "the agent of {node} says what carries pods' packets: {status}"
        );
    }
    let before = sent("n1")?;
    traffic::pods_reach_each_other(&cluster)?;
    let crossed = sent("n1")? - before;
    ensure!(
        crossed >= 100,
        "requests to the other node's pods went by {DEVICE}: {crossed} packets"
    );
    // Half of them find their backend on the other node.
    for protocol in ["tcp", "udp"] {
        for target in traffic::node_ports() {
            cluster
                .load(From::Outside, protocol, &target, 300)?
                .ensure_all_answered()
                .with_context(|| format!("{protocol} to {target}"))?;
        }
    }
    only_remote_backends_are_reached(&cluster)
}

/// A Service whose only pod is on the other node, in both families and protocols.
fn only_remote_backends_are_reached(cluster: &Cluster) -> Result<()> {
    cluster.apply(FAR)?;
    cluster.wait_for_pods("app=far", 1)?;
    let service = cluster.get("service", "far")?;
    let addresses = service["spec"]["clusterIPs"].as_array().cloned();
    for address in addresses.unwrap_or_default() {
        let address: IpAddr = address.as_str().unwrap_or_default().parse()?;
        let target = SocketAddr::from((address, 80)).to_string();
        for protocol in ["tcp", "udp"] {
            let load = cluster.load(From::Pod("client"), protocol, &target, 300)?;
            load.ensure_all_answered()
                .with_context(|| format!("{protocol} to {target}"))?;
            ensure!(load.of_node("n2") == 300, "by the far pod: {load:?}");
        }
    }
    cluster.kubectl_with(&["delete", "-f", "-"], FAR).map(drop)
}

const FAR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers:
    - name: far
      image: localhost/portolan-demo:1
      args: ["serve", "--port", "8080"]
      env: [{name: NODE_NAME, value: n2}]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: far}
  ports:
    - {name: tcp, protocol: TCP, port: 80, targetPort: 8080}
    - {name: udp, protocol: UDP, port: 80, targetPort: 8080}
"#;

/// Packets that a node has put into the tunnel.
fn sent(node: &str) -> Result<u64> {
    let namespace = format!("/run/netns/portolan-{node}");
    let output = in_namespace(Path::new(&namespace))
        .args(["ip", "-s", "-j", "link", "show", DEVICE])
        .output()
        .context("look at the tunnel")?;
    let links: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{node} has {DEVICE}: {output:?}"))?;
    links[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .with_context(|| format!("the kernel counts: {links}"))
}
