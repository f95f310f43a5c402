//! What a `DaemonSet` needs done, from what the cache shows; no IO.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod, PodSpec, Taint, Toleration},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::super::revisions::HASH;
use crate::{
    controllers::{meta, pods},
    scheduler::{demand::Demand, filter, nodes::NodeState},
};

/// What daemons bear that other pods need not: the conditions that their node's own workings have.
const BORNE: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What there is to do for a `DaemonSet`.
#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that need a pod.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// The status to write.
    pub status: DaemonSetStatus,
    /// When a pod becomes available by having been ready for long enough.
    pub look_again: Option<Duration>,
}

/// The tolerations of a daemon's pod beyond its own.
pub fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut borne: Vec<(&str, &str)> = BORNE.to_vec();
    if spec.host_network == Some(true) {
        borne.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let mut all = spec.tolerations.clone().unwrap_or_default();
    for (key, effect) in borne {
        let own = |toleration: &Toleration| {
            toleration.key.as_deref() == Some(key) && toleration.effect.as_deref() == Some(effect)
        };
        if !all.iter().any(own) {
            all.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some(effect.to_owned()),
                ..Toleration::default()
            });
        }
    }
    all
}

/// The node that a daemon's pod is for: bound to it, or made for it.
pub fn node_of(pod: &Pod) -> Option<&str> {
    if let Some(node) = pods::node(pod) {
        return Some(node);
    }
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .first()?
        .match_fields
        .as_ref()?;
    let named = fields.iter().find(|field| field.key == "metadata.name")?;
    named.values.as_ref()?.first().map(String::as_str)
}

/// Whether a node is to have a pod, and whether one that it has may stay.
fn wants(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let template = set.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = Pod {
        spec: template.unwrap_or_default().spec,
        ..Pod::default()
    };
    let mut tolerations_of = Vec::new();
    if let Some(spec) = &mut pod.spec {
        tolerations_of = tolerations(spec);
        spec.tolerations = Some(tolerations_of.clone());
    }
    let name = meta::name(&node.metadata);
    let demand = Demand::of(&pod);
    let elsewhere = pods::node(&pod).is_some_and(|only| only != name);
    let state = NodeState::of(node);
    if filter::refusal(&demand, &state).is_none() && !elsewhere {
        return (true, true);
    }
    // A taint that only keeps new pods out leaves those that are there.
    let expels = |taint: &Taint| {
        taint.effect == "NoExecute" && !filter::is_tolerated(taint, &tolerations_of)
    };
    let expelled = state.taints.iter().any(expels);
    let bare = NodeState {
        taints: Vec::new(),
        unschedulable: false,
        ..state
    };
    let selected = filter::refusal(&demand, &bare).is_none();
    (false, selected && !elsewhere && !expelled)
}

/// A number or a share of all, rounded up.
fn share(value: Option<&IntOrString>, default: usize, all: usize) -> usize {
    match value {
        None => default,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent = text.trim_end_matches('%').parse::<usize>().unwrap_or(0);
            (all * percent).div_ceil(100)
        }
    }
}

fn is_of(pod: &Pod, hash: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(HASH))
        .is_some_and(|own| own == hash)
}

/// Plans a round. `own` are the pods that the set controls, `hash` is its template's.
pub fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    own: &[Arc<Pod>],
    (hash, now): (&str, Timestamp),
) -> Plan {
    let mut plan = Plan::default();
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in own {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let spec = set.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let min_ready = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let mut round = Round {
        hash,
        min_ready,
        now,
        old: Vec::new(),
        unavailable: 0,
        surging: 0,
    };
    for node in nodes {
        let (runs, stays) = wants(set, node);
        let name = meta::name(&node.metadata);
        let pods = by_node.remove(name).unwrap_or_default();
        round.node(name, (runs, stays), pods, &mut plan);
    }
    // Pods of nodes that are gone.
    let strays = by_node.into_values().flatten();
    plan.delete.extend(
        strays
            .filter(|pod| !meta::is_terminating(&pod.metadata))
            .cloned(),
    );
    round.update(set, &mut plan);
    plan.status.number_unavailable =
        Some(plan.status.desired_number_scheduled - plan.status.number_available.unwrap_or(0))
            .filter(|count| *count > 0);
    plan.status.number_available = plan.status.number_available.filter(|count| *count > 0);
    plan.status.observed_generation = set.metadata.generation;
    plan
}

/// What is found on the way through the nodes.
struct Round<'a> {
    hash: &'a str,
    min_ready: Duration,
    now: Timestamp,
    /// Nodes whose only pod is of an older template: that pod, and whether it is available.
    old: Vec<(String, Arc<Pod>, bool)>,
    /// Nodes that want a pod and have none that is available.
    unavailable: usize,
    /// Nodes that have a new pod beside an old one.
    surging: usize,
}

impl Round<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::available_in(pod, self.min_ready, self.now).is_some_and(|delay| delay.is_zero())
    }

    fn node(
        &mut self,
        name: &str,
        (runs, stays): (bool, bool),
        pods: Vec<&Arc<Pod>>,
        plan: &mut Plan,
    ) {
        let (failed, mut alive): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| pods::is_finished(pod));
        let goes = |pod: &&&Arc<Pod>| !meta::is_terminating(&pod.metadata);
        plan.delete
            .extend(failed.iter().filter(goes).map(|pod| Arc::clone(pod)));
        let status = &mut plan.status;
        if runs {
            status.desired_number_scheduled += 1;
        } else if !alive.is_empty() {
            status.number_misscheduled += 1;
        }
        if !stays {
            plan.delete
                .extend(alive.iter().filter(goes).map(|pod| Arc::clone(pod)));
            return;
        }
        for pod in &alive {
            let delay = pods::available_in(pod, self.min_ready, self.now);
            let delay = delay.filter(|delay| !delay.is_zero());
            plan.look_again = plan.look_again.into_iter().chain(delay).min();
        }
        if !runs {
            return;
        }
        if !failed.is_empty() {
            // Its successor comes when it is gone.
            self.unavailable += 1;
            return;
        }
        if alive.is_empty() {
            plan.create.push(name.to_owned());
            self.unavailable += 1;
            return;
        }
        // The oldest of each template counts; others are too many.
        alive.sort_by_key(|pod| {
            (
                pod.metadata.creation_timestamp.clone(),
                pod.metadata.name.clone(),
            )
        });
        let (new, old): (Vec<_>, Vec<_>) = alive.into_iter().partition(|pod| is_of(pod, self.hash));
        for extra in new.iter().skip(1).chain(old.iter().skip(1)).filter(goes) {
            plan.delete.push(Arc::clone(extra));
        }
        let (new, old) = (new.first().copied(), old.first().copied());
        self.count(name, (new, old), plan);
    }

    /// Counts a node that has a pod: of the template, of an older one, or of each.
    fn count(
        &mut self,
        name: &str,
        (new, old): (Option<&Arc<Pod>>, Option<&Arc<Pod>>),
        plan: &mut Plan,
    ) {
        let available = [new, old]
            .into_iter()
            .flatten()
            .any(|pod| self.is_available(pod));
        let ready = [new, old]
            .into_iter()
            .flatten()
            .any(|pod| pods::is_ready(pod));
        let status = &mut plan.status;
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(ready);
        *status.number_available.get_or_insert(0) += i32::from(available);
        *status.updated_number_scheduled.get_or_insert(0) += i32::from(new.is_some());
        if !available {
            self.unavailable += 1;
        }
        match (new, old) {
            (Some(new), Some(old)) => {
                self.surging += 1;
                if self.is_available(new) && !meta::is_terminating(&old.metadata) {
                    plan.delete.push(Arc::clone(old));
                }
            }
            (None, Some(old)) if !meta::is_terminating(&old.metadata) => {
                self.old.push((name.to_owned(), Arc::clone(old), available));
            }
            _ => {}
        }
    }

    /// Replaces pods of older templates, as many at a time as the strategy allows.
    fn update(&mut self, set: &DaemonSet, plan: &mut Plan) {
        let strategy = set
            .spec
            .as_ref()
            .and_then(|spec| spec.update_strategy.as_ref());
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")) {
            return;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let all = usize::try_from(plan.status.desired_number_scheduled).unwrap_or(0);
        let surge = share(
            rolling.and_then(|rolling| rolling.max_surge.as_ref()),
            0,
            all,
        );
        let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let unavailable = share(most, usize::from(surge == 0), all);
        // Those that serve nobody go first, and cost nothing.
        self.old
            .sort_by_key(|(name, _, available)| (Reverse(!*available), name.clone()));
        if surge > 0 {
            let room = surge.saturating_sub(self.surging);
            plan.create
                .extend(self.old.iter().take(room).map(|(name, ..)| name.clone()));
            return;
        }
        let mut room = unavailable.saturating_sub(self.unavailable);
        for (_, pod, available) in &self.old {
            if *available && room == 0 {
                break;
            }
            room -= usize::from(*available);
            plan.delete.push(Arc::clone(pod));
        }
    }
}
