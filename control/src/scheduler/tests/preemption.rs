//! Pods that make way for others.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{cluster, node, pod, text, wait};
use crate::scheduler::{Policy, demand::Demand, plan, snapshot::Snapshot};

/// A pod with a priority that asks for so many thousandths of a CPU; nodes have 2000.
fn worth(name: &str, priority: i32, cpu: i32) -> Pod {
    let requests = json!({"cpu": format!("{cpu}m")});
    pod(
        name,
        &json!({"metadata": {"labels": {"app": name}}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": requests}}]}}),
    )
}

fn changed(pod: &Pod, change: &Value) -> Pod {
    let mut object = serde_json::to_value(pod).expect("JSON");
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).expect("a pod")
}

fn put(snapshot: &mut Snapshot, pod: &Pod, node: &str) {
    snapshot.place(&Arc::new(Demand::of(pod)), node);
}

/// The last line of a plan.
fn last(snapshot: &Snapshot) -> String {
    let text = text(snapshot);
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn the_fewest_and_least_important_make_way() {
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    for (name, priority, cpu) in [("a", 1, 500), ("b", 2, 500), ("c", 3, 500), ("d", 4, 500)] {
        put(&mut snapshot, &worth(name, priority, cpu), "n1");
    }
    wait(&mut snapshot, &[worth("high", 10, 1000)]);
    assert_eq!(
        text(&snapshot),
        "high -> 0/1 nodes are available: 1 Insufficient cpu.\nhigh preempts b, a on n1\n"
    );
    // One large pod goes rather than a small one that would not be enough by itself.
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    put(&mut snapshot, &worth("small", 1, 200), "n1");
    put(&mut snapshot, &worth("large", 2, 1800), "n1");
    wait(&mut snapshot, &[worth("high", 10, 1500)]);
    assert_eq!(last(&snapshot), "high preempts large on n1");
}

#[test]
fn the_node_where_it_does_the_least_harm_is_chosen() {
    let mut snapshot = cluster(&[
        node("n1", &json!({})),
        node("n2", &json!({})),
        node("n3", &json!({})),
    ]);
    put(&mut snapshot, &worth("important", 9, 2000), "n1");
    put(&mut snapshot, &worth("usual", 5, 2000), "n2");
    put(&mut snapshot, &worth("half", 5, 1000), "n3");
    put(&mut snapshot, &worth("other", 5, 1000), "n3");
    wait(&mut snapshot, &[worth("high", 10, 2000)]);
    assert_eq!(last(&snapshot), "high preempts usual on n2");
    // Of equals those go that run for the shortest time.
    let since = |pod: &Pod, hour: &str| {
        let time = format!("2026-01-01T{hour}:00:00Z");
        changed(pod, &json!({"status": {"startTime": time}}))
    };
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    put(&mut snapshot, &since(&worth("old", 5, 2000), "01"), "n1");
    put(&mut snapshot, &since(&worth("new", 5, 2000), "02"), "n2");
    wait(&mut snapshot, &[worth("high", 10, 2000)]);
    assert_eq!(last(&snapshot), "high preempts new on n2");
}

#[test]
fn budgets_are_respected_where_that_is_possible() {
    let budget = |app: &str| {
        let budget = json!({"metadata": {"name": app, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": app}}},
            "status": {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1}});
        serde_json::from_value(budget).expect("a budget")
    };
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    put(&mut snapshot, &worth("guarded", 1, 2000), "n1");
    put(&mut snapshot, &worth("free", 5, 2000), "n2");
    snapshot.set_budget(&budget("guarded"));
    wait(&mut snapshot, &[worth("high", 10, 2000)]);
    assert_eq!(last(&snapshot), "high preempts free on n2");
    // Where it is not, the more important pod wins.
    snapshot.set_budget(&budget("free"));
    assert_eq!(last(&snapshot), "high preempts guarded on n1");
    // On one node the one without a budget goes first.
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    put(&mut snapshot, &worth("guarded", 1, 1000), "n1");
    put(&mut snapshot, &worth("free", 5, 1000), "n1");
    snapshot.set_budget(&budget("guarded"));
    wait(&mut snapshot, &[worth("high", 10, 1000)]);
    assert_eq!(last(&snapshot), "high preempts free on n1");
}

#[test]
fn some_pods_do_not_preempt_and_some_nodes_are_beyond_help() {
    let mut snapshot = cluster(&[
        node("n1", &json!({})),
        node("n2", &json!({"spec": {"unschedulable": true}})),
    ]);
    put(&mut snapshot, &worth("low", 1, 2000), "n1");
    let polite = changed(
        &worth("polite", 10, 2000),
        &json!({"spec": {"preemptionPolicy": "Never"}}),
    );
    wait(&mut snapshot, &[polite]);
    assert_eq!(
        text(&snapshot),
        "polite -> 0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: not \
         eligible due to preemptionPolicy=Never.\n"
    );
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    put(&mut snapshot, &worth("low", 1, 2000), "n1");
    wait(&mut snapshot, &[worth("giant", 10, 9000)]);
    assert_eq!(
        text(&snapshot),
        "giant -> 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is \
         not helpful for scheduling.\n"
    );
}

#[test]
fn those_who_are_too_near_make_way_as_well() {
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    put(&mut snapshot, &worth("other", 1, 100), "n1");
    put(&mut snapshot, &worth("near", 1, 100), "n1");
    let term = json!({"labelSelector": {"matchLabels": {"app": "near"}}, "topologyKey": "kubernetes.io/hostname"});
    let far = changed(
        &worth("high", 10, 100),
        &json!({"spec": {"affinity": {"podAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}}),
    );
    wait(&mut snapshot, &[far]);
    assert_eq!(last(&snapshot), "high preempts near on n1");
}

#[test]
fn two_do_not_count_on_the_same_room() {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    put(&mut snapshot, &worth("a", 1, 2000), "n1");
    put(&mut snapshot, &worth("b", 1, 2000), "n2");
    wait(
        &mut snapshot,
        &[
            worth("high1", 10, 2000),
            worth("high2", 10, 2000),
            worth("high3", 10, 2000),
        ],
    );
    let plan = plan(&snapshot, &Policy::default());
    let mut nodes: Vec<_> = plan
        .preemptions
        .iter()
        .map(|one| one.node.as_str())
        .collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2"]);
}

#[test]
fn the_room_of_who_made_way_is_kept() {
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    let high = worth("high", 10, 2000);
    let mut leaving = Demand::of(&worth("low", 1, 2000));
    leaving.is_terminating = true;
    snapshot.place(&Arc::new(leaving.clone()), "n1");
    wait(&mut snapshot, std::slice::from_ref(&high));
    snapshot.nominate(&Arc::new(Demand::of(&high)), "n1");
    assert_eq!(
        text(&snapshot),
        "high -> 0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on \
         the nominated node.\n"
    );
    // Nobody who matters less takes it in the meantime; who matters more does.
    snapshot.unplace(&leaving.key);
    snapshot.remove_pending(&Demand::of(&high).key);
    wait(&mut snapshot, &[worth("quick", 5, 500)]);
    assert!(text(&snapshot).starts_with("quick -> 0/1 nodes are available: 1 Insufficient cpu."));
    wait(&mut snapshot, &[worth("higher", 20, 500)]);
    assert!(text(&snapshot).starts_with("higher -> n1\n"));
    wait(&mut snapshot, &[high]);
    assert!(
        text(&snapshot).contains("high -> 0/1"),
        "the higher one was first"
    );
}
