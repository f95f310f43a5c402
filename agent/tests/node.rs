//! The Node object and its heartbeat against an API that keeps objects in memory.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use portolan_agent::cluster::{Heartbeat, Machine, NodeFacts, pod_cidrs, register};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);
const NODE: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";

/// Objects by path, as an API server holds them.
#[derive(Clone, Default)]
struct Objects(Arc<Mutex<BTreeMap<String, Value>>>);

impl Objects {
    fn get(&self, path: &str) -> Option<Value> {
        self.0
            .lock()
            .expect("no panic under the lock")
            .get(path)
            .cloned()
    }

    fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut objects = self.0.lock().expect("no panic under the lock");
        change(objects.get_mut(path).expect("the object"));
    }

    fn handle(&self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut objects = self.0.lock().expect("no panic under the lock");
        let path = path.trim_end_matches("/status");
        if method == Method::POST {
            let name = body["metadata"]["name"].as_str().expect("a name");
            let path = format!("{path}/{name}");
            if objects.contains_key(&path) {
                return failure(409);
            }
            objects.insert(path, body.clone());
            return (StatusCode::CREATED, body);
        }
        let Some(object) = objects.get_mut(path) else {
            return failure(404);
        };
        if method == Method::PATCH {
            merge(object, body);
        }
        (StatusCode::OK, object.clone())
    }

    fn client(&self) -> kube::Client {
        let objects = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let objects = objects.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = objects.handle(&parts.method, parts.uri.path(), body);
                let answer = Body::from(serde_json::to_vec(&answer)?);
                let response = Response::builder().status(code).body(answer)?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
            }
        });
        kube::Client::new(service, "default")
    }

    /// Awaits a state of the objects.
    async fn reach(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(begin.elapsed() < PATIENCE, "{what}: {:#?}", self.0);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn ready(&self) -> Option<Value> {
        let node = self.get(NODE)?;
        let conditions = node["status"]["conditions"].as_array()?;
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready")?;
        Some(ready["status"].clone())
    }
}

/// RFC 7386, for objects.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

fn failure(code: u16) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "message": "no", "reason": "Test",
    });
    (StatusCode::from_u16(code).expect("a status code"), status)
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "n1".to_owned(),
        zone: Some("a".to_owned()),
        addresses: vec![IpAddr::from([10, 89, 0, 11])],
        machine: Machine::read(Path::new("/")).expect("procfs"),
    }
}

/// What control does when a node appears.
async fn allocate(objects: &Objects) {
    objects
        .reach("the node is registered", |objects| {
            objects.get(NODE).is_some()
        })
        .await;
    let shown = objects.ready();
    assert_eq!(
        shown,
        Some(json!("False")),
        "not ready before it can run pods"
    );
    objects.edit(NODE, |node| {
        node["metadata"]["uid"] = json!("u1");
        node["spec"] = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]});
    });
}

#[tokio::test]
async fn a_node_registers_waits_for_its_cidrs_and_beats() {
    let objects = Objects::default();
    let (client, facts) = (objects.client(), facts());
    let (node, ()) = tokio::join!(register(&client, &facts), allocate(&objects));
    assert_eq!(pod_cidrs(&node).len(), 1);

    let beating = tokio::spawn(Heartbeat::new(client, facts, "/".into()).run());
    objects
        .reach("a lease", |objects| objects.get(LEASE).is_some())
        .await;
    assert_eq!(objects.ready(), Some(json!("True")));
    let lease = objects.get(LEASE).expect("the lease");
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u1");
    beating.abort();
}

#[tokio::test]
async fn an_agent_that_starts_again_does_not_make_its_node_look_lost() {
    let objects = Objects::default();
    let (client, mut facts) = (objects.client(), facts());
    tokio::join!(register(&client, &facts), allocate(&objects));
    let beating = tokio::spawn(Heartbeat::new(client.clone(), facts.clone(), "/".into()).run());
    objects
        .reach("readiness", |objects| {
            objects.ready() == Some(json!("True"))
        })
        .await;
    beating.abort();

    facts.zone = Some("b".to_owned());
    register(&client, &facts).await;
    assert_eq!(objects.ready(), Some(json!("True")));
    let node = objects.get(NODE).expect("the node");
    assert_eq!(
        node["metadata"]["labels"]["topology.kubernetes.io/zone"],
        "b"
    );
}

#[tokio::test]
async fn a_node_that_was_thought_lost_says_that_it_is_not() {
    let objects = Objects::default();
    let (client, facts) = (objects.client(), facts());
    tokio::join!(register(&client, &facts), allocate(&objects));
    objects.edit(NODE, |node| {
        let conditions = node["status"]["conditions"]
            .as_array_mut()
            .expect("conditions");
        for condition in conditions {
            condition["status"] = json!("Unknown");
        }
    });
    let beating = tokio::spawn(Heartbeat::new(client, facts, "/".into()).run());
    objects
        .reach("readiness", |objects| {
            objects.ready() == Some(json!("True"))
        })
        .await;
    beating.abort();
}
