//! What a client is warned of although it is accepted: pods, and templates of pods, that do not do what they seem to say
//! (Kubernetes' `GetWarningsForPodTemplate`).

use serde_json::Value;

use super::Path;
use crate::api::meta;

/// Where a pod's spec stands in a pod, in what makes pods, and in what makes jobs.
const PLACES: [&[&str]; 3] = [
    &["spec"],
    &["spec", "template", "spec"],
    &["spec", "jobTemplate", "spec", "template", "spec"],
];

/// Labels of nodes that have newer names.
const RENAMED: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "v1.17",
        "topology.kubernetes.io/region",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "v1.17",
        "topology.kubernetes.io/zone",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "v1.17",
        "node.kubernetes.io/instance-type",
    ),
];

/// The warnings about an object.
pub fn of(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for place in PLACES {
        let found = meta::at(object, place).filter(|spec| spec["containers"].is_array());
        if let Some(spec) = found {
            pod(spec, &Path::new(&place.join(".")), &mut warnings);
        }
    }
    warnings
}

fn pod(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    for (label, since, instead) in RENAMED {
        if !spec["nodeSelector"][label].is_null() {
            let path = path.child("nodeSelector");
            warnings.push(format!(
                "{path}[{label}]: deprecated since {since}; use \"{instead}\" instead"
            ));
        }
    }
    if meta::number(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        warnings.push(format!(
            "{path}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    let mut ports: Vec<(String, Value)> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (at, container) in meta::list(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(at);
            variables(container, &path, warnings);
            for (at, port) in meta::list(container, &["ports"]).iter().enumerate() {
                let path = path.child("ports").index(at).to_string();
                duplicate_port((path, port), &mut ports, warnings);
            }
        }
    }
}

fn variables(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let all = meta::list(container, &["env"]);
    for (at, variable) in all.iter().enumerate() {
        let name = meta::text(variable, &["name"]);
        let hidden = all[..at].iter().any(|earlier| earlier["name"] == name);
        if hidden {
            let path = path.child("env").index(at);
            warnings.push(format!(
                "{path}: hides previous definition of \"{name}\", which may be dropped when using apply"
            ));
        }
    }
}

/// A port that another container of the pod, or this one, has too.
fn duplicate_port(
    (path, port): (String, &Value),
    earlier: &mut Vec<(String, Value)>,
    warnings: &mut Vec<String>,
) {
    let same = |other: &Value| {
        let fields = ["containerPort", "protocol", "hostIP", "hostPort"];
        fields.iter().all(|field| other[*field] == port[*field])
    };
    if let Some((other, _)) = earlier.iter().find(|(_, other)| same(other)) {
        warnings.push(format!("{path}: duplicate port definition with {other}"));
    }
    earlier.push((path, port.clone()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_and_templates_are_warned_of() {
        let spec = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "terminationGracePeriodSeconds": -1,
            "containers": [
                {"name": "a", "env": [{"name": "X"}, {"name": "Y"}, {"name": "X"}],
                 "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                {"name": "b", "ports": [
                    {"containerPort": 80, "protocol": "UDP"},
                    {"containerPort": 80, "protocol": "TCP"},
                ]},
            ],
        });
        let expected = [
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            "spec.containers[0].env[2]: hides previous definition of \"X\", which may be dropped when using apply",
            "spec.containers[1].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ];
        assert_eq!(of(&json!({"spec": spec})), expected);
        let template = of(&json!({"spec": {"template": {"spec": spec}}}));
        assert_eq!(template.len(), 4);
        assert!(template[1].starts_with("spec.template.spec.termination"));
        assert_eq!(of(&json!({"data": {}})), Vec::<String>::new());
    }
}
