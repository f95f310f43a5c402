//! The table of services: what callers want, turned into entries, choice tables and backends.
//!
//! An update makes all that is new beside the old, then flips each frontend's entry with one write. What the old
//! entry led to is given out again only after [`GRACE`], when no program can be reading it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use portolan_abi::{
    backend::state,
    choice::lines_for,
    service::{ChoiceTable, NAME_BYTES, ServiceEntry, ServiceRecord},
};

use crate::{
    Error,
    allocation::{Ids, Lines},
    backends::{self, Backends, Identity, Place},
    choice,
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
    /// Reads what the maps say, so that ids stay what they are.
    pub fn restore(maps: &Maps, backends: &Backends) -> Result<Self, Error> {
        let read = |error| failed("read", std::path::Path::new("RECORDS"), error);
        let mut services = Self {
            installed: BTreeMap::new(),
            owners: BTreeMap::new(),
            orphans: Vec::new(),
            ids: Ids::new(maps.counts.max_entries()),
            lines: Lines::new(maps.choices.len()),
            quarantine: Vec::new(),
            withdrawn: BTreeSet::new(),
        };
        let mut names = BTreeMap::new();
        let live = backends.live(maps);
        for (id, record) in maps.records.entries::<u32, ServiceRecord>().map_err(read)? {
            let wanted = records::from_record(&record, live.get(&id).cloned().unwrap_or_default());
            services.ids.reserve(id);
            names.insert(id, wanted.name.clone());
            let keys = wanted
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
                        .map(|id| ((backend.address, backend.port), id))
                })
                .collect();
            let installed = Installed {
                id,
                keys: BTreeMap::new(),
                backends: keys,
                v4: Tables::default(),
                v6: Tables::default(),
                wanted,
            };
            services
                .installed
                .insert(installed.wanted.name.clone(), installed);
        }
        for (key, entry) in Key::all(maps)? {
            services.adopt(key, &entry, &names);
        }
        for installed in services.installed.values_mut() {
            installed.wanted.frontends = frontends::frontends(installed.keys.iter());
            installed.v4.read_members(maps);
            installed.v6.read_members(maps);
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
        installed.keys.insert(key, entry.flags);
        let tables = if key.address.is_ipv4() {
            &mut installed.v4
        } else {
            &mut installed.v6
        };
        tables.places = entry.tables;
        self.owners.insert(key, installed.wanted.name.clone());
    }

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

    fn install(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        service: &Service,
        id: u32,
        protocol: u8,
        keys: BTreeMap<Key, u32>,
    ) -> Result<(), Error> {
        let usable = self.usable(service);
        let mut acquired = BTreeMap::new();
        let mut fresh = Vec::new();
        let prepared = self.prepare(
            context,
            backends,
            (service, id, protocol),
            &usable,
            &mut acquired,
            &mut fresh,
        );
        let old = self.installed.remove(&service.name);
        match prepared {
            Ok((v4, v6)) => {
                let new = Installed {
                    id,
                    wanted: service.clone(),
                    keys,
                    backends: acquired,
                    v4,
                    v6,
                };
                self.flip(context.maps, backends, old, new)
            }
            Err(error) => {
                // What stood before stands on; only what was made for the new state goes.
                for table in fresh {
                    self.lines.free(table.first_line, table.lines);
                }
                for (place, id) in acquired {
                    if !old
                        .as_ref()
                        .is_some_and(|old| old.backends.contains_key(&place))
                    {
                        backends.release(context.maps, id, state::REMOVED);
                    }
                }
                self.installed
                    .extend(old.map(|old| (service.name.clone(), old)));
                Err(error)
            }
        }
    }

    fn is_withdrawn(&self, address: IpAddr) -> bool {
        [Withdrawal::Asked, Withdrawal::Detached]
            .iter()
            .any(|why| self.withdrawn.contains(&(address, *why)))
    }

    /// The backends that may get flows, in an order that is the same on every node.
    fn usable<'a>(&self, service: &'a Service) -> Vec<&'a Backend> {
        let mut usable: Vec<&Backend> = service
            .backends
            .iter()
            .filter(|backend| !self.is_withdrawn(backend.address))
            .collect();
        usable.sort_by_key(|backend| (backend.address, backend.port));
        usable.dedup_by_key(|backend| (backend.address, backend.port));
        usable
    }

    /// Makes a service's backends and tables, which no packet sees yet.
    fn prepare(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        (service, id, protocol): (&Service, u32, u8),
        usable: &[&Backend],
        acquired: &mut BTreeMap<(IpAddr, u16), u32>,
        fresh: &mut Vec<ChoiceTable>,
    ) -> Result<(Tables, Tables), Error> {
        for backend in usable {
            let identity = Identity {
                service: id,
                address: backend.address,
                port: backend.port,
            };
            let place = (context.place)(backend.address, backend);
            let backend_id = backends.acquire(context.maps, identity, protocol, backend, &place)?;
            acquired.insert((backend.address, backend.port), backend_id);
        }
        let (old_v4, old_v6) = self
            .installed
            .get(&service.name)
            .map_or_else(Default::default, |old| (old.v4.clone(), old.v6.clone()));
        let family = |v4: bool| -> Vec<&Backend> {
            usable
                .iter()
                .filter(|backend| backend.address.is_ipv4() == v4)
                .copied()
                .collect()
        };
        let v4 = self.lay(context.maps, &family(true), acquired, &old_v4, fresh)?;
        let v6 = self.lay(context.maps, &family(false), acquired, &old_v6, fresh)?;
        Ok((v4, v6))
    }

    /// Fills a family's tables, unless they say already what they should.
    fn lay(
        &mut self,
        maps: &Maps,
        backends: &[&Backend],
        ids: &BTreeMap<(IpAddr, u16), u32>,
        old: &Tables,
        fresh: &mut Vec<ChoiceTable>,
    ) -> Result<Tables, Error> {
        let mut tables = Tables::default();
        let members = choice::members(backends);
        for (index, members) in members.into_iter().enumerate() {
            let members: Vec<(u32, u64)> = members
                .into_iter()
                .map(|member| {
                    let backend = backends[member];
                    (
                        ids[&(backend.address, backend.port)],
                        choice::identity(backend),
                    )
                })
                .collect();
            tables.places[index] =
                if let Some(same) = (0..index).find(|same| tables.members[*same] == members) {
                    tables.places[same]
                } else if members == old.members[index]
                    && (old.places[index].lines != 0 || members.is_empty())
                {
                    old.places[index]
                } else {
                    let table = self.write_table(maps, &members)?;
                    fresh.extend((table.lines != 0).then_some(table));
                    table
                };
            tables.members[index] = members;
        }
        Ok(tables)
    }

    fn write_table(&mut self, maps: &Maps, members: &[(u32, u64)]) -> Result<ChoiceTable, Error> {
        let lines = lines_for(u32::try_from(members.len()).unwrap_or(u32::MAX));
        if lines == 0 {
            return Ok(ChoiceTable::default());
        }
        self.end_quarantine();
        let full = Error::TableFull {
            table: "choice tables",
            capacity: self.lines.total(),
        };
        let first_line = self.lines.allocate(lines).ok_or(full)?;
        for (line, number) in choice::lines(members).into_iter().zip(first_line..) {
            maps.choices.set(number, line);
        }
        Ok(ChoiceTable { first_line, lines })
    }

    fn end_quarantine(&mut self) {
        let now = Instant::now();
        let lines = &mut self.lines;
        self.quarantine.retain(|(since, table)| {
            let over = now.duration_since(*since) >= GRACE;
            if over {
                lines.free(table.first_line, table.lines);
            }
            !over
        });
    }

    /// Lets packets see the new state, then retires what only the old one needed.
    fn flip(
        &mut self,
        maps: &Maps,
        backends: &mut Backends,
        old: Option<Installed>,
        mut new: Installed,
    ) -> Result<(), Error> {
        if let Err(error) = self.publish(maps, old.as_ref(), &new) {
            // Some frontends may lead to the old tables still, so those stay, and the next update tries again.
            let published = |key: &Key| self.owners.contains_key(key);
            new.keys.retain(|key, _| published(key));
            new.keys.extend(old.into_iter().flat_map(|old| old.keys));
            self.installed.insert(new.wanted.name.clone(), new);
            return Err(error);
        }
        if let Some(old) = &old {
            for key in old.keys.keys().filter(|key| !new.keys.contains_key(key)) {
                key.withdraw(maps)?;
                self.owners.remove(key);
            }
            for (_, id) in old
                .backends
                .iter()
                .filter(|(place, _)| !new.backends.contains_key(place))
            {
                backends.release(maps, *id, state::REMOVED);
            }
            let kept = [new.v4.places, new.v6.places].concat();
            self.retire(old, &kept);
        }
        self.installed.insert(new.wanted.name.clone(), new);
        Ok(())
    }

    /// Writes the entries that differ.
    fn publish(
        &mut self,
        maps: &Maps,
        old: Option<&Installed>,
        new: &Installed,
    ) -> Result<(), Error> {
        for (key, flags) in &new.keys {
            let tables = if key.address.is_ipv4() {
                &new.v4
            } else {
                &new.v6
            };
            let unchanged = old.is_some_and(|old| {
                let before = if key.address.is_ipv4() {
                    &old.v4
                } else {
                    &old.v6
                };
                old.keys.get(key) == Some(flags) && before.places == tables.places
            });
            if !unchanged {
                let entry = ServiceEntry {
                    id: new.id,
                    flags: *flags,
                    tables: tables.places,
                    reserved: [0; 2],
                };
                key.publish(maps, &entry)?;
                self.owners.insert(*key, new.wanted.name.clone());
            }
        }
        Ok(())
    }

    fn retire(&mut self, old: &Installed, kept: &[ChoiceTable]) {
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        for table in old.v4.places.iter().chain(&old.v6.places) {
            if table.lines != 0 && !kept.contains(table) && seen.insert(table.first_line) {
                self.quarantine.push((now, *table));
            }
        }
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
                .map(|(backend, id)| (id, choice::identity(&backend)))
                .collect();
        }
    }
}
