//! The phases of persistent volumes, and what becomes of them when their claims are gone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};

use super::{
    matching::{BOUND_BY_CONTROLLER, holder, volume_name},
    take_off,
};
use crate::{
    api::ObjectKey,
    controllers::{
        Context,
        cache::{Change, key_of},
        client::Precondition,
        events::seconds,
        informers::{BY_CLAIM, claim_word},
        meta,
        resources::{PERSISTENT_VOLUMES, VOLUME_CLAIMS},
        worker::{Controller, Error, Outcome, own_key},
    },
    resource::kinds::persistent_volumes::VOLUME_PROTECTION,
};

/// The row of volumes.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let (shared, volumes) = (
        Arc::clone(context),
        Arc::clone(&informers.persistent_volumes),
    );
    Controller::new("persistentvolume", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.persistent_volumes, own_key)
    .watch(
        &informers.volume_claims,
        move |change: &Change<PersistentVolumeClaim>| {
            let mut keys: Vec<_> = change
                .sides()
                .map(|claim| volume_name(claim).to_owned())
                .filter(|name| !name.is_empty())
                .map(|name| ObjectKey {
                    namespace: None,
                    name,
                })
                .collect();
            if let Some(key) = change.key() {
                let namespace = key.namespace.as_deref().unwrap_or_default();
                let word = claim_word(namespace, &key.name);
                let held = volumes.cache().find(BY_CLAIM, &word);
                keys.extend(held.iter().map(|volume| key_of(&volume.metadata)));
            }
            keys.dedup();
            keys
        },
    )
}

fn phase(volume: &PersistentVolume) -> &str {
    let status = volume.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(volume) = informers.persistent_volumes.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    if meta::is_terminating(&volume.metadata) && phase(&volume) != "Bound" {
        let name = VOLUME_PROTECTION;
        take_off(context, PERSISTENT_VOLUMES, volume.as_ref(), name).await?;
        return Ok(Outcome::Done);
    }
    match holder(&volume) {
        // Nobody's, or meant for a claim, which has not come, or has not been given it.
        None | Some((_, "")) => show(context, &volume, "Available").await?,
        Some((claim, uid)) => held(context, &volume, (&claim, uid)).await?,
    }
    Ok(Outcome::Done)
}

async fn held(
    context: &Context,
    volume: &PersistentVolume,
    (key, uid): (&ObjectKey, &str),
) -> Result<(), Error> {
    let shown = context.informers.volume_claims.cache().get(key);
    let shown = shown.filter(|claim| meta::uid(&claim.metadata) == uid);
    let Some(claim) = shown else {
        // The cache may be behind; what a volume holds is not let go of by mistake.
        let live = context.client.live(VOLUME_CLAIMS, key).await?;
        let is_there = live.is_some_and(|claim| claim["metadata"]["uid"].as_str() == Some(uid));
        if is_there {
            return Ok(());
        }
        return reclaim(context, volume).await;
    };
    match volume_name(&claim) {
        // Its controller is about to write it.
        "" => Ok(()),
        name if name == meta::name(&volume.metadata) => show(context, volume, "Bound").await,
        _ => let_go(context, volume).await,
    }
}

/// The claim took another volume in the meantime.
async fn let_go(context: &Context, volume: &PersistentVolume) -> Result<(), Error> {
    if meta::annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_none() {
        // A user meant it for this claim: only a user may mean it for another.
        return show(context, volume, "Available").await;
    }
    let patch = json!({
        "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}},
        "spec": {"claimRef": null},
    });
    write(context, volume, None, patch).await
}

/// The claim is gone: the volume waits for its administrator, or goes too. What lies in its folder stays in any case.
async fn reclaim(context: &Context, volume: &PersistentVolume) -> Result<(), Error> {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if phase(volume) != "Released" {
        return show(context, volume, "Released").await;
    }
    if policy != Some("Delete") {
        return Ok(());
    }
    let precondition = Precondition {
        uid: volume.metadata.uid.clone(),
        resource_version: volume.metadata.resource_version.clone(),
    };
    let key = key_of(&volume.metadata);
    context
        .client
        .delete(PERSISTENT_VOLUMES, &key, precondition, None, None)
        .await
}

async fn show(context: &Context, volume: &PersistentVolume, wanted: &str) -> Result<(), Error> {
    if phase(volume) == wanted {
        return Ok(());
    }
    let patch = json!({"status": {
        "phase": wanted,
        "lastPhaseTransitionTime": seconds(context.clock.now()),
    }});
    write(context, volume, Some("status"), patch).await
}

async fn write(
    context: &Context,
    volume: &PersistentVolume,
    subresource: Option<&str>,
    patch: Value,
) -> Result<(), Error> {
    let version = volume.metadata.resource_version.as_deref();
    let key = key_of(&volume.metadata);
    let written = context
        .client
        .merge_at(PERSISTENT_VOLUMES, &key, subresource, version, patch)
        .await;
    super::gone_is_fine(written)
}
