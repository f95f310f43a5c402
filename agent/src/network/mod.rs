//! The pod network: namespaces, veth pairs, addresses and routes, by rtnetlink. Its types never leave this module.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;
use ipnet::IpNet;

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
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the namespace and veth of a pod, gives it addresses and attaches the dataplane.
    async fn attach(&self, pod_uid: &str) -> Result<PodNetworkStatus, NetworkError>;

    /// Takes all of it away again and frees the addresses.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
}

/// What failed, on what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the node's pod CIDR is in use.
    #[error("no free address in {0}")]
    Exhausted(IpNet),
    /// A netlink or namespace operation failed.
    #[error("{operation} {object}")]
    Operation {
        /// A domain verb: "create veth pair".
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
