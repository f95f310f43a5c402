//! The map of session affinity from userspace: taking out what has run out.

use std::{collections::HashMap, path::Path};

use portolan_abi::affinity::{AffinityEntry, AffinityKey};

use crate::{
    Error,
    maps::{Maps, failed},
    sys,
};

/// Takes out the clients whose time is over, and those of services that are gone. `seconds` is by service id; says how
/// many went. A client that comes back in the same moment may lose its entry, which has run out for it anyway.
pub fn sweep(maps: &Maps, seconds: &HashMap<u32, u32>) -> Result<u64, Error> {
    let now = sys::clock::now();
    let mut gone = 0;
    let entries = maps
        .affinity
        .entries::<AffinityKey, AffinityEntry>()
        .map_err(|error| failed("read", Path::new("AFFINITY"), error))?;
    for (key, entry) in entries {
        let lasts = seconds
            .get(&key.service)
            .is_some_and(|seconds| entry.is_current(*seconds, now));
        if !lasts {
            maps.affinity
                .remove(&key)
                .map_err(|error| failed("remove from", Path::new("AFFINITY"), error))?;
            gone += 1;
        }
    }
    Ok(gone)
}
