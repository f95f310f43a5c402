//! EndpointSlices: where the pods of each Service with a selector can be reached, per address family.

mod plan;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::json;

use super::{
    Context,
    cache::{Change, key_of},
    client::Precondition,
    events::{Regarding, Severity},
    informers::{BY_LABEL, label_word},
    meta, patch,
    resources::ENDPOINT_SLICES,
    worker::{Controller, Error, Outcome, own_key},
};
use crate::api::ObjectKey;
use crate::routing::options;

pub use plan::{Action, MANAGED_BY, MANAGER, SERVICE_NAME, View, plan};

const ZONE: &str = "topology.kubernetes.io/zone";

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let complaining = Arc::clone(context);
    let services = Arc::clone(&informers.services);
    let all_services = Arc::clone(&informers.services);
    Controller::new("endpointslice", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.services, move |change: &Change<Service>| {
        say_complaints(&complaining, change);
        own_key(change)
    })
    .watch(
        &informers.endpoint_slices,
        |change: &Change<EndpointSlice>| {
            change
                .sides()
                .filter_map(|slice| service_of(slice))
                .collect()
        },
    )
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let Some(key) = change.key() else {
            return Vec::new();
        };
        let namespace = key.namespace.as_deref().unwrap_or_default();
        services
            .cache()
            .in_namespace(namespace)
            .iter()
            .filter(|service| change.sides().any(|pod| selects(service, pod)))
            .map(|service| key_of(&service.metadata))
            .collect()
    })
    .watch(&informers.nodes, move |change: &Change<Node>| {
        let zone = |node: &Option<Arc<Node>>| node.as_deref().and_then(zone_of);
        if zone(&change.old) == zone(&change.new) {
            return Vec::new();
        }
        all_services.cache().keys()
    })
}

/// The Service of a slice that this controller made.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    (labels.get(MANAGED_BY)? == MANAGER).then(|| ObjectKey {
        namespace: slice.metadata.namespace.clone(),
        name: labels.get(SERVICE_NAME).cloned().unwrap_or_default(),
    })
}

fn selects(service: &Service, pod: &Pod) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
        .is_some_and(|selector| meta::includes(selector, pod.metadata.labels.as_ref()))
}

fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let slices: Vec<_> = informers
        .endpoint_slices
        .cache()
        .find(BY_LABEL, &label_word(namespace, SERVICE_NAME, &key.name))
        .into_iter()
        .filter(|slice| service_of(slice).as_ref() == Some(key))
        .collect();
    let Some(service) = informers.services.cache().get(key) else {
        for slice in &slices {
            delete(context, slice).await?;
        }
        return Ok(Outcome::Done);
    };
    let spec = service.spec.clone().unwrap_or_default();
    let selector = spec.selector.unwrap_or_default();
    // Without a selector someone else looks after the endpoints; an external name has none.
    let Some((label, value)) = selector.first_key_value() else {
        return Ok(Outcome::Done);
    };
    if spec.type_.as_deref() == Some("ExternalName") || meta::is_terminating(&service.metadata) {
        return Ok(Outcome::Done);
    }
    // Slices of a Service that had the same name go with it.
    let uid = meta::uid(&service.metadata);
    let (slices, others): (Vec<_>, Vec<_>) = slices
        .into_iter()
        .partition(|slice| meta::is_controlled_by(&slice.metadata, uid));
    let mut pods = informers
        .pods
        .cache()
        .find(BY_LABEL, &label_word(namespace, label, value));
    pods.retain(|pod| selects(&service, pod));
    let zones: BTreeMap<_, _> = informers
        .nodes
        .cache()
        .all()
        .iter()
        .filter_map(|node| Some((node.metadata.name.clone()?, zone_of(node)?)))
        .collect();
    let actions = plan(&View {
        service: &service,
        pods: &pods,
        zones: &zones,
        slices: &slices,
    });
    for action in &actions {
        if let Err(error) = apply(context, action).await {
            if !error.is_conflict() {
                say_failed(context, &service, &error);
            }
            return Err(error);
        }
    }
    for slice in &others {
        delete(context, slice).await?;
    }
    Ok(Outcome::Done)
}

async fn apply(context: &Context, action: &Action) -> Result<(), Error> {
    match action {
        Action::Create(slice) => {
            let namespace = slice.metadata.namespace.as_deref();
            let created = context
                .client
                .create(ENDPOINT_SLICES, namespace, json!(slice))
                .await;
            created.map(|_| ()).map_err(|source| Error::Api {
                action: format!("create endpoint slice {}", meta::name(&slice.metadata)),
                source,
            })
        }
        Action::Update { old, new } => {
            let key = key_of(&new.metadata);
            let difference = patch::diff(old.as_ref(), new).map_err(|source| Error::Json {
                action: format!("compare endpoint slice {}", key.name),
                source,
            })?;
            let Some(difference) = difference else {
                return Ok(());
            };
            let version = old.metadata.resource_version.as_deref();
            let client = &context.client;
            let merged = client
                .merge_at(ENDPOINT_SLICES, &key, None, version, difference)
                .await;
            merged.map(|_| ())
        }
        Action::Delete(slice) => delete(context, slice).await,
    }
}

async fn delete(context: &Context, slice: &EndpointSlice) -> Result<(), Error> {
    let precondition = Precondition {
        uid: slice.metadata.uid.clone(),
        resource_version: None,
    };
    let key = key_of(&slice.metadata);
    let client = &context.client;
    client
        .delete(ENDPOINT_SLICES, &key, precondition, None, None)
        .await
}

/// Says on a Service that is new or changed which of its annotations are not understood.
fn say_complaints(context: &Context, change: &Change<Service>) {
    let Some(service) = &change.new else {
        return;
    };
    let before = change.old.as_deref().map(options::complaints);
    let before = before.unwrap_or_default();
    for complaint in options::complaints(service) {
        if before.contains(&complaint) {
            continue;
        }
        context.events.record(
            Regarding::object(service.as_ref()),
            Severity::Warning,
            "UnknownAnnotationValue",
            complaint,
        );
    }
}

fn say_failed(context: &Context, service: &Service, error: &Error) {
    let namespace = meta::namespace(&service.metadata);
    let name = meta::name(&service.metadata);
    let cause = super::worker::chain(error);
    context.events.record(
        Regarding::object(service),
        Severity::Warning,
        "FailedToUpdateEndpointSlices",
        format!("Error updating Endpoint Slices for Service {namespace}/{name}: {cause}"),
    );
}
