//! Finding again what stands in pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::Path,
};

use portolan_abi::{
    choice::Candidate,
    service::{ServiceEntry, ServiceRecord, flags},
};

use super::{Installed, Services, Tables};
use crate::{
    Error,
    allocation::{Ids, Lines},
    backends::{self, Backends, Identity},
    choice,
    frontends::{self, Key},
    maps::{Maps, failed},
    model::ServiceName,
    ranges::Ranges,
    records,
};

impl Services {
    /// Reads what the maps say, so that ids stay what they are.
    pub fn restore(maps: &Maps, backends: &Backends) -> Result<Self, Error> {
        let read = |error| failed("read", Path::new("RECORDS"), error);
        let mut services = Self {
            installed: BTreeMap::new(),
            owners: HashMap::new(),
            orphans: Vec::new(),
            ids: Ids::new(maps.counts.max_entries()),
            lines: Lines::new(maps.choices.len()),
            quarantine: VecDeque::new(),
            ranges: Ranges::restore(maps)?,
            shares: HashMap::new(),
            withdrawn: BTreeSet::new(),
        };
        let mut names = BTreeMap::new();
        let live = backends.live(maps);
        for (id, record) in maps.records.entries::<u32, ServiceRecord>().map_err(read)? {
            let wanted = records::from_record(&record, live.get(&id).cloned().unwrap_or_default());
            services.ids.reserve(id);
            names.insert(id, wanted.name.clone());
            let mut keys: Vec<_> = wanted
                .backends
                .iter()
                .filter_map(|backend| {
                    let identity = Identity {
                        service: id,
                        address: backend.address,
                        port: backend.port,
                    };
                    backends
                        .id(&identity)
                        .map(|id| (backend.address, backend.port, id))
                })
                .collect();
            keys.sort_unstable();
            let installed = Installed {
                id,
                keys: BTreeMap::new(),
                backends: keys,
                v4: Tables::default(),
                v6: Tables::default(),
                ranges: None,
                is_restored: true,
                wanted,
            };
            services
                .installed
                .insert(installed.wanted.name.clone(), Box::new(installed));
        }
        for (key, entry) in Key::all(maps)? {
            services.adopt(key, &entry, &names);
        }
        for installed in services.installed.values_mut() {
            installed.wanted.frontends = frontends::frontends(installed.keys.iter());
            installed.v4.read_members(maps);
            installed.v6.read_members(maps);
            if let Some(set) = installed.ranges {
                installed.wanted.source_ranges = services.ranges.get(set).to_vec();
            }
        }
        Ok(services)
    }

    fn adopt(&mut self, key: Key, entry: &ServiceEntry, names: &BTreeMap<u32, ServiceName>) {
        for table in entry.tables {
            if table.lines != 0 {
                self.lines.reserve(table.first_line, table.lines);
            }
        }
        let Some(installed) = names
            .get(&entry.id)
            .and_then(|name| self.installed.get_mut(name))
        else {
            self.orphans.push(key);
            return;
        };
        installed.keys.insert(key, entry.flags & frontends::FLAGS);
        if entry.flags & flags::SOURCE_RANGES != 0 {
            installed.ranges = Some(entry.source_ranges);
        }
        let tables = if key.address.is_ipv4() {
            &mut installed.v4
        } else {
            &mut installed.v6
        };
        tables.places = entry.tables;
        self.owners.insert(key, installed.id);
    }
}

impl Tables {
    /// What the tables of a restored service hold: read from them, since its last update may not have been finished.
    fn read_members(&mut self, maps: &Maps) {
        for (table, members) in self.places.iter().zip(&mut self.members) {
            let ids: BTreeSet<u32> = (table.first_line..table.first_line + table.lines)
                .flat_map(|line| maps.choices.get(line).backends)
                .collect();
            let mut found: Vec<_> = ids
                .into_iter()
                .map(|id| (backends::model(maps, id), id))
                .collect();
            found.sort_by_key(|(backend, _)| (backend.address, backend.port));
            *members = found
                .into_iter()
                .map(|(backend, id)| Candidate {
                    id,
                    weight: backend.weight,
                    hash: choice::identity(backend.address, backend.port),
                })
                .collect();
        }
    }
}
