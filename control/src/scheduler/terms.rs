//! Which other pods a pod wants near it or far from it, and how evenly it wants to stand among them: read from its spec
//! once, so that pods made from one template say the same.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use crate::controllers::meta;

/// Labels of a pod, node or namespace.
pub type Labels = BTreeMap<String, String>;

/// A selector of labels, ready to be compared with others and indexed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// Matches nothing.
    Nothing,
    /// Matches what meets all of these; none of them: everything.
    All(Vec<Requirement>),
}

/// One thing that a selector asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The label is one of these.
    In(String, Vec<String>),
    /// The label is none of these, or absent.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|label| values.contains(label)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|label| !values.contains(label)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }

    fn of(expression: &LabelSelectorRequirement) -> Option<Self> {
        let key = expression.key.clone();
        let values = || {
            let mut values = expression.values.clone().unwrap_or_default();
            values.sort();
            values
        };
        Some(match expression.operator.as_str() {
            "In" => Self::In(key, values()),
            "NotIn" => Self::NotIn(key, values()),
            "Exists" => Self::Exists(key),
            "DoesNotExist" => Self::DoesNotExist(key),
            _ => return None,
        })
    }
}

impl Selector {
    /// What a spec says. Without a selector nothing is meant; an operator that does not exist is met by nothing.
    pub fn of(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Self::Nothing;
        };
        let labels = selector.match_labels.iter().flatten();
        let mut all: Vec<_> = labels
            .map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]))
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            match Requirement::of(expression) {
                Some(requirement) => all.push(requirement),
                None => return Self::Nothing,
            }
        }
        all.sort();
        Self::All(all)
    }

    /// Whether these labels meet it.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::Nothing => false,
            Self::All(all) => all.iter().all(|requirement| requirement.holds(labels)),
        }
    }

    /// A label that everything it matches has, where one can be named.
    pub fn surely(&self) -> Option<(&str, &str)> {
        let Self::All(all) = self else { return None };
        all.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) => match values.as_slice() {
                [value] => Some((key.as_str(), value.as_str())),
                _ => None,
            },
            _ => None,
        })
    }

    /// The values of a pod's own labels are asked for (or ruled out) too, where the pod has the labels.
    fn with_own(mut self, labels: &Labels, keys: Option<&Vec<String>>, equal: bool) -> Self {
        if let Self::All(all) = &mut self {
            for key in keys.into_iter().flatten() {
                if let Some(value) = labels.get(key) {
                    let values = vec![value.clone()];
                    all.push(if equal {
                        Requirement::In(key.clone(), values)
                    } else {
                        Requirement::NotIn(key.clone(), values)
                    });
                }
            }
            all.sort();
        }
        self
    }
}

/// Pods of some namespaces that a selector matches, within a topology.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// The namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Further namespaces, by their labels.
    pub namespace_selector: Selector,
    /// The pods.
    pub selector: Selector,
    /// The label of nodes whose values are the places that are told apart.
    pub topology_key: String,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let empty = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let mut namespaces: BTreeSet<_> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(meta::namespace(&pod.metadata).to_owned());
        }
        Self {
            namespaces,
            namespace_selector: Selector::of(term.namespace_selector.as_ref()),
            selector: Selector::of(term.label_selector.as_ref())
                .with_own(labels, term.match_label_keys.as_ref(), true)
                .with_own(labels, term.mismatch_label_keys.as_ref(), false),
            topology_key: term.topology_key.clone(),
        }
    }
}

/// How evenly pods are to stand over the places of a topology.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Which pods, and over what.
    pub term: Term,
    /// How many more of them one place may have than another.
    pub max_skew: i64,
    /// Below so many places, the emptiest counts as having none.
    pub min_domains: Option<i64>,
    /// Whether a node where it does not hold is out of the question, not only worse.
    pub is_required: bool,
    /// Only nodes count that the pod's own node selector and affinity allow.
    pub honors_affinity: bool,
    /// Only nodes count whose taints the pod tolerates.
    pub honors_taints: bool,
}

impl Spread {
    fn of(constraint: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let empty = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let is_honored = |policy: &Option<String>, default: bool| {
            policy
                .as_deref()
                .map_or(default, |policy| policy == "Honor")
        };
        let keys = constraint.match_label_keys.as_ref();
        Self {
            term: Term {
                namespaces: BTreeSet::from([meta::namespace(&pod.metadata).to_owned()]),
                namespace_selector: Selector::Nothing,
                selector: Selector::of(constraint.label_selector.as_ref())
                    .with_own(labels, keys, true),
                topology_key: constraint.topology_key.clone(),
            },
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.map(i64::from),
            is_required: constraint.when_unsatisfiable != "ScheduleAnyway",
            honors_affinity: is_honored(&constraint.node_affinity_policy, true),
            honors_taints: is_honored(&constraint.node_taints_policy, false),
        }
    }
}

/// Everything that a pod asks about other pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wishes {
    /// Must be near pods of each of these.
    pub near: Vec<Term>,
    /// Must be far from pods of all of these.
    pub far: Vec<Term>,
    /// Would like to be near (above zero) or far (below).
    pub preferred: Vec<(Term, i64)>,
    /// Must, or would like to, stand evenly.
    pub spreads: Vec<Spread>,
}

impl Wishes {
    /// Reads a pod.
    pub fn of(pod: &Pod, spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref();
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let far = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            let terms = terms.into_iter().flatten();
            terms.map(|term| Term::of(term, pod)).collect()
        };
        let mut preferred = Vec::new();
        for (weighted, sign) in [
            (
                near.and_then(|near| {
                    near.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                }),
                1,
            ),
            (
                far.and_then(|far| {
                    far.preferred_during_scheduling_ignored_during_execution
                        .as_ref()
                }),
                -1,
            ),
        ] {
            for one in weighted.into_iter().flatten() {
                let term = Term::of(&one.pod_affinity_term, pod);
                preferred.push((term, sign * i64::from(one.weight)));
            }
        }
        Self {
            near: terms(near.and_then(|near| {
                near.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            far: terms(far.and_then(|far| {
                far.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred,
            spreads: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|constraint| Spread::of(constraint, pod))
                .collect(),
        }
    }

    /// Every term in it.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        let affinity = self.near.iter().chain(&self.far);
        let preferred = self.preferred.iter().map(|(term, _)| term);
        let spreads = self.spreads.iter().map(|spread| &spread.term);
        affinity.chain(preferred).chain(spreads)
    }
}
