//! Images for pods: one pull of an image at a time, however many containers wait for it.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use crate::image::{Image, ImageConfig, ImageError, Puller, Reference, Store};

type Pull = Shared<BoxFuture<'static, Result<Image, Arc<ImageError>>>>;

/// The node's images, and the pulls under way.
#[derive(Clone)]
pub struct Images {
    store: Store,
    puller: Puller,
    pulls: Arc<Mutex<HashMap<String, Pull>>>,
}

/// An image with all that a container needs of it.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its names and digests.
    pub image: Image,
    /// How it runs.
    pub config: ImageConfig,
    /// Its layers' folders, the lowest first.
    pub layers: Vec<PathBuf>,
}

impl Images {
    /// Of the store.
    pub fn new(store: Store) -> Images {
        Images {
            puller: Puller::new(store.clone()),
            store,
            pulls: Arc::default(),
        }
    }

    /// An image that the node has. Reads two small files.
    pub fn find(&self, name: &Reference) -> Result<Option<Ready>, ImageError> {
        let Some(image) = self.store.find(name)? else {
            return Ok(None);
        };
        Ok(Some(Ready {
            config: self.store.config(&image)?,
            layers: self.store.layers(&image)?,
            image,
        }))
    }

    /// Pulls an image, or waits for the pull that others wait for.
    pub async fn pull(&self, name: Reference) -> Result<Image, Arc<ImageError>> {
        let whole = name.whole();
        let pull = {
            let mut pulls = self.lock();
            let images = self.clone();
            let key = whole.clone();
            let begin = || {
                async move {
                    let result = images.puller.pull(&name).await.map_err(Arc::new);
                    images.lock().remove(&key);
                    result
                }
                .boxed()
                .shared()
            };
            pulls.entry(whole).or_insert_with(begin).clone()
        };
        pull.await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pull>> {
        // Single insertions and removals: a panic leaves nothing half-done.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
