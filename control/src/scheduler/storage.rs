//! The scheduler's part in binding volumes: it follows them, and writes into those that it has chosen whose they are. The
//! rest is their controller's; the pod goes on when its claims are bound.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use tracing::{debug, warn};

use super::{Scheduler, demand::Demand, volumes::Choice};
use crate::controllers::{
    cache::{Change, key_of},
    meta,
    resources::PERSISTENT_VOLUMES,
    volumes::{claim_reference, matching},
    worker::{Error, chain},
};

impl Scheduler {
    /// Takes in what changes of claims, volumes and classes.
    pub(super) fn follow_volumes(self: &Arc<Self>) {
        let informers = &self.context.informers;
        let of_claims = Arc::clone(self);
        informers.volume_claims.on_change(move |change| {
            let Some(key) = change.key() else { return };
            of_claims.storage_changed(|state| {
                let claims = &mut state.snapshot.volumes.claims;
                match &change.new {
                    Some(claim) => claims.insert(key, Arc::clone(claim)),
                    None => claims.remove(&key),
                };
            });
        });
        let of_volumes = Arc::clone(self);
        informers.persistent_volumes.on_change(move |change| {
            of_volumes.volume_changed(change);
        });
        let of_classes = Arc::clone(self);
        informers.storage_classes.on_change(move |change| {
            let Some(key) = change.key() else { return };
            of_classes.storage_changed(|state| {
                let classes = &mut state.snapshot.volumes.classes;
                match &change.new {
                    Some(class) => classes.insert(key.name, Arc::clone(class)),
                    None => classes.remove(&key.name),
                };
            });
        });
    }

    fn volume_changed(&self, change: &Change<PersistentVolume>) {
        let Some(key) = change.key() else { return };
        self.storage_changed(|state| {
            let volumes = &mut state.snapshot.volumes;
            if let Some(volume) = &change.new {
                volumes.set_volume(volume);
            } else {
                volumes.volumes.remove(&key.name);
                volumes.assumed.remove(&key.name);
            }
        });
    }

    fn storage_changed(&self, change: impl FnOnce(&mut super::State)) {
        let now = self.now();
        let mut state = self.lock();
        change(&mut state);
        state.ripen_all(now);
        drop(state);
        self.wake.notify_one();
    }

    /// Writes into volumes whose they are. What could not be written is chosen anew.
    pub(super) async fn bind_volumes(&self, demand: &Demand, chosen: Vec<Choice>) {
        for (claim, volume) in chosen {
            let Err(error) = self.give(&claim, &volume).await else {
                continue;
            };
            let (pod, cause) = (&demand.key, chain(&error));
            if matches!(error.code(), Some(404 | 409)) {
                debug!(?pod, cause, "a volume was taken by another");
            } else {
                warn!(?pod, cause, "can't bind a volume");
                self.say_rejected(demand, &cause);
            }
            let name = meta::name(&volume.metadata).to_owned();
            self.storage_changed(|state| {
                state.snapshot.volumes.assumed.remove(&name);
            });
        }
    }

    async fn give(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        let own = (key_of(&claim.metadata), meta::uid(&claim.metadata));
        if matching::holder(volume) == Some(own) {
            return Ok(());
        }
        let mut patch = claim_reference(claim);
        if matching::holder(volume).is_none() {
            let by_us = matching::BOUND_BY_CONTROLLER;
            patch["metadata"] = serde_json::json!({"annotations": {by_us: "yes"}});
        }
        let version = volume.metadata.resource_version.as_deref();
        let key = key_of(&volume.metadata);
        self.client
            .merge_at(PERSISTENT_VOLUMES, &key, None, version, patch)
            .await?;
        Ok(())
    }
}
