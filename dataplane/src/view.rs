//! What stands in pinned maps, for those who only look: services, flows, counters and hooks, without loading a program.

use std::{fs, io, path::Path};

use serde::Serialize;

use portolan_abi::flow::SLOTS;

use crate::{
    Capacity, Error, Observed,
    backends::Backends,
    flows,
    maps::{Maps, failed, names},
    model::{DropCount, EventCount, Flow, Service, ServiceCounters, TableUse},
    node::check_pins,
    programs::{self, LINKS},
    report::{self, PacketReport},
    services::Services,
};

/// A dataplane as it stood when it was looked at; its counters go on.
#[derive(Debug)]
pub struct View {
    maps: Maps,
    services: Services,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Hook {
    /// The interface.
    pub interface: String,
    /// The program.
    pub program: String,
    /// "native" or "generic" XDP, "tcx" or "clsact".
    pub mode: String,
    /// Whether the interface is there.
    pub present: bool,
}

impl View {
    /// Opens the maps that are pinned in a folder.
    pub fn open(pins: &Path) -> Result<Self, Error> {
        if !pins.join(names::CONFIG).exists() {
            let error = io::Error::new(io::ErrorKind::NotFound, "no dataplane is pinned there");
            return Err(failed("look at", pins, error));
        }
        check_pins(pins)?;
        let maps = Maps::open(pins)?;
        let services = Services::restore(&maps, &Backends::restore(&maps))?;
        Ok(Self { maps, services })
    }

    /// Every service, by name, with its counters.
    pub fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error> {
        services(&self.maps, &self.services)
    }

    /// Every flow in the tables.
    pub fn flows(&self) -> Vec<Flow> {
        flows::list(&self.maps, &self.services.names())
    }

    /// How often packets were dropped, for each reason that there is.
    pub fn drops(&self) -> Result<Vec<DropCount>, Error> {
        drops(&self.maps)
    }

    /// How often each event happened.
    pub fn events(&self) -> Result<Vec<EventCount>, Error> {
        events(&self.maps)
    }

    /// What watched packets met with, in words.
    pub fn describe(&self, observed: &Observed) -> Vec<PacketReport> {
        describe(&self.maps, &self.services, observed)
    }

    /// Where the programs are attached.
    pub fn hooks(pins: &Path) -> Result<Vec<Hook>, Error> {
        let links = pins.join(LINKS);
        let read = |error| failed("list", &links, error);
        let mut hooks = Vec::new();
        for entry in fs::read_dir(&links).map_err(read)? {
            let entry = entry.map_err(read)?;
            let pin = entry.file_name().to_string_lossy().into_owned();
            let (program, interface) = pin.split_once('-').unwrap_or((&pin, ""));
            let (program, mode) = match program.rsplit_once('_') {
                Some((program, mode @ ("native" | "generic"))) => (program, mode),
                _ if entry.path().is_symlink() => (program, "clsact"),
                _ => (program, "tcx"),
            };
            hooks.push(Hook {
                interface: interface.replace(',', "."),
                program: program.to_owned(),
                mode: mode.to_owned(),
                present: programs::interface_of(&entry.path()).is_ok_and(|index| index != 0),
            });
        }
        hooks.sort();
        Ok(hooks)
    }
}

/// Every service with its counters.
pub fn services(
    maps: &Maps,
    services: &Services,
) -> Result<Vec<(Service, ServiceCounters)>, Error> {
    services
        .iter()
        .map(|(id, service)| {
            let counters = ServiceCounters {
                local_share: services.local_share(maps, id, &service.name),
                ..ServiceCounters::from(maps.service_count(id)?)
            };
            Ok((service.clone(), counters))
        })
        .collect()
}

/// Every reason for drops with its count.
pub fn drops(maps: &Maps) -> Result<Vec<DropCount>, Error> {
    let counts = maps
        .drop_counts()?
        .into_iter()
        .map(|(reason, packets)| DropCount {
            reason: reason.name().to_owned(),
            description: reason.description().to_owned(),
            packets,
        });
    Ok(counts.collect())
}

/// Every event with its count.
pub fn events(maps: &Maps) -> Result<Vec<EventCount>, Error> {
    let counts = maps
        .event_counts()?
        .into_iter()
        .map(|(event, count)| EventCount {
            event: event.name().to_owned(),
            description: event.description().to_owned(),
            count,
        });
    Ok(counts.collect())
}

/// Reports in words.
pub fn describe(maps: &Maps, services: &Services, observed: &Observed) -> Vec<PacketReport> {
    let names = services.names();
    let in_words = |report| report::in_words(report, maps, &names);
    observed.0.iter().map(in_words).collect()
}

/// How full tables are: `flows` as [`flows::Census::by_table`] has them, `others` are services, choices and backends.
pub fn tables(
    maps: &Maps,
    wanted: &Capacity,
    flows: [u64; 4],
    others: [(usize, u32); 3],
) -> Vec<TableUse> {
    let slots = |buckets: u32| u64::from(buckets) * u64::from(SLOTS);
    let of_flows = [
        ("flows_v4", maps.flows_v4.len(), Some(wanted.flows_v4)),
        ("flows_v6", maps.flows_v6.len(), Some(wanted.flows_v6)),
        ("source_nat_v4", maps.source_nat_v4.len(), None),
        ("source_nat_v6", maps.source_nat_v6.len(), None),
    ];
    let of_flows = of_flows.into_iter().zip(flows);
    let of_flows = of_flows.map(|((table, buckets, wanted), used)| {
        let wanted = wanted.map(|flows| u64::from(flows.next_power_of_two().max(SLOTS)));
        (table, used, slots(buckets), wanted)
    });
    let names = [
        ("services", wanted.services),
        ("choices", wanted.choice_lines),
        ("backends", wanted.backends),
    ];
    let others = names.into_iter().zip(others);
    let others = others.map(|((table, wanted), (used, capacity))| {
        (
            table,
            used as u64,
            u64::from(capacity),
            Some(u64::from(wanted)),
        )
    });
    let all = others.chain(of_flows);
    all.map(|(table, used, capacity, wanted)| TableUse {
        table: table.to_owned(),
        used,
        capacity,
        configured: wanted.filter(|wanted| *wanted != capacity),
    })
    .collect()
}
