//! The graph: which items a change makes worth looking at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{FOREGROUND, Graph};
use crate::controllers::resources::{PODS, REPLICA_SETS};

fn metadata(name: &str, owner: Option<&str>, more: &Value) -> ObjectMeta {
    let mut object = json!({"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"});
    if let Some(owner) = owner {
        object["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": format!("uid-{owner}"),
            "controller": true, "blockOwnerDeletion": true,
        }]);
    }
    json_patch::merge(&mut object, more);
    serde_json::from_value(object).expect("metadata")
}

fn names(items: &[super::Item]) -> Vec<&str> {
    items.iter().map(|item| item.key.name.as_str()).collect()
}

#[test]
fn dependents_are_looked_at_when_their_owner_goes_in_both_orders_of_arrival() {
    for owner_first in [true, false] {
        let graph = Graph::default();
        let owner = metadata("set", None, &json!({}));
        let dependent = metadata("pod", Some("set"), &json!({}));
        if owner_first {
            assert!(graph.change(REPLICA_SETS, None, Some(&owner)).is_empty());
        }
        assert_eq!(names(&graph.change(PODS, None, Some(&dependent))), ["pod"]);
        if !owner_first {
            assert!(graph.change(REPLICA_SETS, None, Some(&owner)).is_empty());
        }
        assert!(graph.by_uid("uid-set").is_some());
        assert_eq!(
            names(&graph.change(REPLICA_SETS, Some(&owner), None)),
            ["pod"]
        );
        assert!(graph.by_uid("uid-set").is_none());
        graph.change(PODS, Some(&dependent), None);
        assert!(graph.dependents("uid-set").is_empty());
    }
}

#[test]
fn an_owner_made_anew_under_the_same_name_is_another() {
    let graph = Graph::default();
    let owner = metadata("set", None, &json!({}));
    graph.change(REPLICA_SETS, None, Some(&owner));
    graph.change(PODS, None, Some(&metadata("pod", Some("set"), &json!({}))));
    let again = metadata("set", None, &json!({"uid": "another"}));
    assert_eq!(
        names(&graph.change(REPLICA_SETS, Some(&owner), Some(&again))),
        ["pod"]
    );
}

#[test]
fn a_waiting_owner_is_looked_at_whenever_a_dependent_goes() {
    let graph = Graph::default();
    let waiting = metadata(
        "set",
        None,
        &json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]}),
    );
    let dependent = metadata("pod", Some("set"), &json!({}));
    assert_eq!(
        names(&graph.change(REPLICA_SETS, None, Some(&waiting))),
        ["set"]
    );
    graph.change(PODS, None, Some(&dependent));
    assert!(
        graph
            .by_uid("uid-set")
            .is_some_and(|known| known.waits_for(FOREGROUND))
    );
    assert_eq!(names(&graph.change(PODS, Some(&dependent), None)), ["set"]);
}
