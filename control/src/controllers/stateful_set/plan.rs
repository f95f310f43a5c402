//! What a `StatefulSet` needs done, from what the cache shows; no IO. One step at a time, in the order of the ordinals,
//! unless the set manages its pods in parallel.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::Pod,
};

use super::super::revisions::HASH;
use crate::controllers::{meta, pods};

/// What there is to do for a `StatefulSet`.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pods to make: the ordinal, and whether of the newest template or of the one before.
    pub create: Vec<(i64, Template)>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// The status to write.
    pub status: StatefulSetStatus,
    /// When a pod becomes available by having been ready for long enough.
    pub look_again: Option<Duration>,
}

/// Which template a pod is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// The set's.
    Newest,
    /// That of the revision before.
    Current,
}

/// The ordinal of a set's pod: "web-3" of "web" is 3.
pub fn ordinal(set: &str, pod: &Pod) -> Option<i64> {
    let rest = meta::name(&pod.metadata).strip_prefix(set)?;
    rest.strip_prefix('-')?.parse().ok()
}

fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(HASH))
        .map_or("", String::as_str)
}

fn as_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Plans a round. `own` are the pods that the set controls, `newest` is the revision of its template.
pub fn plan(set: &StatefulSet, own: &[Arc<Pod>], newest: &str, now: Timestamp) -> Plan {
    let default = StatefulSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&default);
    let before = set.status.clone().unwrap_or_default();
    let current = before.current_revision.filter(|name| !name.is_empty());
    let current = current.unwrap_or_else(|| newest.to_owned());
    let seconds = u64::try_from(spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0);
    let name = meta::name(&set.metadata);
    let mut by_ordinal = BTreeMap::new();
    for pod in own {
        if let Some(ordinal) = ordinal(name, pod) {
            by_ordinal.insert(ordinal, pod);
        }
    }
    let first = spec
        .ordinals
        .as_ref()
        .and_then(|ordinals| ordinals.start)
        .unwrap_or(0);
    let first = i64::from(first);
    let wanted = first..first + i64::from(spec.replicas.unwrap_or(1));
    let round = Round {
        spec,
        newest,
        min_ready: Duration::from_secs(seconds),
        now,
        pods: by_ordinal,
        wanted,
    };
    let mut plan = Plan::default();
    round.count(&current, &mut plan);
    plan.status.observed_generation = set.metadata.generation;
    plan.status.collision_count = Some(before.collision_count.unwrap_or(0));
    if !meta::is_terminating(&set.metadata) {
        round.step(current == newest, &mut plan);
    }
    plan
}

struct Round<'a> {
    spec: &'a StatefulSetSpec,
    newest: &'a str,
    min_ready: Duration,
    now: Timestamp,
    pods: BTreeMap<i64, &'a Arc<Pod>>,
    wanted: std::ops::Range<i64>,
}

impl Round<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        !meta::is_terminating(&pod.metadata)
            && pods::available_in(pod, self.min_ready, self.now)
                .is_some_and(|delay| delay.is_zero())
    }

    fn is_parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    fn count(&self, current: &str, plan: &mut Plan) {
        let all = || self.pods.values();
        let status = &mut plan.status;
        let number = |count: usize| Some(as_i32(count)).filter(|count| *count > 0);
        let active = |pod: &&&Arc<Pod>| !meta::is_terminating(&pod.metadata);
        status.replicas = as_i32(self.pods.len());
        status.ready_replicas = number(all().filter(|pod| pods::is_ready(pod)).count());
        status.available_replicas =
            Some(as_i32(all().filter(|pod| self.is_available(pod)).count()));
        let of = |name: &str| {
            all()
                .filter(active)
                .filter(|pod| revision(pod) == name)
                .count()
        };
        status.current_replicas = number(of(current));
        status.updated_replicas = number(of(self.newest));
        status.update_revision = Some(self.newest.to_owned());
        // The newest template becomes the current one when every pod is of it and ready.
        let done = self.pods.len() == self.wanted.clone().count()
            && all().all(|pod| revision(pod) == self.newest && self.is_available(pod));
        status.current_revision = Some(if done { self.newest } else { current }.to_owned());
        if done {
            status.current_replicas = status.updated_replicas;
        }
        plan.look_again = all()
            .filter_map(|pod| pods::available_in(pod, self.min_ready, self.now))
            .filter(|delay| !delay.is_zero())
            .min();
    }

    /// What comes next: missing and broken pods, then pods that are too many, then pods of an older template.
    fn step(&self, settled: bool, plan: &mut Plan) {
        let parallel = self.is_parallel();
        for ordinal in self.wanted.clone() {
            let fine = match self.pods.get(&ordinal) {
                None => {
                    plan.create
                        .push((ordinal, self.template_of(ordinal, settled)));
                    false
                }
                Some(pod) if pods::is_finished(pod) && !meta::is_terminating(&pod.metadata) => {
                    plan.delete.push(Arc::clone(pod));
                    false
                }
                Some(pod) => self.is_available(pod),
            };
            if !fine && !parallel {
                return;
            }
        }
        let extra = self
            .pods
            .iter()
            .rev()
            .filter(|(ordinal, _)| !self.wanted.contains(ordinal));
        for (_, pod) in extra {
            if !meta::is_terminating(&pod.metadata) {
                plan.delete.push(Arc::clone(pod));
            }
            if !parallel {
                return;
            }
        }
        if plan.create.is_empty() && plan.delete.is_empty() {
            self.update(plan);
        }
    }

    fn partition(&self) -> i64 {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        i64::from(rolling.and_then(|rolling| rolling.partition).unwrap_or(0))
    }

    fn template_of(&self, ordinal: i64, settled: bool) -> Template {
        if !settled && ordinal < self.partition() {
            Template::Current
        } else {
            Template::Newest
        }
    }

    /// The highest pod of an older template goes, once those above it are available again.
    fn update(&self, plan: &mut Plan) {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")) {
            return;
        }
        let partition = self.partition();
        for (_, pod) in self
            .pods
            .iter()
            .rev()
            .filter(|(ordinal, _)| **ordinal >= partition)
        {
            if revision(pod) != self.newest {
                if !meta::is_terminating(&pod.metadata) {
                    plan.delete.push(Arc::clone(pod));
                }
                return;
            }
            if !self.is_available(pod) {
                return;
            }
        }
    }
}
