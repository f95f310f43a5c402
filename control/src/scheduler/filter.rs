//! Whether a node will do for a pod, whatever room is left on it: taints, selectors, affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::{demand::Demand, snapshot::NodeState};

/// Why a node will not do, in Kubernetes' words; `None` when it will.
pub fn refusal(demand: &Demand, node: &NodeState) -> Option<String> {
    if node.unschedulable {
        let cordoned = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if !is_tolerated(&cordoned, &demand.tolerations) {
            return Some("node(s) were unschedulable".to_owned());
        }
    }
    let keeps_out = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let untolerated = node
        .taints
        .iter()
        .filter(keeps_out)
        .find(|taint| !is_tolerated(taint, &demand.tolerations));
    if let Some(taint) = untolerated {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        ));
    }
    let selected = demand
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = demand
        .required
        .as_ref()
        .is_none_or(|terms| terms.iter().any(|term| matches(term, node)));
    if !(selected && required) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    None
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
