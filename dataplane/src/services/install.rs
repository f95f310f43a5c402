//! Making a service's new state beside its old one, and flipping to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use portolan_abi::{
    backend::state,
    choice::lines_for,
    service::{ChoiceTable, ServiceEntry},
};

use super::{Context, GRACE, Installed, Services, Tables};
use crate::{
    Error,
    backends::{Backends, Identity},
    choice,
    frontends::Key,
    maps::Maps,
    model::{Backend, Service},
};

impl Services {
    /// Installs a valid service under its id; what stood before stands on if that fails.
    pub(super) fn install(
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
                    reserved: [0; 6],
                };
                key.publish(maps, &entry)?;
                self.owners.insert(*key, new.wanted.name.clone());
            }
        }
        Ok(())
    }

    pub(super) fn retire(&mut self, old: &Installed, kept: &[ChoiceTable]) {
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        for table in old.v4.places.iter().chain(&old.v6.places) {
            if table.lines != 0 && !kept.contains(table) && seen.insert(table.first_line) {
                self.quarantine.push((now, *table));
            }
        }
    }
}
