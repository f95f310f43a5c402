//! `StatefulSet`s: pods with names that last, made and replaced in order.

mod claims;
mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, PodTemplateSpec},
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, key_of},
    expectations::Expectations,
    meta,
    pod_control::{Claimed, Owner},
    resources::STATEFUL_SETS,
    revisions::{self, Revision},
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::ObjectKey;
use plan::{Template, ordinal, plan};

/// How long the cache may take to show what was written before that is looked at again.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let expectations = Arc::new(Expectations::default());
    let (shared, sets) = (Arc::clone(context), Arc::clone(&informers.stateful_sets));
    Controller::new("statefulset", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let expectations = Arc::clone(&expectations);
        async move { reconcile(&context, &expectations, &key).await }
    })
    .watch(&informers.stateful_sets, own_key)
    .watch(
        &informers.controller_revisions,
        controller_key("StatefulSet"),
    )
    .watch(&informers.pods, controller_key("StatefulSet"))
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let orphan = change
            .new
            .iter()
            .filter(|pod| meta::controller_of(&pod.metadata).is_none());
        orphan
            .flat_map(|pod| {
                let near = sets.cache().in_namespace(meta::namespace(&pod.metadata));
                let pod = Arc::clone(pod);
                near.into_iter()
                    .filter(move |set| ordinal(meta::name(&set.metadata), &pod).is_some())
            })
            .map(|set| key_of(&set.metadata))
            .collect()
    })
}

fn owner(set: &StatefulSet) -> Owner<'_> {
    Owner {
        resource: STATEFUL_SETS,
        api_version: "apps/v1",
        kind: "StatefulSet",
        metadata: &set.metadata,
    }
}

async fn reconcile(
    context: &Context,
    expectations: &Expectations,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(set) = informers.stateful_sets.cache().get(key) else {
        expectations.forget(key);
        return Ok(Outcome::Done);
    };
    if !expectations.are_met(key, informers.pods.cache()) {
        return Ok(Outcome::After(CATCH_UP));
    }
    let (owner, spec) = (owner(&set), set.spec.clone().unwrap_or_default());
    let mut claimed = owner.claim(&owner.candidates(context), &spec.selector);
    // A pod whose name is none of the set's is not the set's, whatever its labels.
    let named = |pod: &Arc<Pod>| ordinal(meta::name(&set.metadata), pod).is_some();
    claimed.adopt.retain(named);
    owner.settle(context, &claimed).await?;
    let wanted = (&spec.template, &spec.selector);
    let revision = revisions::current(context, &owner, wanted).await?;
    let plan = plan(&set, &claimed.own, &revision.name, context.clock.now());
    let before = set.status.clone().unwrap_or_default();
    let first = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
    let first = i64::from(first.unwrap_or(0));
    let wanted = first..first + i64::from(spec.replicas.unwrap_or(1));
    claims::retain(context, &set, &claimed.own, wanted).await?;
    let mut failure = owner.delete(context, expectations, &plan.delete).await;
    if failure.is_none() {
        for (ordinal, _) in &plan.create {
            claims::make(context, &set, *ordinal).await?;
        }
        let current = before.current_revision.as_deref().unwrap_or_default();
        let pods = plan
            .create
            .iter()
            .map(|(ordinal, template)| match template {
                Template::Newest => pod_of(&set, *ordinal, (spec.template.clone(), &revision.name)),
                Template::Current => {
                    let found = template_of(context, &owner, current);
                    let (template, name) =
                        found.unwrap_or((spec.template.clone(), revision.name.clone()));
                    pod_of(&set, *ordinal, (template, &name))
                }
            });
        failure = owner.create(context, expectations, pods.collect()).await;
    }
    owner.write_status(context, &before, &plan.status).await?;
    clear(context, &set, &claimed, &revision).await?;
    match (failure, plan.look_again) {
        (Some(failure), _) => Err(failure.error),
        (None, Some(delay)) => Ok(Outcome::After(delay)),
        (None, None) => Ok(Outcome::Done),
    }
}

fn template_of(
    context: &Context,
    owner: &Owner<'_>,
    name: &str,
) -> Option<(PodTemplateSpec, String)> {
    let history = revisions::history(context, owner);
    let mut named = history
        .iter()
        .filter(|one| meta::name(&one.metadata) == name);
    Some((revisions::template(named.next()?)?, name.to_owned()))
}

/// Takes away what is beyond the history's limit.
async fn clear(
    context: &Context,
    set: &StatefulSet,
    claimed: &Claimed,
    newest: &Revision,
) -> Result<(), Error> {
    let limit = set
        .spec
        .as_ref()
        .and_then(|spec| spec.revision_history_limit);
    let status = set.status.as_ref();
    let current = status.and_then(|status| status.current_revision.as_deref());
    revisions::clear(context, &owner(set), limit, |old| {
        let name = old.metadata.name.as_deref();
        let of_it = |pod: &Arc<Pod>| {
            let labels = pod.metadata.labels.as_ref();
            labels
                .and_then(|labels| labels.get(revisions::HASH))
                .map(String::as_str)
                == name
        };
        name == Some(&newest.name) || name == current || claimed.own.iter().any(of_it)
    })
    .await
}

/// The pod of an ordinal: its name, its labels, its host name.
fn pod_of(
    set: &StatefulSet,
    ordinal: i64,
    (mut template, revision): (PodTemplateSpec, &str),
) -> Value {
    if let Some(spec) = template.spec.as_mut() {
        claims::mount(set, ordinal, spec.volumes.get_or_insert_default());
    }
    let mut pod = owner(set).pod_of(Some(template));
    let name = format!("{}-{ordinal}", meta::name(&set.metadata));
    let metadata = &mut pod["metadata"];
    metadata["name"] = json!(name);
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("generateName");
    }
    if !metadata["labels"].is_object() {
        metadata["labels"] = json!({});
    }
    metadata["labels"][revisions::HASH] = json!(revision);
    metadata["labels"]["statefulset.kubernetes.io/pod-name"] = json!(name);
    metadata["labels"]["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    pod["spec"]["hostname"] = json!(name);
    let service = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    if let Some(service) = service.filter(|service| !service.is_empty()) {
        pod["spec"]["subdomain"] = json!(service);
    }
    pod
}
