//! A range of pod addresses for each node: a /24 and a /64 out of the cluster's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Error,
    ledger::{Held, Ledger},
};

/// See the file's front page.
pub struct PodCidrs {
    clusters: Vec<IpNet>,
    ledger: Ledger,
}

impl PodCidrs {
    pub(super) fn new(clusters: Vec<IpNet>, ledger: Ledger) -> Self {
        Self { clusters, ledger }
    }

    /// The node's ranges, one a family, the primary one first; those that it holds already where it does.
    pub async fn allocate(&self, node: &str) -> Result<Vec<IpNet>, Error> {
        let held = self.ledger.all().await?;
        let mut ranges = Vec::new();
        for cluster in &self.clusters {
            ranges.push(self.allocate_in(cluster, node, &held).await?);
        }
        Ok(ranges)
    }

    async fn allocate_in(
        &self,
        cluster: &IpNet,
        node: &str,
        held: &[Held],
    ) -> Result<IpNet, Error> {
        let mine = held
            .iter()
            .filter(|held| held.owner == node)
            .filter_map(|held| parse(&held.item))
            .find(|range| cluster.contains(range));
        if let Some(mine) = mine {
            return Ok(mine);
        }
        for range in ranges(*cluster) {
            let item = item(range);
            if held.iter().all(|held| held.item != item)
                && self.ledger.take(&item, node).await?.is_none()
            {
                return Ok(range);
            }
        }
        Err(Error::Full {
            what: format!("a pod CIDR of {cluster}"),
        })
    }

    /// Makes sure that a node holds the ranges that its object shows; whoever else holds one is named.
    pub async fn hold(&self, node: &str, ranges: &[IpNet]) -> Result<Option<Held>, Error> {
        for range in ranges {
            if let Some(held) = self.ledger.take(&item(*range), node).await?
                && held.owner != node
            {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }

    /// Frees what a node holds.
    pub async fn release(&self, node: &str) -> Result<(), Error> {
        for held in self.ledger.all().await? {
            if held.owner == node {
                self.ledger.free_as(&held).await?;
            }
        }
        Ok(())
    }

    /// The names of the nodes that hold anything.
    pub async fn holders(&self) -> Result<Vec<String>, Error> {
        let mut holders: Vec<_> = self
            .ledger
            .all()
            .await?
            .into_iter()
            .map(|held| held.owner)
            .collect();
        holders.sort();
        holders.dedup();
        Ok(holders)
    }
}

/// A range as the last part of a key, which a slash would split.
fn item(range: IpNet) -> String {
    range.to_string().replace('/', "-")
}

fn parse(item: &str) -> Option<IpNet> {
    item.replace('-', "/").parse().ok()
}

/// The node ranges of a cluster range in order: /24s, or /64s; the whole of it when it is smaller.
fn ranges(cluster: IpNet) -> Box<dyn Iterator<Item = IpNet> + Send> {
    let prefix = match cluster {
        IpNet::V4(_) => 24.max(cluster.prefix_len()),
        IpNet::V6(_) => 64.max(cluster.prefix_len()),
    };
    let count = 1_u64 << u32::from(prefix - cluster.prefix_len()).min(20);
    match cluster.network() {
        IpAddr::V4(base) => Box::new((0..count).filter_map(move |number| {
            let offset = u32::try_from(number << (32 - prefix)).ok()?;
            let address = Ipv4Addr::from_bits(base.to_bits().checked_add(offset)?);
            Some(IpNet::V4(Ipv4Net::new(address, prefix).ok()?))
        })),
        IpAddr::V6(base) => Box::new((0..count).filter_map(move |number| {
            let offset = u128::from(number) << (128 - prefix);
            let address = Ipv6Addr::from_bits(base.to_bits().checked_add(offset)?);
            Some(IpNet::V6(Ipv6Net::new(address, prefix).ok()?))
        })),
    }
}
