//! Follows the control plane's routing table and makes the maps hold it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use portolan_dataplane::model::{ReturnPath, Service, ServiceName};
use portolan_wire::v1::{
    Ack, FollowRequest, Hello, RouteUpdate, follow_request::Message, routes_client::RoutesClient,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{
    engine::{DataplaneStopped, DataplaneThread},
    store::TableStore,
    table::{Change, Table, UpdateError},
    view::Here,
};
use crate::{
    errors::{Backoff, chain},
    join::{NodeIdentity, server_name},
    servers::Servers,
};

/// Services written to the maps in one job; between jobs a withdrawal gets its turn.
const BATCH: usize = 64;
/// How soon entries that did not get into the maps are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How soon a server that has stopped is found out.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);

/// Where the table comes from and who follows it.
#[derive(Clone, Debug)]
pub struct FollowConfig {
    /// The control servers.
    pub servers: Servers,
    /// What the node shows it.
    pub identity: NodeIdentity,
    /// This node.
    pub here: Here,
    /// Where the table is kept.
    pub state_dir: PathBuf,
}

/// How the following goes, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RouteStatus {
    /// The history that `generation` counts in.
    pub epoch: String,
    /// What the maps hold.
    pub generation: u64,
    /// Whether the control plane is being followed right now.
    pub connected: bool,
    /// Services in the table.
    pub services: usize,
    /// Services whose newest version the maps refused, and why.
    pub failures: BTreeMap<ServiceName, String>,
}

/// Why a session with the control plane ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0:?} is not the https URL of a control server")]
    Server(String),
    #[error("can't reach the control plane")]
    Connect(#[from] tonic::transport::Error),
    #[error("the control plane ended the stream of routes")]
    Stream(#[from] tonic::Status),
    #[error("the stream of routes has ended")]
    Ended,
    #[error("refused an update of the routes")]
    Update(#[from] UpdateError),
    #[error("the control server was left for another")]
    Left,
    #[error(transparent)]
    Stopped(#[from] DataplaneStopped),
}

impl SessionError {
    /// Whether another server may do better.
    fn is_the_servers(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Stream(_) | Self::Ended)
    }
}

/// The follower of one node.
pub struct Follower {
    config: FollowConfig,
    dataplane: DataplaneThread,
    table: Table,
    tables: watch::Sender<Arc<Table>>,
    status: watch::Sender<RouteStatus>,
    /// Not in the maps as the table has them.
    failed: BTreeMap<ServiceName, String>,
    /// What earlier agents left in the maps is there until the control plane has spoken.
    is_pruned: bool,
    needs_snapshot: bool,
}

impl Follower {
    /// Puts what the maps lack of the stored table into them.
    ///
    /// Maps outlive an agent, and the disk hears of a change after them: what the maps hold may be newer than the
    /// stored table, never older. After a boot they are empty, and all of the table goes in.
    pub async fn start(
        config: FollowConfig,
        dataplane: DataplaneThread,
        stored: Option<Table>,
    ) -> Result<Self, DataplaneStopped> {
        let table = stored.unwrap_or_default();
        let (tables, _) = watch::channel(Arc::new(table.clone()));
        let mut follower = Self {
            config,
            dataplane,
            table,
            tables,
            status: watch::Sender::default(),
            failed: BTreeMap::new(),
            is_pruned: false,
            needs_snapshot: false,
        };
        let held = follower.dataplane.call(|maps| maps.services()).await?;
        let held: BTreeSet<ServiceName> = held
            .inspect_err(|error| tracing::error!(error = %chain(error), "the maps can't be read"))
            .unwrap_or_default()
            .into_iter()
            .map(|(service, _)| service.name)
            .collect();
        let named = follower.table.services.keys();
        let change = Change {
            upserted: named.filter(|name| !held.contains(name)).cloned().collect(),
            ..Change::default()
        };
        follower.write(&change).await?;
        follower.publish(false);
        Ok(follower)
    }

    /// The table as it is in the maps: for its nodes, and for the disk.
    pub fn tables(&self) -> watch::Receiver<Arc<Table>> {
        self.tables.subscribe()
    }

    /// How the following goes.
    pub fn status(&self) -> watch::Receiver<RouteStatus> {
        self.status.subscribe()
    }

    /// The store that the table belongs in.
    pub fn store(&self) -> TableStore {
        TableStore::new(&self.config.state_dir)
    }

    /// Follows for ever; ends only with the dataplane's thread.
    pub async fn run(mut self) -> DataplaneStopped {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let (server, left) = self.config.servers.session();
            match self.session(&server, &left, &mut backoff).await {
                Ok(never) => match never {},
                Err(SessionError::Stopped(stopped)) => return stopped,
                Err(error) => {
                    self.needs_snapshot |= matches!(error, SessionError::Update(_));
                    self.publish(false);
                    if error.is_the_servers() {
                        self.config.servers.leave(&server, &chain(&error));
                    }
                    let pause = backoff.pause();
                    tracing::warn!(error = %chain(&error), retry_in = ?pause, "no routes for now");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One stream, from Hello to its end.
    async fn session(
        &mut self,
        server: &str,
        left: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, SessionError> {
        let connected = left.run_until_cancelled(self.connect(server)).await;
        let channel = connected.ok_or(SessionError::Left)??;
        let mut client = RoutesClient::new(channel).max_decoding_message_size(usize::MAX);
        let (requests, outbound) = mpsc::channel(16);
        let hello = Message::Hello(self.hello());
        if requests
            .send(FollowRequest {
                message: Some(hello),
            })
            .await
            .is_err()
        {
            return Err(SessionError::Ended);
        }
        let mut updates = client
            .follow(ReceiverStream::new(outbound))
            .await?
            .into_inner();
        let mut retries = tokio::time::interval(RETRY_EVERY);
        loop {
            tokio::select! {
                update = updates.message() => {
                    let update = update?.ok_or(SessionError::Ended)?;
                    self.take_in(update, &requests).await?;
                    backoff.reset();
                }
                _ = retries.tick(), if !self.failed.is_empty() => self.retry(&requests).await?,
                // Only here: what was begun in the maps is brought to its end.
                () = left.cancelled() => return Err(SessionError::Left),
            }
        }
    }

    async fn connect(&self, server: &str) -> Result<Channel, SessionError> {
        let identity = &self.config.identity;
        let name = server_name(server).ok_or_else(|| SessionError::Server(server.to_owned()))?;
        let tls = ClientTlsConfig::new()
            .domain_name(name)
            .ca_certificate(Certificate::from_pem(&identity.ca))
            .identity(Identity::from_pem(&identity.certificate, &identity.key));
        let endpoint = Endpoint::from_shared(server.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_EVERY)
            .keep_alive_while_idle(true)
            .tls_config(tls)?;
        Ok(endpoint.connect().await?)
    }

    fn hello(&self) -> Hello {
        let node_name = self.config.here.node.clone();
        if self.needs_snapshot {
            return Hello {
                node_name,
                ..Hello::default()
            };
        }
        Hello {
            node_name,
            epoch: self.table.epoch.clone(),
            generation: self.table.generation,
        }
    }

    async fn take_in(
        &mut self,
        update: RouteUpdate,
        requests: &mpsc::Sender<FollowRequest>,
    ) -> Result<(), SessionError> {
        if self.needs_snapshot {
            // Whatever the agent held did not fit: what comes now stands for itself.
            self.table.epoch.clear();
            self.needs_snapshot = false;
        }
        let mut change = self.table.apply(update)?;
        if !self.is_pruned {
            // What the maps held when this agent started is replaced now that the table is the cluster's.
            change.upserted.extend(self.table.services.keys().cloned());
        }
        if change.nodes_changed && self.config.here.return_path == ReturnPath::Direct {
            // Services that do not say it have their backends' nodes in the maps too.
            let services = self.table.services.values();
            let silent = services.filter(|service| service.return_path.is_none());
            change
                .upserted
                .extend(silent.map(|service| service.name.clone()));
        }
        let mut errors: Vec<String> = change.rejected.iter().map(ToString::to_string).collect();
        errors.extend(self.write(&change).await?);
        if !self.is_pruned {
            errors.extend(self.prune().await?);
        }
        tracing::debug!(
            generation = self.table.generation,
            upserted = change.upserted.len(),
            deleted = change.deleted.len(),
            "routes are in the maps"
        );
        self.publish(true);
        self.ack(errors, requests).await
    }

    async fn retry(&mut self, requests: &mpsc::Sender<FollowRequest>) -> Result<(), SessionError> {
        let change = Change {
            upserted: self.failed.keys().cloned().collect(),
            ..Change::default()
        };
        let before = self.failed.clone();
        let errors = self.write(&change).await?;
        if errors.is_empty() || self.failed != before {
            self.publish(true);
            self.ack(errors, requests).await?;
        }
        Ok(())
    }

    /// Brings a change into the maps; the result says what did not get there. Deletions first: they free frontends that
    /// another service may have taken over.
    async fn write(&mut self, change: &Change) -> Result<Vec<String>, DataplaneStopped> {
        let deleted: Vec<ServiceName> = change.deleted.iter().cloned().collect();
        let mut errors = Vec::new();
        for name in &deleted {
            self.failed.remove(name);
        }
        for batch in deleted.chunks(BATCH) {
            let batch = batch.to_vec();
            let failures = self.dataplane.call(move |maps| {
                let failed = batch.iter().filter_map(|name| maps.delete(name).err());
                failed.map(|error| chain(&error)).collect::<Vec<_>>()
            });
            errors.extend(failures.await?);
        }
        let here = &self.config.here;
        let upserted: Vec<Service> = change
            .upserted
            .iter()
            .filter_map(|name| self.table.services.get(name))
            .map(|route| route.seen_from(here, &self.table.nodes))
            .collect();
        for batch in upserted.chunks(BATCH) {
            let batch = batch.to_vec();
            let outcomes = self.dataplane.call(move |maps| {
                let outcomes = batch.into_iter().map(|service| {
                    let failure = maps.upsert(&service).err().map(|error| chain(&error));
                    (service.name, failure)
                });
                outcomes.collect::<Vec<_>>()
            });
            for (name, failure) in outcomes.await? {
                match failure {
                    None => {
                        self.failed.remove(&name);
                    }
                    Some(error) => {
                        if self.failed.get(&name) != Some(&error) {
                            tracing::error!(
                                service = name.0,
                                error,
                                "a service is not in the maps"
                            );
                        }
                        errors.push(error.clone());
                        self.failed.insert(name, error);
                    }
                }
            }
        }
        Ok(errors)
    }

    async fn prune(&mut self) -> Result<Option<String>, DataplaneStopped> {
        let mut keep: BTreeSet<ServiceName> = self.table.services.keys().cloned().collect();
        keep.extend(self.dataplane.host_ports());
        match self.dataplane.call(move |maps| maps.prune(&keep)).await? {
            Ok(pruned) => {
                self.is_pruned = true;
                if pruned > 0 {
                    tracing::info!(pruned, "took services away that went while no agent ran");
                }
                Ok(None)
            }
            Err(error) => Ok(Some(chain(&error))),
        }
    }

    async fn ack(
        &self,
        errors: Vec<String>,
        requests: &mpsc::Sender<FollowRequest>,
    ) -> Result<(), SessionError> {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ack = Ack {
            generation: self.table.generation,
            applied_unix_nanos: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            error: errors.join("; "),
        };
        let request = FollowRequest {
            message: Some(Message::Ack(ack)),
        };
        requests
            .send(request)
            .await
            .map_err(|_| SessionError::Ended)
    }

    fn publish(&self, connected: bool) {
        let table = &self.table;
        self.tables.send_if_modified(|published| {
            let is_news = **published != *table;
            if is_news {
                *published = Arc::new(table.clone());
            }
            is_news
        });
        self.status.send_replace(RouteStatus {
            epoch: table.epoch.clone(),
            generation: table.generation,
            connected,
            services: table.services.len(),
            failures: self.failed.clone(),
        });
    }
}
