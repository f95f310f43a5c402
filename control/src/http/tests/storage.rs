//! Volumes, claims and classes, as kubectl makes and shows them.

use super::cluster;

const OBJECTS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: v1}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteMany, ReadWriteOnce]
  storageClassName: local
  local: {path: /var/lib/v1}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: default}
spec:
  storageClassName: local
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";

/// A table's header and first row, with one blank between two words.
fn lines(table: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    table.lines().map(words).collect()
}

#[tokio::test]
async fn volumes_claims_and_classes_are_shown() {
    let cluster = cluster().await;
    let said = cluster.apply(OBJECTS).await;
    assert_eq!(said.lines().count(), 3, "{said}");
    let again = cluster.apply(OBJECTS).await;
    assert_eq!(again.matches("unchanged").count(), 3, "{again}");
    let volumes = lines(&cluster.kubectl_ok(&["get", "pv", "-o", "wide"]).await);
    assert_eq!(
        volumes[0],
        "NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS REASON AGE VOLUMEMODE"
    );
    assert!(
        volumes[1].starts_with("v1 5Gi RWO,RWX Retain Pending local <unset>"),
        "{volumes:?}"
    );
    let claims = lines(&cluster.kubectl_ok(&["get", "pvc"]).await);
    assert_eq!(
        claims[0],
        "NAME STATUS VOLUME CAPACITY ACCESS MODES STORAGECLASS VOLUMEATTRIBUTESCLASS AGE"
    );
    assert!(
        claims[1].starts_with("data Pending local <unset>"),
        "{claims:?}"
    );
    let classes = lines(&cluster.kubectl_ok(&["get", "sc"]).await);
    assert_eq!(
        classes[0],
        "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE"
    );
    assert!(
        classes[1].starts_with(
            "local (default) kubernetes.io/no-provisioner Delete WaitForFirstConsumer false"
        ),
        "{classes:?}"
    );
    let described = cluster.kubectl_ok(&["describe", "pv", "v1"]).await;
    assert!(
        described.contains("Type:  LocalVolume")
            && described.contains("kubernetes.io/hostname in [n1]"),
        "{described}"
    );
    let described = cluster.kubectl_ok(&["describe", "pvc", "data"]).await;
    assert!(
        described.contains("StorageClass:  local") && described.contains("Used By:       <none>"),
        "{described}"
    );
    let described = cluster.kubectl_ok(&["describe", "sc", "local"]).await;
    assert!(described.contains("WaitForFirstConsumer"), "{described}");
}

#[tokio::test]
async fn priority_classes_are_made_and_shown() {
    let cluster = cluster().await;
    let create = ["create", "priorityclass", "high", "--value=1000"];
    cluster.kubectl_ok(&create).await;
    let shown = lines(&cluster.kubectl_ok(&["get", "priorityclasses"]).await);
    assert_eq!(shown[0], "NAME VALUE GLOBAL-DEFAULT AGE PREEMPTIONPOLICY");
    assert!(shown[1].starts_with("high 1000 false"), "{shown:?}");
    assert!(shown[1].ends_with("PreemptLowerPriority"), "{shown:?}");
    let described = cluster.kubectl_ok(&["describe", "pc", "high"]).await;
    assert!(
        described.contains("Value:          1000") || described.contains("Value:             1000"),
        "{described}"
    );
}
