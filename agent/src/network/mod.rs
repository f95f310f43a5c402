//! The pod network: namespaces, veth or netkit pairs, addresses and routes, by rtnetlink. Its types never leave this module.
//!
//! ```text
//!   pod's namespace                        node's namespace
//!   eth0  10.244.1.7/32  ----- veth -----  ptl3f2a9c1e7b        eth0 (uplink)
//!         fd00:10:244:1::7/128             10.244.1.7 dev ptl..  10.244.2.0/24 via 10.89.0.12
//!   default via 169.254.1.1, fe80::1       (permanent neighbours both ways: nothing is resolved)
//! ```
//!
//! Where what is between the nodes knows nothing of pods, the ways to other nodes' pods lead through a [`tunnel`].
//!
//! - A pod's namespace is an nsfs file under STATE/netns/UID. Only short-lived threads of [`netns`] ever enter one.
//! - The ledger of addresses ([`ipam`]) is on disk before an address is used, so that a restart gives none twice.
//! - Everything made here can be made again over what a crash left, without a packet noticing.
//! - Routes made here carry protocol number 112; others' routes are never touched.
//!
//! Look at it with `ip route show proto 112`, and inside a pod with `nsenter --net=STATE/netns/UID ip addr`.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;
use ipnet::IpNet;

mod device;
pub mod dial;
mod host_port;
mod ipam;
mod link_address;
mod netlink;
mod netns;
mod node;
mod pods;
mod route;
mod sys;
mod sysctl;
mod tunnel;

pub use device::{DeviceChoice, DeviceKind, PodDevice};
pub use host_port::HostPort;
pub use node::{NodeNetwork, PeerNode, PodRouting, Uplink};
pub use pods::{PairPodNetwork, PodNetworkConfig, remove_all};

/// A pod's network as it stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodNetworkStatus {
    /// The bind-mounted nsfs file of the pod's network namespace.
    pub netns: PathBuf,
    /// The pod's addresses, IPv4 first: status.podIPs.
    pub addresses: Vec<IpAddr>,
    /// The veth's end on the node.
    pub host_interface: String,
}

/// Makes and removes pod networks. What exists already is kept; removing what is absent succeeds.
/// Calls for one pod do not overlap; calls for different pods may.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the namespace and veth of a pod, gives it addresses, attaches the dataplane and leads ports of the node's to it.
    async fn attach(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
    ) -> Result<PodNetworkStatus, NetworkError>;

    /// Takes all of it away again and frees the addresses.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
}

/// A pod's veth as the dataplane must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The veth's end on the node.
    pub host_interface: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The hardware address of the pod's own end.
    pub pod_mac: [u8; 6],
    /// The cookie of its network namespace.
    pub netns: u64,
    /// Ports of the node's that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// The dataplane as the pod network needs it.
#[async_trait]
pub trait PodDataplane: Send + Sync + 'static {
    /// Attaches the programs to a pod's veth; again over what is attached already.
    async fn attach_pod(&self, pod: PodLink) -> Result<(), BoxError>;

    /// Forgets a pod's veth; one that is absent is fine.
    async fn detach_pod(&self, host_interface: &str) -> Result<(), BoxError>;
}

/// A cause of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What failed, on what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the node's pod CIDR is in use.
    #[error("no free address in {0}")]
    Exhausted(IpNet),
    /// A pod's uid names files and interfaces, so it must be made of letters, digits and dashes.
    #[error("{0:?} can't be a pod's uid")]
    InvalidUid(String),
    /// An interface that must exist does not.
    #[error("there is no interface {0} in this network namespace")]
    NoInterface(String),
    /// A netlink or namespace operation failed.
    #[error("{operation} {object}")]
    Operation {
        /// A domain verb: "create veth pair".
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

impl NetworkError {
    /// A failure of `operation` on `object`; for use with `map_err`.
    fn new<E: Into<BoxError>>(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let object = object.into();
        move |source| Self::Operation {
            operation,
            object,
            source: source.into(),
        }
    }
}
