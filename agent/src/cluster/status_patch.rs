//! A pod's status as a merge patch, and whether the API's copy differs from the node's.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

/// Fields that a merge patch must null to clear, since absence means "unchanged".
const CLEARABLE: [&str; 6] = [
    "message",
    "reason",
    "podIP",
    "podIPs",
    "containerStatuses",
    "initContainerStatuses",
];

/// The body of a PATCH that makes a pod's status be `status`. Conditions of types that the node doesn't set stay as they
/// are in `observed`.
pub fn status_patch(uid: &str, status: &PodStatus, observed: Option<&PodStatus>) -> Value {
    let mut merged = status.clone();
    if let Some(observed) = observed {
        let foreign = foreign_conditions(status, observed);
        if !foreign.is_empty() {
            merged.conditions.get_or_insert_default().extend(foreign);
        }
    }
    let mut fields = fields_of(&merged);
    for name in CLEARABLE {
        fields.entry(name).or_insert(Value::Null);
    }
    json!({"metadata": {"uid": uid}, "status": fields})
}

/// Whether what the API shows differs from what the node knows, in the fields that are the node's.
pub fn differs(status: &PodStatus, observed: Option<&PodStatus>) -> bool {
    let Some(observed) = observed else {
        return true;
    };
    let (mut own, mut shown) = (fields_of(status), fields_of(observed));
    own.remove("conditions");
    shown.remove("conditions");
    let fields_differ = own
        .iter()
        .any(|(name, value)| shown.get(name) != Some(value));
    let left_over = CLEARABLE
        .iter()
        .any(|name| shown.contains_key(*name) && !own.contains_key(*name));
    fields_differ || left_over || conditions_differ(status, observed)
}

fn conditions_differ(status: &PodStatus, observed: &PodStatus) -> bool {
    let shown = observed.conditions.as_deref().unwrap_or_default();
    let own = status.conditions.as_deref().unwrap_or_default();
    own.iter().any(|condition| {
        let shown = shown.iter().find(|shown| shown.type_ == condition.type_);
        shown.is_none_or(|shown| {
            (&shown.status, &shown.reason, &shown.message)
                != (&condition.status, &condition.reason, &condition.message)
        })
    })
}

fn foreign_conditions(status: &PodStatus, observed: &PodStatus) -> Vec<PodCondition> {
    let own = status.conditions.as_deref().unwrap_or_default();
    let shown = observed.conditions.as_deref().unwrap_or_default();
    shown
        .iter()
        .filter(|shown| own.iter().all(|own| own.type_ != shown.type_))
        .cloned()
        .collect()
}

fn fields_of(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a PodStatus is an object: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(type_: &str, status: &str) -> PodCondition {
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            ..PodCondition::default()
        }
    }

    fn running() -> PodStatus {
        PodStatus {
            phase: Some("Running".to_owned()),
            conditions: Some(vec![condition("Ready", "True")]),
            pod_ip: Some("10.244.1.1".to_owned()),
            ..PodStatus::default()
        }
    }

    #[test]
    fn a_patch_names_the_uid_and_clears_what_is_no_more() {
        let patch = status_patch("u1", &running(), None);
        assert_eq!(patch["metadata"]["uid"], "u1");
        assert_eq!(patch["status"]["podIP"], "10.244.1.1");
        assert_eq!(patch["status"]["reason"], Value::Null);
        assert!(
            patch["status"]
                .as_object()
                .expect("an object")
                .contains_key("reason")
        );
    }

    #[test]
    fn conditions_of_others_survive() {
        let mut observed = running();
        observed.conditions = Some(vec![
            condition("Ready", "False"),
            condition("DisruptionTarget", "True"),
        ]);
        let patch = status_patch("u1", &running(), Some(&observed));
        let conditions = patch["status"]["conditions"].as_array().expect("a list");
        let seen: Vec<_> = conditions
            .iter()
            .map(|condition| (condition["type"].as_str(), condition["status"].as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some("Ready"), Some("True")),
                (Some("DisruptionTarget"), Some("True"))
            ]
        );
    }

    #[test]
    fn only_the_nodes_own_fields_count_as_different() {
        let own = running();
        assert!(differs(&own, None));
        assert!(!differs(&own, Some(&running())));

        let mut shown = running();
        shown.qos_class = Some("Burstable".to_owned());
        shown
            .conditions
            .get_or_insert_default()
            .push(condition("DisruptionTarget", "True"));
        assert!(!differs(&own, Some(&shown)), "set by the control plane");

        shown.conditions = Some(vec![condition("Ready", "False")]);
        assert!(differs(&own, Some(&shown)), "the node was thought dead");

        let mut shown = running();
        shown.reason = Some("NodeLost".to_owned());
        assert!(differs(&own, Some(&shown)), "something is left to clear");
    }
}
