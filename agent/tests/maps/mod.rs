//! The dataplane's maps, played in memory: what is written to them, and what they refuse.

use super::*;

/// Maps in memory.
#[derive(Clone, Default)]
pub struct FakeMaps(Arc<Mutex<FakeState>>);

#[derive(Default)]
pub struct FakeState {
    pub services: BTreeMap<ServiceName, Service>,
    pub refused: BTreeSet<String>,
}

impl FakeMaps {
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().expect("no panic under the lock")
    }

    pub fn names(&self) -> Vec<String> {
        self.state()
            .services
            .keys()
            .map(|name| name.0.clone())
            .collect()
    }
}

impl Maps for FakeMaps {
    fn upsert(&mut self, service: &Service) -> Result<(), Error> {
        let mut state = self.state();
        if state.refused.contains(&service.name.0) {
            return Err(Error::TableFull {
                table: "services",
                capacity: 1,
            });
        }
        state.services.insert(service.name.clone(), service.clone());
        Ok(())
    }

    fn delete(&mut self, name: &ServiceName) -> Result<(), Error> {
        self.state().services.remove(name);
        Ok(())
    }

    fn prune(&mut self, keep: &BTreeSet<ServiceName>) -> Result<usize, Error> {
        let mut state = self.state();
        let before = state.services.len();
        state.services.retain(|name, _| keep.contains(name));
        Ok(before - state.services.len())
    }

    fn withdraw_backend(&mut self, _address: IpAddr) -> Result<usize, Error> {
        Ok(0)
    }

    fn restore_backend(&mut self, _address: IpAddr) -> Result<usize, Error> {
        Ok(0)
    }

    fn set_networks(&mut self, _: &[portolan_dataplane::model::Network]) -> Result<(), Error> {
        Ok(())
    }

    fn attach_pod(&mut self, _pod: &PodInterface) -> Result<(), Error> {
        Ok(())
    }

    fn detach_pod(&mut self, _host_interface: &str) -> Result<(), Error> {
        Ok(())
    }

    fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error> {
        let services = self.state().services.values().cloned().collect::<Vec<_>>();
        Ok(services
            .into_iter()
            .map(|service| (service, ServiceCounters::default()))
            .collect())
    }

    fn flows(&self) -> Result<Vec<Flow>, Error> {
        Ok(Vec::new())
    }

    fn drops(&self) -> Result<Vec<DropCount>, Error> {
        Ok(Vec::new())
    }

    fn events(&self) -> Result<Vec<EventCount>, Error> {
        Ok(Vec::new())
    }

    fn describe(&self, _observed: &Observed) -> Vec<PacketReport> {
        Vec::new()
    }

    fn tables(&self) -> Vec<TableUse> {
        Vec::new()
    }

    fn balance(&mut self, _: &BTreeMap<IpAddr, BackendLoad>, _: Duration) {}

    fn sweep(&mut self) -> Result<Swept, Error> {
        Ok(Swept::default())
    }
}
