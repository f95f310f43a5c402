//! The table of services: what callers want, turned into entries, choice tables and backends.
//!
//! An update makes all that is new beside the old, then flips each frontend's entry with one write. What the old
//! entry led to is given out again only after [`GRACE`], when no program can be reading it.

mod install;
mod restore;
mod shares;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use portolan_abi::{
    backend::state,
    choice::Candidate,
    service::{ChoiceTable, NAME_BYTES, ServiceEntry, flags, table},
};

use crate::{
    Error,
    allocation::{Ids, Lines},
    backends::{Backends, Place},
    dataplane::Withdrawal,
    frontends::{self, Key},
    local_share::State,
    maps::{Maps, failed},
    model::{Algorithm, Backend, Service, ServiceName},
    ranges::Ranges,
    records,
};

/// How long a program may go on reading what no entry leads to any more. Programs run for microseconds.
pub const GRACE: Duration = Duration::from_millis(500);

/// The tables of one family of one service, with the backends in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    places: [ChoiceTable; 3],
    members: [Vec<Candidate>; 3],
}

/// A service as it stands in the maps.
#[derive(Debug)]
struct Installed {
    id: u32,
    wanted: Service,
    keys: BTreeMap<Key, u32>,
    backends: Vec<(IpAddr, u16, u32)>,
    v4: Tables,
    v6: Tables,
    ranges: Option<u32>,
    /// The maps were found so, and may hold an update that was not finished.
    is_restored: bool,
}

impl Installed {
    fn tables(&self, address: IpAddr) -> &Tables {
        if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        }
    }

    /// What stands behind one of the service's keys.
    fn entry(&self, key: &Key, key_flags: u32) -> ServiceEntry {
        let tables = self.tables(key.address).places;
        let mut entry = ServiceEntry {
            id: self.id,
            flags: key_flags,
            tables,
            affinity_seconds: self.wanted.affinity_seconds.unwrap_or(0),
            ..ServiceEntry::default()
        };
        if tables[table::OTHER].lines != 0 {
            entry.flags |= flags::LOAD_AWARE;
        }
        if self.wanted.algorithm == Algorithm::LeastConnections {
            entry.flags |= flags::LEAST_CONNECTIONS;
        }
        if let Some(set) = self.ranges
            && key_flags & flags::LOAD_BALANCER != 0
        {
            entry.flags |= flags::SOURCE_RANGES;
            entry.source_ranges = set;
        }
        entry
    }

    fn backend_id(&self, address: IpAddr, port: u16) -> Option<u32> {
        let place = self
            .backends
            .binary_search_by_key(&(address, port), |(address, port, _)| (*address, *port));
        place.ok().map(|place| self.backends[place].2)
    }

    fn has_backend(&self, address: IpAddr, port: u16) -> bool {
        self.backend_id(address, port).is_some()
    }
}

/// All services.
#[derive(Debug)]
pub struct Services {
    installed: BTreeMap<ServiceName, Box<Installed>>,
    /// Which service has each key, by its id.
    owners: HashMap<Key, u32>,
    orphans: Vec<Key>,
    ids: Ids,
    lines: Lines,
    quarantine: VecDeque<(Instant, ChoiceTable)>,
    ranges: Ranges,
    /// By the ids of the services that do not keep all of their new flows, or did not of late.
    shares: HashMap<u32, State>,
    /// Addresses whose backends get no new flows, whatever callers want.
    withdrawn: BTreeSet<(IpAddr, Withdrawal)>,
}

/// What the table needs to know of its surroundings.
pub struct Context<'a> {
    pub maps: &'a Maps,
    pub node_addresses: &'a [IpAddr],
    /// Where each address is.
    pub place: &'a dyn Fn(IpAddr, &Backend) -> Place,
}

impl Services {
    /// Every service with its id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Service)> {
        self.installed
            .values()
            .map(|installed| (installed.id, &installed.wanted))
    }

    /// How many services and lines of choices there are, each beside how many there can be.
    pub fn fill(&self) -> [(usize, u32); 2] {
        let lines = self.lines.used() as usize;
        [
            (self.installed.len(), self.ids.bound()),
            (lines, self.lines.total()),
        ]
    }

    /// How long services with session affinity keep a client, by their ids.
    pub fn affinities(&self) -> HashMap<u32, u32> {
        self.iter()
            .filter_map(|(id, service)| Some((id, service.affinity_seconds?)))
            .collect()
    }

    /// The names of the ids.
    pub fn names(&self) -> BTreeMap<u32, ServiceName> {
        self.iter()
            .map(|(id, service)| (id, service.name.clone()))
            .collect()
    }

    /// Makes or changes a service.
    pub fn upsert(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        service: &Service,
    ) -> Result<(), Error> {
        let protocol = Self::check(service)?;
        let keys = frontends::keys(service, protocol, context.node_addresses);
        for key in keys.keys() {
            let id = self.installed.get(&service.name).map(|own| own.id);
            if let Some(owner) = self.owners.get(key).filter(|owner| Some(**owner) != id) {
                return Err(Error::FrontendTaken {
                    frontend: key.to_string(),
                    owner: self.name_of(*owner),
                });
            }
        }
        let fresh = !self.installed.contains_key(&service.name);
        let id = self.identify(context.maps, service, protocol)?;
        let result = self.install(context, backends, service, id, protocol, keys);
        if result.is_err() && fresh {
            self.forget(context.maps, id)?;
        }
        result
    }

    fn name_of(&self, id: u32) -> String {
        self.iter()
            .find(|(other, _)| *other == id)
            .map_or_else(|| id.to_string(), |(_, service)| service.name.0.clone())
    }

    fn check(service: &Service) -> Result<u8, Error> {
        let invalid = |reason: String| Error::InvalidService {
            name: service.name.0.clone(),
            reason,
        };
        if service.name.0.len() > NAME_BYTES {
            return Err(invalid(format!(
                "its name is longer than {NAME_BYTES} bytes"
            )));
        }
        if service.backends.iter().any(|backend| backend.port == 0) {
            return Err(invalid("a backend has port 0".to_owned()));
        }
        Ok(frontends::number(service.protocol))
    }

    /// The service's id, a new one if it has none, with a record of who it is.
    fn identify(&mut self, maps: &Maps, service: &Service, protocol: u8) -> Result<u32, Error> {
        let id = if let Some(installed) = self.installed.get(&service.name) {
            installed.id
        } else {
            let full = Error::TableFull {
                table: "services",
                capacity: self.ids.bound(),
            };
            let id = self.ids.allocate().ok_or(full)?;
            maps.reset_count(id)?;
            id
        };
        let record = records::to_record(service, protocol);
        let unchanged = self
            .installed
            .get(&service.name)
            .is_some_and(|installed| records::to_record(&installed.wanted, protocol) == record);
        if !unchanged {
            maps.records.set(&id, &record).map_err(|error| {
                failed(
                    "write record of",
                    std::path::Path::new(&service.name.0),
                    error,
                )
            })?;
        }
        Ok(id)
    }

    fn forget(&mut self, maps: &Maps, id: u32) -> Result<(), Error> {
        maps.records
            .remove(&id)
            .map_err(|error| failed("remove record", std::path::Path::new("RECORDS"), error))?;
        self.ids.free(id);
        Ok(())
    }

    fn is_withdrawn(&self, address: IpAddr, service: &Service) -> bool {
        let is = |why| self.withdrawn.contains(&(address, why));
        is(Withdrawal::Detached) || !service.publish_not_ready && is(Withdrawal::Asked)
    }

    /// Takes a service away.
    pub fn delete(
        &mut self,
        maps: &Maps,
        backends: &mut Backends,
        name: &ServiceName,
    ) -> Result<(), Error> {
        let Some(old) = self.installed.get(name) else {
            return Ok(());
        };
        for key in old.keys.keys() {
            key.withdraw(maps)?;
        }
        let Some(old) = self.installed.remove(name) else {
            return Ok(());
        };
        for key in old.keys.keys() {
            self.owners.remove(key);
        }
        for (_, _, id) in &old.backends {
            backends.release(maps, *id, state::REMOVED);
        }
        if let Some(set) = old.ranges {
            self.ranges.retire(set);
        }
        self.retire(&old, &[]);
        self.forget(maps, old.id)
    }

    /// Takes away what is not to be kept; says how many services that were.
    pub fn prune(
        &mut self,
        maps: &Maps,
        backends: &mut Backends,
        keep: &BTreeSet<ServiceName>,
    ) -> Result<usize, Error> {
        for key in std::mem::take(&mut self.orphans) {
            if !self.owners.contains_key(&key) {
                key.withdraw(maps)?;
            }
        }
        let used: Vec<u32> = self
            .installed
            .values()
            .filter_map(|installed| installed.ranges)
            .collect();
        self.ranges.retire_all_but(&used);
        let gone: Vec<ServiceName> = self
            .installed
            .keys()
            .filter(|name| !keep.contains(*name))
            .cloned()
            .collect();
        for name in &gone {
            self.delete(maps, backends, name)?;
        }
        Ok(gone.len())
    }

    /// Stops or resumes new flows to an address; says how many services changed.
    pub fn set_withdrawn(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        address: IpAddr,
        why: Withdrawal,
        is: bool,
    ) -> Result<usize, Error> {
        let changed = if is {
            self.withdrawn.insert((address, why))
        } else {
            self.withdrawn.remove(&(address, why))
        };
        if !changed {
            return Ok(0);
        }
        let concerned: Vec<Service> = self
            .installed
            .values()
            .filter(|installed| {
                installed
                    .wanted
                    .backends
                    .iter()
                    .any(|backend| backend.address == address)
            })
            .map(|installed| installed.wanted.clone())
            .collect();
        for service in &concerned {
            self.upsert(context, backends, service)?;
        }
        Ok(concerned.len())
    }
}
