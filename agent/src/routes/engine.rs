//! The one thread that owns the dataplane.
//!
//! Its calls are short but block; async code hands in closures and awaits their results.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use portolan_dataplane::{
    Dataplane, Error, Observed, PodInterface, Swept,
    local_share::BackendLoad,
    model::{
        DropCount, EventCount, Flow, Network, Service, ServiceCounters, ServiceName, TableUse,
    },
    report::PacketReport,
};
use tokio::sync::oneshot;

use crate::{
    errors::chain,
    network::{BoxError, PodDataplane, PodLink},
};

/// What the agent does with a dataplane; tests stand another one in.
pub trait Maps: Send + 'static {
    /// See [`Dataplane::upsert`].
    fn upsert(&mut self, service: &Service) -> Result<(), Error>;
    /// See [`Dataplane::delete`].
    fn delete(&mut self, name: &ServiceName) -> Result<(), Error>;
    /// See [`Dataplane::prune`].
    fn prune(&mut self, keep: &BTreeSet<ServiceName>) -> Result<usize, Error>;
    /// See [`Dataplane::withdraw_backend`].
    fn withdraw_backend(&mut self, address: IpAddr) -> Result<usize, Error>;
    /// See [`Dataplane::restore_backend`].
    fn restore_backend(&mut self, address: IpAddr) -> Result<usize, Error>;
    /// See [`Dataplane::set_networks`].
    fn set_networks(&mut self, networks: &[Network]) -> Result<(), Error>;
    /// See [`Dataplane::attach_pod`].
    fn attach_pod(&mut self, pod: &PodInterface) -> Result<(), Error>;
    /// See [`Dataplane::detach_pod`].
    fn detach_pod(&mut self, host_interface: &str) -> Result<(), Error>;
    /// See [`Dataplane::services`].
    fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error>;
    /// See [`Dataplane::flows`].
    fn flows(&self) -> Result<Vec<Flow>, Error>;
    /// See [`Dataplane::drops`].
    fn drops(&self) -> Result<Vec<DropCount>, Error>;
    /// See [`Dataplane::events`].
    fn events(&self) -> Result<Vec<EventCount>, Error>;
    /// See [`Dataplane::describe`].
    fn describe(&self, observed: &Observed) -> Vec<PacketReport>;
    /// See [`Dataplane::sweep`].
    fn sweep(&mut self) -> Result<Swept, Error>;
    /// See [`Dataplane::tables`].
    fn tables(&self) -> Vec<TableUse>;
    /// See [`Dataplane::balance`].
    fn balance(&mut self, loads: &BTreeMap<IpAddr, BackendLoad>, now: Duration);
}

impl Maps for Dataplane {
    fn upsert(&mut self, service: &Service) -> Result<(), Error> {
        Dataplane::upsert(self, service)
    }

    fn delete(&mut self, name: &ServiceName) -> Result<(), Error> {
        Dataplane::delete(self, name)
    }

    fn prune(&mut self, keep: &BTreeSet<ServiceName>) -> Result<usize, Error> {
        Dataplane::prune(self, keep)
    }

    fn withdraw_backend(&mut self, address: IpAddr) -> Result<usize, Error> {
        Dataplane::withdraw_backend(self, address)
    }

    fn restore_backend(&mut self, address: IpAddr) -> Result<usize, Error> {
        Dataplane::restore_backend(self, address)
    }

    fn set_networks(&mut self, networks: &[Network]) -> Result<(), Error> {
        Dataplane::set_networks(self, networks)
    }

    fn attach_pod(&mut self, pod: &PodInterface) -> Result<(), Error> {
        Dataplane::attach_pod(self, pod)
    }

    fn detach_pod(&mut self, host_interface: &str) -> Result<(), Error> {
        Dataplane::detach_pod(self, host_interface)
    }

    fn services(&self) -> Result<Vec<(Service, ServiceCounters)>, Error> {
        Dataplane::services(self)
    }

    fn flows(&self) -> Result<Vec<Flow>, Error> {
        Dataplane::flows(self)
    }

    fn drops(&self) -> Result<Vec<DropCount>, Error> {
        Dataplane::drops(self)
    }

    fn events(&self) -> Result<Vec<EventCount>, Error> {
        Dataplane::events(self)
    }

    fn describe(&self, observed: &Observed) -> Vec<PacketReport> {
        Dataplane::describe(self, observed)
    }

    fn sweep(&mut self) -> Result<Swept, Error> {
        Dataplane::sweep(self)
    }

    fn tables(&self) -> Vec<TableUse> {
        Dataplane::tables(self)
    }

    fn balance(&mut self, loads: &BTreeMap<IpAddr, BackendLoad>, now: Duration) {
        Dataplane::balance(self, loads, now);
    }
}

/// The thread has ended, which it does only by a panic or at the agent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane's thread has stopped")]
pub struct DataplaneStopped;

type Job = Box<dyn FnOnce(&mut dyn Maps) + Send>;

/// Hands work to the thread that owns a dataplane.
#[derive(Clone)]
pub struct DataplaneThread {
    jobs: mpsc::Sender<Job>,
    /// The services of pods' host ports, which no routing table knows, by the pods' interfaces.
    host_ports: Arc<Mutex<BTreeMap<String, BTreeSet<ServiceName>>>>,
}

/// A dataplane that is being opened, which takes the kernel's verifier a while.
pub struct Opening<T> {
    outcome: oneshot::Receiver<Result<T, Error>>,
}

impl<T> Opening<T> {
    /// What opening yielded besides the dataplane.
    pub async fn finish(self) -> Result<T, Error> {
        self.outcome.await.unwrap_or_else(|_| {
            Err(Error::System {
                operation: "open",
                object: "the dataplane".to_owned(),
                source: std::io::Error::other(DataplaneStopped),
            })
        })
    }
}

impl DataplaneThread {
    /// Opens a dataplane on a thread of its own, which stays in the caller's network namespace. Work may be handed in
    /// at once; it is done when the dataplane is open.
    pub fn start<M: Maps, T: Send + 'static>(
        open: impl FnOnce() -> Result<(M, T), Error> + Send + 'static,
    ) -> Result<(Self, Opening<T>), Error> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (opened, outcome) = oneshot::channel();
        let work = move || {
            let (maps, outcome) = match open() {
                Ok((maps, yielded)) => (Some(maps), Ok(yielded)),
                Err(error) => (None, Err(error)),
            };
            // Not everyone who hands work in wants to know.
            drop(opened.send(outcome));
            if let Some(mut maps) = maps {
                for job in inbox {
                    job(&mut maps);
                }
            }
        };
        let builder = thread::Builder::new().name("dataplane".to_owned());
        match builder.spawn(work) {
            Ok(_) => {
                let host_ports = Arc::default();
                Ok((Self { jobs, host_ports }, Opening { outcome }))
            }
            Err(source) => Err(Error::System {
                operation: "start",
                object: "the dataplane's thread".to_owned(),
                source,
            }),
        }
    }

    /// Runs `work` on the dataplane.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Maps) -> T + Send + 'static,
    ) -> Result<T, DataplaneStopped> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |maps| {
            // A caller that went away does not want the result.
            drop(sender.send(work(maps)));
        });
        self.jobs.send(job).map_err(|_| DataplaneStopped)?;
        receiver.await.map_err(|_| DataplaneStopped)
    }

    /// The services that are not the routing table's to take away.
    pub fn host_ports(&self) -> BTreeSet<ServiceName> {
        self.published().values().flatten().cloned().collect()
    }

    fn published(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<ServiceName>>> {
        // Each change is one call, so that a panic leaves it whole.
        self.host_ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ages flows out once a second, as long as the thread lives.
    pub async fn keep_sweeping(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            ticks.tick().await;
            let Ok(swept) = self.call(Maps::sweep).await else {
                return;
            };
            match swept {
                Ok(swept) => {
                    is_failing = false;
                    tracing::trace!(?swept, "swept the flow tables");
                }
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    tracing::error!(error = %chain(&error), "can't sweep the flow tables");
                }
                Err(_) => {}
            }
        }
    }
}

#[async_trait]
impl PodDataplane for DataplaneThread {
    async fn attach_pod(&self, pod: PodLink) -> Result<(), BoxError> {
        let services: Vec<Service> = pod
            .host_ports
            .iter()
            .map(|port| port.service(&pod))
            .collect();
        let names = services.iter().map(|service| service.name.clone());
        self.published()
            .insert(pod.host_interface.clone(), names.collect());
        let pod = PodInterface {
            host_interface: pod.host_interface,
            addresses: pod.addresses,
            pod_mac: pod.pod_mac,
            netns: pod.netns,
        };
        self.call(move |maps| {
            maps.attach_pod(&pod)?;
            services.iter().try_for_each(|service| maps.upsert(service))
        })
        .await??;
        Ok(())
    }

    async fn detach_pod(&self, host_interface: &str) -> Result<(), BoxError> {
        let services = self
            .published()
            .get(host_interface)
            .cloned()
            .unwrap_or_default();
        let interface = host_interface.to_owned();
        self.call(move |maps| {
            services.iter().try_for_each(|name| maps.delete(name))?;
            maps.detach_pod(&interface)
        })
        .await??;
        self.published().remove(host_interface);
        Ok(())
    }
}
