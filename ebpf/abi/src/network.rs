//! What the node knows of the networks around it: a longest-prefix map from addresses to [`kind`].
//!
//! Its keys are those of [`crate::source_range`], all of one set.

/// The set that the keys are of.
pub const SET: u32 = 0;

/// Bits of a network's value. A network that is not in the map is beyond the cluster.
pub mod kind {
    /// Pods speak to it with their own addresses.
    pub const INSIDE: u32 = 1 << 0;
    /// The address of a node of the cluster, which may send encapsulated packets here and takes them from here.
    pub const NODE: u32 = 1 << 1;
    /// Other nodes' pods, which are reached through the tunnel if there is one.
    pub const PODS: u32 = 1 << 2;
}
