//! The dataplane as its callers see it.

mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::offset_of,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use portolan_abi::{
    backend::state,
    config::{NodeConfig, flags},
    pod::PodEntry,
};

use crate::{
    Config, Error, Observed, PodInterface, Swept, affinity,
    backends::{self, Backends, Place},
    flows,
    local_share::BackendLoad,
    maps::{self, Maps, failed, names},
    model::{
        self, DropCount, EventCount, Flow, Locality, Network, Service, ServiceCounters,
        ServiceName, TcMode, XdpMode,
    },
    networks,
    node::{accept_own_addresses, check_pins, configure, transmits},
    pods::Pods,
    programs::{LINKS, LOOPBACK, NODE, POD, ProgramInfo, Programs, Run, SOCKETS, UPLINK, unhook},
    report::PacketReport,
    services::{Context, Services},
    sys,
    translations::Ender,
    view, watch,
};

/// The loaded programs and the maps they share with this process.
///
/// All state is in pinned maps: dropping a `Dataplane` leaves programs attached and packets flowing. Its calls are
/// short system calls and never wait for the network, but they do block: call them off the async threads.
#[derive(Debug)]
pub struct Dataplane {
    config: Config,
    programs: Programs,
    maps: Maps,
    backends: Backends,
    services: Services,
    pods: Pods,
    attached: BTreeMap<String, PodInterface>,
    uplink: Option<String>,
    sweeps: u32,
    ender: Ender,
    /// What the last sweep counted.
    census: Option<flows::Census>,
}

/// One sweep of so many looks at the map of session affinity too, whose entries last minutes at least.
const AFFINITY_EVERY: u32 = 16;

impl Dataplane {
    /// Loads the programs and makes the maps, or adopts the maps that are pinned and replaces the attached programs.
    pub fn open(config: Config) -> Result<Self, Error> {
        check_pins(&config.pin_dir)?;
        let mut programs = Programs::load(&config)?;
        let maps = Maps::open(&config.pin_dir)?;
        configure(&maps, &config)?;
        watch::forget_lost(&config.pin_dir, &maps.config);
        programs.adopt()?;
        let backends = Backends::restore(&maps);
        let services = Services::restore(&maps, &backends)?;
        let pods = Pods::restore(&maps)?;
        let attached = pods.attached();
        let mut dataplane = Self {
            config,
            programs,
            maps,
            backends,
            services,
            pods,
            attached,
            uplink: None,
            sweeps: 0,
            ender: Ender::default(),
            census: None,
        };
        dataplane.forget_lost_pods()?;
        Ok(dataplane)
    }

    /// Forgets the addresses of pods whose interfaces went away while nobody was looking.
    fn forget_lost_pods(&mut self) -> Result<(), Error> {
        let there: BTreeSet<IpAddr> = self
            .attached
            .values()
            .flat_map(|pod| &pod.addresses)
            .copied()
            .collect();
        let lost: Vec<IpAddr> = self
            .pods
            .addresses()
            .filter(|address| !there.contains(address))
            .collect();
        self.pods
            .unsettle(&self.maps, |_, interface| sys::name_of(interface).is_err())?;
        lost.into_iter()
            .try_for_each(|address| self.forget_address(address))
    }

    fn forget_address(&mut self, address: IpAddr) -> Result<(), Error> {
        self.set_withdrawn(address, Withdrawal::Detached, true)?;
        let ids: Vec<u32> = self.backends.at(address).collect();
        for id in ids {
            self.backends.release(&self.maps, id, state::GONE);
            backends::set_place(&self.maps, id, &Place::Stack);
        }
        self.pods.remove(&self.maps, address)
    }

    /// Attaches XDP (native, else generic) and tcx to the uplink, which is looked up in the caller's namespace.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<XdpMode, Error> {
        let index = index_of(interface)?;
        self.look_at_uplink(interface, index)?;
        self.uplink = Some(interface.to_owned());
        self.programs.leave_other_uplinks(index, self.tunnel())?;
        if self.config.ways.tcx {
            self.programs.attach_tc(UPLINK, interface, index)?;
            self.programs.attach_node(interface, index)?;
            accept_own_addresses();
        } else {
            for (program, interface) in [(UPLINK, interface), (NODE, interface), (NODE, LOOPBACK)] {
                self.programs.detach(program, interface)?;
            }
        }
        if self.config.ways.xdp {
            self.programs.attach_xdp(interface, index, self.config.xdp)
        } else {
            self.programs
                .detach_xdp(interface)
                .map(|()| XdpMode::Absent)
        }
    }

    /// Says which networks there are around the node, in place of those of an earlier call. With [`Config::masquerade`],
    /// pods speak to these with their own addresses, and to all others with the node's. Idempotent.
    pub fn set_networks(&mut self, networks: &[Network]) -> Result<(), Error> {
        networks::set(&self.maps, networks)
    }

    /// How the tc programs are attached.
    pub fn tc_mode(&self) -> TcMode {
        self.programs.tc_mode()
    }

    /// Looks again what the uplink can do.
    fn look_at_uplink(&self, interface: &str, index: u32) -> Result<(), Error> {
        let mtu = sys::mtu_of(interface)
            .map_err(|error| failed("read MTU of", Path::new(interface), error))?;
        let transmits = transmits(self.config.transmit, interface, index);
        self.set_uplink(index, mtu, transmits);
        Ok(())
    }

    fn set_uplink(&self, index: u32, mtu: u32, transmits: bool) {
        let word = |offset| self.maps.config.half(0, offset);
        word(offset_of!(NodeConfig, uplink)).store(index, Ordering::Release);
        word(offset_of!(NodeConfig, uplink_mtu)).store(mtu, Ordering::Release);
        // The other flags are others' to set.
        let flags = word(offset_of!(NodeConfig, flags));
        if transmits {
            flags.fetch_or(flags::XDP_TRANSMIT, Ordering::Release);
        } else {
            flags.fetch_and(!flags::XDP_TRANSMIT, Ordering::Release);
        }
    }

    /// Detaches from the uplink, if there is one.
    pub fn detach_uplink(&mut self) -> Result<(), Error> {
        self.uplink = None;
        self.set_uplink(0, 0, false);
        self.programs.leave_other_uplinks(0, self.tunnel())
    }

    /// Sends what is for other nodes' pods through an interface of this node's from now on, and takes what comes out of it
    /// as what comes in at the uplink; with `None` there is no tunnel any more. Which pods and nodes are behind it,
    /// [`Self::set_networks`] says; the routing table says of pods which node has them, the table of neighbours where that is.
    /// Without [`crate::Ways::tcx`] services are not to be reached through it. Idempotent.
    pub fn set_tunnel(&mut self, interface: Option<&str>) -> Result<(), Error> {
        let index = interface.map_or(Ok(0), index_of)?;
        if let Some(interface) = interface.filter(|_| self.config.ways.tcx) {
            self.programs.attach_tc(UPLINK, interface, index)?;
            self.programs.attach_tc(NODE, interface, index)?;
        }
        let word = |offset| self.maps.config.half(0, offset);
        let uplink = word(offset_of!(NodeConfig, uplink)).load(Ordering::Relaxed);
        word(offset_of!(NodeConfig, tunnel)).store(index, Ordering::Release);
        self.programs.leave_other_uplinks(uplink, index)
    }

    /// The interface of the tunnel; 0 if there is none.
    fn tunnel(&self) -> u32 {
        let tunnel = self.maps.config.half(0, offset_of!(NodeConfig, tunnel));
        tunnel.load(Ordering::Relaxed)
    }

    /// Attaches tcx to a pod's veth and lets packets be delivered into the pod. Idempotent.
    pub fn attach_pod(&mut self, pod: &PodInterface) -> Result<(), Error> {
        let interface = index_of(&pod.host_interface)?;
        let host_mac = sys::mac_of(&pod.host_interface).map_err(|error| {
            failed("read MAC address of", Path::new(&pod.host_interface), error)
        })?;
        if self.config.ways.tcx {
            self.programs
                .attach_tc(POD, &pod.host_interface, interface)?;
            self.programs
                .attach_tc(NODE, &pod.host_interface, interface)?;
        } else {
            self.programs.detach(POD, &pod.host_interface)?;
            self.programs.detach(NODE, &pod.host_interface)?;
        }
        let entry = PodEntry {
            interface,
            pod_mac: pod.pod_mac,
            host_mac,
        };
        for &address in &pod.addresses {
            self.pods.insert(&self.maps, address, entry)?;
            for id in self.backends.at(address) {
                backends::set_place(&self.maps, id, &Place::Pod(entry));
            }
            self.set_withdrawn(address, Withdrawal::Detached, false)?;
        }
        Pods::admit(&self.maps, interface, &pod.addresses);
        let namespace = (pod.netns, pod.addresses.as_slice());
        self.pods.settle(&self.maps, interface, namespace)?;
        self.attached
            .insert(pod.host_interface.clone(), pod.clone());
        Ok(())
    }

    /// Forgets a pod: its link is removed, its addresses lead nowhere and flows to it are reset. Succeeds for an
    /// unknown one.
    pub fn detach_pod(&mut self, host_interface: &str) -> Result<(), Error> {
        let addresses = self
            .attached
            .get(host_interface)
            .map(|pod| pod.addresses.clone());
        for address in addresses.unwrap_or_default() {
            self.forget_address(address)?;
        }
        self.follow_deaths();
        let netns = self.attached.get(host_interface).map_or(0, |pod| pod.netns);
        self.pods
            .unsettle(&self.maps, |other, _| other == netns && netns != 0)?;
        self.programs.detach(POD, host_interface)?;
        self.programs.detach(NODE, host_interface)?;
        self.attached.remove(host_interface);
        Ok(())
    }

    /// The pods that are attached and whose interfaces exist, adopted ones included.
    pub fn pods(&self) -> Result<Vec<PodInterface>, Error> {
        let lives = |pod: &&PodInterface| sys::index_of(&pod.host_interface).is_ok();
        Ok(self.attached.values().filter(lives).cloned().collect())
    }

    /// Makes or changes a service; packets see the old or the new one, nothing between. Idempotent.
    pub fn upsert(&mut self, service: &Service) -> Result<(), Error> {
        let (node_addresses, pods) = (&self.config.node_addresses, &self.pods);
        let place =
            |address, backend: &model::Backend| place(node_addresses, pods, address, backend);
        let context = Context {
            maps: &self.maps,
            node_addresses,
            place: &place,
        };
        let result = self.services.upsert(&context, &mut self.backends, service);
        self.follow_deaths();
        result
    }

    /// Takes a service away. Succeeds for an unknown one.
    pub fn delete(&mut self, name: &ServiceName) -> Result<(), Error> {
        let result = self.services.delete(&self.maps, &mut self.backends, name);
        self.follow_deaths();
        result
    }

    /// Takes away every service that is not in `keep`; says how many.
    pub fn prune(&mut self, keep: &BTreeSet<ServiceName>) -> Result<usize, Error> {
        let result = self.services.prune(&self.maps, &mut self.backends, keep);
        self.follow_deaths();
        result
    }

    /// Stops new flows to every backend at an address at once, in all services, whatever `upsert` says of it, until
    /// [`Self::restore_backend`]. For a pod whose process died before the cluster knows. Says how many services changed.
    pub fn withdraw_backend(&mut self, address: IpAddr) -> Result<usize, Error> {
        let result = self.set_withdrawn(address, Withdrawal::Asked, true);
        self.follow_deaths();
        result
    }

    /// Takes a withdrawal back. Says how many services changed.
    pub fn restore_backend(&mut self, address: IpAddr) -> Result<usize, Error> {
        self.set_withdrawn(address, Withdrawal::Asked, false)
    }

    fn set_withdrawn(
        &mut self,
        address: IpAddr,
        why: Withdrawal,
        is: bool,
    ) -> Result<usize, Error> {
        let (node_addresses, pods) = (&self.config.node_addresses, &self.pods);
        let place =
            |address, backend: &model::Backend| place(node_addresses, pods, address, backend);
        let context = Context {
            maps: &self.maps,
            node_addresses,
            place: &place,
        };
        self.services
            .set_withdrawn(&context, &mut self.backends, address, why, is)
    }

    /// Every service as it stands in the maps, by name, with its counters.
    pub fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error> {
        view::services(&self.maps, &self.services)
    }

    /// Moves the share of new flows that stays on this node, for every service that leaves it to load, by how this node's
    /// backends are; see [`crate::local_share`]. To be called about once a second, with the loads of the pods of this
    /// node that are known, and `now` of a clock that never goes back.
    pub fn balance(&mut self, loads: &BTreeMap<IpAddr, BackendLoad>, now: Duration) {
        let connections = |id: u32| self.census.as_ref().map_or(0, |census| census.open(id));
        self.services.balance(&self.maps, loads, connections, now);
    }

    /// How full the tables are that the flows and services of a node fill; flows as the last sweep counted them.
    pub fn tables(&self) -> Vec<model::TableUse> {
        let by_table = self
            .census
            .as_ref()
            .map_or([0; 4], |census| census.by_table);
        view::tables(
            &self.maps,
            &self.config.capacity,
            by_table,
            [
                self.services.fill()[0],
                self.services.fill()[1],
                self.backends.fill(),
            ],
        )
    }

    /// Every flow in the tables, and what sockets were given.
    pub fn flows(&self) -> Result<Vec<Flow>, Error> {
        Ok(flows::list(&self.maps, &self.services.names()))
    }

    /// How often packets were dropped, for each reason that there is.
    pub fn drops(&self) -> Result<Vec<DropCount>, Error> {
        view::drops(&self.maps)
    }

    /// How often what an operator may want to know of happened, for each event that there is.
    pub fn events(&self) -> Result<Vec<EventCount>, Error> {
        view::events(&self.maps)
    }

    /// What watched packets met with, in words.
    pub fn describe(&self, observed: &Observed) -> Vec<PacketReport> {
        view::describe(&self.maps, &self.services, observed)
    }

    /// Takes aged flows out and frees what only they held, and looks again whether XDP may send. To be called about once
    /// a second.
    pub fn sweep(&mut self) -> Result<Swept, Error> {
        let census = flows::sweep(&self.maps);
        let (live, expired) = (census.live, census.expired);
        let freed_backends = self
            .backends
            .collect(&self.maps, |id| census.is_referred(id));
        self.backends.count(&self.maps, |id| census.open(id));
        self.census = Some(census);
        self.sweeps = (self.sweeps + 1) % AFFINITY_EVERY;
        if self.sweeps == 0 {
            affinity::sweep(&self.maps, &self.services.affinities())?;
        }
        // A program that chose before a backend's end may have noted its choice after it.
        self.ender.end_dead(&self.maps);
        if let Some(interface) = &self.uplink {
            let index = index_of(interface)?;
            self.look_at_uplink(interface, index)?;
        }
        Ok(Swept {
            live,
            expired,
            freed_backends,
        })
    }

    /// Runs one of the programs on a packet as if it had come in at an interface. Nothing is sent, but flows are made.
    pub fn run(&self, program: &str, packet: &[u8], interface: u32) -> Result<Run, Error> {
        self.programs.run(program, packet, interface)
    }

    /// What the kernel says of each program.
    pub fn programs_info(&mut self) -> Result<Vec<ProgramInfo>, Error> {
        self.programs.info()
    }

    /// How many bytes of the kernel's memory each map takes.
    pub fn map_memory(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        maps::memory(&self.config.pin_dir)
    }

    /// Takes every TCP flow that is being opened for established, as if its backend had answered: benchmarks run on
    /// packets of clients alone.
    pub fn establish_flows(&self) {
        flows::establish(&self.maps);
    }

    /// Empties the flow tables, so that one benchmark's flows take no room from the next one's.
    pub fn forget_flows(&self) {
        flows::forget(&self.maps);
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Removes every pin under `pin_dir`, which detaches the programs and frees the maps. For teardown.
    pub fn remove_pins(pin_dir: &Path) -> Result<(), Error> {
        let remove = |path: PathBuf| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("unpin", &path, error))
            }
            _ => Ok(()),
        };
        for folder in [SOCKETS, LINKS] {
            let links = pin_dir.join(folder);
            match fs::read_dir(&links) {
                Ok(entries) => {
                    for entry in entries {
                        unhook(&entry.map_err(|error| failed("list", &links, error))?.path())?;
                    }
                    fs::remove_dir(&links).map_err(|error| failed("remove", &links, error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("list", &links, error)),
            }
        }
        names::ALL
            .iter()
            .try_for_each(|name| remove(pin_dir.join(name)))
    }

    /// What it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Why an address gets no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Withdrawal {
    /// The caller asked for it.
    Asked,
    /// Its pod was detached.
    Detached,
}

/// Where an address is.
fn place(
    node_addresses: &[IpAddr],
    pods: &Pods,
    address: IpAddr,
    backend: &model::Backend,
) -> Place {
    if let Some(pod) = pods.get(address) {
        Place::Pod(pod)
    } else if node_addresses.contains(&address) || backend.locality == Locality::Node {
        Place::Stack
    } else {
        Place::Neighbour
    }
}

fn index_of(interface: &str) -> Result<u32, Error> {
    sys::index_of(interface).map_err(|_| Error::InterfaceMissing(interface.to_owned()))
}
