//! The shares of new flows that leave this node, moved about once a second.

use std::{
    collections::{BTreeMap, HashMap},
    mem::offset_of,
    net::IpAddr,
    sync::atomic::Ordering,
    time::Duration,
};

use portolan_abi::{
    choice::{ALL, Share},
    service::table,
};

use super::{Installed, Services};
use crate::{
    local_share::{BackendLoad, Signals, State},
    maps::Maps,
    model::Locality,
};

impl Installed {
    /// Whether a share of its new flows may leave the node.
    fn is_load_aware(&self) -> bool {
        let leaves = |tables: &super::Tables| tables.places[table::OTHER].lines != 0;
        leaves(&self.v4) || leaves(&self.v6)
    }
}

impl Services {
    /// Moves the share of each load-aware service by how its local backends are; `connections` is by backend id, `now` of
    /// a clock that never goes back.
    pub fn balance(
        &mut self,
        maps: &Maps,
        loads: &BTreeMap<IpAddr, BackendLoad>,
        connections: impl Fn(u32) -> u32,
        now: Duration,
    ) {
        let mut states = HashMap::new();
        for installed in self.installed.values() {
            if !installed.is_load_aware() {
                continue;
            }
            let Some(signals) = signals(installed, loads, &connections) else {
                continue;
            };
            let before = away(maps, installed.id);
            let state = self.shares.get(&installed.id).copied();
            let state = state.unwrap_or_else(|| State::resume(before));
            let next = state.step(signals, now);
            if next.away() != before {
                set_away(maps, installed.id, next.away());
            }
            if !next.is_at_rest() {
                states.insert(installed.id, next);
            }
        }
        // A service that nobody balances any more keeps everything that it can.
        for id in self.shares.keys().filter(|id| !states.contains_key(id)) {
            set_away(maps, *id, 0);
        }
        self.shares = states;
    }

    /// Of a thousand new flows, how many stay on this node; `None` where that is not decided by load.
    pub fn local_share(
        &self,
        maps: &Maps,
        id: u32,
        name: &crate::model::ServiceName,
    ) -> Option<u16> {
        self.installed.get(name).filter(|it| it.is_load_aware())?;
        let stay = ALL - away(maps, id).min(ALL);
        u16::try_from((stay * 1_000).div_ceil(ALL)).ok()
    }
}

/// What is known of a service's local backends; `None` if none of them has a load.
fn signals(
    installed: &Installed,
    loads: &BTreeMap<IpAddr, BackendLoad>,
    connections: impl Fn(u32) -> u32,
) -> Option<Signals> {
    let mut signals = None;
    for backend in &installed.wanted.backends {
        if backend.locality != Locality::Node {
            continue;
        }
        let Some(load) = loads.get(&backend.address) else {
            continue;
        };
        let sum: &mut Signals = signals.get_or_insert_default();
        sum.heat = sum.heat.max(load.heat());
        if let Some(id) = installed.backend_id(backend.address, backend.port) {
            sum.connections += u64::from(connections(id));
        }
    }
    signals
}

fn away(maps: &Maps, id: u32) -> u32 {
    maps.shares
        .half(id, offset_of!(Share, away))
        .load(Ordering::Acquire)
}

fn set_away(maps: &Maps, id: u32, away: u32) {
    maps.shares
        .half(id, offset_of!(Share, away))
        .store(away, Ordering::Release);
}
