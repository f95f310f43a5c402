//! Plans as text: pods in, slices out, and back to none.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use super::plan::{Action, View, plan};
use crate::controllers::meta;

fn service(change: &Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "labels": {"team": "a"}},
        "spec": {
            "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).expect("a service")
}

fn pod(number: usize, change: &Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {"name": format!("p{number:03}"), "namespace": "default", "uid": format!("u{number}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9000}]}]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": format!("10.244.1.{number}")}, {"ip": format!("fd00:10:244::{number:x}")}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).expect("a pod"))
}

struct World {
    service: Service,
    pods: Vec<Arc<Pod>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl World {
    fn new(service: Service) -> Self {
        Self {
            service,
            pods: Vec::new(),
            slices: Vec::new(),
        }
    }

    /// Plans, writes the plan down, and carries it out.
    fn step(&mut self) -> String {
        let zones = BTreeMap::from([("n1".to_owned(), "east".to_owned())]);
        let actions = plan(&View {
            service: &self.service,
            pods: &self.pods,
            zones: &zones,
            slices: &self.slices,
        });
        let mut lines = Vec::new();
        for action in actions {
            lines.push(action.to_string());
            match action {
                Action::Create(slice) => self.slices.push(Arc::new(*slice)),
                Action::Update { old, new } => {
                    self.slices
                        .retain(|slice| slice.metadata.name != old.metadata.name);
                    self.slices.push(Arc::new(*new));
                }
                Action::Delete(gone) => {
                    self.slices
                        .retain(|slice| slice.metadata.name != gone.metadata.name);
                }
            }
        }
        lines.join("\n")
    }

    /// Slice names as A, B, C in the order in which they were made.
    fn readable(&mut self) -> String {
        let before: Vec<_> = self
            .slices
            .iter()
            .map(|s| meta::name(&s.metadata).to_owned())
            .collect();
        let text = self.step();
        let mut names = before;
        for slice in &self.slices {
            let name = meta::name(&slice.metadata).to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.iter().zip('A'..).fold(text, |text, (name, letter)| {
            text.replace(name.as_str(), &letter.to_string())
        })
    }

    fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self
            .slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .flat_map(|endpoint| endpoint.addresses.clone())
            .collect();
        addresses.sort();
        addresses
    }
}

#[test]
fn pods_come_change_and_go() {
    let mut world = World::new(service(&json!({})));
    assert_eq!(
        world.readable(),
        "create A IPv4",
        "a family without endpoints has an empty slice"
    );
    world.pods = vec![
        pod(1, &json!({})),
        pod(2, &json!({"spec": {"nodeName": "n2"}})),
    ];
    assert_eq!(
        world.readable(),
        "create B IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         \x20 10.244.1.2 ready serving on n2 in -\n\
         delete A"
    );
    world.pods[0] = pod(
        1,
        &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    world.pods[1] = pod(
        2,
        &json!({"spec": {"nodeName": "n2"}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    assert_eq!(
        world.readable(),
        "update A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 serving terminating on n1 in east\n\
         \x20 10.244.1.2 on n2 in -"
    );
    assert_eq!(world.readable(), "", "nothing left to do");
    world.pods = vec![pod(1, &json!({"status": {"phase": "Succeeded"}}))];
    assert_eq!(world.readable(), "create B IPv4\ndelete A");
}

#[test]
fn hints_follow_the_traffic_distribution() {
    let mut world = World::new(service(
        &json!({"spec": {"trafficDistribution": "PreferSameNode"}}),
    ));
    world.pods = vec![
        pod(1, &json!({})),
        pod(2, &json!({"spec": {"nodeName": "n2"}})),
        pod(
            3,
            &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        ),
    ];
    assert_eq!(
        world.readable(),
        "create A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving for-zone east for-node n1 on n1 in east\n\
         \x20 10.244.1.2 ready serving for-node n2 on n2 in -\n\
         \x20 10.244.1.3 on n1 in east"
    );
    world.service = service(&json!({"spec": {"trafficDistribution": "PreferClose"}}));
    assert_eq!(
        world.readable(),
        "update A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving for-zone east on n1 in east\n\
         \x20 10.244.1.2 ready serving on n2 in -\n\
         \x20 10.244.1.3 on n1 in east"
    );
    world.service = service(&json!({}));
    assert_eq!(
        world.readable(),
        "update A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         \x20 10.244.1.2 ready serving on n2 in -\n\
         \x20 10.244.1.3 on n1 in east"
    );
}

#[test]
fn weights_of_pods_stand_in_their_slice() {
    let mut world = World::new(service(&json!({})));
    let heavy = json!({"metadata": {"annotations": {"portolan.dev/weight": "250"}}});
    world.pods = vec![pod(1, &heavy), pod(2, &json!({}))];
    assert_eq!(
        world.readable(),
        "create A IPv4 weights {\"10.244.1.1\":250} http:8080/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         \x20 10.244.1.2 ready serving on n1 in east"
    );
    assert_eq!(world.readable(), "", "nothing left to do");
    world.pods = vec![pod(1, &json!({})), pod(2, &json!({}))];
    assert_eq!(
        world.readable(),
        "update A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         \x20 10.244.1.2 ready serving on n1 in east"
    );
}

#[test]
fn each_family_has_its_own_slices() {
    let mut world = World::new(service(&json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}})));
    world.pods = vec![pod(1, &json!({}))];
    assert_eq!(
        world.readable(),
        "create A IPv4 http:8080/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         create B IPv6 http:8080/TCP\n\
         \x20 fd00:10:244::1 ready serving on n1 in east"
    );
}

#[test]
fn named_ports_differ_from_pod_to_pod() {
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]);
    let mut world = World::new(service(&json!({"spec": {"ports": ports}})));
    let other = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9001}]}]}});
    world.pods = vec![pod(1, &json!({})), pod(2, &other)];
    assert_eq!(
        world.readable(),
        "create A IPv4 http:9000/TCP\n\
         \x20 10.244.1.1 ready serving on n1 in east\n\
         create B IPv4 http:9001/TCP\n\
         \x20 10.244.1.2 ready serving on n1 in east"
    );
}

#[test]
fn not_ready_pods_are_published_where_asked_for() {
    let mut world = World::new(service(
        &json!({"spec": {"publishNotReadyAddresses": true, "clusterIP": "None"}}),
    ));
    world.pods = vec![pod(1, &json!({"status": {"conditions": null}}))];
    assert_eq!(
        world.readable(),
        "create A IPv4 http:8080/TCP\n  10.244.1.1 ready on n1 in east"
    );
    let labels = world.slices[0]
        .metadata
        .labels
        .clone()
        .expect("it has labels");
    assert_eq!(
        labels
            .get("service.kubernetes.io/headless")
            .map(String::as_str),
        Some("")
    );
    assert_eq!(labels.get("team").map(String::as_str), Some("a"));
    assert_eq!(
        labels.get(super::SERVICE_NAME).map(String::as_str),
        Some("web")
    );
}

#[test]
fn a_hundred_to_a_slice_and_a_change_touches_one() {
    let mut world = World::new(service(&json!({})));
    world.pods = (1..=250).map(|number| pod(number, &json!({}))).collect();
    world.step();
    let mut sizes: Vec<_> = world
        .slices
        .iter()
        .map(|slice| slice.endpoints.iter().flatten().count())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    assert_eq!(world.addresses().len(), 250);

    world.pods.remove(17);
    let text = world.step();
    assert_eq!(
        text.lines().filter(|line| !line.starts_with(' ')).count(),
        1,
        "{text}"
    );
    world.pods.push(pod(251, &json!({})));
    world.pods.push(pod(252, &json!({})));
    let text = world.step();
    assert!(
        !text.contains("create"),
        "there is room in what there is: {text}"
    );
    assert_eq!(world.addresses().len(), 251);

    world.pods.truncate(1);
    world.step();
    assert_eq!(world.slices.len(), 1);
    assert_eq!(world.addresses(), ["10.244.1.1"]);
}

#[test]
fn both_orders_of_events_end_alike() {
    let pods = [pod(1, &json!({})), pod(2, &json!({})), pod(3, &json!({}))];
    let mut ends = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut world = World::new(service(&json!({})));
        for index in order {
            world.pods.push(Arc::clone(&pods[index]));
            world.step();
        }
        world
            .pods
            .retain(|pod| pod.metadata.name.as_deref() != Some("p002"));
        world.step();
        ends.push(world.addresses());
    }
    assert_eq!(ends[0], ends[1]);
}
