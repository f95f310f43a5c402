//! Follows the API's Services and the slices of headless ones.

use std::{fmt::Debug, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{watcher, watcher::Event},
};
use serde::de::DeserializeOwned;

use super::{
    Names,
    directory::{Directory, Service, endpoints, owner},
};
use crate::errors::{Backoff, chain};

/// The label that slices of headless Services have.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Until it is dropped.
pub async fn follow(client: Client, names: Names) {
    let services = watch(
        Api::<core::Service>::all(client.clone()),
        watcher::Config::default(),
        &names,
    );
    let slices = watch(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default().labels(HEADLESS),
        &names,
    );
    tokio::join!(services, slices);
}

/// What the directory keeps of a kind.
trait Entry: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// Whether the directory is whole once all of these are in it.
    const IS_LAST: bool;

    fn clear(directory: &mut Directory);

    fn put(&self, directory: &mut Directory, is_there: bool);
}

impl Entry for core::Service {
    const IS_LAST: bool = true;

    fn clear(directory: &mut Directory) {
        directory.clear_services();
    }

    fn put(&self, directory: &mut Directory, is_there: bool) {
        let namespace = self.namespace().unwrap_or_default();
        let service = is_there.then(|| Service::of(self));
        directory.set_service(&namespace, &self.name_any(), service);
    }
}

impl Entry for EndpointSlice {
    const IS_LAST: bool = false;

    fn clear(directory: &mut Directory) {
        directory.clear_slices();
    }

    fn put(&self, directory: &mut Directory, is_there: bool) {
        if let Some((namespace, service)) = owner(self) {
            let found = is_there.then(|| endpoints(self));
            directory.set_slice((&namespace, &service), &self.name_any(), found);
        }
    }
}

async fn watch<K: Entry>(api: Api<K>, config: watcher::Config, names: &Names) {
    let mut events = std::pin::pin!(watcher(api, config));
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => list.clear(),
            Ok(Event::InitApply(object)) => list.push(object),
            Ok(Event::InitDone) => {
                backoff.reset();
                let list = std::mem::take(&mut list);
                names.change(|directory| {
                    K::clear(directory);
                    for object in &list {
                        object.put(directory, true);
                    }
                });
                if K::IS_LAST {
                    names.known.send_replace(true);
                }
            }
            Ok(Event::Apply(object)) => names.change(|directory| object.put(directory, true)),
            Ok(Event::Delete(object)) => names.change(|directory| object.put(directory, false)),
            Err(error) => {
                let pause = backoff.pause();
                tracing::warn!(error = %chain(&error), retry_in = ?pause, "no news of Services' names");
                tokio::time::sleep(pause).await;
            }
        }
    }
}
