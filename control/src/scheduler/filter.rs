//! Whether a node will do for a pod, whatever room is left on it: taints, selectors, affinity.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::{demand::Demand, nodes::NodeState};

/// Why a node will not do, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// "node(s) were unschedulable".
    pub reason: Cow<'static, str>,
    /// Whether it stays so whichever pods leave the node.
    pub is_final: bool,
}

impl Refusal {
    /// Nothing that pods do there changes it.
    pub const fn lasting(reason: &'static str) -> Self {
        Self {
            reason: Cow::Borrowed(reason),
            is_final: true,
        }
    }

    /// It may change when pods leave.
    pub const fn passing(reason: &'static str) -> Self {
        Self {
            reason: Cow::Borrowed(reason),
            is_final: false,
        }
    }
}

/// Why a node will not do, whatever room there is; `None` when it will.
pub fn refusal(demand: &Demand, node: &NodeState) -> Option<Refusal> {
    if node.unschedulable {
        let cordoned = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if !is_tolerated(&cordoned, &demand.tolerations) {
            return Some(Refusal::lasting("node(s) were unschedulable"));
        }
    }
    if let Some(taint) = untolerated(demand, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        let reason = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
        return Some(Refusal {
            reason: Cow::Owned(reason),
            is_final: true,
        });
    }
    if !is_selected(demand, node) {
        return Some(Refusal::lasting(
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    None
}

/// A taint that keeps a pod out.
pub fn untolerated<'a>(demand: &Demand, node: &'a NodeState) -> Option<&'a Taint> {
    let keeps_out = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let mut taints = node.taints.iter().filter(keeps_out);
    taints.find(|taint| !is_tolerated(taint, &demand.tolerations))
}

/// Whether a pod's node selector and required affinity allow a node.
pub fn is_selected(demand: &Demand, node: &NodeState) -> bool {
    let selected = demand
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = demand
        .required
        .as_ref()
        .is_none_or(|terms| terms.iter().any(|term| matches(term, node)));
    selected && required
}

/// Whether one of the tolerations bears a taint.
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint))
}

/// Whether a toleration bears a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    if !(effect.is_empty() || effect == taint.effect) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => key == taint.key && text(&toleration.value) == text(&taint.value),
    }
}

/// Whether a node is one that a term of an affinity means. A term that says nothing means none.
pub fn matches(term: &NodeSelectorTerm, node: &NodeState) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    labels
        .iter()
        .all(|requirement| holds(requirement, &node.labels))
        && fields.iter().all(|requirement| holds(requirement, &name))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let label = labels.get(&requirement.key);
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => label.is_some_and(|label| values.contains(label)),
        "NotIn" => label.is_none_or(|label| !values.contains(label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => matches!((number(label), number(values.first())), (Some(a), Some(b)) if a > b),
        "Lt" => matches!((number(label), number(values.first())), (Some(a), Some(b)) if a < b),
        _ => false,
    }
}
