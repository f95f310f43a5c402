//! What clients rely on beyond the commands: fields that stay, writes that are only tried, names that are made up.

use serde_json::{Value, json};

use super::{Cluster, cluster};

/// Where objects of a kind are, in the namespace "default".
fn place(group: &str, plural: &str) -> String {
    let root = if group == "v1" { "/api" } else { "/apis" };
    format!("{root}/{group}/namespaces/default/{plural}")
}

async fn create(cluster: &Cluster, path: &str, object: &Value) -> Value {
    let (code, made) = cluster.ask(&format!("POST {path}"), object).await;
    assert_eq!(code, 201, "{made}");
    made
}

/// A merge patch; the code and the answer.
async fn merge(cluster: &Cluster, place: &str, patch: &Value) -> (u16, Value) {
    let head = format!("PATCH {place} HTTP/1.1\r\nContent-Type: application/merge-patch+json");
    let (code, _, body) = cluster
        .send(true, &head, patch.to_string().as_bytes())
        .await;
    (code, serde_json::from_str(&body).expect("JSON"))
}

fn template(app: &str, restart: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i:1"}]},
    })
}

/// Objects by group and plural, changes that they refuse, and the field and reason that are told.
fn changes_of_what_stays() -> Vec<(&'static str, Value, Value, &'static str)> {
    let selector = json!({"matchLabels": {"app": "a"}});
    let workload = json!({"selector": selector, "template": template("a", "Always")});
    let other = json!({"spec": {
        "selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}},
    }});
    vec![
        (
            "apps/v1 deployments",
            json!({"spec": workload}),
            other.clone(),
            "spec.selector Invalid",
        ),
        (
            "apps/v1 replicasets",
            json!({"spec": workload}),
            other.clone(),
            "spec.selector Invalid",
        ),
        (
            "apps/v1 daemonsets",
            json!({"spec": workload}),
            other.clone(),
            "spec.selector Invalid",
        ),
        (
            "apps/v1 statefulsets",
            json!({"spec": workload}),
            json!({"spec": {"serviceName": "x"}}),
            "spec Forbidden",
        ),
        (
            "batch/v1 jobs",
            json!({"spec": {"template": template("a", "Never")}}),
            json!({"spec": {"template": {"spec": {"restartPolicy": "OnFailure"}}}}),
            "spec.template Invalid",
        ),
        (
            "v1 secrets",
            json!({"type": "a/b"}),
            json!({"type": "c/d"}),
            "type Invalid",
        ),
        (
            "v1 configmaps",
            json!({"immutable": true, "data": {"a": "1"}}),
            json!({"data": {"a": "2"}}),
            "data Forbidden",
        ),
        (
            "v1 pods",
            json!({"spec": template("a", "Always")["spec"]}),
            json!({"spec": {"terminationGracePeriodSeconds": 7}}),
            "spec Forbidden",
        ),
        (
            "discovery.k8s.io/v1 endpointslices",
            json!({"addressType": "IPv4", "endpoints": []}),
            json!({"addressType": "IPv6"}),
            "addressType Invalid",
        ),
    ]
}

#[tokio::test]
async fn fields_that_stay_are_named_in_causes() {
    let cluster = cluster().await;
    for (kind, mut object, patch, told) in changes_of_what_stays() {
        let (group, plural) = kind.split_once(' ').expect("a group and a plural");
        let (field, reason) = told.split_once(' ').expect("a field and a reason");
        let path = place(group, plural);
        object["metadata"] = json!({"name": "x"});
        create(&cluster, &path, &object).await;
        let (code, status) = merge(&cluster, &format!("{path}/x"), &patch).await;
        assert_eq!(
            (code, &status["reason"]),
            (422, &json!("Invalid")),
            "{plural} {status}"
        );
        let causes = status["details"]["causes"].as_array().expect("causes");
        let reason = format!("FieldValue{reason}");
        let told = causes
            .iter()
            .any(|cause| cause["field"] == field && cause["reason"] == reason.as_str());
        assert!(told, "{plural} {field} {reason}: {status}");
    }
}

#[tokio::test]
async fn what_is_only_tried_leaves_nothing() {
    let cluster = cluster().await;
    let path = place("v1", "configmaps");
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": value}});
    let dry = "dryRun=All";
    let (code, _) = cluster.ask(&format!("POST {path}?{dry}"), &map("1")).await;
    assert_eq!(code, 201);
    assert_eq!(
        cluster.ask(&format!("GET {path}/m"), &Value::Null).await.0,
        404
    );
    let made = create(&cluster, &path, &map("1")).await;
    let version = &made["metadata"]["resourceVersion"];
    let (code, tried) = cluster.ask(&format!("PUT {path}/m?{dry}"), &map("2")).await;
    assert_eq!((code, &tried["data"]["a"]), (200, &json!("2")), "{tried}");
    let (code, tried) = merge(&cluster, &format!("{path}/m?{dry}"), &map("3")).await;
    assert_eq!((code, &tried["data"]["a"]), (200, &json!("3")), "{tried}");
    let head = format!(
        "PATCH {path}/m?{dry}&fieldManager=me&force=true HTTP/1.1\r\nContent-Type: application/apply-patch+yaml"
    );
    let (code, ..) = cluster
        .send(true, &head, map("4").to_string().as_bytes())
        .await;
    assert_eq!(code, 200);
    for line in [
        format!("DELETE {path}/m?{dry}"),
        format!("DELETE {path}?{dry}"),
    ] {
        assert_eq!(cluster.ask(&line, &Value::Null).await.0, 200, "{line}");
    }
    let (code, now) = cluster.ask(&format!("GET {path}/m"), &Value::Null).await;
    assert_eq!(
        (code, &now["metadata"]["resourceVersion"], &now["data"]["a"]),
        (200, version, &json!("1"))
    );
    let (code, status) = cluster
        .ask(&format!("POST {path}?dryRun=Some"), &map("1"))
        .await;
    assert_eq!(
        (code, &status["reason"]),
        (422, &json!("Invalid")),
        "{status}"
    );
}

#[tokio::test]
async fn empty_lists_and_maps_are_as_good_as_absent() {
    let cluster = cluster().await;
    let path = place("v1", "pods");
    let pod = json!({
        "metadata": {"name": "p", "labels": {}, "ownerReferences": [], "finalizers": []},
        "spec": {"volumes": [], "nodeSelector": {}, "securityContext": {}, "containers": [{
            "name": "c", "image": "i:1", "args": [], "env": [], "resources": {"limits": {}},
        }]},
    });
    let made = create(&cluster, &path, &pod).await;
    for pointer in [
        "/metadata/labels",
        "/metadata/ownerReferences",
        "/metadata/finalizers",
        "/spec/nodeSelector",
        "/spec/containers/0/args",
        "/spec/containers/0/env",
        "/spec/containers/0/resources/limits",
    ] {
        assert_eq!(made.pointer(pointer), None, "{pointer} in {made}");
    }
    // A struct says that it is there.
    for pointer in ["/spec/securityContext", "/spec/containers/0/resources"] {
        assert_eq!(
            made.pointer(pointer),
            Some(&json!({})),
            "{pointer} in {made}"
        );
    }
    let role = json!({"metadata": {"name": "r"}, "rules": []});
    let made = create(
        &cluster,
        &place("rbac.authorization.k8s.io/v1", "roles"),
        &role,
    )
    .await;
    assert_eq!(made["rules"], json!([]), "{made}");
}

#[tokio::test]
async fn owners_are_kept_for_each_way_of_writing() {
    let cluster = cluster().await;
    let path = place("apps/v1", "deployments");
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": template("a", "Always")});
    create(
        &cluster,
        &format!("{path}?fieldManager=maker"),
        &json!({"metadata": {"name": "d"}, "spec": spec}),
    )
    .await;
    let status = json!({"status": {"observedGeneration": 1}});
    merge(
        &cluster,
        &format!("{path}/d/status?fieldManager=watcher"),
        &status,
    )
    .await;
    merge(
        &cluster,
        &format!("{path}/d/scale?fieldManager=scaler"),
        &json!({"spec": {"replicas": 3}}),
    )
    .await;
    let (_, now) = merge(
        &cluster,
        &format!("{path}/d?fieldManager=maker"),
        &json!({"metadata": {"labels": {"a": "b"}}}),
    )
    .await;
    let entries = now["metadata"]["managedFields"].as_array().expect("owners");
    let owns = |manager: &str, subresource: Value, pointer: &str| {
        let mut entries = entries.iter();
        entries.any(|entry| {
            entry["manager"] == manager
                && entry["subresource"] == subresource
                && entry["operation"] == "Update"
                && entry["fieldsV1"].pointer(pointer).is_some()
        })
    };
    assert!(
        owns("watcher", json!("status"), "/f:status/f:observedGeneration"),
        "{now}"
    );
    assert!(
        owns("scaler", json!("scale"), "/f:spec/f:replicas"),
        "{now}"
    );
    assert!(
        owns("maker", Value::Null, "/f:metadata/f:labels/f:a"),
        "{now}"
    );
    assert!(
        !owns("maker", Value::Null, "/f:spec/f:replicas"),
        "taken over: {now}"
    );
    assert!(
        !owns("maker", Value::Null, "/f:spec/."),
        "always there: {now}"
    );
}
