//! The shared informers: one a resource, whoever looks.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        coordination::v1::Lease,
        core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRole,
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    cache::{Index, Object, Partial},
    clock::Clock,
    event_ttl::EventAge,
    informer::{AnyInformer, Informer},
    meta,
    resources::{
        CLUSTER_ROLES, CONTROLLER_REVISIONS, CRON_JOBS, DAEMON_SETS, DEPLOYMENTS,
        DISRUPTION_BUDGETS, ENDPOINT_SLICES, EVENTS, JOBS, Kind, LEASES, NAMESPACES, NODES,
        PERSISTENT_VOLUMES, PODS, REPLICA_SETS, SERVICES, STATEFUL_SETS, STORAGE_CLASSES,
        VOLUME_CLAIMS,
    },
    volumes::matching,
};
use crate::{
    api::{Api, ObjectKey},
    scheduler,
};

/// Finds objects by the uid of their controller.
pub const BY_CONTROLLER: &str = "controller";
/// Finds objects that no controller controls by their namespace.
pub const ORPHANS: &str = "orphans";
/// Finds pods by the node that they are bound to.
pub const BY_NODE: &str = "node";
/// Finds pods by the claims that they use, and volumes by the claim that they are meant for.
pub const BY_CLAIM: &str = "claim";
/// Finds objects by "NAMESPACE/KEY=VALUE" of each of their labels.
pub const BY_LABEL: &str = "label";

/// See the file's front page.
pub struct Informers {
    /// Cluster roles.
    pub cluster_roles: Arc<Informer<ClusterRole>>,
    /// ControllerRevisions, by controller.
    pub controller_revisions: Arc<Informer<ControllerRevision>>,
    /// PodDisruptionBudgets.
    pub disruption_budgets: Arc<Informer<PodDisruptionBudget>>,
    /// StatefulSets.
    pub stateful_sets: Arc<Informer<StatefulSet>>,
    /// DaemonSets.
    pub daemon_sets: Arc<Informer<DaemonSet>>,
    /// CronJobs.
    pub cron_jobs: Arc<Informer<CronJob>>,
    /// Deployments.
    pub deployments: Arc<Informer<Deployment>>,
    /// EndpointSlices, by label.
    pub endpoint_slices: Arc<Informer<EndpointSlice>>,
    /// Events, of which only the age is kept.
    pub events: Arc<Informer<EventAge>>,
    /// Jobs, by controller.
    pub jobs: Arc<Informer<Job>>,
    /// Leases.
    pub leases: Arc<Informer<Lease>>,
    /// Namespaces.
    pub namespaces: Arc<Informer<Namespace>>,
    /// Nodes.
    pub nodes: Arc<Informer<Node>>,
    /// Persistent volumes, by claim.
    pub persistent_volumes: Arc<Informer<PersistentVolume>>,
    /// Pods, by controller, node, claim and label; those without controller by namespace.
    pub pods: Arc<Informer<Pod>>,
    /// ReplicaSets, by controller; those without by namespace.
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    /// Storage classes.
    pub storage_classes: Arc<Informer<StorageClass>>,
    /// Claims of persistent volumes.
    pub volume_claims: Arc<Informer<PersistentVolumeClaim>>,
    /// Services.
    pub services: Arc<Informer<Service>>,
    /// The metadata of every other kind.
    pub others: Vec<Arc<Informer<Partial>>>,
}

impl Informers {
    /// Informers of everything in the table of kinds.
    pub fn new(api: &Arc<dyn Api>, clock: &Arc<dyn Clock>, kinds: &[Kind]) -> Self {
        let typed = [
            CLUSTER_ROLES,
            CONTROLLER_REVISIONS,
            CRON_JOBS,
            DAEMON_SETS,
            DISRUPTION_BUDGETS,
            STATEFUL_SETS,
            JOBS,
            DEPLOYMENTS,
            ENDPOINT_SLICES,
            EVENTS,
            LEASES,
            NAMESPACES,
            NODES,
            PERSISTENT_VOLUMES,
            PODS,
            REPLICA_SETS,
            SERVICES,
            STORAGE_CLASSES,
            VOLUME_CLAIMS,
        ];
        let others = kinds
            .iter()
            .filter(|kind| !typed.contains(&kind.resource))
            .map(|kind| Informer::new(kind.resource, Arc::clone(api), Arc::clone(clock), vec![]))
            .collect();
        macro_rules! informer {
            ($resource:ident, $indexes:expr) => {
                Informer::new($resource, Arc::clone(api), Arc::clone(clock), $indexes)
            };
        }
        Self {
            cluster_roles: informer!(CLUSTER_ROLES, vec![]),
            controller_revisions: informer!(CONTROLLER_REVISIONS, vec![by_controller()]),
            disruption_budgets: informer!(DISRUPTION_BUDGETS, vec![]),
            stateful_sets: informer!(STATEFUL_SETS, vec![]),
            daemon_sets: informer!(DAEMON_SETS, vec![]),
            cron_jobs: informer!(CRON_JOBS, vec![]),
            deployments: informer!(DEPLOYMENTS, vec![]),
            endpoint_slices: informer!(ENDPOINT_SLICES, vec![by_label()]),
            events: informer!(EVENTS, vec![]),
            jobs: informer!(JOBS, vec![by_controller()]),
            leases: informer!(LEASES, vec![]),
            namespaces: informer!(NAMESPACES, vec![]),
            nodes: informer!(NODES, vec![]),
            pods: informer!(
                PODS,
                vec![
                    by_controller(),
                    orphans(),
                    by_label(),
                    pods_by_node(),
                    pods_by_claim()
                ]
            ),
            persistent_volumes: informer!(PERSISTENT_VOLUMES, vec![volumes_by_claim()]),
            storage_classes: informer!(STORAGE_CLASSES, vec![]),
            volume_claims: informer!(VOLUME_CLAIMS, vec![]),
            replica_sets: informer!(REPLICA_SETS, vec![by_controller(), orphans()]),
            services: informer!(SERVICES, vec![]),
            others,
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<dyn AnyInformer>> {
        let mut all: Vec<Arc<dyn AnyInformer>> = vec![
            Arc::clone(&self.cluster_roles) as _,
            Arc::clone(&self.controller_revisions) as _,
            Arc::clone(&self.cron_jobs) as _,
            Arc::clone(&self.daemon_sets) as _,
            Arc::clone(&self.disruption_budgets) as _,
            Arc::clone(&self.stateful_sets) as _,
            Arc::clone(&self.deployments) as _,
            Arc::clone(&self.jobs) as _,
            Arc::clone(&self.endpoint_slices) as _,
            Arc::clone(&self.events) as _,
            Arc::clone(&self.leases) as _,
            Arc::clone(&self.namespaces) as _,
            Arc::clone(&self.nodes) as _,
            Arc::clone(&self.persistent_volumes) as _,
            Arc::clone(&self.pods) as _,
            Arc::clone(&self.replica_sets) as _,
            Arc::clone(&self.services) as _,
            Arc::clone(&self.storage_classes) as _,
            Arc::clone(&self.volume_claims) as _,
        ];
        all.extend(self.others.iter().map(|other| Arc::clone(other) as _));
        all
    }

    /// Starts all of them; every handler must be in place.
    pub fn start(&self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        for informer in self.all() {
            tasks.spawn(informer.run(shutdown.clone()));
        }
    }

    /// Completes when everything is known that the scheduler goes by.
    pub async fn scheduling_synced(&self) {
        self.pods.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.disruption_budgets.synced().await;
        self.persistent_volumes.synced().await;
        self.storage_classes.synced().await;
        self.volume_claims.synced().await;
    }

    /// Completes when each has its first list.
    pub async fn synced(&self) {
        for informer in self.all() {
            informer.synced().await;
        }
    }
}

fn by_controller<T: Object>() -> Index<T> {
    Index {
        name: BY_CONTROLLER,
        words: |object| {
            meta::controller_of(object.metadata())
                .map(|owner| owner.uid.clone())
                .into_iter()
                .collect()
        },
    }
}

fn orphans<T: Object>() -> Index<T> {
    Index {
        name: ORPHANS,
        words: |object| match meta::controller_of(object.metadata()) {
            Some(_) => Vec::new(),
            None => object.metadata().namespace.iter().cloned().collect(),
        },
    }
}

fn by_label<T: Object>() -> Index<T> {
    Index {
        name: BY_LABEL,
        words: |object| {
            let metadata: &ObjectMeta = object.metadata();
            let namespace = meta::namespace(metadata);
            metadata
                .labels
                .iter()
                .flatten()
                .map(|(key, value)| label_word(namespace, key, value))
                .collect()
        },
    }
}

/// The word that [`BY_LABEL`] files a label under.
pub fn label_word(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// The word that [`BY_CLAIM`] files a claim under.
pub fn claim_word(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn pods_by_claim() -> Index<Pod> {
    Index {
        name: BY_CLAIM,
        words: |pod| {
            let namespace = meta::namespace(&pod.metadata);
            let claims = pod
                .spec
                .as_ref()
                .map(|spec| scheduler::demand::claims(pod, spec));
            let claims = claims.unwrap_or_default();
            let words = claims.iter().map(|claim| claim_word(namespace, claim));
            words.collect()
        },
    }
}

fn volumes_by_claim() -> Index<PersistentVolume> {
    Index {
        name: BY_CLAIM,
        words: |volume| {
            let holder = matching::holder(volume).map(|(key, _)| key);
            let word = |key: ObjectKey| {
                claim_word(key.namespace.as_deref().unwrap_or_default(), &key.name)
            };
            holder.map(word).into_iter().collect()
        },
    }
}

fn pods_by_node() -> Index<Pod> {
    Index {
        name: BY_NODE,
        words: |pod| {
            pod.spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .into_iter()
                .collect()
        },
    }
}
