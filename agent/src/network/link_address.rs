//! Names and hardware addresses of a pod's veth pair, derived from its uid so that any incarnation of the agent finds
//! what an earlier one made; of the ends of the tunnel, derived from nodes' addresses.

#![forbid(unsafe_code)]

use std::{fmt, net::IpAddr};

use sha2::{Digest, Sha256};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkAddress(pub [u8; 6]);

impl fmt::Debug for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl LinkAddress {
    /// Of the end of the tunnel at a node's address. Every node reckons those of all.
    pub fn of_tunnel(node: IpAddr) -> Self {
        const TUNNEL: u8 = 0x06;
        let digest = match node {
            IpAddr::V4(node) => Sha256::digest(node.octets()),
            IpAddr::V6(node) => Sha256::digest(node.octets()),
        };
        Self([
            TUNNEL, digest[0], digest[1], digest[2], digest[3], digest[4],
        ])
    }
}

/// The two ends of a pod's veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethAddresses {
    /// On the node.
    pub host: LinkAddress,
    /// In the pod.
    pub pod: LinkAddress,
}

impl VethAddresses {
    /// Both are locally administered unicast addresses and differ in their first byte alone.
    pub fn of_pod(uid: &str) -> Self {
        const HOST: u8 = 0x0a;
        const POD: u8 = 0x0e;
        let digest = Sha256::digest(uid.as_bytes());
        let with_first =
            |first| LinkAddress([first, digest[0], digest[1], digest[2], digest[3], digest[4]]);
        Self {
            host: with_first(HOST),
            pod: with_first(POD),
        }
    }
}

/// The name of a pod's veth on the node: "ptl" and the first ten letters and digits of its uid.
pub fn host_interface(uid: &str) -> String {
    let mut name = String::from("ptl");
    name.extend(uid.chars().filter(char::is_ascii_alphanumeric).take(10));
    name
}

/// Whether a uid may name files and interfaces.
pub fn is_valid_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len())
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && uid.bytes().any(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_the_kernel() {
        let name = host_interface("3f2a9c1e-7b5d-4c7e-9f1a-aaaaaaaaaaaa");
        assert_eq!(name, "ptl3f2a9c1e7b");
        assert!(name.len() < 16);
    }

    #[test]
    fn addresses_are_local_unicast_and_stable() {
        let one = VethAddresses::of_pod("a");
        assert_eq!(one, VethAddresses::of_pod("a"));
        assert_ne!(one, VethAddresses::of_pod("b"));
        for address in [one.host, one.pod] {
            assert_eq!(address.0[0] & 0b11, 0b10);
        }
    }

    #[test]
    fn uids_that_leave_their_directory_are_refused() {
        for uid in ["", "..", "a/b", "-", "a b"] {
            assert!(!is_valid_uid(uid), "{uid:?}");
        }
        assert!(is_valid_uid("3f2a9c1e-7b5d-4c7e-9f1a-aaaaaaaaaaaa"));
    }
}
