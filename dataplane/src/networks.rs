//! The map of networks: which addresses pods speak to as themselves, and which are nodes.

use std::{collections::BTreeMap, path::Path};

use portolan_abi::{
    network::{SET, kind},
    source_range::RangeKey,
};

use crate::{
    Error,
    maps::{Maps, failed},
    model::{Network, NetworkRole},
    ranges,
};

/// Makes the map hold these and no others: first what is new or changed, then what goes. Idempotent.
pub fn set(maps: &Maps, networks: &[Network]) -> Result<(), Error> {
    let wanted: BTreeMap<RangeKey, u32> = networks
        .iter()
        .map(|network| (ranges::to_key(SET, &network.prefix), value(network.role)))
        .collect();
    let present: BTreeMap<RangeKey, u32> = maps
        .networks
        .entries::<RangeKey, u32>()
        .map_err(|error| failed("read", Path::new("NETWORKS"), error))?
        .into_iter()
        .collect();
    for (key, value) in &wanted {
        if present.get(key) == Some(value) {
            continue;
        }
        maps.networks
            .set(key, value)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC) => Error::TableFull {
                    table: "networks",
                    capacity: maps.networks.max_entries(),
                },
                _ => failed("write", Path::new("NETWORKS"), error),
            })?;
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        maps.networks
            .remove(key)
            .map_err(|error| failed("remove from", Path::new("NETWORKS"), error))?;
    }
    Ok(())
}

fn value(role: NetworkRole) -> u32 {
    match role {
        NetworkRole::Inside => kind::INSIDE,
        NetworkRole::Node => kind::INSIDE | kind::NODE,
        NetworkRole::Peer => kind::INSIDE | kind::NODE | kind::PEER,
        NetworkRole::Pods => kind::INSIDE | kind::PODS,
    }
}
