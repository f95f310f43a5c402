//! The table of services: what callers want, turned into entries, choice tables and backends.
//!
//! An update makes all that is new beside the old, then flips each frontend's entry with one write. What the old
//! entry led to is given out again only after [`GRACE`], when no program can be reading it.

mod install;
mod restore;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use portolan_abi::{
    backend::state,
    service::{ChoiceTable, NAME_BYTES},
};

use crate::{
    Error,
    allocation::{Ids, Lines},
    backends::{Backends, Place},
    dataplane::Withdrawal,
    frontends::{self, Key},
    maps::{Maps, failed},
    model::{Backend, Service, ServiceName},
    records,
};

/// How long a program may go on reading what no entry leads to any more. Programs run for microseconds.
const GRACE: Duration = Duration::from_millis(500);

/// The tables of one family of one service, with the backend ids in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    places: [ChoiceTable; 4],
    members: [Vec<(u32, u64)>; 4],
}

/// A service as it stands in the maps.
#[derive(Debug)]
struct Installed {
    id: u32,
    wanted: Service,
    keys: BTreeMap<Key, u32>,
    backends: BTreeMap<(IpAddr, u16), u32>,
    v4: Tables,
    v6: Tables,
}

/// All services.
#[derive(Debug)]
pub struct Services {
    installed: BTreeMap<ServiceName, Installed>,
    owners: BTreeMap<Key, ServiceName>,
    orphans: Vec<Key>,
    ids: Ids,
    lines: Lines,
    quarantine: Vec<(Instant, ChoiceTable)>,
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
            if let Some(owner) = self.owners.get(key).filter(|owner| **owner != service.name) {
                return Err(Error::FrontendTaken {
                    frontend: key.to_string(),
                    owner: owner.0.clone(),
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

    fn check(service: &Service) -> Result<u8, Error> {
        let invalid = |reason: &str| Error::InvalidService {
            name: service.name.0.clone(),
            reason: reason.to_owned(),
        };
        if service.name.0.len() > NAME_BYTES {
            return Err(invalid("its name is longer than 248 bytes"));
        }
        if service.backends.iter().any(|backend| backend.port == 0) {
            return Err(invalid("a backend has port 0"));
        }
        frontends::number(service.protocol).ok_or_else(|| invalid("SCTP is not routed yet"))
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
        let unchanged = self.installed.get(&service.name).is_some_and(|installed| {
            installed.wanted.internal_policy == service.internal_policy
                && installed.wanted.external_policy == service.external_policy
        });
        if !unchanged {
            maps.records
                .set(&id, &records::to_record(service, protocol))
                .map_err(|error| {
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

    fn is_withdrawn(&self, address: IpAddr) -> bool {
        [Withdrawal::Asked, Withdrawal::Detached]
            .iter()
            .any(|why| self.withdrawn.contains(&(address, *why)))
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
        self.owners.retain(|_, owner| owner != name);
        for id in old.backends.values() {
            backends.release(maps, *id, state::REMOVED);
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
        let before = self.is_withdrawn(address);
        if is {
            self.withdrawn.insert((address, why));
        } else {
            self.withdrawn.remove(&(address, why));
        }
        if before == self.is_withdrawn(address) {
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
