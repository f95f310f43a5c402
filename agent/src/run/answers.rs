//! What the admin socket answers from.

use std::{fmt::Display, sync::Arc};

use async_trait::async_trait;
use portolan_dataplane::{
    model::{Service, ServiceCounters, TableUse, TcMode, XdpMode},
    report::Filter,
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{AgentRecord, SocketState, watching};
use crate::{
    admin::{AgentStatus, Answers, Request, ServiceReport},
    errors::chain,
    metrics::{Snapshot, Source},
    network::{DeviceChoice, PodRouting},
    pod::Manager,
    routes::{DataplaneThread, Maps, RouteStatus},
};

/// The running agent, as its admin socket sees it.
pub struct NodeAnswers {
    pub record: AgentRecord,
    pub dataplane: DataplaneThread,
    pub routes: watch::Receiver<RouteStatus>,
    pub manager: Arc<Manager>,
    pub xdp: XdpMode,
    pub tc: TcMode,
    pub sockets: SocketState,
    pub pod_network: PodRouting,
    pub pod_device: DeviceChoice,
}

#[async_trait]
impl Answers for NodeAnswers {
    async fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Status => {
                let tables = self.read(|maps| Ok(maps.tables())).await?;
                encode(&self.status(tables))
            }
            Request::Services => {
                let services = self.read(|maps| maps.services()).await?;
                encode(&self.reports(services))
            }
            Request::Flows => encode(&self.read(|maps| maps.flows()).await?),
            Request::Drops => encode(&self.read(|maps| maps.drops()).await?),
        }
    }

    async fn watch(&self, filter: Filter) -> Result<mpsc::Receiver<Value>, String> {
        watching::start(&self.record.pin_dir, &filter, self.dataplane.clone()).await
    }
}

#[async_trait]
impl Source for NodeAnswers {
    async fn snapshot(&self) -> Result<Snapshot, String> {
        let counted = self.read(|maps| {
            let counts = (maps.services()?, maps.drops()?, maps.events()?);
            Ok((counts, maps.tables()))
        });
        let ((services, drops, events), tables) = counted.await?;
        let status = self.status(tables);
        Ok(Snapshot {
            services,
            drops,
            events,
            generation: status.generation,
            connected: status.connected,
            failed_services: status.failed_services,
            pods: status.pods.len(),
            tables: status.tables,
        })
    }
}

impl NodeAnswers {
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Maps) -> Result<T, portolan_dataplane::Error> + Send + 'static,
    ) -> Result<T, String> {
        let outcome = self.dataplane.call(work).await.map_err(in_words)?;
        outcome.map_err(|error| chain(&error))
    }

    /// The services of the maps, and those that should be there and could not get in.
    fn reports(&self, services: Vec<(Service, ServiceCounters)>) -> Vec<ServiceReport> {
        let mut failures = self.routes.borrow().failures.clone();
        let mut reports: Vec<ServiceReport> = services
            .into_iter()
            .map(|(service, counters)| ServiceReport {
                name: service.name.clone(),
                error: failures.remove(&service.name),
                service: Some(service),
                counters,
            })
            .collect();
        reports.extend(failures.into_iter().map(|(name, error)| ServiceReport {
            name,
            error: Some(error),
            service: None,
            counters: ServiceCounters::default(),
        }));
        reports
    }

    fn status(&self, tables: Vec<TableUse>) -> AgentStatus {
        let adoption = self.manager.adoption();
        let routes = self.routes.borrow().clone();
        AgentStatus {
            node: self.record.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            adopted: adoption.containers,
            adoption_ms: u64::try_from(adoption.elapsed.as_millis()).unwrap_or(u64::MAX),
            xdp: self.xdp,
            tc: self.tc,
            sockets: self.sockets.clone(),
            pod_network: self.pod_network,
            pod_device: self.pod_device.clone(),
            connected: routes.connected,
            epoch: routes.epoch,
            generation: routes.generation,
            failed_services: routes.failures.len(),
            tables,
            addresses: self.record.node_addresses.clone(),
            pods: self.manager.snapshot(),
        }
    }
}

pub fn encode(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(in_words)
}

pub fn in_words(error: impl Display) -> String {
    error.to_string()
}
