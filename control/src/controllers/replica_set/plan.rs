//! What a ReplicaSet needs done, from what the cache shows; no IO.

use std::{cmp::Reverse, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::controllers::{clock, meta, pods};

/// The most pods made or deleted in one round.
pub const BURST: usize = 500;

/// What there is to do for a ReplicaSet.
#[derive(Debug, Default)]
pub struct Plan {
    /// Matching pods without a controller, to take over.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods of this set that no longer match, to let go.
    pub release: Vec<Arc<Pod>>,
    /// How many pods to make.
    pub create: usize,
    /// Pods to delete, the first ones first.
    pub delete: Vec<Arc<Pod>>,
    /// The pods that count as replicas now.
    pub active: Vec<Arc<Pod>>,
    /// When a pod becomes available by having been ready for long enough.
    pub look_again: Option<Duration>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verb, pods) in [
            ("adopt", &self.adopt),
            ("release", &self.release),
            ("delete", &self.delete),
        ] {
            for pod in pods {
                writeln!(f, "{verb} {}", meta::name(&pod.metadata))?;
            }
        }
        if self.create > 0 {
            writeln!(f, "create {}", self.create)?;
        }
        if let Some(delay) = self.look_again {
            writeln!(f, "look again in {delay:?}")?;
        }
        Ok(())
    }
}

/// Plans a round. `candidates` are the pods that the set controls and those of its namespace that nobody does.
pub fn plan(set: &ReplicaSet, candidates: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    claim(set, candidates, &mut plan);
    let min_ready = min_ready(set);
    plan.look_again = plan
        .active
        .iter()
        .filter_map(|pod| pods::available_in(pod, min_ready, now))
        .filter(|delay| !delay.is_zero())
        .min();
    if meta::is_terminating(&set.metadata) {
        return plan;
    }
    let wanted = wanted(set);
    let active = plan.active.len();
    if active < wanted {
        plan.create = (wanted - active).min(BURST);
    } else if active > wanted {
        let count = (active - wanted).min(BURST);
        plan.delete = ranked_for_deletion(&plan.active, now);
        plan.delete.truncate(count);
    }
    plan
}

/// spec.replicas; 1 when absent, as the default is.
pub fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    usize::try_from(replicas.unwrap_or(1)).unwrap_or(0)
}

fn min_ready(set: &ReplicaSet) -> Duration {
    let seconds = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    Duration::from_secs(u64::try_from(seconds.unwrap_or(0)).unwrap_or(0))
}

fn claim(set: &ReplicaSet, candidates: &[Arc<Pod>], plan: &mut Plan) {
    let Some(spec) = &set.spec else { return };
    for pod in candidates {
        let metadata = &pod.metadata;
        let matches = meta::matches(&spec.selector, metadata.labels.as_ref());
        let ours = meta::is_controlled_by(metadata, meta::uid(&set.metadata));
        if ours && !matches {
            if !meta::is_terminating(&set.metadata) {
                plan.release.push(Arc::clone(pod));
            }
            continue;
        }
        if !pods::is_active(pod) {
            continue;
        }
        if ours {
            plan.active.push(Arc::clone(pod));
        } else if matches
            && meta::controller_of(metadata).is_none()
            && !meta::is_terminating(&set.metadata)
        {
            plan.adopt.push(Arc::clone(pod));
            plan.active.push(Arc::clone(pod));
        }
    }
}

/// The order in which pods are given up: first whatever does the least for its users.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i64,
    crowd: Reverse<usize>,
    ready_for: u32,
    restarts: Reverse<i32>,
    created: Reverse<Option<Timestamp>>,
    name: String,
}

fn ranked_for_deletion(active: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowds: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in active {
        *crowds
            .entry(pods::node(pod).unwrap_or_default())
            .or_default() += 1;
    }
    let mut ranked: Vec<(Rank, Arc<Pod>)> = active
        .iter()
        .map(|pod| {
            let crowd = crowds[pods::node(pod).unwrap_or_default()];
            (rank(pod, crowd, now), Arc::clone(pod))
        })
        .collect();
    ranked.sort_by(|(left, _), (right, _)| left.cmp(right));
    ranked.into_iter().map(|(_, pod)| pod).collect()
}

fn rank(pod: &Pod, crowd: usize, now: Timestamp) -> Rank {
    let cost = meta::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost");
    let ready_for =
        pods::ready_since(pod).map_or(Duration::ZERO, |since| clock::elapsed(since, now));
    Rank {
        assigned: pods::node(pod).is_some(),
        phase: match pods::phase(pod) {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready: pods::is_ready(pod),
        cost: cost.and_then(|cost| cost.parse().ok()).unwrap_or(0),
        crowd: Reverse(crowd),
        // Only the order of magnitude, as Kubernetes compares, so that age is no fixed target.
        ready_for: u64::BITS - ready_for.as_secs().leading_zeros(),
        restarts: Reverse(pods::restarts(pod)),
        created: Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
        name: meta::name(&pod.metadata).to_owned(),
    }
}

/// The status that these active pods add up to. `failure` is the reason and words of what went wrong this round;
/// the old condition stays while the number is not right.
pub fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template_labels = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let min_ready = min_ready(set);
    let count = |predicate: &dyn Fn(&Pod) -> bool| {
        let count = active.iter().filter(|pod| predicate(pod)).count();
        // As Kubernetes writes it: none is absent.
        (count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX))
    };
    let old = set.status.clone().unwrap_or_default();
    let had_failure = old
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.iter().find(|c| c.type_ == "ReplicaFailure"));
    let failure = match (failure, had_failure) {
        (Some((reason, message)), Some(had)) if had.reason.as_deref() == Some(reason) => {
            Some(ReplicaSetCondition {
                message: Some(message),
                ..had.clone()
            })
        }
        (Some((reason, message)), _) => Some(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(clock::whole_seconds(now))),
        }),
        (None, Some(had)) if active.len() != wanted(set) => Some(had.clone()),
        (None, _) => None,
    };
    ReplicaSetStatus {
        replicas: count(&|_| true).unwrap_or(0),
        fully_labeled_replicas: count(&|pod| {
            template_labels.is_none_or(|labels| {
                let have = pod.metadata.labels.as_ref();
                labels
                    .iter()
                    .all(|(key, value)| have.and_then(|have| have.get(key)) == Some(value))
            })
        }),
        ready_replicas: count(&pods::is_ready),
        available_replicas: count(&|pod| {
            pods::available_in(pod, min_ready, now).is_some_and(|delay| delay.is_zero())
        }),
        observed_generation: set.metadata.generation,
        conditions: failure.map(|failure| vec![failure]),
        terminating_replicas: None,
    }
}
