//! Following routes: snapshot, deltas, acks; the slow and the returning.

use std::sync::Arc;

use portolan_wire::v1 as wire;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use wire::follow_request::Message;
use wire::route_update::Change;
use wire::routes_client::RoutesClient;

use super::{PATIENCE, Plane};
use crate::api::{Caller, DeleteOptions, ObjectKey, WriteOptions};
use crate::resource::rows::{NODES, SERVICES};
use crate::routing::{NodeEntry, Table};

/// A node's side of the stream.
struct Agent {
    requests: mpsc::Sender<wire::FollowRequest>,
    updates: Streaming<wire::RouteUpdate>,
}

impl Agent {
    async fn connect(plane: &Plane, node: &str) -> Self {
        Self::connect_as(plane, &format!("system:node:{node}"), &["system:nodes"])
            .await
            .unwrap()
    }

    async fn connect_as(plane: &Plane, user: &str, groups: &[&str]) -> Result<Self, Status> {
        let channel = plane.connect(user, groups).await;
        let (requests, outbound) = mpsc::channel(8);
        let mut client = RoutesClient::new(channel);
        let updates = client
            .follow(ReceiverStream::new(outbound))
            .await?
            .into_inner();
        Ok(Self { requests, updates })
    }

    async fn say(&self, message: Message) {
        let request = wire::FollowRequest {
            message: Some(message),
        };
        self.requests.send(request).await.unwrap();
    }

    async fn hello(&self, node: &str, epoch: &str, generation: u64) {
        let (node_name, epoch) = (node.to_owned(), epoch.to_owned());
        self.say(Message::Hello(wire::Hello {
            node_name,
            epoch,
            generation,
        }))
        .await;
    }

    async fn ack(&self, generation: u64) {
        self.say(Message::Ack(wire::Ack {
            generation,
            ..wire::Ack::default()
        }))
        .await;
    }

    async fn next(&mut self) -> Result<wire::RouteUpdate, Status> {
        let update = timeout(PATIENCE, self.updates.message())
            .await
            .expect("an update in time")?;
        Ok(update.expect("the stream goes on"))
    }

    async fn refused(mut self) -> Code {
        self.next().await.unwrap_err().code()
    }
}

/// Publishes a table whose nodes have these names.
fn publish(plane: &Plane, names: &[&str]) {
    let node = |name: &&str| {
        let entry = NodeEntry {
            name: (*name).to_owned(),
            zone: String::new(),
            addresses: vec![
                "10.89.0.11".parse().unwrap(),
                "fd00:89::11".parse().unwrap(),
            ],
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        };
        ((*name).to_owned(), Arc::new(entry))
    };
    let table = Table {
        nodes: names.iter().map(node).collect(),
        ..Table::default()
    };
    plane.publisher.publish(table, Instant::now());
}

fn delta(update: wire::RouteUpdate) -> (u64, Vec<String>, Vec<String>) {
    let Some(Change::Delta(delta)) = update.change else {
        panic!("no delta: {update:?}");
    };
    let upserted = delta.upserted_nodes.into_iter().map(|node| node.name);
    (
        delta.base_generation,
        upserted.collect(),
        delta.deleted_nodes,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_a_snapshot_then_deltas() {
    let plane = Plane::start().await;
    let mut agent = Agent::connect(&plane, "n1").await;
    agent.hello("n1", "", 0).await;
    // Nothing is said before there is a table.
    publish(&plane, &["n1"]);
    let first = agent.next().await.unwrap();
    assert_eq!((first.epoch.as_str(), first.generation), ("epoch", 1));
    let Some(Change::Snapshot(snapshot)) = first.change else {
        panic!("a newcomer gets everything");
    };
    assert_eq!(snapshot.nodes[0].addresses[0], [10, 89, 0, 11]);
    assert_eq!(snapshot.nodes[0].addresses[1].len(), 16);
    assert_eq!(snapshot.nodes[0].pod_cidrs, ["10.244.0.0/24"]);
    agent.ack(1).await;
    publish(&plane, &["n2"]);
    let second = agent.next().await.unwrap();
    assert_eq!(second.generation, 2);
    assert_eq!(
        delta(second),
        (1, vec!["n2".to_owned()], vec!["n1".to_owned()])
    );
    agent.ack(2).await;
    let programmed = async {
        while plane.publisher.programming().latency().nodes.get("n1") != Some(&2) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, programmed)
        .await
        .expect("the ack is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_returns_gets_what_it_missed() {
    let plane = Plane::start().await;
    publish(&plane, &["n1"]);
    publish(&plane, &["n1", "n2"]);
    for (epoch, generation, base) in [
        ("epoch", 1, Some(1)),
        ("epoch", 2, Some(2)),
        ("older", 2, None),
    ] {
        let mut agent = Agent::connect(&plane, "n1").await;
        agent.hello("n1", epoch, generation).await;
        let update = agent.next().await.unwrap();
        assert_eq!(update.generation, 2);
        match base {
            // One who has everything is answered all the same: now it knows.
            Some(base) => assert_eq!(delta(update).0, base),
            None => assert!(matches!(update.change, Some(Change::Snapshot(_)))),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_follow_and_only_as_themselves() {
    let plane = Plane::start().await;
    publish(&plane, &["n1"]);
    for (user, groups, code) in [
        ("system:anonymous", &[][..], Code::Unauthenticated),
        (
            "kubernetes-admin",
            &["system:masters"],
            Code::PermissionDenied,
        ),
        (
            "system:node:n1",
            &["system:authenticated"],
            Code::PermissionDenied,
        ),
    ] {
        let Err(refused) = Agent::connect_as(&plane, user, groups).await else {
            panic!("{user} may not follow");
        };
        assert_eq!(refused.code(), code, "{user}");
    }
    let other = Agent::connect(&plane, "n1").await;
    other.hello("n2", "", 0).await;
    assert_eq!(other.refused().await, Code::PermissionDenied);
    let silent = Agent::connect(&plane, "n1").await;
    silent.ack(1).await;
    assert_eq!(silent.refused().await, Code::InvalidArgument);
}

/// One agent does not read while ten thousand entries change again and again; the other is served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_agent_slows_no_other() {
    const ROUNDS: u64 = 50;
    let plane = Plane::start().await;
    let names: Vec<String> = (0..2000).map(|number| format!("node-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    publish(&plane, &[]);
    let mut slow = Agent::connect(&plane, "slow").await;
    slow.hello("slow", "", 0).await;
    assert_eq!(slow.next().await.unwrap().generation, 1);
    let mut quick = Agent::connect(&plane, "quick").await;
    quick.hello("quick", "", 0).await;
    assert_eq!(quick.next().await.unwrap().generation, 1);
    for round in 1..=ROUNDS {
        publish(&plane, if round % 2 == 1 { &names } else { &[] });
        assert_eq!(quick.next().await.unwrap().generation, round + 1);
    }
    publish(&plane, &["last"]);
    let mut updates = 0;
    let mut generation = 1;
    while generation < ROUNDS + 2 {
        let update = slow.next().await.unwrap();
        generation = update.generation;
        updates += 1;
    }
    assert!(
        updates < ROUNDS,
        "{updates} updates: the slow one was sent every generation"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_when_the_server_stops() {
    let plane = Plane::start().await;
    publish(&plane, &["n1"]);
    let mut agent = Agent::connect(&plane, "n1").await;
    agent.hello("n1", "", 0).await;
    agent.next().await.unwrap();
    plane.shutdown.cancel();
    let end = timeout(PATIENCE, agent.updates.message())
        .await
        .expect("an end in time");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}

/// From the API's objects to a stream, and back to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_become_routes() {
    let plane = Plane::start().await;
    let api = plane.api();
    let caller = Caller::system("test");
    let options = WriteOptions::default();
    let source = crate::routing::run(Arc::clone(&api), Arc::clone(&plane.publisher));
    let source = tokio::spawn(source);
    let mut agent = Agent::connect(&plane, "n1").await;
    agent.hello("n1", "", 0).await;
    assert!(matches!(
        agent.next().await.unwrap().change,
        Some(Change::Snapshot(_))
    ));
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
    });
    api.create(&caller, NODES, None, node, &options)
        .await
        .unwrap();
    assert_eq!(delta(agent.next().await.unwrap()).1, ["n1"]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
        },
    });
    api.create(&caller, SERVICES, Some("default"), service, &options)
        .await
        .unwrap();
    let Some(Change::Delta(delta)) = agent.next().await.unwrap().change else {
        panic!("a delta comes after a delta");
    };
    assert_eq!(delta.upserted_services[0].id, "default/web:80/TCP");
    let key = ObjectKey {
        namespace: Some("default".to_owned()),
        name: "web".to_owned(),
    };
    api.delete(&caller, SERVICES, &key, &DeleteOptions::default())
        .await
        .unwrap();
    let Some(Change::Delta(delta)) = agent.next().await.unwrap().change else {
        panic!("a delta comes after a delta");
    };
    assert_eq!(delta.deleted_services, ["default/web:80/TCP"]);
    source.abort();
}
