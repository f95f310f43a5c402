//! What a plan consists of: single writes to a Deployment's ReplicaSets.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::sets::{self, new_set_annotations, replicas, revision};
use crate::controllers::meta;

/// One write.
#[derive(Clone, Debug)]
pub enum Action {
    /// Takes over a set that matches and that nobody controls.
    Adopt(Arc<ReplicaSet>),
    /// Lets go of a set that no longer matches.
    Release(Arc<ReplicaSet>),
    /// Makes the set of the current template.
    Create(Box<ReplicaSet>),
    /// Brings annotations and minReadySeconds of the new set up to date.
    Annotate {
        /// Which.
        set: Arc<ReplicaSet>,
        /// All of its annotations.
        annotations: BTreeMap<String, String>,
    },
    /// Changes the number of replicas.
    Scale {
        /// Which.
        set: Arc<ReplicaSet>,
        /// To how many.
        to: i32,
    },
    /// Deletes a set beyond the history limit.
    Delete(Arc<ReplicaSet>),
    /// Writes the current revision to the Deployment.
    SetRevision(i64),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopt(set) => write!(f, "adopt {}", meta::name(&set.metadata)),
            Self::Release(set) => write!(f, "release {}", meta::name(&set.metadata)),
            Self::Create(set) => {
                let name = meta::name(&set.metadata);
                write!(
                    f,
                    "create {name} with {} at revision {}",
                    replicas(set),
                    revision(set)
                )
            }
            Self::Annotate { set, annotations } => {
                let revision = annotations.get(sets::REVISION).map_or("", String::as_str);
                write!(
                    f,
                    "annotate {} with revision {revision}",
                    meta::name(&set.metadata)
                )
            }
            Self::Scale { set, to } => {
                write!(
                    f,
                    "scale {} from {} to {to}",
                    meta::name(&set.metadata),
                    replicas(set)
                )
            }
            Self::Delete(set) => write!(f, "delete {}", meta::name(&set.metadata)),
            Self::SetRevision(revision) => write!(f, "set revision {revision}"),
        }
    }
}

/// The set of the Deployment's current template.
pub fn new_set(deployment: &Deployment, size: i32, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = sets::template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(sets::TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(sets::TEMPLATE_HASH.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta::name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(new_set_annotations(deployment, None, revision)),
            owner_references: Some(vec![meta::controller_reference(
                "apps/v1",
                "Deployment",
                &deployment.metadata,
            )]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}
