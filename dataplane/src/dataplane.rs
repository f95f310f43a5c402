//! The dataplane as its callers see it.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use crate::{
    Config, Error, PodInterface, Swept,
    model::{DropCount, Flow, Service, ServiceCounters, ServiceName, XdpMode},
};

/// The loaded programs and the maps they share with this process.
///
/// All state is in pinned maps: dropping a `Dataplane` leaves programs attached and packets flowing. Its calls are
/// short system calls and never wait for the network, but they do block: call them off the async threads.
#[derive(Debug)]
pub struct Dataplane {
    config: Config,
}

impl Dataplane {
    /// Loads the programs and makes the maps, or adopts the maps that are pinned and replaces the attached programs.
    pub fn open(config: Config) -> Result<Self, Error> {
        Ok(Self { config })
    }

    /// Attaches XDP (native, else generic) and tcx to the uplink, which is looked up in the caller's namespace.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<XdpMode, Error> {
        Err(Error::InterfaceMissing(interface.to_owned()))
    }

    /// Attaches tcx to a pod's veth and lets packets be delivered into the pod. Idempotent.
    pub fn attach_pod(&mut self, pod: &PodInterface) -> Result<(), Error> {
        Err(Error::InterfaceMissing(pod.host_interface.clone()))
    }

    /// Forgets a pod: its link is removed and its addresses lead nowhere. Succeeds for an unknown one.
    pub fn detach_pod(&mut self, _host_interface: &str) -> Result<(), Error> {
        Ok(())
    }

    /// The pods that are attached, adopted ones included.
    pub fn pods(&self) -> Vec<PodInterface> {
        Vec::new()
    }

    /// Makes or changes a service; packets see the old or the new one, nothing between. Idempotent.
    pub fn upsert(&mut self, _service: &Service) -> Result<(), Error> {
        Ok(())
    }

    /// Takes a service away. Succeeds for an unknown one.
    pub fn delete(&mut self, _name: &ServiceName) -> Result<(), Error> {
        Ok(())
    }

    /// Takes away every service that is not in `keep`; says how many.
    pub fn prune(&mut self, _keep: &BTreeSet<ServiceName>) -> Result<usize, Error> {
        Ok(0)
    }

    /// Stops new flows to every backend at an address at once, in all services, whatever `upsert` says of it, until
    /// [`Self::restore_backend`]. For a pod whose process died before the cluster knows. Says how many services changed.
    pub fn withdraw_backend(&mut self, _address: IpAddr) -> Result<usize, Error> {
        Ok(0)
    }

    /// Takes a withdrawal back. Says how many services changed.
    pub fn restore_backend(&mut self, _address: IpAddr) -> Result<usize, Error> {
        Ok(0)
    }

    /// Every service as it stands in the maps, by name, with its counters.
    pub fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error> {
        Ok(Vec::new())
    }

    /// Every flow in the tables.
    pub fn flows(&self) -> Result<Vec<Flow>, Error> {
        Ok(Vec::new())
    }

    /// How often packets were dropped, for each reason that there is.
    pub fn drops(&self) -> Result<Vec<DropCount>, Error> {
        Ok(Vec::new())
    }

    /// Takes aged flows out and frees what only they held. To be called about once a second.
    pub fn sweep(&mut self) -> Result<Swept, Error> {
        Ok(Swept::default())
    }

    /// Removes every pin under `pin_dir`, which detaches the programs and frees the maps. For teardown.
    pub fn remove_pins(_pin_dir: &Path) -> Result<(), Error> {
        Ok(())
    }

    /// What it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
