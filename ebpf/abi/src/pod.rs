//! The maps of this node's pods: a hash map a family from a pod's address to its veth.

use crate::assert_layout;

/// How to put a packet into a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PodEntry {
    /// The node's end of the veth.
    pub interface: u32,
    /// The MAC address of the pod's own end.
    pub pod_mac: [u8; 6],
    /// The MAC address of the node's end.
    pub host_mac: [u8; 6],
}

assert_layout!(
    PodEntry,
    size = 16,
    align = 4,
    fields = [u32, [u8; 6], [u8; 6]]
);
