//! A client, a node and backends, each a network namespace.
//!
//! ```text
//!   client eth0 ---- client0 node server0 ---- eth0 server (an address for each endpoint)
//!
//!   client eth0 --.              .-- eth0 other server0 ---- eth0 server      where backends answer clients themselves
//!                  fabric (bridge)
//!   node eth0 ----'
//! ```

use std::{fmt::Write, net::Ipv4Addr};

use anyhow::Result;

use super::plan::{CLIENTS, NODE, OTHER_NODE, Path, Plan};
use crate::space::{Space, wire};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// The namespaces of a stage.
pub struct Topology {
    pub client: Space,
    /// Whose forwarding is measured.
    pub node: Space,
    /// The node of the backends, if that is another one.
    pub other: Option<Space>,
    pub server: Space,
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
        for space in [&topology.client, &topology.server] {
            space.knob("ipv4/tcp_max_tw_buckets", "0")?;
            space.knob("ipv4/ip_local_port_range", "1024 65535")?;
            space.knob("ipv4/tcp_no_metrics_save", "1")?;
        }
        Ok(topology)
    }

    fn wires(plan: &Plan) -> Result<Self> {
        let (client, node, server) = (Space::new()?, Space::new()?, Space::new()?);
        wire((&node, "client0"), (&client, "eth0"))?;
        wire((&node, "server0"), (&server, "eth0"))?;
        pod(&client, CLIENT_MAC, (0..CLIENTS).map(Plan::client))?;
        pod(&server, SERVER_MAC, plan.backends())?;
        node.ip(
            "address add 169.254.1.1/32 dev client0\naddress add 169.254.1.1/32 dev server0\n\
             route add 10.244.0.0/16 dev client0\nroute add 10.245.0.0/16 dev server0",
        )?;
        Ok(Self {
            client,
            node,
            other: None,
            server,
            _fabric: None,
        })
    }

    fn fabric(plan: &Plan) -> Result<Self> {
        let [client, node, other, server, fabric] = [(); 5].map(|()| Space::new());
        let (client, node, other, server, fabric) = (client?, node?, other?, server?, fabric?);
        fabric.ip("link add br0 type bridge\nlink set br0 up")?;
        for (number, space) in [&client, &node, &other].into_iter().enumerate() {
            let port = format!("port{number}");
            wire((&fabric, &port), (space, "eth0"))?;
            fabric.ip(&format!("link set {port} master br0"))?;
        }
        wire((&other, "server0"), (&server, "eth0"))?;
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
            "address add {OTHER_NODE}/24 dev eth0\nroute add 10.244.0.0/16 dev eth0\n\
             address add 169.254.1.1/32 dev server0\nroute add 10.245.0.0/16 dev server0"
        ))?;
        pod(&server, SERVER_MAC, plan.backends())?;
        Ok(Self {
            client,
            node,
            other: Some(other),
            server,
            _fabric: Some(fabric),
        })
    }
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
