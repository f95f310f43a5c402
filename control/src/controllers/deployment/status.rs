//! The status of a Deployment: sums over its ReplicaSets, and the conditions Available, Progressing, `ReplicaFailure`.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::sets::{available, existing, fenceposts, ready, replicas, wanted};
use crate::controllers::{clock, meta};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What this round found out about the new set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It did not look.
    Nothing,
    /// It is there.
    Existing(String),
    /// It is being made.
    Created(String),
}

/// The status, and how long the rollout may go on without progress before it has timed out.
pub fn status(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
    found: &Found,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let before = deployment.status.clone().unwrap_or_default();
    let sets = || old.iter().map(AsRef::as_ref).chain(new);
    let sum = |of: fn(&ReplicaSet) -> i32| sets().map(of).sum::<i32>();
    let serving = sum(available);
    let some = |count: i32| (count > 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(existing)),
        updated_replicas: some(new.map_or(0, existing)),
        ready_replicas: some(sum(ready)),
        available_replicas: some(serving),
        unavailable_replicas: some(sum(replicas) - serving),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
        terminating_replicas: None,
    };
    let mut conditions = Conditions {
        list: status.conditions.take().unwrap_or_default(),
        now,
    };
    available_condition(deployment, serving, &mut conditions);
    conditions
        .list
        .retain(|condition| condition.type_ != REPLICA_FAILURE);
    if let Some(failure) = sets().find_map(failure) {
        conditions.list.push(failure);
    }
    let look_again = progress(deployment, &before, &status, new, found, &mut conditions);
    status.conditions = Some(conditions.list);
    (status, look_again)
}

fn available_condition(deployment: &Deployment, serving: i32, conditions: &mut Conditions) {
    let (_, unavailable) = fenceposts(deployment);
    if serving >= wanted(deployment) - unavailable {
        conditions.set(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".to_owned(),
        );
    } else {
        conditions.set(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        );
    }
}

fn failure(set: &ReplicaSet) -> Option<DeploymentCondition> {
    let conditions = set.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == REPLICA_FAILURE)?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.to_owned(),
        status: failure.status.clone(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time.clone(),
    })
}

/// Whether every replica is of the new template and available.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = wanted(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(before: &DeploymentStatus, status: &DeploymentStatus) -> bool {
    let number = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(status.updated_replicas) > number(before.updated_replicas)
        || old(status) < old(before)
        || number(status.ready_replicas) > number(before.ready_replicas)
        || number(status.available_replicas) > number(before.available_replicas)
}

fn progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    found: &Found,
    conditions: &mut Conditions,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let Some(deadline) = spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds < i32::MAX)
    else {
        conditions
            .list
            .retain(|condition| condition.type_ != PROGRESSING);
        return None;
    };
    let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
    let reason = conditions.reason(PROGRESSING).map(str::to_owned);
    if spec.paused == Some(true) {
        if reason.as_deref() != Some(TIMED_OUT) {
            let message = "Deployment is paused".to_owned();
            conditions.set(PROGRESSING, "Unknown", PAUSED, message);
        }
        return None;
    }
    if reason.as_deref() == Some(PAUSED) {
        let message = "Deployment is resumed".to_owned();
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", message);
    }
    match found {
        Found::Created(name) => {
            let message = format!("Created new replica set \"{name}\"");
            conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
        }
        Found::Existing(name) if conditions.reason(PROGRESSING).is_none() => {
            let message = format!("Found new replica set \"{name}\"");
            conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
        }
        Found::Existing(_) | Found::Nothing => {}
    }
    let was_complete = status.replicas == status.updated_replicas
        && conditions.reason(PROGRESSING) == Some(COMPLETE);
    if was_complete || matches!(found, Found::Created(_)) {
        return None;
    }
    let subject = match new {
        Some(new) => format!("ReplicaSet \"{}\"", meta::name(&new.metadata)),
        None => format!("Deployment \"{}\"", meta::name(&deployment.metadata)),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        conditions.set(PROGRESSING, "True", COMPLETE, message);
        return None;
    }
    if has_progressed(before, status) {
        let message = format!("{subject} is progressing.");
        conditions.renew(PROGRESSING, "True", "ReplicaSetUpdated", message);
    }
    let left = conditions.left_of(PROGRESSING, deadline)?;
    if left.is_zero() {
        let message = format!("{subject} has timed out progressing.");
        conditions.set(PROGRESSING, "False", TIMED_OUT, message);
        return None;
    }
    Some(left)
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn find(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_ == kind)
    }

    fn reason(&self, kind: &str) -> Option<&str> {
        self.find(kind)?.reason.as_deref()
    }

    /// Sets a condition, unless it already says so.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let says_so = self.find(kind).is_some_and(|current| {
            current.status == status && current.reason.as_deref() == Some(reason)
        });
        if !says_so {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets a condition with a new time of update; that of transition only when the status changes.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let now = Some(Time(clock::whole_seconds(self.now)));
        let since = self
            .find(kind)
            .filter(|current| current.status == status)
            .and_then(|current| current.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: now.clone(),
            last_transition_time: since.or(now),
        };
        match self
            .list
            .iter_mut()
            .find(|condition| condition.type_ == kind)
        {
            Some(current) => *current = condition,
            None => self.list.push(condition),
        }
    }

    /// How much of a deadline is left since a condition's last update; `None` when it has passed already, and said so.
    fn left_of(&self, kind: &str, deadline: Duration) -> Option<Duration> {
        let current = self.find(kind)?;
        if matches!(current.reason.as_deref(), Some(TIMED_OUT | COMPLETE)) {
            return None;
        }
        let updated = current.last_update_time.as_ref()?.0;
        Some(deadline.saturating_sub(clock::elapsed(updated, self.now)))
    }
}
