//! Allocation against a store in memory.

use std::{collections::BTreeMap, sync::Arc, sync::Mutex, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Allocations, Ranges, repair::Repair};
use crate::store::{
    self, Action, Guard, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch, Write,
    Written,
};

/// As much of a store as allocation uses.
#[derive(Default)]
struct Memory {
    state: Mutex<(Revision, BTreeMap<Bytes, KeyValue>)>,
}

fn unsupported() -> store::Error {
    store::Error::Unavailable("not a part of this fake".into())
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, store::Error> {
        Ok(self.state.lock().expect("whole").1.get(key).cloned())
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, store::Error> {
        let state = self.state.lock().expect("whole");
        let mut items: Vec<_> = state
            .1
            .values()
            .filter(|entry| entry.key.starts_with(&query.prefix))
            .filter(|entry| query.after.as_ref().is_none_or(|after| entry.key > *after))
            .cloned()
            .collect();
        let all = items.len();
        items.truncate(query.limit.unwrap_or(all));
        Ok(Range {
            remaining: (all - items.len()) as u64,
            items,
            revision: state.0,
        })
    }

    async fn write(&self, write: Write) -> Result<Written, store::Error> {
        let mut state = self.state.lock().expect("whole");
        let found = state.1.get(&write.key).cloned();
        let holds = match (&found, write.guard) {
            (Some(entry), Guard::At(revision)) => entry.mod_revision == revision,
            (None, Guard::Absent) | (_, Guard::Any) => true,
            _ => false,
        };
        if !holds || (found.is_none() && write.action == Action::Delete) {
            return Ok(Written::Refused(found));
        }
        state.0 += 1;
        let revision = state.0;
        match write.action {
            Action::Put { value, .. } => {
                let entry = KeyValue {
                    key: write.key.clone(),
                    value,
                    create_revision: revision,
                    mod_revision: revision,
                };
                state.1.insert(write.key, entry);
            }
            Action::Delete => {
                state.1.remove(&write.key);
            }
        }
        Ok(Written::Done(revision))
    }

    async fn watch(&self, _: &[u8], _: Option<Revision>) -> Result<Watch, store::Error> {
        Err(unsupported())
    }
    async fn revision(&self) -> Result<Revision, store::Error> {
        Err(unsupported())
    }
    async fn compact(&self, _: Revision) -> Result<(), store::Error> {
        Err(unsupported())
    }
    async fn lease_grant(&self, _: Duration) -> Result<LeaseId, store::Error> {
        Err(unsupported())
    }
    async fn lease_keep_alive(&self, _: LeaseId) -> Result<(), store::Error> {
        Err(unsupported())
    }
    async fn lease_revoke(&self, _: LeaseId) -> Result<(), store::Error> {
        Err(unsupported())
    }
}

struct World {
    store: Arc<Memory>,
    allocations: Arc<Allocations>,
}

impl World {
    fn new(service_cidrs: &[&str], node_ports: std::ops::RangeInclusive<u16>) -> Self {
        let store = Arc::new(Memory::default());
        let parse = |cidrs: &[&str]| {
            cidrs
                .iter()
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .collect()
        };
        let ranges = Ranges {
            service_cidrs: parse(service_cidrs),
            cluster_cidrs: parse(&["10.244.0.0/16", "fd00:10:244::/48"]),
            node_ports,
        };
        let as_store: Arc<dyn Store> = store.clone();
        Self {
            store,
            allocations: Allocations::new(&as_store, &ranges, 7),
        }
    }

    fn dual() -> Self {
        Self::new(&["10.96.0.0/16", "fd00:10:96::/112"], 30000..=32767)
    }

    fn held(&self) -> Vec<String> {
        let state = self.store.state.lock().expect("whole");
        let keys = state.1.keys();
        keys.map(|key| String::from_utf8_lossy(key).replace("/portolan/allocations/", ""))
            .collect()
    }

    async fn create(&self, name: &str, spec: Value) -> Result<Value, String> {
        let mut service = service(name, spec);
        match self.allocations.services.reserve(&mut service, None).await {
            Ok(reservation) => {
                reservation.commit().await.expect("it commits");
                Ok(service)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn update(&self, old: &Value, spec: Value) -> Result<Value, String> {
        let mut service = service(old["metadata"]["name"].as_str().expect("a name"), spec);
        match self
            .allocations
            .services
            .reserve(&mut service, Some(old))
            .await
        {
            Ok(reservation) => {
                reservation.commit().await.expect("it commits");
                Ok(service)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

fn service(name: &str, spec: impl Into<Value>) -> Value {
    json!({"metadata": {"namespace": "default", "name": name}, "spec": spec.into()})
}

fn ports() -> Value {
    json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80}])
}

#[tokio::test]
async fn a_plain_service_gets_one_address_of_the_primary_family() {
    let world = World::dual();
    let service = world
        .create("web", json!({"ports": ports(), "selector": {"a": "b"}}))
        .await
        .expect("made");
    let spec = &service["spec"];
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
    assert_eq!(
        world.held(),
        [format!(
            "addresses/{}",
            spec["clusterIP"].as_str().expect("text")
        )]
    );
    world
        .allocations
        .services
        .release(&service)
        .await
        .expect("released");
    assert!(world.held().is_empty());
}

#[tokio::test]
async fn both_families_where_asked_for_and_back_again() {
    let world = World::dual();
    let spec =
        json!({"ipFamilyPolicy": "PreferDualStack", "selector": {"a": "b"}, "ports": ports()});
    let dual = world.create("web", spec).await.expect("made");
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(world.held().len(), 2);

    let mut single = dual["spec"].clone();
    single["ipFamilyPolicy"] = json!("SingleStack");
    let single = world.update(&dual, single).await.expect("updated");
    assert_eq!(
        single["spec"]["clusterIPs"],
        json!([dual["spec"]["clusterIP"]])
    );
    assert_eq!(world.held().len(), 1);

    let spec = json!({"type": "ExternalName", "externalName": "example.org"});
    let external = world.update(&single, spec).await.expect("updated");
    assert_eq!(external["spec"].get("clusterIP"), None);
    assert!(world.held().is_empty());

    let spec = json!({"clusterIP": "None", "ports": ports()});
    let free = world.create("free", spec).await.expect("made");
    assert_eq!(
        free["spec"]["ipFamilyPolicy"], "RequireDualStack",
        "headless without selector"
    );
    assert_eq!(free["spec"]["clusterIPs"], json!(["None"]));
    assert!(world.held().is_empty());
}

#[tokio::test]
async fn addresses_that_are_asked_for_are_honoured_or_refused_in_kubernetes_words() {
    let world = World::dual();
    let ask = |ip: &str| json!({"clusterIP": ip, "ports": ports(), "selector": {"a": "b"}});
    let service = world.create("web", ask("10.96.0.10")).await.expect("made");
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.96.0.10"]));
    let six = world
        .create("six", ask("fd00:10:96::10"))
        .await
        .expect("made");
    assert_eq!(six["spec"]["ipFamilies"], json!(["IPv6"]));
    for (ip, why) in [
        (
            "10.96.0.10",
            "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated",
        ),
        (
            "10.96.0.1",
            "spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: provided IP is already allocated",
        ),
        (
            "1.2.3.4",
            "spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
        ),
    ] {
        assert_eq!(world.create("other", ask(ip)).await, Err(why.to_owned()));
    }
    let kubernetes = world
        .create("kubernetes", json!({"ports": ports()}))
        .await
        .expect("made");
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(world.held().len(), 3);
}

#[tokio::test]
async fn node_ports_are_asked_for_chosen_shared_and_refused() {
    let world = World::dual();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "selector": {"a": "b"}});
    world.create("web", spec.clone()).await.expect("made");
    assert_eq!(
        world.create("other", spec).await,
        Err(
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
                .to_owned()
        )
    );
    assert_eq!(
        world
            .create(
                "other",
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]})
            )
            .await,
        Err(
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. \
             The range of valid ports is 30000-32767"
                .to_owned()
        )
    );
    assert_eq!(
        world.held().len(),
        2,
        "what was refused left nothing behind: {:?}",
        world.held()
    );
    let dns = world
        .create("dns", json!({"type": "NodePort", "ports": ports()}))
        .await
        .expect("made");
    let numbers: Vec<_> = (0..3)
        .map(|index| dns["spec"]["ports"][index]["nodePort"].clone())
        .collect();
    assert_eq!(
        numbers[0], numbers[1],
        "TCP and UDP of one port share the number"
    );
    assert_ne!(numbers[0], numbers[2]);

    let mut plain = dns["spec"].clone();
    plain["type"] = json!("ClusterIP");
    let plain = world.update(&dns, plain).await.expect("updated");
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(world.held().len(), 3);
}

#[tokio::test]
async fn what_a_crashed_attempt_took_is_the_services_own() {
    let world = World::dual();
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}],
        "selector": {"a": "b"},
    });
    let mut attempt = service("web", spec.clone());
    let taken = world.allocations.services.reserve(&mut attempt, None).await;
    drop(taken.expect("reserved"));
    let before = world.held();
    let other = world.create("other", spec.clone()).await;
    other.expect_err("the attempt may be under way still");
    world.create("web", spec).await.expect("made");
    assert_eq!(world.held(), before);
}

#[tokio::test]
async fn an_update_keeps_what_it_does_not_mention() {
    let world = World::dual();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}});
    let made = world.create("web", spec.clone()).await.expect("made");
    let same = world.update(&made, spec).await.expect("updated");
    assert_eq!(same["spec"], made["spec"]);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 31000}], "selector": {"a": "b"}});
    let moved = world.update(&made, spec).await.expect("updated");
    assert_eq!(moved["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert!(world.held().contains(&"node-ports/31000".to_owned()));
    assert_eq!(world.held().len(), 2, "the old port is free again");
}

#[tokio::test]
async fn nothing_stays_taken_when_the_write_fails() {
    let world = World::dual();
    let mut object = service(
        "web",
        json!({"type": "NodePort", "ports": ports(), "ipFamilyPolicy": "RequireDualStack"}),
    );
    let reservation = world
        .allocations
        .services
        .reserve(&mut object, None)
        .await
        .expect("reserved");
    assert_eq!(world.held().len(), 4);
    reservation.rollback().await.expect("rolled back");
    assert!(world.held().is_empty());
}

#[tokio::test]
async fn a_full_range_says_so_and_the_last_address_is_found() {
    let world = World::new(&["10.96.0.0/27"], 30000..=30001);
    let spec = || json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
    for number in 0..29 {
        world
            .create(&format!("s{number}"), spec())
            .await
            .expect("there is room for 29 and kubernetes");
    }
    assert_eq!(
        world.create("more", spec()).await,
        Err("failed to allocate a serviceIP of IPv4: range is full".to_owned())
    );
    let dual = json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}], "selector": {"a": "b"}});
    assert_eq!(
        world.create("dual", dual).await,
        Err("spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services".to_owned())
    );
}

#[tokio::test]
async fn repair_frees_what_leaked_after_two_rounds_and_takes_again_what_is_missing() {
    let world = World::dual();
    let services = &world.allocations.services;
    let kept = world
        .create("kept", json!({"type": "NodePort", "ports": ports()}))
        .await
        .expect("made");
    let mut forgotten = service("leaked", json!({"ports": ports()}));
    let in_flight = services
        .reserve(&mut forgotten, None)
        .await
        .expect("reserved");
    drop(in_flight);
    let mut unheld = service(
        "lost",
        json!({"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"]}),
    );
    unheld["spec"]["ports"] = json!([]);
    let second = service("clashing", json!({"clusterIP": kept["spec"]["clusterIP"]}));
    let list = [kept.clone(), unheld, second];

    let mut repair = Repair::default();
    let books = services.books().await.expect("read");
    let clashes = repair
        .round(services, &books, &list)
        .await
        .expect("a round");
    assert_eq!(clashes.len(), 1);
    assert_eq!(
        (clashes[0].service.as_str(), clashes[0].holder.as_str()),
        ("default/clashing", "default/kept")
    );
    let leaked_item = format!(
        "addresses/{}",
        forgotten["spec"]["clusterIP"].as_str().expect("text")
    );
    assert!(
        world.held().contains(&leaked_item),
        "its Service may just be being written"
    );
    assert!(world.held().contains(&"addresses/10.96.7.7".to_owned()));

    let books = services.books().await.expect("read");
    repair
        .round(services, &books, &list)
        .await
        .expect("a round");
    assert!(!world.held().contains(&leaked_item));
    assert_eq!(world.held().len(), 4);
}

#[tokio::test]
async fn each_node_has_its_own_ranges_and_keeps_them() {
    let world = World::dual();
    let cidrs = &world.allocations.pod_cidrs;
    let text =
        |ranges: Vec<ipnet::IpNet>| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = text(cidrs.allocate("n1").await.expect("allocated"));
    assert_eq!(first, ["10.244.0.0/24", "fd00:10:244::/64"]);
    assert_eq!(
        text(cidrs.allocate("n2").await.expect("allocated")),
        ["10.244.1.0/24", "fd00:10:244:1::/64"]
    );
    assert_eq!(
        text(cidrs.allocate("n1").await.expect("allocated")),
        first,
        "asked again, the same"
    );
    cidrs.release("n1").await.expect("released");
    assert_eq!(text(cidrs.allocate("n3").await.expect("allocated")), first);
    let ranges = ["10.244.1.0/24".parse().expect("a CIDR")];
    let holder = cidrs
        .hold("n4", &ranges)
        .await
        .expect("answered")
        .expect("n2 has it");
    assert_eq!(holder.owner, "n2");
    assert_eq!(cidrs.holders().await.expect("answered"), ["n2", "n3"]);
}
