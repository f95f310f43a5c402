//! What Kubernetes answers to volumes, claims, classes and wishes of pods that are not valid, word for word.

use serde_json::{Value, json};

use super::tests::{change_faults, faults, set};
use crate::api::ResourceId;
use crate::resource::rows::{
    self, PERSISTENT_VOLUMES, PRIORITY_CLASSES, STORAGE_CLASSES, VOLUME_CLAIMS,
};

fn check<const N: usize>(
    id: ResourceId,
    whole: impl Fn() -> Value,
    cases: [(&str, Value, &str); N],
) {
    assert_eq!(faults(id, whole()), Vec::<String>::new());
    for (pointer, value, expected) in cases {
        let found = faults(id, set(whole(), pointer, value));
        assert!(found.contains(&expected.to_owned()), "{pointer}: {found:?}");
    }
}

fn volume() -> Value {
    json!({"metadata": {"name": "v"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/v"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}},
    }})
}

fn claim() -> Value {
    json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem",
    }})
}

#[test]
fn volumes() {
    check(
        PERSISTENT_VOLUMES,
        volume,
        [
            (
                "/spec/accessModes",
                json!([]),
                "spec.accessModes: Required value",
            ),
            (
                "/spec/accessModes",
                json!(["Once"]),
                "spec.accessModes: Unsupported value: \"Once\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
                 \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            ("/spec/capacity", json!({}), "spec.capacity: Required value"),
            (
                "/spec/capacity/storage",
                json!("0"),
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                "/spec/hostPath",
                json!({"path": "/x"}),
                "spec.local: Forbidden: may not specify more than 1 volume type",
            ),
            (
                "/spec/nodeAffinity",
                json!({}),
                "metadata.annotations: Required value: Local volume requires node affinity",
            ),
            (
                "/spec/persistentVolumeReclaimPolicy",
                json!("Keep"),
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \
                 \"Recycle\", \"Retain\"",
            ),
        ],
    );
    let moved = set(volume(), "/spec/local/path", json!("/w"));
    assert_eq!(
        change_faults(PERSISTENT_VOLUMES, &volume(), &moved),
        [
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        ]
    );
}

#[test]
fn claims() {
    check(
        VOLUME_CLAIMS,
        claim,
        [
            (
                "/spec/accessModes",
                json!([]),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (
                "/spec/accessModes",
                json!(["ReadWriteOncePod", "ReadWriteOnce"]),
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (
                "/spec/resources",
                json!({}),
                "spec.resources[storage]: Required value",
            ),
            (
                "/spec/volumeMode",
                json!("Tape"),
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
            ),
        ],
    );
    let mut classed = claim();
    classed["spec"]["storageClassName"] = json!("fast");
    assert!(change_faults(VOLUME_CLAIMS, &claim(), &classed).is_empty());
    let mut bound = classed.clone();
    bound["spec"]["volumeName"] = json!("v");
    assert!(change_faults(VOLUME_CLAIMS, &classed, &bound).is_empty());
    let mut other = bound.clone();
    other["spec"]["volumeName"] = json!("w");
    assert_eq!(
        change_faults(VOLUME_CLAIMS, &bound, &other),
        [
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName \
             for bound claims"
        ]
    );
}

#[test]
fn classes() {
    let storage =
        || json!({"metadata": {"name": "s"}, "provisioner": "kubernetes.io/no-provisioner"});
    check(
        STORAGE_CLASSES,
        storage,
        [
            ("/provisioner", json!(""), "provisioner: Required value"),
            (
                "/volumeBindingMode",
                json!("Later"),
                "volumeBindingMode: Unsupported value: \"Later\": supported values: \"Immediate\", \
                 \"WaitForFirstConsumer\"",
            ),
        ],
    );
    let other = set(storage(), "/provisioner", json!("x"));
    assert_eq!(
        change_faults(STORAGE_CLASSES, &storage(), &other),
        ["provisioner: Forbidden: updates to provisioner are forbidden."]
    );
    let priority = || json!({"metadata": {"name": "high"}, "value": 1000});
    check(
        PRIORITY_CLASSES,
        priority,
        [
            (
                "/value",
                json!(1_000_000_001),
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            ),
            (
                "/preemptionPolicy",
                json!("Ask"),
                "preemptionPolicy: Unsupported value: \"Ask\": supported values: \"Never\", \"PreemptLowerPriority\"",
            ),
            (
                "/metadata/name",
                json!("system-mine"),
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. \
                 error: system-mine is not a known system priority class",
            ),
        ],
    );
    for class in super::priorities::system_classes() {
        assert!(faults(PRIORITY_CLASSES, class).is_empty());
    }
    let other = set(priority(), "/value", json!(1));
    assert_eq!(
        change_faults(PRIORITY_CLASSES, &priority(), &other),
        ["value: Forbidden: may not be changed in an update."]
    );
}

#[test]
fn where_pods_want_to_be() {
    let pod = || {
        let selector = json!({"matchLabels": {"app": "x"}});
        json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "demo:1"}],
            "affinity": {
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": selector, "topologyKey": "zone"}]},
                "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 5, "podAffinityTerm": {"labelSelector": selector, "topologyKey": "zone"}}]},
            },
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": selector}],
        }})
    };
    let anti = "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/0";
    let near = "/spec/affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution/0";
    let spread = "/spec/topologySpreadConstraints/0";
    check(
        rows::PODS,
        pod,
        [
            (
                &format!("{anti}/topologyKey"),
                json!(""),
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required \
                 value: can not be empty",
            ),
            (
                &format!("{near}/weight"),
                json!(101),
                "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: \
                 101: must be in the range 1-100",
            ),
            (
                &format!("{spread}/maxSkew"),
                json!(0),
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ),
            (
                &format!("{spread}/whenUnsatisfiable"),
                json!("Maybe"),
                "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Maybe\": supported values: \
                 \"DoNotSchedule\", \"ScheduleAnyway\"",
            ),
        ],
    );
}

#[test]
fn containers_mount_the_claims_of_their_set() {
    let set = json!({"metadata": {"name": "s"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [
            {"name": "c", "image": "demo:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim()["spec"]}],
    }});
    let sets = ResourceId {
        group: "apps",
        version: "v1",
        plural: "statefulsets",
    };
    assert_eq!(faults(sets, set.clone()), Vec::<String>::new());
    let mut without = set;
    without["spec"]["volumeClaimTemplates"][0]["spec"] = json!({"accessModes": ["ReadWriteOnce"]});
    assert_eq!(
        faults(sets, without),
        ["spec.volumeClaimTemplates[0].spec.resources[storage]: Required value"]
    );
}
