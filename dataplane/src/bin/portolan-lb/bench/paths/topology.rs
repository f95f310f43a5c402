//! A client, a node and backends, each a network namespace.
//!
//! ```text
//!   client eth0 ---- client0 node server0 ---- eth0 pod, with an endpoint's address
//!                                 server1 ---- eth0 pod ...
//!
//!   client eth0 --.              .-- eth0 other server0 ---- eth0 pod      where backends answer clients themselves
//!                  fabric (bridge)
//!   node eth0 ----'
//! ```

use std::{fmt::Write, net::Ipv4Addr};

use anyhow::Result;

use super::plan::{CLIENTS, NODE, OTHER_NODE, Path, Plan};
use crate::space::{Space, wire};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// The MAC address of a backend's pod.
pub fn server_mac(pod: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, pod]
}

/// The namespaces of a stage.
pub struct Topology {
    pub client: Space,
    /// Whose forwarding is measured.
    pub node: Space,
    /// The node of the backends, if that is another one.
    pub other: Option<Space>,
    /// The backends' pods.
    pub servers: Vec<Space>,
    _fabric: Option<Space>,
}

impl Topology {
    /// As a path needs it.
    pub fn new(path: Path, plan: &Plan) -> Result<Self> {
        let topology = if path == Path::Dsr {
            Self::fabric(plan)?
        } else {
            Self::wires(plan)?
        };
        // No TIME_WAIT: what is measured is not how many ports the client has.
        for space in topology.servers.iter().chain([&topology.client]) {
            space.knob("ipv4/tcp_max_tw_buckets", "0")?;
            space.knob("ipv4/ip_local_port_range", "1024 65535")?;
            space.knob("ipv4/tcp_no_metrics_save", "1")?;
        }
        Ok(topology)
    }

    fn wires(plan: &Plan) -> Result<Self> {
        let (client, node) = (Space::new()?, Space::new()?);
        wire((&node, "client0"), (&client, "eth0"))?;
        pod(&client, CLIENT_MAC, (0..CLIENTS).map(Plan::client))?;
        node.ip("address add 169.254.1.1/32 dev client0\nroute add 10.244.0.0/16 dev client0")?;
        let servers = servers(&node, plan)?;
        Ok(Self {
            client,
            node,
            other: None,
            servers,
            _fabric: None,
        })
    }

    fn fabric(plan: &Plan) -> Result<Self> {
        let [client, node, other, fabric] = [(); 4].map(|()| Space::new());
        let (client, node, other, fabric) = (client?, node?, other?, fabric?);
        fabric.ip("link add br0 type bridge\nlink set br0 up")?;
        for (number, space) in [&client, &node, &other].into_iter().enumerate() {
            let port = format!("port{number}");
            wire((&fabric, &port), (space, "eth0"))?;
            fabric.ip(&format!("link set {port} master br0"))?;
        }
        let mut lines = String::from("address add 10.243.0.3/24 dev eth0\n");
        for number in 0..CLIENTS {
            let _ = writeln!(lines, "address add {}/32 dev eth0", Plan::client(number));
        }
        client.ip(&format!("{lines}route add default via {NODE}\n"))?;
        node.ip(&format!(
            "address add {NODE}/24 dev eth0\nroute add 10.244.0.0/16 dev eth0\n\
             route add 10.245.0.0/16 via {OTHER_NODE}"
        ))?;
        other.ip(&format!(
            "address add {OTHER_NODE}/24 dev eth0\nroute add 10.244.0.0/16 dev eth0"
        ))?;
        let servers = servers(&other, plan)?;
        Ok(Self {
            client,
            node,
            other: Some(other),
            servers,
            _fabric: Some(fabric),
        })
    }
}

/// Joins the backends' pods to their node.
fn servers(node: &Space, plan: &Plan) -> Result<Vec<Space>> {
    let mut servers = Vec::new();
    for (number, addresses) in (0..).zip(plan.pods()) {
        let (space, device) = (Space::new()?, format!("server{number}"));
        wire((node, &device), (&space, "eth0"))?;
        let mut lines = format!("address add 169.254.1.1/32 dev {device}\n");
        for address in &addresses {
            let _ = writeln!(lines, "route add {address}/32 dev {device}");
        }
        node.ip(&lines)?;
        pod(&space, server_mac(number), addresses.into_iter())?;
        servers.push(space);
    }
    Ok(servers)
}

/// Gives a namespace addresses and routes as a pod network does.
fn pod(space: &Space, mac: [u8; 6], addresses: impl Iterator<Item = Ipv4Addr>) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut lines = format!("link set eth0 address {mac}\n");
    for address in addresses {
        let _ = writeln!(lines, "address add {address}/32 dev eth0");
    }
    lines.push_str("route add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1\n");
    space.ip(&lines)
}
