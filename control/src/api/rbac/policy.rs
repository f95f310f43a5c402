//! The roles and bindings that every cluster has from the start, as in Kubernetes.

use serde_json::{Value, json};

use super::GROUP;
use crate::api::ResourceId;
use crate::resource::rows::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn paths(paths: &[&str]) -> Value {
    json!({"nonResourceURLs": paths, "verbs": ["get"]})
}

fn object(kind: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        },
    });
    if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
        object.extend(rest);
    }
    object
}

fn role(name: &str, rules: &[Value]) -> (ResourceId, Value) {
    (
        CLUSTER_ROLES,
        object("ClusterRole", name, json!({"rules": rules})),
    )
}

/// A role with the rules of the roles of a label; `up` is the label that it has itself.
fn aggregated(name: &str, up: Option<&str>) -> (ResourceId, Value) {
    let label = format!("{GROUP}/aggregate-to-{name}");
    let selectors = json!([{"matchLabels": {label: "true"}}]);
    let rest = json!({"aggregationRule": {"clusterRoleSelectors": selectors}, "rules": []});
    let mut object = object("ClusterRole", name, rest);
    if let Some(up) = up {
        object["metadata"]["labels"][format!("{GROUP}/aggregate-to-{up}")] = json!("true");
    }
    (CLUSTER_ROLES, object)
}

fn part(of: &str, rules: &[Value]) -> (ResourceId, Value) {
    let (id, mut object) = role(&format!("system:aggregate-to-{of}"), rules);
    object["metadata"]["labels"][format!("{GROUP}/aggregate-to-{of}")] = json!("true");
    (id, object)
}

fn binding(role: &str, groups: &[&str]) -> (ResourceId, Value) {
    let subject = |group: &&str| json!({"apiGroup": GROUP, "kind": "Group", "name": group});
    let subjects: Vec<Value> = groups.iter().map(subject).collect();
    let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": role});
    let rest = json!({"roleRef": reference, "subjects": subjects});
    (
        CLUSTER_ROLE_BINDINGS,
        object("ClusterRoleBinding", role, rest),
    )
}

/// Everything, roles before the bindings that refer to them.
pub fn objects() -> Vec<(ResourceId, Value)> {
    let everyone = &["system:authenticated", "system:unauthenticated"];
    let open = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let found = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/openapi",
        "/openapi/*",
    ];
    let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    let reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    vec![
        role(
            "cluster-admin",
            &[all, json!({"nonResourceURLs": ["*"], "verbs": ["*"]})],
        ),
        role("system:discovery", &[paths(&[&found[..], &open].concat())]),
        role("system:public-info-viewer", &[paths(&open)]),
        role(
            "system:basic-user",
            &[
                rule("authorization.k8s.io", &reviews, &["create"]),
                rule(
                    "authentication.k8s.io",
                    &["selfsubjectreviews"],
                    &["create"],
                ),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            &[paths(&[
                "/.well-known/openid-configuration",
                "/openid/v1/jwks",
            ])],
        ),
        aggregated("admin", None),
        aggregated("edit", Some("admin")),
        aggregated("view", Some("edit")),
        part("admin", &admin_rules()),
        part("edit", &edit_rules()),
        part("view", &view_rules()),
        binding("cluster-admin", &["system:masters"]),
        binding("system:discovery", &everyone[..1]),
        binding("system:basic-user", &everyone[..1]),
        binding("system:public-info-viewer", everyone),
        binding(
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
    ]
}

fn admin_rules() -> Vec<Value> {
    let verbs = [READ, WRITE].concat();
    vec![
        rule(
            "authorization.k8s.io",
            &["localsubjectaccessreviews"],
            &["create"],
        ),
        rule(GROUP, &["roles", "rolebindings"], &verbs),
    ]
}

fn edit_rules() -> Vec<Value> {
    let into = [
        "pods/attach",
        "pods/exec",
        "pods/portforward",
        "pods/proxy",
        "services/proxy",
    ];
    let core = [
        "configmaps",
        "events",
        "persistentvolumeclaims",
        "pods",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "secrets",
        "serviceaccounts",
        "services",
    ];
    let apps = [
        "daemonsets",
        "deployments",
        "deployments/rollback",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "statefulsets",
        "statefulsets/scale",
    ];
    vec![
        rule("", &[&into[..], &["secrets"]].concat(), READ),
        rule("", &["serviceaccounts"], &["impersonate"]),
        rule("", &[&into[..], &core].concat(), WRITE),
        rule("", &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule("apps", &apps, WRITE),
        rule("autoscaling", &["horizontalpodautoscalers"], WRITE),
        rule("batch", &["cronjobs", "jobs"], WRITE),
        rule("policy", &["poddisruptionbudgets"], WRITE),
        rule(
            "networking.k8s.io",
            &["ingresses", "networkpolicies"],
            WRITE,
        ),
        rule("coordination.k8s.io", &["leases"], &[READ, WRITE].concat()),
    ]
}

fn view_rules() -> Vec<Value> {
    let core = [
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "replicationcontrollers/status",
        "resourcequotas",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let apps = [
        "controllerrevisions",
        "daemonsets",
        "daemonsets/status",
        "deployments",
        "deployments/scale",
        "deployments/status",
        "replicasets",
        "replicasets/scale",
        "replicasets/status",
        "statefulsets",
        "statefulsets/scale",
        "statefulsets/status",
    ];
    let jobs = ["cronjobs", "cronjobs/status", "jobs", "jobs/status"];
    let budgets = ["poddisruptionbudgets", "poddisruptionbudgets/status"];
    vec![
        rule("", &core, READ),
        rule("apps", &apps, READ),
        rule("autoscaling", &["horizontalpodautoscalers"], READ),
        rule("batch", &jobs, READ),
        rule("policy", &budgets, READ),
        rule("networking.k8s.io", &["ingresses", "networkpolicies"], READ),
        rule("discovery.k8s.io", &["endpointslices"], READ),
        rule("metrics.k8s.io", &["pods"], READ),
    ]
}
