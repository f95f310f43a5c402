//! How a change of spec.replicas in the middle of a rollout is shared out between the ReplicaSets that have pods.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::sets::{self, fenceposts, replicas, wanted};
use crate::controllers::meta;

/// Each set's new size. Larger sets take larger shares; what rounding leaves over goes to the largest.
pub fn shares(deployment: &Deployment, active: &[Arc<ReplicaSet>]) -> Vec<(Arc<ReplicaSet>, i32)> {
    let wanted = wanted(deployment);
    let (surge, _) = fenceposts(deployment);
    let allowed = if wanted > 0 { wanted + surge } else { 0 };
    let total: i32 = active.iter().map(|set| replicas(set)).sum();
    let change = allowed - total;
    let mut sets = active.to_vec();
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if change > 0 {
        // Of two equally large ones the newer grows, ...
        sets.sort_by_key(|set| {
            Reverse((
                replicas(set),
                created(set),
                meta::name(&set.metadata).to_owned(),
            ))
        });
    } else {
        // ... and the older shrinks.
        sets.sort_by_key(|set| {
            (
                Reverse(replicas(set)),
                created(set),
                meta::name(&set.metadata).to_owned(),
            )
        });
    }
    let mut added = 0;
    let mut shares: Vec<_> = sets
        .into_iter()
        .map(|set| {
            let share = share(deployment, &set, allowed, change, added);
            added += share;
            let size = replicas(&set) + share;
            (set, size)
        })
        .collect();
    if let Some((_, size)) = shares.first_mut() {
        *size = (*size + change - added).max(0);
    }
    shares
}

fn share(deployment: &Deployment, set: &ReplicaSet, allowed: i32, change: i32, added: i32) -> i32 {
    let size = replicas(set);
    if size == 0 || change == 0 || change == added {
        return 0;
    }
    let fraction = fraction(deployment, set, allowed);
    let left = change - added;
    if change > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

/// By how much a set would change if all changed by the same factor.
fn fraction(deployment: &Deployment, set: &ReplicaSet, allowed: i32) -> i32 {
    let size = replicas(set);
    if wanted(deployment) == 0 {
        return -size;
    }
    let before = sets::number(set, sets::MAX)
        .or_else(|| {
            deployment
                .status
                .as_ref()
                .and_then(|status| status.replicas)
        })
        .unwrap_or(0);
    if before <= 0 {
        return 0;
    }
    let (size, allowed, before) = (i64::from(size), i64::from(allowed), i64::from(before));
    // Rounded half up.
    let scaled = (size * allowed * 2 + before) / (before * 2);
    i32::try_from(scaled - size).unwrap_or(0)
}
