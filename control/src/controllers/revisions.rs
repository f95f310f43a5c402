//! The history of a workload's template: a `ControllerRevision` for each that it has had, which `kubectl rollout` shows
//! and goes back to.

use std::sync::Arc;

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::key_of,
    client::Precondition,
    informers::BY_CONTROLLER,
    meta,
    pod_control::{Owner, gone_is_fine},
    resources::CONTROLLER_REVISIONS,
    worker::Error,
};

/// The label that pods and revisions bear.
pub const HASH: &str = "controller-revision-hash";

/// A template's place in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The revision's name: the workload's and the hash.
    pub name: String,
    /// What pods of it bear as [`HASH`].
    pub hash: String,
}

/// The workload's revisions, the oldest first.
pub fn history(context: &Context, owner: &Owner<'_>) -> Vec<Arc<ControllerRevision>> {
    let revisions = context.informers.controller_revisions.cache();
    let mut own = revisions.find(BY_CONTROLLER, meta::uid(owner.metadata));
    own.sort_by_key(|revision| (revision.revision, revision.metadata.name.clone()));
    own
}

/// What a revision holds: the patch that gives a workload this template.
fn data(template: &PodTemplateSpec) -> Result<Value, Error> {
    let mut template = serde_json::to_value(template).map_err(|source| Error::Json {
        action: "write down a template".to_owned(),
        source,
    })?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

/// The template that a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Sees to it that the workload's template is the newest revision; which it is.
pub async fn current(
    context: &Context,
    owner: &Owner<'_>,
    (wanted, selector): (&PodTemplateSpec, &LabelSelector),
) -> Result<Revision, Error> {
    let history = history(context, owner);
    let data = data(wanted)?;
    let newest = history.last().map_or(0, |revision| revision.revision);
    let same = history
        .iter()
        .rev()
        .find(|revision| revision.data.as_ref().is_some_and(|own| own.0 == data));
    if let Some(same) = same {
        if same.revision < newest {
            let version = same.metadata.resource_version.as_deref();
            let key = key_of(&same.metadata);
            let patch = json!({"revision": newest + 1});
            let patched = context
                .client
                .merge_at(CONTROLLER_REVISIONS, &key, None, version, patch)
                .await;
            gone_is_fine(patched)?;
        }
        let labels = same.metadata.labels.as_ref();
        let hash = labels.and_then(|labels| labels.get(HASH));
        return Ok(Revision {
            name: meta::name(&same.metadata).to_owned(),
            hash: hash.cloned().unwrap_or_default(),
        });
    }
    let hash = meta::letters(meta::hash(&data.to_string()));
    let name = format!("{}-{hash}", meta::name(owner.metadata));
    let mut labels = selector.match_labels.clone().unwrap_or_default();
    let template = wanted
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.clone());
    labels.extend(template.unwrap_or_default());
    labels.insert(HASH.to_owned(), hash.clone());
    let reference = meta::controller_reference(owner.api_version, owner.kind, owner.metadata);
    let change = meta::annotation(owner.metadata, "kubernetes.io/change-cause");
    let mut revision = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
        "data": data,
        "revision": newest + 1,
    });
    if let Some(change) = change {
        revision["metadata"]["annotations"] = json!({"kubernetes.io/change-cause": change});
    }
    let namespace = Some(meta::namespace(owner.metadata));
    match context
        .client
        .create(CONTROLLER_REVISIONS, namespace, revision)
        .await
    {
        // Made by a predecessor that died before it could see it.
        Err(refused) if refused.is_already_exists() => {}
        Err(source) => {
            let action = format!("create controller revision {name}");
            return Err(Error::Api { action, source });
        }
        Ok(_) => {}
    }
    Ok(Revision { name, hash })
}

/// Deletes the oldest revisions beyond the limit that no pod is of.
pub async fn clear(
    context: &Context,
    owner: &Owner<'_>,
    limit: Option<i32>,
    is_live: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let kept = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let idle: Vec<_> = history(context, owner)
        .into_iter()
        .filter(|revision| !is_live(revision))
        .collect();
    let excess = idle.len().saturating_sub(kept);
    for revision in idle.into_iter().take(excess) {
        let precondition = Precondition {
            uid: revision.metadata.uid.clone(),
            resource_version: None,
        };
        let key = key_of(&revision.metadata);
        context
            .client
            .delete(CONTROLLER_REVISIONS, &key, precondition, None, None)
            .await?;
    }
    Ok(())
}
