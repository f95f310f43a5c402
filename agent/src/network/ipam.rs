//! Which pod has which addresses: a ledger on disk over the node's pod CIDRs.
//!
//! Addresses are given out in a circle, so that a freed one rests as long as it can: late packets of an ended pod, and
//! flows that still name it, don't reach its successor.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::files;

/// More than any node runs; bounds the search in an IPv6 prefix.
const LARGEST_POOL: u32 = 1 << 16;

/// What is on disk.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger {
    pods: BTreeMap<String, Vec<IpAddr>>,
    /// Per CIDR, the offset where the next search begins.
    next: BTreeMap<IpNet, u32>,
}

/// Gives out addresses and remembers them across restarts.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    cidrs: Vec<IpNet>,
    ledger: Ledger,
}

impl Ipam {
    /// Opens the ledger at `path`, or begins one. The CIDRs are one a family; a pod keeps the addresses that it had
    /// when they change.
    pub fn open(path: PathBuf, mut cidrs: Vec<IpNet>) -> Result<Self, NetworkError> {
        cidrs.sort_by_key(|cidr| matches!(cidr, IpNet::V6(_)));
        let ledger = match files::read_if_present(&path)
            .map_err(NetworkError::new("read ledger", path.display().to_string()))?
        {
            None => Ledger::default(),
            Some(content) => serde_json::from_slice(&content).map_err(NetworkError::new(
                "parse ledger",
                path.display().to_string(),
            ))?,
        };
        Ok(Self {
            path,
            cidrs,
            ledger,
        })
    }

    /// The addresses of a pod, IPv4 first: those that it has, or new ones. They are on disk when this returns.
    pub fn allocate(&mut self, pod: &str) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(addresses) = self.ledger.pods.get(pod) {
            return Ok(addresses.clone());
        }
        let mut changed = self.ledger.clone();
        let taken: BTreeSet<IpAddr> = changed.pods.values().flatten().copied().collect();
        let mut addresses = Vec::with_capacity(self.cidrs.len());
        for cidr in &self.cidrs {
            let pool = Pool::new(*cidr);
            let begin = changed.next.get(cidr).copied().unwrap_or_default();
            let offset = pool
                .offsets_from(begin)
                .find(|offset| !taken.contains(&pool.address(*offset)))
                .ok_or(NetworkError::Exhausted(*cidr))?;
            changed.next.insert(*cidr, offset + 1);
            addresses.push(pool.address(offset));
        }
        changed.pods.insert(pod.to_owned(), addresses.clone());
        self.commit(changed)?;
        Ok(addresses)
    }

    /// Frees a pod's addresses.
    pub fn release(&mut self, pod: &str) -> Result<(), NetworkError> {
        if !self.ledger.pods.contains_key(pod) {
            return Ok(());
        }
        let mut changed = self.ledger.clone();
        changed.pods.remove(pod);
        self.commit(changed)
    }

    /// The pods that have addresses.
    pub fn pods(&self) -> Vec<String> {
        self.ledger.pods.keys().cloned().collect()
    }

    /// Memory follows the disk: a ledger that could not be written has not changed.
    fn commit(&mut self, ledger: Ledger) -> Result<(), NetworkError> {
        let object = self.path.display().to_string();
        let content =
            serde_json::to_vec(&ledger).map_err(NetworkError::new("encode ledger", &*object))?;
        files::replace(&self.path, &content, 0o600)
            .map_err(NetworkError::new("write ledger", object))?;
        self.ledger = ledger;
        Ok(())
    }
}

/// The addresses of a CIDR that pods may have, numbered.
struct Pool {
    cidr: IpNet,
    first: u32,
    count: u32,
}

impl Pool {
    fn new(cidr: IpNet) -> Self {
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let size = 1_u32.checked_shl(host_bits).unwrap_or(u32::MAX);
        // An IPv4 subnet's first and last address mean the subnet and everyone in it; an IPv6 subnet's first is its
        // routers' anycast address. A single address or a pair has room for neither.
        let (first, count) = match cidr {
            _ if host_bits < 2 => (0, size),
            IpNet::V4(_) => (1, size - 2),
            IpNet::V6(_) => (1, size - 1),
        };
        Self {
            cidr,
            first,
            count: count.min(LARGEST_POOL),
        }
    }

    /// Every offset once, beginning at `begin`.
    fn offsets_from(&self, begin: u32) -> impl Iterator<Item = u32> + use<> {
        let (count, begin) = (self.count, begin % self.count);
        (0..count).map(move |step| (begin + step) % count)
    }

    fn address(&self, offset: u32) -> IpAddr {
        let host = self.first + offset;
        match self.cidr {
            IpNet::V4(cidr) => Ipv4Addr::from_bits(cidr.network().to_bits() + host).into(),
            IpNet::V6(cidr) => {
                Ipv6Addr::from_bits(cidr.network().to_bits() + u128::from(host)).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn cidrs(v4: &str, v6: &str) -> Vec<IpNet> {
        vec![v6.parse().expect("a CIDR"), v4.parse().expect("a CIDR")]
    }

    fn open(directory: &Path, v4: &str) -> Ipam {
        Ipam::open(directory.join("ipam.json"), cidrs(v4, "fd00:10:244:1::/64"))
            .expect("the ledger opens")
    }

    #[test]
    fn gives_both_families_ipv4_first_and_keeps_them() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ipam = open(directory.path(), "10.244.1.0/24");
        let first = ipam.allocate("a").expect("free addresses");
        assert_eq!(
            first,
            [
                "10.244.1.1".parse::<IpAddr>().expect("an address"),
                "fd00:10:244:1::1".parse().expect("an address"),
            ]
        );
        assert_eq!(ipam.allocate("a").expect("the same"), first);
        let mut reopened = open(directory.path(), "10.244.1.0/24");
        assert_eq!(reopened.allocate("a").expect("the same"), first);
    }

    #[test]
    fn a_freed_address_rests_while_others_are_free() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ipam = open(directory.path(), "10.244.1.0/29");
        let first = ipam.allocate("a").expect("free");
        ipam.release("a").expect("released");
        assert_ne!(ipam.allocate("b").expect("free"), first);
    }

    #[test]
    fn exhaustion_is_named_and_changes_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ipam = open(directory.path(), "10.244.1.0/30");
        ipam.allocate("a").expect("free");
        ipam.allocate("b").expect("free");
        let before = ipam.ledger.clone();
        let error = ipam.allocate("c").expect_err("two hosts in a /30");
        assert_eq!(error.to_string(), "no free address in 10.244.1.0/30");
        assert_eq!(ipam.ledger, before);
        ipam.release("a").expect("released");
        ipam.allocate("c").expect("free again");
    }

    #[test]
    fn a_ledger_that_cannot_be_written_has_not_changed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ipam = open(&directory.path().join("missing"), "10.244.1.0/24");
        ipam.allocate("a").expect_err("no such directory");
        assert!(ipam.pods().is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u8),
        Release(u8),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..12_u8).prop_map(Step::Allocate),
            3 => (0..12_u8).prop_map(Step::Release),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_address_is_had_twice(steps in prop::collection::vec(step(), 1..40)) {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let v4: IpNet = "10.244.1.0/29".parse().expect("a CIDR");
            let mut ipam = open(directory.path(), "10.244.1.0/29");
            let mut model: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Allocate(pod) => match ipam.allocate(&pod.to_string()) {
                        Ok(addresses) => {
                            if let Some(had) = model.get(&pod.to_string()) {
                                prop_assert_eq!(had, &addresses);
                            }
                            prop_assert!(v4.contains(&addresses[0]));
                            model.insert(pod.to_string(), addresses);
                        }
                        Err(NetworkError::Exhausted(_)) => prop_assert_eq!(model.len(), 6),
                        Err(error) => prop_assert!(false, "{}", error),
                    },
                    Step::Release(pod) => {
                        ipam.release(&pod.to_string()).expect("released");
                        model.remove(&pod.to_string());
                    }
                    Step::Reopen => ipam = open(directory.path(), "10.244.1.0/29"),
                }
                let distinct: BTreeSet<_> = model.values().flatten().collect();
                prop_assert_eq!(distinct.len(), model.len() * 2);
                prop_assert_eq!(&ipam.ledger.pods, &model);
            }
        }
    }
}
