//! The dataplane on a stage's nodes, with the hooks of one path.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use portolan_dataplane::{
    Config, Dataplane, PodInterface, Transmit, Ways,
    model::{Network, NetworkRole, Service, XdpMode},
};

use super::{
    group::Group,
    plan::{NODE, OTHER_NODE, Path, Plan, Variant},
    topology::{CLIENT_MAC, Topology, server_mac},
};
use crate::{pins::Pins, space::Space};

/// Flows that the tables have room for.
const FLOWS: u32 = 65_536;
/// IPv6 is not measured here, but a node has both.
const FLOWS_V6: u32 = 32_768;

/// The dataplane of one node. It goes before its pins.
struct Node {
    dataplane: Dataplane,
    /// Whether the backends are pods of this node.
    near: bool,
    _pins: Pins,
}

/// The dataplanes of a stage.
pub struct Ours {
    path: Path,
    nodes: Vec<Node>,
    /// How long it took to load the services into the first of them.
    pub loading: Duration,
    /// The cookie of the client's network namespace.
    client_netns: u64,
}

/// What a dataplane is opened with that holds a plan's services.
pub fn config(plan: &Plan, pins: &Pins, address: IpAddr) -> Config {
    let mut config = Config::new(None, pins.folder(), vec![address]);
    let all = plan.services * plan.endpoints;
    let room = plan.services.next_power_of_two().max(1_024);
    config.capacity.services = room;
    config.capacity.frontends = room;
    config.capacity.backends = (all * 2).clamp(1_024, 1 << 20);
    // Sixteen places a line, and tables are written beside those that they replace.
    let lines = plan.services * (2 * plan.endpoints).div_ceil(16).next_power_of_two();
    config.capacity.choice_lines = (lines * 2).max(1_024);
    config.capacity.flows_v4 = FLOWS;
    config.capacity.flows_v6 = FLOWS_V6;
    config
}

/// Writes all services of a plan; says how long that took.
pub fn fill(dataplane: &mut Dataplane, services: &[Service]) -> Result<Duration> {
    let began = Instant::now();
    for service in services {
        dataplane.upsert(service)?;
    }
    Ok(began.elapsed())
}

impl Ours {
    /// Attaches what a path needs and loads the services.
    pub fn new(
        path: Path,
        plan: &Plan,
        topology: &Topology,
        group: Option<&Group>,
    ) -> Result<Self> {
        let mut ours = Self {
            path,
            nodes: Vec::new(),
            loading: Duration::ZERO,
            client_netns: topology.client.enter(portolan_dataplane::netns_cookie)?,
        };
        let Some(other) = &topology.other else {
            let address = IpAddr::from([169, 254, 1, 1]);
            let (node, loading) =
                ours.open(&topology.node, plan, (address, true), |dataplane| {
                    attach(dataplane, (path, ours.client_netns), plan, group)
                })?;
            ours.nodes.push(node);
            ours.loading = loading;
            return Ok(ours);
        };
        for (space, address, near) in [(&topology.node, NODE, false), (other, OTHER_NODE, true)] {
            let (node, loading) = ours.open(space, plan, (address.into(), near), |dataplane| {
                attach_on_fabric(dataplane, plan, near)
            })?;
            ours.nodes.push(node);
            ours.loading = loading;
        }
        Ok(ours)
    }

    fn open(
        &self,
        space: &Space,
        plan: &Plan,
        (address, near): (IpAddr, bool),
        attach: impl FnOnce(&mut Dataplane) -> Result<()> + Send,
    ) -> Result<(Node, Duration)> {
        let pins = Pins::temporary();
        let mut config = config(plan, &pins, address);
        config.transmit = Transmit::Auto;
        config.xdp = match self.path {
            Path::XdpNative => Some(XdpMode::Native),
            Path::XdpGeneric => Some(XdpMode::Generic),
            _ => Some(XdpMode::Absent),
        };
        if self.path == Path::Socket {
            config.ways = Ways {
                tcx: false,
                xdp: false,
            };
        }
        let services: Vec<Service> = (0..plan.services)
            .map(|number| self.service(plan, number, Variant::Loaded, near))
            .collect();
        let (dataplane, loading) = space.enter(|| {
            let mut dataplane = Dataplane::open(config)?;
            attach(&mut dataplane)?;
            let loading = fill(&mut dataplane, &services)?;
            anyhow::Ok((dataplane, loading))
        })??;
        let node = Node {
            dataplane,
            near,
            _pins: pins,
        };
        Ok((node, loading))
    }

    fn service(&self, plan: &Plan, number: u32, variant: Variant, near: bool) -> Service {
        if self.path == Path::Dsr {
            plan.direct_return(number, variant, near)
        } else {
            plan.model(number, variant, near)
        }
    }

    /// Changes a service's endpoints; how long that took.
    pub fn update(&mut self, plan: &Plan, service: u32, variant: Variant) -> Result<Duration> {
        let mut took = Duration::ZERO;
        let path = self.path;
        // The backends' node first: no packet may arrive for one that it does not know.
        for node in self.nodes.iter_mut().rev() {
            let mut changed = plan.model(service, variant, node.near);
            if path == Path::Dsr {
                changed = plan.direct_return(service, variant, node.near);
            }
            let began = Instant::now();
            node.dataplane.upsert(&changed)?;
            took += began.elapsed();
        }
        Ok(took)
    }

    /// What an agent does about once a second, and the client's address of a run: a pod has one.
    pub fn prepare(&mut self, topology: &Topology, turn: u32) -> Result<()> {
        let has_client_pod = self.path.has_client_pod();
        let client_netns = self.client_netns;
        let spaces = std::iter::once(&topology.node).chain(&topology.other);
        for (Node { dataplane, .. }, space) in self.nodes.iter_mut().zip(spaces) {
            space.enter(|| {
                dataplane.sweep()?;
                if has_client_pod {
                    dataplane.attach_pod(&client(turn, client_netns))?;
                }
                anyhow::Ok(())
            })??;
        }
        Ok(())
    }

    /// New flows so far, and packets that were dropped: a path on which nothing was counted was not taken.
    pub fn new_flows(&self) -> Result<u64> {
        let Some(node) = self.nodes.first() else {
            return Ok(0);
        };
        let services = node.dataplane.services()?;
        let classes = services.iter().flat_map(|(_, count)| count.classes());
        Ok(classes.map(|(_, class)| class.flows).sum())
    }
}

fn attach_servers(dataplane: &mut Dataplane, plan: &Plan) -> Result<()> {
    for (number, addresses) in (0..).zip(plan.pods()) {
        dataplane.attach_pod(&PodInterface {
            host_interface: format!("server{number}"),
            addresses: addresses.into_iter().map(IpAddr::from).collect(),
            pod_mac: server_mac(number),
            netns: 0,
        })?;
    }
    Ok(())
}

/// The client as a pod, with one of its addresses.
fn client(number: u32, netns: u64) -> PodInterface {
    PodInterface {
        host_interface: "client0".into(),
        addresses: vec![Plan::client(number).into()],
        pod_mac: CLIENT_MAC,
        netns,
    }
}

fn attach(
    dataplane: &mut Dataplane,
    (path, client_netns): (Path, u64),
    plan: &Plan,
    group: Option<&Group>,
) -> Result<()> {
    if let Some(group) = group {
        dataplane.attach_sockets(group.path())?;
    }
    attach_servers(dataplane, plan)?;
    if path.has_client_pod() {
        dataplane.attach_pod(&client(0, client_netns))?;
        return Ok(());
    }
    let mode = dataplane.attach_uplink("client0")?;
    let wished = match path {
        Path::XdpNative => XdpMode::Native,
        Path::XdpGeneric => XdpMode::Generic,
        _ => XdpMode::Absent,
    };
    if mode != wished {
        bail!("XDP cannot be attached in this mode here");
    }
    Ok(())
}

fn attach_on_fabric(dataplane: &mut Dataplane, plan: &Plan, near: bool) -> Result<()> {
    dataplane.attach_uplink("eth0")?;
    let nodes = [NODE, OTHER_NODE].map(|address| Network {
        prefix: IpAddr::from(address).into(),
        role: NetworkRole::Node,
    });
    dataplane.set_networks(&nodes)?;
    if near {
        attach_servers(dataplane, plan)?;
    }
    Ok(())
}
