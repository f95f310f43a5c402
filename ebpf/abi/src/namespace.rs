//! Whose sockets there are: a hash map from the cookies of pods' network namespaces to what their sockets speak from.
//!
//! The node's own namespace is in the node's configuration. Sockets of any other are nobody's: what they name may be
//! theirs alone, and their packets tell what of it comes here.

use crate::{
    address::{V4, V6},
    assert_layout,
};

/// A pod, by the cookie of its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NamespaceEntry {
    /// Its IPv6 address; zero if it has none.
    pub v6: V6,
    /// Its IPv4 address; zero if it has none.
    pub v4: V4,
    /// The node's end of its veth.
    pub interface: u32,
}

assert_layout!(NamespaceEntry, size = 24, align = 8, fields = [V6, V4, u32]);
