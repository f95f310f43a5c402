//! The resources that controllers name.

use crate::{
    api::ResourceId,
    resource::{Table, Verb},
};

/// A row of the resource table, as far as garbage collection and namespace clearing need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How URLs name it.
    pub resource: ResourceId,
    /// How manifests and owner references name it.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Kind {
    /// Every kind of a table that can be listed and watched.
    pub fn followed(table: &Table) -> Vec<Self> {
        let rows = table.rows().iter();
        let followed =
            rows.filter(|row| row.verbs.contains(&Verb::List) && row.verbs.contains(&Verb::Watch));
        let kind = followed.map(|row| Self {
            resource: row.id,
            kind: row.kind,
            namespaced: row.namespaced,
        });
        kind.collect()
    }
}

const fn v1(group: &'static str, plural: &'static str) -> ResourceId {
    ResourceId {
        group,
        version: "v1",
        plural,
    }
}

/// core/v1 pods.
pub const PODS: ResourceId = v1("", "pods");
/// core/v1 nodes.
pub const NODES: ResourceId = v1("", "nodes");
/// core/v1 namespaces.
pub const NAMESPACES: ResourceId = v1("", "namespaces");
/// core/v1 services.
pub const SERVICES: ResourceId = v1("", "services");
/// core/v1 persistentvolumes.
pub const PERSISTENT_VOLUMES: ResourceId = v1("", "persistentvolumes");
/// core/v1 persistentvolumeclaims.
pub const VOLUME_CLAIMS: ResourceId = v1("", "persistentvolumeclaims");
/// storage.k8s.io/v1 storageclasses.
pub const STORAGE_CLASSES: ResourceId = v1("storage.k8s.io", "storageclasses");
/// core/v1 serviceaccounts.
pub const SERVICE_ACCOUNTS: ResourceId = v1("", "serviceaccounts");
/// core/v1 events.
pub const EVENTS: ResourceId = v1("", "events");
/// apps/v1 deployments.
pub const DEPLOYMENTS: ResourceId = v1("apps", "deployments");
/// apps/v1 replicasets.
pub const REPLICA_SETS: ResourceId = v1("apps", "replicasets");
/// discovery.k8s.io/v1 endpointslices.
pub const ENDPOINT_SLICES: ResourceId = v1("discovery.k8s.io", "endpointslices");
/// apps/v1 controllerrevisions.
pub const CONTROLLER_REVISIONS: ResourceId = v1("apps", "controllerrevisions");
/// apps/v1 daemonsets.
pub const DAEMON_SETS: ResourceId = v1("apps", "daemonsets");
/// apps/v1 statefulsets.
pub const STATEFUL_SETS: ResourceId = v1("apps", "statefulsets");
/// policy/v1 poddisruptionbudgets.
pub const DISRUPTION_BUDGETS: ResourceId = v1("policy", "poddisruptionbudgets");
/// batch/v1 jobs.
pub const JOBS: ResourceId = v1("batch", "jobs");
/// batch/v1 cronjobs.
pub const CRON_JOBS: ResourceId = v1("batch", "cronjobs");
/// rbac.authorization.k8s.io/v1 clusterroles.
pub const CLUSTER_ROLES: ResourceId = v1("rbac.authorization.k8s.io", "clusterroles");
/// coordination.k8s.io/v1 leases.
pub const LEASES: ResourceId = v1("coordination.k8s.io", "leases");
