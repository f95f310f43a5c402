//! What a pod has where its manifest says nothing, and its class of service.

use serde_json::{Map, Value, json};

use super::super::quantity::Quantity;
use super::{each_mut, fill, map_mut};
use crate::api::meta;

/// How long a pod stays on a node that is not ready or unreachable, in seconds.
const DEFAULT_TOLERATION_SECONDS: i64 = 300;
/// Permissions of projected files: 0644.
const FILE_MODE: i64 = 0o644;
/// The lists of a pod's containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Fills in a pod's spec, in a pod or in a template.
pub fn spec(spec: &mut Map<String, Value>) {
    fill(spec, "restartPolicy", "Always");
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    same_account(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in CONTAINER_LISTS {
        for one in each_mut(spec, list) {
            container(one, host_network);
        }
    }
    for one in each_mut(spec, "volumes") {
        volume(one);
    }
}

/// An account is named by a field and by its old name; whoever writes one of them gets both.
fn same_account(spec: &mut Map<String, Value>) {
    let given = ["serviceAccountName", "serviceAccount"].map(|field| {
        let text = spec.get(field).and_then(Value::as_str);
        text.filter(|name| !name.is_empty()).map(str::to_owned)
    });
    if let Some(account) = given.into_iter().flatten().next() {
        spec.insert("serviceAccountName".to_owned(), json!(account));
        spec.insert("serviceAccount".to_owned(), json!(account));
    }
}

/// Fills in what only pods have, not templates.
pub fn pod_only(spec: &mut Map<String, Value>) {
    fill(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for one in each_mut(spec, list) {
            requests_from_limits(one);
        }
    }
}

/// What admission adds to a new pod: its account, and how long it tolerates a lost node.
pub fn admitted(spec: &mut Map<String, Value>) {
    let account = spec
        .get("serviceAccountName")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
        .to_owned();
    spec.insert("serviceAccountName".to_owned(), json!(account));
    spec.insert("serviceAccount".to_owned(), json!(account));
    let Some(tolerations) = spec
        .entry("tolerations")
        .or_insert_with(|| json!([]))
        .as_array_mut()
    else {
        return;
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let covers = |toleration: &Value| {
            let named = meta::text(toleration, &["key"]);
            let effect = meta::text(toleration, &["effect"]);
            (named == key || named.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if !tolerations.iter().any(covers) {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": DEFAULT_TOLERATION_SECONDS,
            }));
        }
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    fill(container, "imagePullPolicy", policy);
    fill(container, "resources", json!({}));
    for port in each_mut(container, "ports") {
        fill(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            fill(port, "hostPort", number);
        }
    }
    for variable in each_mut(container, "env") {
        if let Some(from) = map_mut(variable, "valueFrom")
            && let Some(reference) = map_mut(from, "fieldRef")
        {
            fill(reference, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = map_mut(container, name) {
            fill(probe, "timeoutSeconds", 1);
            fill(probe, "periodSeconds", 10);
            fill(probe, "successThreshold", 1);
            fill(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = map_mut(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = map_mut(lifecycle, name) {
                handler(hook);
            }
        }
    }
}

fn handler(handler: &mut Map<String, Value>) {
    if let Some(get) = map_mut(handler, "httpGet") {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
    if let Some(grpc) = map_mut(handler, "grpc") {
        fill(grpc, "service", "");
    }
}

/// Whether an image reference means a tag that moves: "latest", said or unsaid.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = map_mut(volume, source) {
            fill(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = map_mut(volume, "hostPath") {
        fill(path, "type", "");
    }
    if let Some(projected) = map_mut(volume, "projected") {
        for source in each_mut(projected, "sources") {
            if let Some(token) = map_mut(source, "serviceAccountToken") {
                fill(token, "expirationSeconds", 3600);
            }
        }
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = map_mut(container, "resources") else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

/// The class of service that a pod's requests and limits amount to.
pub fn quality_of_service(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["initContainers", "containers"] {
        for container in meta::list(pod, &["spec", list]) {
            for resource in ["cpu", "memory"] {
                let amount = |of: &str| -> Option<Quantity> {
                    let text = meta::text(container, &["resources", of, resource]);
                    let amount: Quantity = text.parse().ok()?;
                    (amount.milli() > 0).then_some(amount)
                };
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_fixed_tag_are_always_pulled() {
        for (image, latest) in [
            ("demo", true),
            ("host:5000/demo", true),
            ("host:5000/demo:latest", true),
            ("demo:1", false),
            ("demo@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn classes_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(quality_of_service(&pod(json!({}))), "BestEffort");
        assert_eq!(
            quality_of_service(&pod(json!({"limits": full}))),
            "Guaranteed"
        );
        assert_eq!(
            quality_of_service(&pod(json!({"requests": full}))),
            "Burstable"
        );
    }
}
