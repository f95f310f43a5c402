//! What pods ask about other pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::{cluster, node, pod, text, wait};
use crate::scheduler::{demand::Demand, snapshot::Snapshot, terms::Labels};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn zoned(name: &str, zone: &str) -> Node {
    node(name, &json!({"metadata": {"labels": {ZONE: zone}}}))
}

fn labelled(name: &str, app: &str, spec: &Value) -> Pod {
    pod(
        name,
        &json!({"metadata": {"labels": {"app": app}}, "spec": spec}),
    )
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn affinity(kind: &str, strength: &str, terms: &Value) -> Value {
    json!({"affinity": {kind: {strength: terms}}})
}

fn far_from(app: &str, key: &str) -> Value {
    affinity("podAntiAffinity", REQUIRED, &json!([term(app, key)]))
}

fn near(app: &str, key: &str) -> Value {
    affinity("podAffinity", REQUIRED, &json!([term(app, key)]))
}

fn put(snapshot: &mut Snapshot, pod: &Pod, node: &str) {
    snapshot.place(&Arc::new(Demand::of(pod)), node);
}

#[test]
fn anti_affinity_keeps_apart_and_says_so() {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    put(&mut snapshot, &labelled("a", "web", &json!({})), "n1");
    let apart = far_from("web", HOST);
    wait(
        &mut snapshot,
        &[labelled("b", "web", &apart), labelled("c", "web", &apart)],
    );
    assert_eq!(
        text(&snapshot),
        "b -> n2\n\
         c -> 0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. preemption: 0/2 nodes are \
         available: 2 No preemption victims found for incoming pod.\n"
    );
}

#[test]
fn pods_that_are_there_keep_others_away() {
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    let guard = labelled("guard", "db", &far_from("web", HOST));
    put(&mut snapshot, &guard, "n1");
    wait(
        &mut snapshot,
        &[
            labelled("a", "web", &json!({})),
            labelled("b", "api", &json!({})),
        ],
    );
    assert_eq!(
        text(&snapshot),
        "b -> n1\n\
         a -> 0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules. preemption: 0/1 \
         nodes are available: 1 No preemption victims found for incoming pod.\n"
    );
    snapshot.unplace(&Demand::of(&guard).key);
    assert!(text(&snapshot).contains("a -> n1\n"));
}

#[test]
fn affinity_brings_together_within_a_zone() {
    let mut snapshot = cluster(&[
        zoned("n1", "east"),
        zoned("n2", "east"),
        zoned("n3", "west"),
        node("n4", &json!({})),
    ]);
    wait(&mut snapshot, &[labelled("a", "web", &near("db", ZONE))]);
    assert_eq!(
        text(&snapshot),
        "a -> 0/4 nodes are available: 4 node(s) didn't match pod affinity rules. preemption: 0/4 nodes are \
         available: 4 Preemption is not helpful for scheduling.\n"
    );
    put(&mut snapshot, &labelled("db", "db", &json!({})), "n3");
    assert_eq!(text(&snapshot), "a -> n3\n");
    // Its zone has a new name: who is near whom is counted anew.
    snapshot.set_node(&zoned("n3", "north"));
    snapshot.set_node(&zoned("n4", "north"));
    snapshot.set_node(&node(
        "n3",
        &json!({"metadata": {"labels": {ZONE: "north"}}, "spec": {"unschedulable": true}}),
    ));
    assert_eq!(text(&snapshot), "a -> n4\n");
}

#[test]
fn the_first_of_a_group_may_begin_anywhere_with_the_label() {
    let mut snapshot = cluster(&[node("n1", &json!({})), zoned("n2", "east")]);
    let together = near("web", ZONE);
    wait(
        &mut snapshot,
        &[
            labelled("a", "web", &together),
            labelled("b", "web", &together),
        ],
    );
    assert_eq!(text(&snapshot), "a -> n2\nb -> n2\n");
}

#[test]
fn terms_reach_into_other_namespaces() {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    let labels = Labels::from([("team".to_owned(), "a".to_owned())]);
    snapshot.set_namespace("other", Some(&labels));
    let mut there = labelled("there", "web", &json!({}));
    there.metadata.namespace = Some("other".to_owned());
    put(&mut snapshot, &there, "n1");
    let named = |how: &Value| {
        let mut term = term("web", HOST);
        json_patch::merge(&mut term, how);
        affinity("podAntiAffinity", REQUIRED, &json!([term]))
    };
    for (how, is_far) in [
        (json!({}), false),
        (json!({"namespaces": ["other"]}), true),
        (json!({"namespaceSelector": {}}), true),
        (
            json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}),
            true,
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}),
            false,
        ),
    ] {
        let mut asking = labelled("asking", "x", &named(&how));
        let spec = asking.spec.as_mut().expect("a spec");
        spec.node_selector = Some(Labels::from([(HOST.to_owned(), "n1".to_owned())]));
        wait(&mut snapshot, std::slice::from_ref(&asking));
        let said = text(&snapshot);
        assert_eq!(said.contains("anti-affinity"), is_far, "{how}: {said}");
        snapshot.remove_pending(&Demand::of(&asking).key);
    }
    // The namespace's labels change: what they select is counted anew.
    let team_b = json!({"namespaceSelector": {"matchLabels": {"team": "b"}}});
    let mut asking = labelled("asking", "x", &named(&team_b));
    let spec = asking.spec.as_mut().expect("a spec");
    spec.node_selector = Some(Labels::from([(HOST.to_owned(), "n1".to_owned())]));
    wait(&mut snapshot, &[asking]);
    let labels = Labels::from([("team".to_owned(), "b".to_owned())]);
    snapshot.set_namespace("other", Some(&labels));
    assert!(text(&snapshot).contains("anti-affinity"));
}

#[test]
fn what_is_preferred_decides_between_nodes_that_will_do() {
    let nodes = || cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    let weighted = |weight: i64| json!([{"weight": weight, "podAffinityTerm": term("web", HOST)}]);
    for (kind, expected) in [
        ("podAffinity", "a -> n1\n"),
        ("podAntiAffinity", "a -> n2\n"),
    ] {
        // The pod's own wish, and the wish of one that is there.
        let mut snapshot = nodes();
        put(&mut snapshot, &labelled("there", "web", &json!({})), "n1");
        let wish = affinity(kind, PREFERRED, &weighted(100));
        wait(&mut snapshot, &[labelled("a", "x", &wish)]);
        assert_eq!(text(&snapshot), expected, "{kind}");
        let mut snapshot = nodes();
        put(&mut snapshot, &labelled("there", "x", &wish), "n1");
        wait(&mut snapshot, &[labelled("a", "web", &json!({}))]);
        assert_eq!(text(&snapshot), expected, "{kind}, the other way");
    }
}

fn spread(key: &str, change: &Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    json_patch::merge(&mut constraint, change);
    json!({"topologySpreadConstraints": [constraint]})
}

#[test]
fn spreading_keeps_the_skew() {
    let mut snapshot = cluster(&[
        zoned("n1", "east"),
        zoned("n2", "west"),
        node("n3", &json!({})),
    ]);
    let even = spread(ZONE, &json!({}));
    put(&mut snapshot, &labelled("there", "web", &json!({})), "n1");
    wait(&mut snapshot, &[labelled("a", "web", &even)]);
    assert_eq!(text(&snapshot), "a -> n2\n");
    snapshot.set_node(&node(
        "n2",
        &json!({"metadata": {"labels": {ZONE: "west"}}, "spec": {"unschedulable": true}}),
    ));
    assert_eq!(
        text(&snapshot),
        "a -> 0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) didn't match \
         pod topology spread constraints (missing required label), 1 node(s) were unschedulable. preemption: 0/3 \
         nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for \
         scheduling.\n"
    );
    // One on its way out is counted no longer.
    let mut leaving = Demand::of(&labelled("there", "web", &json!({})));
    leaving.is_terminating = true;
    snapshot.place(&Arc::new(leaving), "n1");
    assert_eq!(text(&snapshot), "a -> n1\n");
}

#[test]
fn spreading_looks_at_the_nodes_that_count() {
    // n3 is empty, but the pod's selector rules it out: by default it does not count, and n1 is as good as n2.
    let ssd = |name: &str, zone: &str| {
        node(
            name,
            &json!({"metadata": {"labels": {ZONE: zone, "disk": "ssd"}}}),
        )
    };
    let nodes = [ssd("n1", "east"), ssd("n2", "west"), zoned("n3", "north")];
    let asks = |change: &Value| {
        let mut spec = spread(ZONE, change);
        spec["nodeSelector"] = json!({"disk": "ssd"});
        labelled("c", "web", &spec)
    };
    for (change, fits) in [
        (json!({}), true),
        (json!({"nodeAffinityPolicy": "Ignore"}), false),
        (json!({"minDomains": 3}), false),
    ] {
        let mut snapshot = cluster(&nodes);
        put(&mut snapshot, &labelled("a", "web", &json!({})), "n1");
        put(&mut snapshot, &labelled("b", "web", &json!({})), "n2");
        wait(&mut snapshot, &[asks(&change)]);
        let said = text(&snapshot);
        assert_eq!(said.starts_with("c -> n"), fits, "{change}: {said}");
    }
    // A tainted node counts, unless the constraint says that taints are to be honoured.
    let tainted = node(
        "n2",
        &json!({"metadata": {"labels": {ZONE: "west"}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
    );
    for (policy, fits) in [("Ignore", false), ("Honor", true)] {
        let mut snapshot = cluster(&[zoned("n1", "east"), tainted.clone()]);
        put(&mut snapshot, &labelled("a", "web", &json!({})), "n1");
        let even = spread(ZONE, &json!({"nodeTaintsPolicy": policy}));
        wait(&mut snapshot, &[labelled("c", "web", &even)]);
        let said = text(&snapshot);
        assert_eq!(said == "c -> n1\n", fits, "{policy}: {said}");
    }
}

#[test]
fn spreading_that_is_only_wanted_never_keeps_a_pod_waiting() {
    let mut snapshot = cluster(&[zoned("n1", "east"), zoned("n2", "west")]);
    for name in ["a", "b", "c"] {
        put(&mut snapshot, &labelled(name, "web", &json!({})), "n1");
    }
    let wish = spread(ZONE, &json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    wait(&mut snapshot, &[labelled("d", "web", &wish)]);
    assert_eq!(text(&snapshot), "d -> n2\n");
    snapshot.remove_node("n2");
    assert_eq!(text(&snapshot), "d -> n1\n");
}

#[test]
fn keys_of_labels_tell_revisions_apart() {
    let mut snapshot = cluster(&[zoned("n1", "east"), zoned("n2", "west")]);
    let of = |name: &str, revision: &str, spec: &Value| {
        pod(
            name,
            &json!({"metadata": {"labels": {"app": "web", "revision": revision}}, "spec": spec}),
        )
    };
    for name in ["a", "b"] {
        put(&mut snapshot, &of(name, "1", &json!({})), "n1");
    }
    let mut even = spread(ZONE, &json!({"matchLabelKeys": ["revision"]}));
    even["nodeSelector"] = json!({HOST: "n1"});
    wait(&mut snapshot, &[of("c", "2", &even)]);
    assert_eq!(
        text(&snapshot),
        "c -> n1\n",
        "the old revision does not count"
    );
}

#[test]
fn counts_follow_every_change_and_are_forgotten_in_the_end() {
    let mut snapshot = cluster(&[zoned("n1", "east"), zoned("n2", "west")]);
    // More kinds of pods than are remembered: what is dropped and named again is counted anew.
    for round in 0..600 {
        let app = format!("app{round}");
        let there = labelled(&format!("there{round}"), &app, &json!({}));
        put(&mut snapshot, &there, "n1");
        wait(&mut snapshot, &[labelled("asking", "x", &near(&app, HOST))]);
        assert_eq!(text(&snapshot), "asking -> n1\n", "{round}");
        snapshot.remove_pending(&Demand::of(&labelled("asking", "x", &json!({}))).key);
        snapshot.unplace(&Demand::of(&there).key);
    }
    let busy = snapshot
        .ledger
        .tallies
        .iter()
        .filter(|tally| tally.total != 0);
    assert_eq!(busy.count(), 0);
    assert!(snapshot.ledger.tallies.len() < 300);
}
