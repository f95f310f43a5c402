//! What joins a pod's namespace to the node's: a veth pair, or a netkit pair where the kernel has those (6.7 and newer).
//!
//! Either end of a netkit pair hands its packets straight to the other's stack. The dataplane's programs hang on the
//! node's end of both the same way, and put packets into both by `bpf_redirect_peer`.

#![forbid(unsafe_code)]

use std::fmt;

use super::{
    NetworkError,
    link_address::LinkAddress,
    netlink::{DevicePair, Netlink},
};

/// What pods' interfaces are to be. Pods that have theirs already keep them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodDevice {
    /// netkit where the kernel has it, else veth
    #[default]
    Auto,
    /// veth
    Veth,
    /// netkit; without it the agent does not start
    Netkit,
}

/// The kind of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// As every kernel has it.
    Veth,
    /// Its two ends share a queue.
    Netkit,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        })
    }
}

/// What new pods get, and why, if it is not the best that there is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceChoice {
    /// The kind.
    pub kind: DeviceKind,
    /// Why it is veth although netkit would have been taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// A pair that is made and taken away again, to see whether the kernel can.
const PROBE: [&str; 2] = ["ptl-probe", "ptl-probed"];

impl DeviceChoice {
    /// Looks what the kernel has. A fallback is logged once, here.
    pub async fn settle(wish: PodDevice, netlink: &Netlink) -> Result<Self, NetworkError> {
        let of = |kind| Self {
            kind,
            fallback: None,
        };
        if wish == PodDevice::Veth {
            return Ok(of(DeviceKind::Veth));
        }
        match probe(netlink).await {
            Ok(()) => Ok(of(DeviceKind::Netkit)),
            Err(error) if wish == PodDevice::Netkit => Err(error),
            Err(error) => {
                let reason = crate::errors::chain(&error);
                tracing::info!(
                    reason,
                    "pods get veth pairs: this kernel makes no netkit pairs"
                );
                Ok(Self {
                    kind: DeviceKind::Veth,
                    fallback: Some(reason),
                })
            }
        }
    }
}

async fn probe(netlink: &Netlink) -> Result<(), NetworkError> {
    let pair = DevicePair {
        host: PROBE[0],
        host_address: LinkAddress([0x0a, 0, 0, 0, 0, 1]),
        peer: PROBE[1],
        peer_address: LinkAddress([0x0a, 0, 0, 0, 0, 2]),
        peer_namespace: None,
        mtu: 1_500,
    };
    netlink.delete_link(pair.host).await?;
    netlink.create_pair(DeviceKind::Netkit, &pair).await?;
    // A kernel that does not know the kind of an interface may say so by making nothing.
    match netlink.link(pair.host).await? {
        Some(_) => netlink.delete_link(pair.host).await,
        None => Err(NetworkError::NoInterface(pair.host.to_owned())),
    }
}
