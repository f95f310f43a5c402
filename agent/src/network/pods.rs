//! Pods' pairs of interfaces: how one is made, made again over a crash's leftovers, and taken away.

#![forbid(unsafe_code)]

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::runtime::Handle;

use super::{
    DeviceChoice, HostPort, NetworkError, PodDataplane, PodDevice, PodLink, PodNetwork,
    PodNetworkStatus,
    ipam::Ipam,
    link_address::{VethAddresses, host_interface, is_valid_uid},
    netlink::{DevicePair, Link, Netlink, host_prefix_length},
    netns,
    route::{Route, Via},
    sys::ethtool::{self, Offload},
    sysctl,
};

/// The interface's name inside every pod.
const POD_INTERFACE: &str = "eth0";

/// The router that pods see. It exists in their neighbour tables alone, where it has the veth's hardware address.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where a node's pods live.
#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// The agent's state directory; namespaces are held under netns/, the ledger is ipam.json.
    pub state_dir: PathBuf,
    /// What addresses are taken from, one CIDR a family.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses that the node itself speaks to its pods from, at most one a family.
    pub node_addresses: Vec<IpAddr>,
    /// Of the pods' interfaces.
    pub mtu: u32,
    /// What new pods' interfaces are to be.
    pub device: PodDevice,
}

/// The pod network of one node: a pair of interfaces a pod.
pub struct PairPodNetwork {
    config: PodNetworkConfig,
    device: DeviceChoice,
    netlink: Netlink,
    ipam: Mutex<Ipam>,
    dataplane: Arc<dyn PodDataplane>,
}

impl PairPodNetwork {
    /// Opens the ledger; makes nothing yet. Runs in the node's namespace.
    pub async fn open(
        config: PodNetworkConfig,
        dataplane: Arc<dyn PodDataplane>,
    ) -> Result<Self, NetworkError> {
        let directory = netns_directory(&config.state_dir);
        std::fs::create_dir_all(&directory).map_err(NetworkError::new(
            "create directory",
            directory.display().to_string(),
        ))?;
        let ipam = Ipam::open(ledger_path(&config.state_dir), config.pod_cidrs.clone())?;
        let netlink = Netlink::open(&Handle::current())?;
        let device = DeviceChoice::settle(config.device, &netlink).await?;
        Ok(Self {
            netlink,
            device,
            config,
            ipam: Mutex::new(ipam),
            dataplane,
        })
    }

    /// What new pods' interfaces are.
    pub fn device(&self) -> &DeviceChoice {
        &self.device
    }

    /// The pods that have addresses, so that those which the pod manager no longer knows can be detached.
    pub fn pods(&self) -> Vec<String> {
        self.ledger().pods()
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ipam> {
        // The ledger changes in one assignment, after its last fallible step: a panic leaves it whole.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's end, whose other end is in the pod; made anew unless both are there.
    async fn ensure_pair(&self, pod: &Pod, inside: &Netlink) -> Result<Link, NetworkError> {
        let ends = (
            self.netlink.link(&pod.host_interface).await?,
            inside.link(POD_INTERFACE).await?,
        );
        if let (Some(host), Some(_)) = ends {
            return Ok(host);
        }
        self.netlink.delete_link(&pod.host_interface).await?;
        inside.delete_link(POD_INTERFACE).await?;
        let failed = |source: std::io::Error| {
            NetworkError::new("open network namespace", pod.netns.display().to_string())(source)
        };
        let namespace = File::open(&pod.netns).map_err(failed)?;
        let pair = DevicePair {
            host: &pod.host_interface,
            host_address: pod.hardware.host,
            peer: POD_INTERFACE,
            peer_address: pod.hardware.pod,
            peer_namespace: Some(namespace.as_fd()),
            mtu: self.config.mtu,
        };
        self.netlink.create_pair(self.device.kind, &pair).await?;
        let made = self.netlink.link(&pod.host_interface).await?;
        made.ok_or_else(|| NetworkError::NoInterface(pod.host_interface.clone()))
    }

    /// The node's side: the pod's addresses lie behind the veth.
    async fn route_to_pod(&self, pod: &Pod, link: &Link) -> Result<(), NetworkError> {
        let interface = pod.host_interface.clone();
        let has_v6 = pod.has_v6();
        blocking(move || configure_host_end(&interface, has_v6)).await?;
        self.netlink.set_up(link.index).await?;
        for address in &pod.addresses {
            self.netlink
                .ensure_neighbour(link.index, *address, pod.hardware.pod)
                .await?;
            let same_family = |own: &&IpAddr| own.is_ipv4() == address.is_ipv4();
            let route = Route {
                destination: host_prefix(*address),
                via: Via::Link {
                    link: link.index,
                    source: self.config.node_addresses.iter().find(same_family).copied(),
                },
            };
            self.netlink.ensure_route(&route).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl PodNetwork for PairPodNetwork {
    async fn attach(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
    ) -> Result<PodNetworkStatus, NetworkError> {
        if !is_valid_uid(pod_uid) {
            return Err(NetworkError::InvalidUid(pod_uid.to_owned()));
        }
        let addresses = self.ledger().allocate(pod_uid)?;
        let pod = Pod::new(&self.config.state_dir, pod_uid, addresses);
        let (inside, netns) = pod.open_namespace().await?;
        let host = self.ensure_pair(&pod, &inside).await?;
        pod.configure_inside(&inside).await?;
        self.route_to_pod(&pod, &host).await?;
        self.dataplane
            .attach_pod(pod.link(netns, host_ports))
            .await
            .map_err(NetworkError::new(
                "attach dataplane to",
                &*pod.host_interface,
            ))?;
        Ok(pod.status())
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        if !is_valid_uid(pod_uid) {
            return Err(NetworkError::InvalidUid(pod_uid.to_owned()));
        }
        let interface = host_interface(pod_uid);
        self.dataplane
            .detach_pod(&interface)
            .await
            .map_err(NetworkError::new("detach dataplane from", &*interface))?;
        self.netlink.delete_link(&interface).await?;
        let path = netns_directory(&self.config.state_dir).join(pod_uid);
        blocking(move || netns::remove(&path)).await?;
        // Last, so that no other pod has the addresses while anything of this one still answers to them.
        self.ledger().release(pod_uid)
    }
}

/// Takes every pod network of a state directory away, without a running agent.
pub async fn remove_all(state_dir: &Path) -> Result<(), NetworkError> {
    let netlink = Netlink::open(&Handle::current())?;
    let directory = netns_directory(state_dir);
    let mut pods = Ipam::open(ledger_path(state_dir), Vec::new())?.pods();
    let held = netns::held_in(&directory).map_err(NetworkError::new(
        "list network namespaces in",
        directory.display().to_string(),
    ))?;
    let names = held.iter().filter_map(|path| path.file_name()?.to_str());
    pods.extend(names.map(str::to_owned));
    for pod in &pods {
        netlink.delete_link(&host_interface(pod)).await?;
        let path = directory.join(pod);
        blocking(move || netns::remove(&path)).await?;
    }
    let ledger = ledger_path(state_dir);
    crate::files::remove_if_present(&ledger).map_err(NetworkError::new(
        "remove ledger",
        ledger.display().to_string(),
    ))
}

/// What of a pod this module works with.
#[derive(Clone, Debug)]
struct Pod {
    netns: PathBuf,
    host_interface: String,
    hardware: VethAddresses,
    addresses: Vec<IpAddr>,
}

impl Pod {
    fn new(state_dir: &Path, uid: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            netns: netns_directory(state_dir).join(uid),
            host_interface: host_interface(uid),
            hardware: VethAddresses::of_pod(uid),
            addresses,
        }
    }

    fn status(&self) -> PodNetworkStatus {
        PodNetworkStatus {
            netns: self.netns.clone(),
            addresses: self.addresses.clone(),
            host_interface: self.host_interface.clone(),
        }
    }

    fn link(&self, netns: u64, host_ports: &[HostPort]) -> PodLink {
        PodLink {
            host_interface: self.host_interface.clone(),
            addresses: self.addresses.clone(),
            pod_mac: self.hardware.pod.0,
            netns,
            host_ports: host_ports.to_vec(),
        }
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Makes the namespace, sets it up and opens a netlink socket in it. That, and the namespace's cookie.
    async fn open_namespace(&self) -> Result<(Netlink, u64), NetworkError> {
        let (path, has_v6, runtime) = (self.netns.clone(), self.has_v6(), Handle::current());
        blocking(move || {
            netns::create(&path)?;
            netns::within(&path, || {
                configure_namespace(has_v6)?;
                Ok((Netlink::open(&runtime)?, portolan_dataplane::netns_cookie()))
            })
        })
        .await
    }

    /// The pod's side: its addresses, and everything else by the gateway.
    async fn configure_inside(&self, inside: &Netlink) -> Result<(), NetworkError> {
        let gone = |name: &str| {
            NetworkError::new::<&str>("find interface", format!("{name} of the pod"))("it is gone")
        };
        let loopback = inside.link("lo").await?.ok_or_else(|| gone("lo"))?;
        inside.set_up(loopback.index).await?;
        let link = inside
            .link(POD_INTERFACE)
            .await?
            .ok_or_else(|| gone(POD_INTERFACE))?;
        for address in &self.addresses {
            inside.ensure_address(link.index, *address).await?;
        }
        inside.set_up(link.index).await?;
        for address in &self.addresses {
            let gateway = gateway_for(*address);
            inside
                .ensure_neighbour(link.index, gateway, self.hardware.host)
                .await?;
            let route = Route {
                destination: default_route(*address),
                via: Via::Gateway {
                    link: link.index,
                    gateway,
                    on_link: true,
                    source: None,
                },
            };
            inside.ensure_route(&route).await?;
        }
        let path = self.netns.clone();
        blocking(move || netns::within(&path, coalesce_received)).await
    }
}

fn gateway_for(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

fn default_route(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::new(address, host_prefix_length(address)).expect("an address's own length")
}

/// Inside the pod's namespace, before any interface takes over its defaults.
fn configure_namespace(has_v6: bool) -> Result<(), NetworkError> {
    // As container runtimes do: any user may ping and listen on any port of what is the pod's alone.
    sysctl::set_if_known("net/ipv4/ping_group_range", "0 2147483647")?;
    sysctl::set_if_known("net/ipv4/ip_unprivileged_port_start", "0")?;
    if has_v6 {
        for interface in ["all", "default"] {
            sysctl::set(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
            sysctl::set(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")?;
            sysctl::set(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
        }
    }
    Ok(())
}

/// On the node, before the veth's end is up.
fn configure_host_end(interface: &str, has_v6: bool) -> Result<(), NetworkError> {
    // A second line behind the dataplane's own check that a pod sends with its own addresses.
    sysctl::set(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
    sysctl::set(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    if has_v6 {
        sysctl::set(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")?;
        sysctl::set(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
    }
    Ok(())
}

/// XDP redirects into a veth only while its other end coalesces or runs XDP itself; without either they are lost.
fn coalesce_received() -> Result<(), NetworkError> {
    ethtool::set_offload(POD_INTERFACE, Offload::GenericReceive, true).map_err(NetworkError::new(
        "switch generic receive offload on at",
        POD_INTERFACE,
    ))
}

fn netns_directory(state_dir: &Path) -> PathBuf {
    state_dir.join("netns")
}

fn ledger_path(state_dir: &Path) -> PathBuf {
    state_dir.join("ipam.json")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
