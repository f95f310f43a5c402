//! The rows of the built-in kinds.

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Binding, ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use k8s_openapi::schemars::JsonSchema;

use super::kinds::{budgets, config, events, leases, namespaces, nodes, pods, services, workloads};

mod access;
mod batch;
mod metrics;
mod storage;

pub use access::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES};
pub use storage::{PERSISTENT_VOLUMES, PRIORITY_CLASSES, STORAGE_CLASSES, VOLUME_CLAIMS};

use super::schema::Builder;
use super::{ALL_VERBS, Behaviour, Generation, NameRule, Resource, Subresource, Verb};
use crate::api::ResourceId;

/// What status subresources allow.
const STATUS_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
/// What subresources allow that are streams both ways.
const STREAM_VERBS: &[Verb] = &[Verb::Create, Verb::Get];
/// What subresources allow that are only posted to.
const POST_VERBS: &[Verb] = &[Verb::Create];

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    Subresource {
        name: "status",
        kind: (group, version, kind),
        verbs: STATUS_VERBS,
    }
}

const SCALE: Subresource = Subresource {
    name: "scale",
    kind: ("autoscaling", "v1", "Scale"),
    verbs: STATUS_VERBS,
};

const BINDING: Subresource = Subresource {
    name: "binding",
    kind: ("", "v1", "Binding"),
    verbs: POST_VERBS,
};

const EVICTION: Subresource = Subresource {
    name: "eviction",
    kind: ("policy", "v1", "Eviction"),
    verbs: POST_VERBS,
};

const ATTACH: Subresource = Subresource {
    name: "attach",
    kind: ("", "v1", "PodAttachOptions"),
    verbs: STREAM_VERBS,
};

const PORT_FORWARD: Subresource = Subresource {
    name: "portforward",
    kind: ("", "v1", "PodPortForwardOptions"),
    verbs: STREAM_VERBS,
};

const EXEC: Subresource = Subresource {
    name: "exec",
    kind: ("", "v1", "PodExecOptions"),
    verbs: STREAM_VERBS,
};

const LOG: Subresource = Subresource {
    name: "log",
    kind: ("", "v1", "Pod"),
    verbs: &[Verb::Get],
};

const TOKEN: Subresource = Subresource {
    name: "token",
    kind: ("authentication.k8s.io", "v1", "TokenRequest"),
    verbs: POST_VERBS,
};

const FINALIZE: Subresource = Subresource {
    name: "finalize",
    kind: ("", "v1", "Namespace"),
    verbs: &[Verb::Update],
};

/// The identity of the core group's kinds and some others that code asks for by name.
pub const fn id(group: &'static str, version: &'static str, plural: &'static str) -> ResourceId {
    ResourceId {
        group,
        version,
        plural,
    }
}

/// Namespaces.
pub const NAMESPACES: ResourceId = id("", "v1", "namespaces");
/// Nodes.
pub const NODES: ResourceId = id("", "v1", "nodes");
/// Pods.
pub const PODS: ResourceId = id("", "v1", "pods");
/// Services.
pub const SERVICES: ResourceId = id("", "v1", "services");
/// Config maps.
pub const CONFIG_MAPS: ResourceId = id("", "v1", "configmaps");
/// Secrets.
pub const SECRETS: ResourceId = id("", "v1", "secrets");
/// Service accounts.
pub const SERVICE_ACCOUNTS: ResourceId = id("", "v1", "serviceaccounts");
/// Events of the core group.
pub const EVENTS: ResourceId = id("", "v1", "events");
/// Deployments.
pub const DEPLOYMENTS: ResourceId = id("apps", "v1", "deployments");
/// Replica sets.
pub const REPLICA_SETS: ResourceId = id("apps", "v1", "replicasets");
/// Endpoint slices.
pub const ENDPOINT_SLICES: ResourceId = id("discovery.k8s.io", "v1", "endpointslices");
/// Pod disruption budgets.
pub const DISRUPTION_BUDGETS: ResourceId = id("policy", "v1", "poddisruptionbudgets");
/// Leases.
pub const LEASES: ResourceId = id("coordination.k8s.io", "v1", "leases");

/// A row with what most kinds have; the rows below say where they differ.
fn row<T: JsonSchema>(
    builder: &mut Builder,
    id: ResourceId,
    kind: &'static str,
    singular: &'static str,
    behaviour: impl Behaviour,
) -> Resource {
    Resource {
        id,
        kind,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: const { &[] },
        names: NameRule::Subdomain,
        generation: Generation::None,
        owners: true,
        question: None,
        measures: None,
        selectable: &[],
        definition: builder.add::<T>(),
        behaviour: Box::new(behaviour),
    }
}

/// All rows, in the order in which discovery shows them.
pub fn all(builder: &mut Builder) -> Vec<Resource> {
    builder.add::<DeleteOptions>();
    builder.add::<Binding>();
    builder.add::<Eviction>();
    builder.add::<Scale>();
    builder.add::<TokenRequest>();
    let mut rows = core(builder);
    rows.extend(storage::core(builder));
    rows.extend(core_of_pods(builder));
    rows.extend(apps(builder));
    rows.extend(batch::rows(builder));
    rows.extend(access::rows(builder));
    rows.extend(others(builder));
    rows.extend(storage::others(builder));
    rows.extend(metrics::rows(builder));
    rows
}

fn core(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["cm"],
            ..row::<ConfigMap>(
                builder,
                CONFIG_MAPS,
                "ConfigMap",
                "configmap",
                config::ConfigMaps,
            )
        },
        Resource {
            short_names: &["ev"],
            owners: false,
            selectable: events::SELECTABLE,
            ..row::<Event>(builder, EVENTS, "Event", "event", events::Events)
        },
        Resource {
            short_names: &["ns"],
            namespaced: false,
            subresources: const { &[FINALIZE, status("", "v1", "Namespace")] },
            names: NameRule::Label,
            selectable: &[("status.phase", "")],
            ..row::<Namespace>(
                builder,
                NAMESPACES,
                "Namespace",
                "namespace",
                namespaces::Namespaces,
            )
        },
        Resource {
            short_names: &["no"],
            namespaced: false,
            subresources: const { &[status("", "v1", "Node")] },
            selectable: &[("spec.unschedulable", "false")],
            ..row::<Node>(builder, NODES, "Node", "node", nodes::Nodes)
        },
    ]
}

fn core_of_pods(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["po"],
            categories: &["all"],
            subresources: const {
                &[
                    ATTACH,
                    BINDING,
                    EVICTION,
                    EXEC,
                    LOG,
                    PORT_FORWARD,
                    status("", "v1", "Pod"),
                ]
            },
            generation: Generation::Spec,
            selectable: pods::SELECTABLE,
            ..row::<Pod>(builder, PODS, "Pod", "pod", pods::Pods)
        },
        Resource {
            selectable: &[("type", "")],
            ..row::<Secret>(builder, SECRETS, "Secret", "secret", config::Secrets)
        },
        Resource {
            short_names: &["sa"],
            subresources: const { &[TOKEN] },
            ..row::<ServiceAccount>(
                builder,
                SERVICE_ACCOUNTS,
                "ServiceAccount",
                "serviceaccount",
                config::ServiceAccounts,
            )
        },
        Resource {
            short_names: &["svc"],
            categories: &["all"],
            subresources: const { &[status("", "v1", "Service")] },
            names: NameRule::Label1035,
            selectable: &[("spec.clusterIP", ""), ("spec.type", "")],
            ..row::<Service>(builder, SERVICES, "Service", "service", services::Services)
        },
    ]
}

fn apps(builder: &mut Builder) -> Vec<Resource> {
    vec![
        row::<ControllerRevision>(
            builder,
            id("apps", "v1", "controllerrevisions"),
            "ControllerRevision",
            "controllerrevision",
            workloads::Revisions,
        ),
        Resource {
            short_names: &["ds"],
            categories: &["all"],
            subresources: const { &[status("apps", "v1", "DaemonSet")] },
            generation: Generation::Spec,
            ..row::<DaemonSet>(
                builder,
                id("apps", "v1", "daemonsets"),
                "DaemonSet",
                "daemonset",
                workloads::DaemonSets,
            )
        },
        Resource {
            short_names: &["deploy"],
            categories: &["all"],
            subresources: const { &[SCALE, status("apps", "v1", "Deployment")] },
            generation: Generation::Spec,
            ..row::<Deployment>(
                builder,
                DEPLOYMENTS,
                "Deployment",
                "deployment",
                workloads::Deployments,
            )
        },
        Resource {
            short_names: &["rs"],
            categories: &["all"],
            subresources: const { &[SCALE, status("apps", "v1", "ReplicaSet")] },
            generation: Generation::Spec,
            selectable: &[("status.replicas", "0")],
            ..row::<ReplicaSet>(
                builder,
                REPLICA_SETS,
                "ReplicaSet",
                "replicaset",
                workloads::ReplicaSets,
            )
        },
        Resource {
            short_names: &["sts"],
            categories: &["all"],
            subresources: const { &[SCALE, status("apps", "v1", "StatefulSet")] },
            generation: Generation::Spec,
            ..row::<StatefulSet>(
                builder,
                id("apps", "v1", "statefulsets"),
                "StatefulSet",
                "statefulset",
                workloads::StatefulSets,
            )
        },
    ]
}

fn others(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["pdb"],
            subresources: const { &[status("policy", "v1", "PodDisruptionBudget")] },
            generation: Generation::Spec,
            ..row::<PodDisruptionBudget>(
                builder,
                DISRUPTION_BUDGETS,
                "PodDisruptionBudget",
                "poddisruptionbudget",
                budgets::Budgets,
            )
        },
        Resource {
            owners: false,
            ..row::<Lease>(builder, LEASES, "Lease", "lease", leases::Leases)
        },
        Resource {
            generation: Generation::Content,
            ..row::<EndpointSlice>(
                builder,
                ENDPOINT_SLICES,
                "EndpointSlice",
                "endpointslice",
                services::EndpointSlices,
            )
        },
    ]
}
