//! `PodDisruptionBudget`s: how many pods may be evicted just now. Evictions take from status.disruptionsAllowed by
//! compare-and-swap (`api::eviction`) and note the pod in status.disruptedPods; here it is counted anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use super::{
    Context,
    cache::{Change, key_of},
    clock,
    informers::Informers,
    meta,
    pod_control::Owner,
    pods,
    resources::DISRUPTION_BUDGETS,
    worker::{Controller, Error, Outcome, own_key},
};
use crate::api::ObjectKey;

/// An evicted pod that is still not terminating after this time was not evicted.
const EVICTION: Duration = Duration::from_mins(2);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let (shared, budgets) = (
        Arc::clone(context),
        Arc::clone(&informers.disruption_budgets),
    );
    Controller::new("disruption", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.disruption_budgets, own_key)
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let mut keys: Vec<ObjectKey> = change
            .sides()
            .flat_map(|pod| {
                let near = budgets.cache().in_namespace(meta::namespace(&pod.metadata));
                let labels = pod.metadata.labels.clone();
                near.into_iter()
                    .filter(move |budget| selects(budget, labels.as_ref()))
            })
            .map(|budget| key_of(&budget.metadata))
            .collect();
        keys.dedup();
        keys
    })
}

/// Whether a budget is for pods with these labels. Unlike a workload's, its empty selector means every pod.
pub fn selects(budget: &PodDisruptionBudget, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        let empty = selector
            .match_labels
            .as_ref()
            .is_none_or(BTreeMap::is_empty)
            && selector
                .match_expressions
                .as_ref()
                .is_none_or(Vec::is_empty);
        empty || meta::matches(selector, labels)
    })
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(budget) = informers.disruption_budgets.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    let near = informers
        .pods
        .cache()
        .in_namespace(meta::namespace(&budget.metadata));
    let own: Vec<Arc<Pod>> = near
        .into_iter()
        .filter(|pod| selects(&budget, pod.metadata.labels.as_ref()) && !pods::is_finished(pod))
        .collect();
    let before = budget.status.clone().unwrap_or_default();
    let (status, later) = status(&budget, &own, scale(informers, &own), context.clock.now());
    let owner = Owner {
        resource: DISRUPTION_BUDGETS,
        api_version: "policy/v1",
        kind: "PodDisruptionBudget",
        metadata: &budget.metadata,
    };
    owner.write_status(context, &before, &status).await?;
    Ok(later.map_or(Outcome::Done, Outcome::After))
}

/// How many pods the controllers of these pods want together; `None`: one of them does not say.
fn scale(informers: &Informers, own: &[Arc<Pod>]) -> Option<i32> {
    let mut counted = BTreeSet::new();
    let mut total = 0;
    for pod in own {
        let owner = meta::controller_of(&pod.metadata)?;
        let key = ObjectKey {
            namespace: pod.metadata.namespace.clone(),
            name: owner.name.clone(),
        };
        let (uid, replicas) = match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = informers.replica_sets.cache().get(&key)?;
                match meta::controller_of(&set.metadata) {
                    Some(above) if above.kind == "Deployment" => {
                        let key = ObjectKey {
                            name: above.name.clone(),
                            ..key
                        };
                        let deployment = informers.deployments.cache().get(&key)?;
                        (above.uid.clone(), deployment.spec.as_ref()?.replicas)
                    }
                    _ => (owner.uid.clone(), set.spec.as_ref()?.replicas),
                }
            }
            "StatefulSet" => {
                let set = informers.stateful_sets.cache().get(&key)?;
                (owner.uid.clone(), set.spec.as_ref()?.replicas)
            }
            _ => return None,
        };
        if counted.insert(uid) {
            total += replicas.unwrap_or(1);
        }
    }
    Some(total)
}

fn percent(text: &str, all: i32) -> i32 {
    let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0);
    let share = (i64::from(all) * percent + 99).div_euclid(100);
    i32::try_from(share).unwrap_or(i32::MAX)
}

/// How many pods there should be and how many must be healthy; `None`: that can't be told.
fn wanted(spec: &PodDisruptionBudgetSpec, count: i32, scale: Option<i32>) -> Option<(i32, i32)> {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = scale?;
            let most = match most {
                IntOrString::Int(number) => *number,
                IntOrString::String(text) => percent(text, expected),
            };
            Some((expected, (expected - most).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Some((count, *least)),
        (None, Some(IntOrString::String(text))) => {
            let expected = scale?;
            Some((expected, percent(text, expected)))
        }
        (None, None) => Some((count, 1)),
    }
}

/// The status of a budget over its pods, and when to look again.
fn status(
    budget: &PodDisruptionBudget,
    own: &[Arc<Pod>],
    scale: Option<i32>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let before = budget.status.clone().unwrap_or_default();
    let mut later = None;
    let mut disrupted = before.disrupted_pods.unwrap_or_default();
    disrupted.retain(|name, at| {
        let mut pods = own.iter();
        let here = pods.any(|pod| {
            pod.metadata.name.as_deref() == Some(name) && !meta::is_terminating(&pod.metadata)
        });
        let left = EVICTION.saturating_sub(clock::elapsed(at.0, now));
        if here && !left.is_zero() {
            later = Some(later.map_or(left, |other: Duration| other.min(left)));
        }
        here && !left.is_zero()
    });
    let healthy = own.iter().filter(|pod| {
        let going = meta::is_terminating(&pod.metadata)
            || disrupted.contains_key(meta::name(&pod.metadata));
        !going && pods::is_ready(pod)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let count = i32::try_from(own.len()).unwrap_or(i32::MAX);
    let default = PodDisruptionBudgetSpec::default();
    let spec = budget.spec.as_ref().unwrap_or(&default);
    let (told, (expected, desired)) = match wanted(spec, count, scale) {
        Some(wanted) => (true, wanted),
        None => (false, (0, 0)),
    };
    let allowed = if told && expected > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let (reason, message) = words(told, allowed);
    let mut conditions = before.conditions.unwrap_or_default();
    let holds = if allowed > 0 { "True" } else { "False" };
    let kind = "DisruptionAllowed";
    let since = conditions
        .iter()
        .find(|old| old.type_ == kind && old.status == holds)
        .map_or(Time(now), |old| old.last_transition_time.clone());
    conditions.retain(|old| old.type_ != kind);
    conditions.push(Condition {
        type_: kind.to_owned(),
        status: holds.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: budget.metadata.generation,
    });
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    };
    (status, later)
}

/// The reason and message of the condition that says whether pods may be disrupted.
fn words(told: bool, allowed: i32) -> (&'static str, &'static str) {
    match (told, allowed) {
        (false, _) => (
            "SyncFailed",
            "a pod's controller does not say how many it wants",
        ),
        (true, 0) => ("InsufficientPods", ""),
        (true, _) => ("SufficientPods", ""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn pods(ready: usize, waiting: usize) -> Vec<Arc<Pod>> {
        let pod = |at: usize| {
            let ready = if at < ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": format!("p{at}")}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        (0..ready + waiting).map(pod).collect()
    }

    fn of(
        spec: &Value,
        status: &Value,
        own: &[Arc<Pod>],
        scale: Option<i32>,
    ) -> PodDisruptionBudgetStatus {
        let budget = json!({"metadata": {"name": "b"}, "spec": spec, "status": status});
        let budget = serde_json::from_value(budget).expect("a budget");
        super::status(&budget, own, scale, now()).0
    }

    #[test]
    fn what_is_allowed_follows_from_what_is_healthy() {
        let none = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
        for (spec, own, scale, allowed) in [
            (json!({"minAvailable": 2}), pods(3, 0), None, 1),
            (json!({"minAvailable": 2}), pods(2, 1), None, 0),
            (json!({"minAvailable": "50%"}), pods(4, 0), Some(4), 2),
            (json!({"minAvailable": "50%"}), pods(4, 0), None, 0),
            (json!({"maxUnavailable": 1}), pods(3, 0), Some(3), 1),
            (json!({"maxUnavailable": 1}), pods(2, 0), Some(3), 0),
            (json!({"maxUnavailable": "25%"}), pods(3, 0), Some(3), 1),
            (json!({"maxUnavailable": 1}), pods(0, 0), Some(0), 0),
        ] {
            assert_eq!(
                of(&spec, &none, &own, scale).disruptions_allowed,
                Some(allowed),
                "{spec}"
            );
        }
    }

    #[test]
    fn an_evicted_pod_is_not_healthy_until_it_is_clear_that_it_stays() {
        let spec = json!({"minAvailable": 1});
        let status = |at: &str| {
            json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0,
            "expectedPods": 0, "disruptedPods": {"p0": at, "gone": at}})
        };
        let just = of(&spec, &status("2026-01-01T00:59:30Z"), &pods(2, 0), None);
        assert_eq!(
            (just.current_healthy, just.disruptions_allowed),
            (Some(1), Some(0))
        );
        assert_eq!(just.disrupted_pods.map(|pods| pods.len()), Some(1));
        let long = of(&spec, &status("2026-01-01T00:50:00Z"), &pods(2, 0), None);
        assert_eq!(
            (long.current_healthy, long.disruptions_allowed),
            (Some(2), Some(1))
        );
    }
}
