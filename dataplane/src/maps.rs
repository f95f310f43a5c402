//! The pinned maps, opened by their names.

use std::{io, path::Path};

use portolan_abi::{
    backend::Backend,
    choice::{ChoiceLine, Load, Share},
    config::NodeConfig,
    counters::ServiceCount,
    drop_reason::{DropReason, Event},
    flow::{BucketV4, BucketV6},
    sender::SenderEntry,
    socket_table::SocketBucket,
};

use crate::{
    Error,
    sys::{self, Map, Mapped},
};

/// The names that the kernel object gives its maps, and that their pins have.
pub mod names {
    /// One [`portolan_abi::config::NodeConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// All maps, for checks and removal.
    pub const ALL: &[&str] = &[
        CONFIG,
        "SERVICES_V4",
        "SERVICES_V6",
        "CHOICES",
        "LOADS",
        "SHARES",
        "RANGES",
        "AFFINITY",
        "BACKENDS",
        "FLOWS_V4",
        "FLOWS_V6",
        "SNAT_V4",
        "SNAT_V6",
        "PODS_V4",
        "PODS_V6",
        "FRAGMENTS",
        "SLOW_TC",
        "SLOW_XDP",
        "SENDERS",
        "NETWORKS",
        "NAMESPACES",
        "SOCKETS",
        "COUNTS",
        "DROPS",
        "EVENTS",
        "RECORDS",
        WATCH,
        REPORTS,
        LOCKS,
    ];
    /// One [`portolan_abi::report::Watch`].
    pub const WATCH: &str = "WATCH";
    /// The kernel programs' own, on kernels before 5.12.
    pub const LOCKS: &str = "LOCKS";
    /// The ring buffer of [`portolan_abi::report::Report`].
    pub const REPORTS: &str = "REPORTS";
}

/// The maps.
#[derive(Debug)]
pub struct Maps {
    pub config: Mapped<NodeConfig>,
    pub services_v4: Map,
    pub services_v6: Map,
    pub choices: Mapped<ChoiceLine>,
    pub loads: Mapped<Load>,
    pub shares: Mapped<Share>,
    pub ranges: Map,
    pub affinity: Map,
    pub backends: Mapped<Backend>,
    pub flows_v4: Mapped<BucketV4>,
    pub flows_v6: Mapped<BucketV6>,
    pub source_nat_v4: Mapped<BucketV4>,
    pub source_nat_v6: Mapped<BucketV6>,
    pub pods_v4: Map,
    pub pods_v6: Map,
    pub networks: Map,
    pub senders: Mapped<SenderEntry>,
    pub namespaces: Map,
    pub sockets: Mapped<SocketBucket>,
    pub counts: Map,
    pub drops: Map,
    pub events: Map,
    pub records: Map,
    cpus: usize,
}

impl Maps {
    /// Opens the maps that are pinned in a folder.
    pub fn open(pins: &Path) -> Result<Self, Error> {
        let map = |name: &str| {
            let path = pins.join(name);
            Map::open(&path).map_err(|error| failed("open map", &path, error))
        };
        Ok(Self {
            config: mapped(pins, names::CONFIG)?,
            services_v4: map("SERVICES_V4")?,
            services_v6: map("SERVICES_V6")?,
            choices: mapped(pins, "CHOICES")?,
            loads: mapped(pins, "LOADS")?,
            shares: mapped(pins, "SHARES")?,
            ranges: map("RANGES")?,
            affinity: map("AFFINITY")?,
            backends: mapped(pins, "BACKENDS")?,
            flows_v4: mapped(pins, "FLOWS_V4")?,
            flows_v6: mapped(pins, "FLOWS_V6")?,
            source_nat_v4: mapped(pins, "SNAT_V4")?,
            source_nat_v6: mapped(pins, "SNAT_V6")?,
            pods_v4: map("PODS_V4")?,
            pods_v6: map("PODS_V6")?,
            networks: map("NETWORKS")?,
            senders: mapped(pins, "SENDERS")?,
            namespaces: map("NAMESPACES")?,
            sockets: mapped(pins, "SOCKETS")?,
            counts: map("COUNTS")?,
            drops: map("DROPS")?,
            events: map("EVENTS")?,
            records: map("RECORDS")?,
            cpus: sys::possible_cpus()
                .map_err(|error| failed("count", Path::new("CPUs"), error))?,
        })
    }

    /// What all CPUs counted for a service.
    pub fn service_count(&self, id: u32) -> Result<ServiceCount, Error> {
        let counts = self
            .counts
            .get_per_cpu::<ServiceCount>(id, self.cpus)
            .map_err(|error| failed("read", Path::new("COUNTS"), error))?;
        let mut total = ServiceCount::default();
        for cpu in &counts {
            for (class, count) in total.classes.iter_mut().zip(cpu.classes) {
                class.flows += count.flows;
                class.packets += count.packets;
                class.bytes += count.bytes;
                class.resets += count.resets;
            }
            total.refused += cpu.refused;
        }
        Ok(total)
    }

    /// Sets a service's counters to zero, and lets all its flows stay.
    pub fn reset_count(&self, id: u32) -> Result<(), Error> {
        self.counts
            .set_per_cpu(id, &vec![ServiceCount::default(); self.cpus])
            .map_err(|error| failed("write", Path::new("COUNTS"), error))?;
        self.shares.set(id, Share::default());
        Ok(())
    }

    /// How often packets were dropped for each reason.
    pub fn drop_counts(&self) -> Result<Vec<(DropReason, u64)>, Error> {
        DropReason::ALL
            .iter()
            .map(|reason| Ok((*reason, self.sum(&self.drops, reason.index())?)))
            .collect()
    }

    /// How often each event happened.
    pub fn event_counts(&self) -> Result<Vec<(Event, u64)>, Error> {
        Event::ALL
            .iter()
            .map(|event| Ok((*event, self.sum(&self.events, event.index())?)))
            .collect()
    }

    fn sum(&self, counters: &Map, index: u32) -> Result<u64, Error> {
        counters
            .get_per_cpu::<u64>(index, self.cpus)
            .map(|values| values.iter().sum())
            .map_err(|error| failed("read", Path::new("counters"), error))
    }
}

/// How many bytes of the kernel's memory each map that is pinned in a folder takes.
pub fn memory(pins: &Path) -> Result<Vec<(&'static str, u64)>, Error> {
    names::ALL
        .iter()
        .filter(|name| pins.join(name).exists())
        .map(|name| {
            let path = pins.join(name);
            let bytes = Map::open(&path).and_then(|map| map.memory());
            Ok((
                *name,
                bytes.map_err(|error| failed("look at", &path, error))?,
            ))
        })
        .collect()
}

/// An array that is pinned in a folder, in this process's memory.
pub fn mapped<T: sys::Plain>(pins: &Path, name: &str) -> Result<Mapped<T>, Error> {
    let path = pins.join(name);
    Mapped::open(&path).map_err(|error| failed("map into memory", &path, error))
}

/// An error of a system call on a file or a map.
pub fn failed(operation: &'static str, object: &Path, source: io::Error) -> Error {
    Error::System {
        operation,
        object: object.display().to_string(),
        source,
    }
}
