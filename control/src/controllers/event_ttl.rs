//! Events end an hour after they last said something.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use serde::Deserialize;

use super::{
    Context,
    cache::Object,
    client::Precondition,
    clock,
    resources::EVENTS,
    worker::{Controller, Error, Outcome, own_key},
};
use crate::api::ObjectKey;

/// How long an event is kept.
pub const TTL: Duration = Duration::from_hours(1);

/// As much of an event as its end depends on.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventAge {
    /// metadata.
    pub metadata: ObjectMeta,
    /// When it was last seen.
    #[serde(default)]
    pub last_timestamp: Option<Time>,
    /// When it was first seen, in the newer form.
    #[serde(default)]
    pub event_time: Option<MicroTime>,
    /// How it went on, in the newer form.
    #[serde(default)]
    pub series: Option<Series>,
}

/// The course of an event that repeats.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// When it was last seen.
    #[serde(default)]
    pub last_observed_time: Option<MicroTime>,
}

impl Object for EventAge {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl EventAge {
    fn last_said(&self) -> Option<jiff::Timestamp> {
        let series = self
            .series
            .as_ref()
            .and_then(|series| series.last_observed_time.as_ref());
        [
            self.metadata.creation_timestamp.as_ref().map(|time| time.0),
            self.last_timestamp.as_ref().map(|time| time.0),
            self.event_time.as_ref().map(|time| time.0),
            series.map(|time| time.0),
        ]
        .into_iter()
        .flatten()
        .max()
    }
}

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let shared = Arc::clone(context);
    Controller::new("event-ttl", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .workers(2)
    .watch(&context.informers.events, own_key)
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let Some(event) = context.informers.events.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    let age = event
        .last_said()
        .map_or(TTL, |last| clock::elapsed(last, context.clock.now()));
    if age < TTL {
        return Ok(Outcome::After(TTL.saturating_sub(age)));
    }
    let precondition = Precondition {
        uid: event.metadata.uid.clone(),
        resource_version: event.metadata.resource_version.clone(),
    };
    context
        .client
        .delete(EVENTS, key, precondition, None, None)
        .await?;
    Ok(Outcome::Done)
}
