//! Following routes: a control plane in this process on one side, recorded map writes on the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use portolan_agent::{
    join::NodeIdentity,
    network::{HostPort, PodDataplane, PodLink},
    routes::{DataplaneThread, FollowConfig, Follower, Here, Maps, Table, TableStore},
    servers::Servers,
};
use portolan_dataplane::{
    Error, Observed, PodInterface, Swept,
    local_share::BackendLoad,
    model::{
        DropCount, EventCount, Flow, Locality, Protocol, ReturnPath, Service, ServiceCounters,
        ServiceName, TableUse,
    },
    report::PacketReport,
};
use portolan_wire::v1::{
    self as wire, FollowRequest, RouteUpdate,
    follow_request::Message,
    route_update::Change,
    routes_server::{Routes, RoutesServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, Server, ServerTlsConfig},
};

mod authority;
mod maps;

use authority::Authority;
use maps::FakeMaps;

const PATIENCE: Duration = Duration::from_secs(10);

/// One stream that the agent opened: what it says, and a way to answer.
struct Session {
    requests: Streaming<FollowRequest>,
    updates: mpsc::Sender<Result<RouteUpdate, Status>>,
}

impl Session {
    async fn next(&mut self) -> Message {
        let request = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        let request = request
            .expect("in time")
            .expect("an open stream")
            .expect("a request");
        request.message.expect("a message")
    }

    async fn hello(&mut self) -> (String, u64) {
        match self.next().await {
            Message::Hello(hello) => {
                assert_eq!(hello.node_name, "n1");
                (hello.epoch, hello.generation)
            }
            Message::Ack(ack) => panic!("an ack instead of hello: {ack:?}"),
        }
    }

    async fn ack(&mut self) -> (u64, String) {
        match self.next().await {
            Message::Ack(ack) => {
                assert!(ack.applied_unix_nanos > 0);
                (ack.generation, ack.error)
            }
            Message::Hello(hello) => panic!("hello instead of an ack: {hello:?}"),
        }
    }

    async fn send(&self, update: RouteUpdate) {
        self.updates
            .send(Ok(update))
            .await
            .expect("the agent listens");
    }
}

struct RoutesService {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl Routes for RoutesService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<RouteUpdate, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (updates, outbound) = mpsc::channel(16);
        let session = Session {
            requests: request.into_inner(),
            updates,
        };
        self.sessions
            .send(session)
            .await
            .map_err(|_| Status::unavailable("ending"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

/// A control plane that a test plays.
struct Control {
    url: String,
    identity: NodeIdentity,
    sessions: mpsc::Receiver<Session>,
}

impl Control {
    async fn start() -> Self {
        Self::of(&Authority::new("portolan")).await
    }

    /// One of several servers of a cluster.
    async fn of(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let (sender, sessions) = mpsc::channel(4);
        let tls = ServerTlsConfig::new()
            .identity(authority.server_identity())
            .client_ca_root(Certificate::from_pem(&authority.pem));
        let server = Server::builder()
            .tls_config(tls)
            .expect("a TLS configuration")
            .add_service(RoutesServer::new(RoutesService { sessions: sender }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let (certificate, key) = authority.client_identity("system:node:n1");
        Self {
            url,
            identity: NodeIdentity::new(certificate, key, authority.pem.clone()),
            sessions,
        }
    }

    async fn session(&mut self) -> Session {
        let session = tokio::time::timeout(PATIENCE, self.sessions.recv()).await;
        session.expect("in time").expect("the server runs")
    }

    async fn follower(&self, state: &Path, maps: &FakeMaps, stored: Option<Table>) -> Follower {
        let servers = Servers::new(std::slice::from_ref(&self.url), "n1").expect("a server");
        self.follower_of(servers, state, maps, stored).await
    }

    async fn follower_of(
        &self,
        servers: Servers,
        state: &Path,
        maps: &FakeMaps,
        stored: Option<Table>,
    ) -> Follower {
        let config = FollowConfig {
            servers,
            identity: self.identity.clone(),
            here: Here {
                node: "n1".to_owned(),
                zone: String::new(),
                return_path: ReturnPath::default(),
                name_server: Vec::new(),
            },
            state_dir: state.to_owned(),
        };
        let maps = maps.clone();
        let (thread, _opening) = DataplaneThread::start(move || Ok((maps, ()))).expect("started");
        Follower::start(config, thread, stored)
            .await
            .expect("started")
    }
}

fn service(id: &str) -> wire::ServicePort {
    wire::ServicePort {
        id: id.to_owned(),
        protocol: wire::Protocol::Tcp.into(),
        endpoints: vec![wire::Endpoint {
            address: vec![10, 244, 1, 1],
            port: 8080,
            node: "n1".to_owned(),
            ready: true,
            ..wire::Endpoint::default()
        }],
        ..wire::ServicePort::default()
    }
}

fn snapshot(generation: u64, ids: &[&str]) -> RouteUpdate {
    RouteUpdate {
        epoch: "e".to_owned(),
        generation,
        change: Some(Change::Snapshot(wire::Snapshot {
            services: ids.iter().map(|id| service(id)).collect(),
            nodes: Vec::new(),
        })),
    }
}

fn delta(base: u64, generation: u64, upserted: &[&str], deleted: &[&str]) -> RouteUpdate {
    RouteUpdate {
        epoch: "e".to_owned(),
        generation,
        change: Some(Change::Delta(wire::Delta {
            base_generation: base,
            upserted_services: upserted.iter().map(|id| service(id)).collect(),
            deleted_services: deleted.iter().map(|&id| id.to_owned()).collect(),
            ..wire::Delta::default()
        })),
    }
}

#[tokio::test]
async fn a_snapshot_and_deltas_reach_the_maps_and_are_acked() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    let follower = control.follower(state.path(), &maps, None).await;
    let status = follower.status();
    tokio::spawn(follower.run());
    let mut session = control.session().await;
    assert_eq!(session.hello().await, (String::new(), 0));
    session.send(snapshot(7, &["a", "b"])).await;
    assert_eq!(session.ack().await, (7, String::new()));
    assert_eq!(maps.names(), ["a", "b"]);
    let seen = maps.state().services[&ServiceName("a".to_owned())].backends[0].locality;
    assert_eq!(seen, Locality::Node);
    session.send(delta(7, 8, &["c"], &["a"])).await;
    assert_eq!(session.ack().await, (8, String::new()));
    assert_eq!(maps.names(), ["b", "c"]);
    let status = status.borrow().clone();
    assert!(status.connected);
    assert_eq!((status.generation, status.services), (8, 2));
}

#[tokio::test]
async fn a_lost_stream_resumes_and_a_wrong_base_begins_anew() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    tokio::spawn(control.follower(state.path(), &maps, None).await.run());
    let mut session = control.session().await;
    session.hello().await;
    session.send(snapshot(1, &["a"])).await;
    session.ack().await;
    drop(session);

    let mut session = control.session().await;
    assert_eq!(session.hello().await, ("e".to_owned(), 1));
    session.send(delta(5, 6, &["b"], &[])).await;

    let mut session = control.session().await;
    assert_eq!(
        session.hello().await,
        (String::new(), 0),
        "asks for a snapshot"
    );
    assert_eq!(maps.names(), ["a"], "the refused delta changed nothing");
    session.send(snapshot(6, &["b"])).await;
    assert_eq!(session.ack().await, (6, String::new()));
    assert_eq!(maps.names(), ["b"]);
}

#[tokio::test]
async fn a_follower_moves_to_another_server_and_back() {
    let authority = Authority::new("portolan");
    let (first, second) = (Control::of(&authority).await, Control::of(&authority).await);
    let (maps, state) = (FakeMaps::default(), tempfile::tempdir().expect("a folder"));
    let urls = [first.url.clone(), second.url.clone()];
    let servers = Servers::new(&urls, "n1").expect("servers");
    let follower = first.follower_of(servers.clone(), state.path(), &maps, None);
    tokio::spawn(follower.await.run());
    let is_first = servers.current() == first.url;
    let (mut one, mut other) = if is_first {
        (first, second)
    } else {
        (second, first)
    };
    let mut session = one.session().await;
    session.hello().await;
    session.send(snapshot(7, &["a", "b"])).await;
    session.ack().await;
    drop(session);
    let mut session = other.session().await;
    assert_eq!(session.hello().await, ("e".to_owned(), 7));
    assert_eq!(maps.names(), ["a", "b"], "nothing was lost on the way");
    let mut update = snapshot(2, &["b", "c"]);
    update.epoch = "of another server".to_owned();
    session.send(update).await;
    assert_eq!(session.ack().await, (2, String::new()));
    assert_eq!(maps.names(), ["b", "c"]);
    // Someone else finds that the server does not do.
    servers.leave(&other.url, "test");
    let mut session = one.session().await;
    assert_eq!(session.hello().await, ("of another server".to_owned(), 2));
}

#[tokio::test]
async fn an_older_generation_is_refused() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    tokio::spawn(control.follower(state.path(), &maps, None).await.run());
    let mut session = control.session().await;
    session.hello().await;
    session.send(snapshot(5, &["a"])).await;
    session.ack().await;
    session.send(snapshot(4, &[])).await;
    let mut session = control.session().await;
    session.hello().await;
    assert_eq!(maps.names(), ["a"]);
}

#[tokio::test]
async fn the_stored_table_serves_until_control_speaks_and_then_leftovers_go() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    let mut table = Table::default();
    table.apply(snapshot(3, &["stored"])).expect("applied");
    // What an earlier agent left in the maps and no table names.
    let mut leftover = maps.clone();
    let stray =
        portolan_agent::routes::ServiceRoute::try_from(service("leftover")).expect("a service");
    let here = Here {
        node: "n1".to_owned(),
        zone: String::new(),
        return_path: ReturnPath::default(),
        name_server: Vec::new(),
    };
    leftover
        .upsert(&stray.seen_from(&here, &BTreeMap::new()))
        .expect("upserted");

    let follower = control.follower(state.path(), &maps, Some(table)).await;
    assert_eq!(
        maps.names(),
        ["leftover", "stored"],
        "before any control plane was asked"
    );
    let saver = follower.store().keep_saving(follower.tables());
    let running = tokio::spawn(follower.run());
    let mut session = control.session().await;
    assert_eq!(session.hello().await, ("e".to_owned(), 3));
    session.send(delta(3, 3, &[], &[])).await;
    assert_eq!(session.ack().await, (3, String::new()));
    assert_eq!(maps.names(), ["stored"]);
    session.send(delta(3, 4, &["new"], &[])).await;
    session.ack().await;

    running.abort();
    drop(running.await);
    tokio::time::timeout(PATIENCE, saver)
        .await
        .expect("in time")
        .expect("no panic");
    let stored = TableStore::new(state.path()).load().expect("on disk");
    assert_eq!((stored.generation, stored.services.len()), (4, 2));
}

/// An agent that is killed before the disk has heard of the last change must not take that change back.
#[tokio::test]
async fn the_maps_are_not_set_back_to_a_stored_table() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    let mut table = Table::default();
    table.apply(snapshot(3, &["web"])).expect("applied");
    let newer = Service::new(ServiceName("web".to_owned()), Protocol::Udp);
    maps.clone().upsert(&newer).expect("upserted");
    let protocol = || maps.state().services[&newer.name].protocol;

    let follower = control.follower(state.path(), &maps, Some(table)).await;
    assert_eq!(protocol(), Protocol::Udp, "as the maps had it");
    tokio::spawn(follower.run());
    let mut session = control.session().await;
    session.hello().await;
    session.send(delta(3, 3, &[], &[])).await;
    session.ack().await;
    assert_eq!(protocol(), Protocol::Tcp, "as the cluster says");
}

#[tokio::test]
async fn a_service_that_the_maps_refuse_is_named_in_the_ack_and_tried_again() {
    let (mut control, maps) = (Control::start().await, FakeMaps::default());
    let state = tempfile::tempdir().expect("a temporary directory");
    tokio::spawn(control.follower(state.path(), &maps, None).await.run());
    let mut session = control.session().await;
    session.hello().await;
    maps.state().refused.insert("b".to_owned());
    session.send(snapshot(1, &["a", "b"])).await;
    let (generation, error) = session.ack().await;
    assert_eq!(generation, 1);
    assert!(error.contains("the table of services is full"), "{error}");
    assert_eq!(maps.names(), ["a"]);
    maps.state().refused.clear();
    assert_eq!(session.ack().await, (1, String::new()));
    assert_eq!(maps.names(), ["a", "b"]);
}

#[tokio::test]
async fn a_pods_host_ports_come_and_go_with_the_pod() {
    let maps = FakeMaps::default();
    let served = maps.clone();
    let (thread, _opening) = DataplaneThread::start(move || Ok((served, ()))).expect("started");
    let pod = PodLink {
        host_interface: "ptl1".to_owned(),
        addresses: vec![IpAddr::from([10, 244, 1, 7])],
        pod_mac: [0; 6],
        netns: 0,
        host_ports: vec![HostPort {
            address: None,
            port: 8_080,
            protocol: "TCP".to_owned(),
            target: 80,
        }],
    };
    for _ in 0..2 {
        thread.attach_pod(pod.clone()).await.expect("attached");
        assert_eq!(maps.names(), ["host-port:ptl1/8080/TCP"]);
    }
    assert_eq!(thread.host_ports().len(), 1, "no table takes it away");
    thread.detach_pod("ptl1").await.expect("detached");
    assert!(maps.names().is_empty() && thread.host_ports().is_empty());
    // A port that is taken is the pod's error.
    maps.state()
        .refused
        .insert("host-port:ptl1/8080/TCP".to_owned());
    thread.attach_pod(pod).await.expect_err("refused");
}
