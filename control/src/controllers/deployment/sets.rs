//! What a Deployment reads off its ReplicaSets: sizes, revisions, annotations, templates.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::controllers::meta;

/// The revision of a set, and the current one of a Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set had before.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What the Deployment asked for when it last scaled the set.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// What it asked for with surge.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Tells the pods of one template from those of another.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// spec.replicas of a set.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// How many pods a set has.
pub fn existing(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// How many pods of a set are ready.
pub fn ready(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0)
}

/// How many pods of a set are available.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

/// The revision annotation; 0 when there is none.
pub fn revision(set: &ReplicaSet) -> i64 {
    meta::annotation(&set.metadata, REVISION)
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// A number in an annotation.
pub fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    meta::annotation(&set.metadata, annotation)?.parse().ok()
}

/// spec.replicas of a Deployment; 1 when absent, as the default is.
pub fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// Whether old pods go before new ones come.
pub fn recreates(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref()?.type_.as_deref())
        == Some("Recreate")
}

/// (maxSurge, maxUnavailable) as numbers of pods. Both zero would never move, so then one may be unavailable.
pub fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref()?.rolling_update.clone())
        .unwrap_or_default();
    let quarter = IntOrString::String("25%".to_owned());
    let replicas = wanted(deployment);
    let surge = scaled(
        &rolling.max_surge.unwrap_or_else(|| quarter.clone()),
        replicas,
        true,
    );
    let unavailable = scaled(&rolling.max_unavailable.unwrap_or(quarter), replicas, false);
    if surge == 0 && unavailable == 0 {
        return (0, 1.min(replicas));
    }
    (surge, unavailable.min(replicas))
}

fn scaled(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredfold = i64::from(of) * percent.max(0);
            let rounded = if up {
                (hundredfold + 99) / 100
            } else {
                hundredfold / 100
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// The template without the label that the controller itself adds.
pub fn bare_template(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|metadata| metadata.labels.as_mut())
    {
        labels.remove(TEMPLATE_HASH);
    }
    template
}

/// Whether a set's pods are what the Deployment asks for.
pub fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let asked = deployment.spec.as_ref().map(|spec| &spec.template);
    match (of_set, asked) {
        (Some(of_set), Some(asked)) => bare_template(of_set) == bare_template(asked),
        _ => false,
    }
}

/// The hash that names a template's set. It only has to differ where templates differ; `collisions` makes it differ
/// from a set of someone else that has the name.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let text = serde_json::to_string(template).unwrap_or_default();
    let salt = collisions
        .map(|count| count.to_string())
        .unwrap_or_default();
    meta::letters(meta::hash(&(text + &salt)))
}

/// Annotations that a set does not inherit from its Deployment.
fn is_inherited(annotation: &str) -> bool {
    !matches!(
        annotation,
        "kubectl.kubernetes.io/last-applied-configuration"
            | "deprecated.deployment.rollback.to"
            | REVISION
            | REVISION_HISTORY
            | DESIRED
            | MAX
    )
}

/// The annotations that the new set should have at this revision.
pub fn new_set_annotations(
    deployment: &Deployment,
    existing: Option<&ReplicaSet>,
    new_revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = existing
        .and_then(|set| set.metadata.annotations.clone())
        .unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if is_inherited(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old_revision = existing.map_or(0, revision);
    if old_revision < new_revision {
        annotations.insert(REVISION.to_owned(), new_revision.to_string());
        if old_revision > 0 {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old_revision.to_string());
        }
    }
    if existing.is_none() {
        annotations.extend(size_annotations(deployment));
    }
    annotations
}

/// What a set remembers of the Deployment's size when it is scaled.
pub fn size_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let replicas = wanted(deployment);
    let (surge, _) = fenceposts(deployment);
    BTreeMap::from([
        (DESIRED.to_owned(), replicas.to_string()),
        (MAX.to_owned(), (replicas + surge).to_string()),
    ])
}
