//! Making a service's new state beside its old one, and flipping to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use portolan_abi::{backend::state, choice::Candidate, service::ChoiceTable};

use super::{Context, GRACE, Installed, Services, Tables};
use crate::{
    Error,
    backends::{Backends, Identity, Place},
    choice,
    frontends::Key,
    maps::Maps,
    model::{Backend, Frontend, ReturnPath, Scope, Service},
};

/// What was made for a service's new state, to be taken back should that fail.
#[derive(Default)]
struct Made {
    backends: Vec<(IpAddr, u16, u32)>,
    tables: Vec<ChoiceTable>,
    ranges: Option<u32>,
}

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
        let mut made = Made::default();
        let prepared = self.prepare(context, backends, (service, id, protocol), &mut made);
        let old = self.installed.remove(&service.name);
        match prepared {
            Ok((v4, v6, ranges)) => {
                made.backends.sort_unstable();
                let new = Box::new(Installed {
                    id,
                    wanted: service.clone(),
                    keys,
                    backends: made.backends,
                    v4,
                    v6,
                    ranges,
                    is_restored: false,
                });
                self.flip(context.maps, backends, old, new)
            }
            Err(error) => {
                // What stood before stands on; only what was made for the new state goes.
                for table in made.tables {
                    self.lines.free(table.first_line, table.lines);
                }
                for (address, port, id) in made.backends {
                    if !old
                        .as_ref()
                        .is_some_and(|old| old.has_backend(address, port))
                    {
                        backends.release(context.maps, id, state::REMOVED);
                    }
                }
                self.installed
                    .extend(old.map(|old| (service.name.clone(), old)));
                if let Some(set) = made.ranges {
                    self.ranges.forget(context.maps, set)?;
                }
                Err(error)
            }
        }
    }

    /// The backends of a family that may get flows, in an order that is the same on every node.
    fn usable<'a>(&self, service: &'a Service, is_v4: bool) -> Vec<&'a Backend> {
        let mut usable: Vec<&Backend> = service
            .backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == is_v4)
            .filter(|backend| !self.is_withdrawn(backend.address, service))
            .collect();
        usable.sort_by_key(|backend| (backend.address, backend.port));
        usable.dedup_by_key(|backend| (backend.address, backend.port));
        usable
    }

    /// Makes a service's backends, tables and ranges, which no packet sees yet.
    fn prepare(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        named: (&Service, u32, u8),
        made: &mut Made,
    ) -> Result<(Tables, Tables, Option<u32>), Error> {
        let service = named.0;
        let ranges = self.lay_ranges(context.maps, service, made)?;
        let v4 = self.lay_family(context, backends, named, true, made)?;
        let v6 = self.lay_family(context, backends, named, false, made)?;
        Ok((v4, v6, ranges))
    }

    /// The set of a service's source ranges, if it has any address that they are for.
    fn lay_ranges(
        &mut self,
        maps: &Maps,
        service: &Service,
        made: &mut Made,
    ) -> Result<Option<u32>, Error> {
        let is_balanced = |frontend: &Frontend| {
            matches!(
                frontend,
                Frontend::Address {
                    scope: Scope::LoadBalancer,
                    ..
                }
            )
        };
        if service.source_ranges.is_empty() || !service.frontends.iter().any(is_balanced) {
            return Ok(None);
        }
        let old = self.installed.get(&service.name).and_then(|old| old.ranges);
        if let Some(set) = old.filter(|set| self.ranges.holds(*set, &service.source_ranges)) {
            return Ok(Some(set));
        }
        made.ranges = Some(self.ranges.add(maps, &service.source_ranges)?);
        Ok(made.ranges)
    }

    fn lay_family(
        &mut self,
        context: &Context<'_>,
        backends: &mut Backends,
        (service, id, protocol): (&Service, u32, u8),
        is_v4: bool,
        made: &mut Made,
    ) -> Result<Tables, Error> {
        let usable = self.usable(service, is_v4);
        let members = choice::members(service, &usable);
        let offers = choice::offers(service, &members, &usable);
        let mut candidates = Vec::with_capacity(usable.len());
        for (backend, offers) in usable.into_iter().zip(offers) {
            let (address, port) = (backend.address, backend.port);
            let identity = Identity {
                service: id,
                address,
                port,
            };
            let place = match ((context.place)(address, backend), service.return_path) {
                (Place::Neighbour, ReturnPath::Gateway) => Place::Gateway,
                (Place::Neighbour, ReturnPath::Direct) => {
                    let node = backend
                        .node
                        .filter(|node| node.is_ipv4() == address.is_ipv4());
                    node.map_or(Place::Neighbour, Place::Direct)
                }
                (place, _) => place,
            };
            let id =
                backends.acquire(context.maps, identity, protocol, (backend, offers), &place)?;
            made.backends.push((address, port, id));
            candidates.push(Candidate {
                id,
                weight: backend.weight,
                hash: choice::identity(address, port),
            });
        }
        let members = members.map(|table| {
            let stand = table.into_iter().map(|index| candidates[index]);
            stand.collect::<Vec<_>>()
        });
        self.lay_tables(context.maps, service, is_v4, members, made)
    }

    /// Fills a family's tables, unless they say already what they should.
    fn lay_tables(
        &mut self,
        maps: &Maps,
        service: &Service,
        is_v4: bool,
        members: [Vec<Candidate>; 3],
        made: &mut Made,
    ) -> Result<Tables, Error> {
        let mut places = [ChoiceTable::default(); 3];
        for (index, wanted) in members.iter().enumerate() {
            let old = self.installed.get(&service.name);
            let old = old.map(|old| if is_v4 { &old.v4 } else { &old.v6 });
            let kept = old.and_then(|old| {
                let same = (0..3).find(|same| old.members[*same] == *wanted)?;
                Some(old.places[same]).filter(|place| place.lines != 0)
            });
            places[index] = if wanted.is_empty() {
                ChoiceTable::default()
            } else if let Some(same) = (0..index).find(|same| members[*same] == *wanted) {
                places[same]
            } else if let Some(kept) = kept {
                kept
            } else {
                let table = self.write_table(maps, wanted)?;
                made.tables.push(table);
                table
            };
        }
        Ok(Tables { places, members })
    }

    fn write_table(&mut self, maps: &Maps, members: &[Candidate]) -> Result<ChoiceTable, Error> {
        let lines = choice::line_count(members);
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
        while let Some((since, table)) = self.quarantine.front()
            && since.elapsed() >= GRACE
        {
            self.lines.free(table.first_line, table.lines);
            self.quarantine.pop_front();
        }
    }

    /// Lets packets see the new state, then retires what only the old one needed.
    fn flip(
        &mut self,
        maps: &Maps,
        backends: &mut Backends,
        old: Option<Box<Installed>>,
        mut new: Box<Installed>,
    ) -> Result<(), Error> {
        if let Err(error) = self.publish(maps, old.as_deref(), &new) {
            // Some frontends may lead to the old tables still, so those stay, and the next update tries again.
            let published = |key: &Key| self.owners.contains_key(key);
            new.keys.retain(|key, _| published(key));
            new.keys.extend(old.into_iter().flat_map(|old| old.keys));
            new.is_restored = true;
            self.installed.insert(new.wanted.name.clone(), new);
            return Err(error);
        }
        if let Some(old) = &old {
            for key in old.keys.keys().filter(|key| !new.keys.contains_key(key)) {
                key.withdraw(maps)?;
                self.owners.remove(key);
            }
            for (address, port, id) in &old.backends {
                if !new.has_backend(*address, *port) {
                    backends.release(maps, *id, state::REMOVED);
                }
            }
            if let Some(set) = old.ranges.filter(|set| new.ranges != Some(*set)) {
                self.ranges.retire(set);
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
        let old = old.filter(|old| !old.is_restored);
        for (key, flags) in &new.keys {
            let entry = new.entry(key, *flags);
            let before = old.and_then(|old| Some(old.entry(key, *old.keys.get(key)?)));
            if before != Some(entry) {
                key.publish(maps, &entry)?;
                self.owners.insert(*key, new.id);
            }
        }
        Ok(())
    }

    pub(super) fn retire(&mut self, old: &Installed, kept: &[ChoiceTable]) {
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        for table in old.v4.places.iter().chain(&old.v6.places) {
            if table.lines != 0 && !kept.contains(table) && seen.insert(table.first_line) {
                self.quarantine.push_back((now, *table));
            }
        }
    }
}
