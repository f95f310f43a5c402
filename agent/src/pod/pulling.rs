//! How a worker gets a container's image, and what users see while it can't be had.
#![forbid(unsafe_code)]

use std::{io, sync::Arc, time::Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::{
    EventSeverity::{Normal, Warning},
    node::blocking,
    pulls::Ready,
    record::{PullFailure, Waiting},
    worker::{Wake, Worker},
};
use crate::image::{Image, ImageError, Reference, parse_name};

/// How long a failed pull is shown as such before it is shown as waiting for the next.
const SHOW_FAILURE: SignedDuration = SignedDuration::from_secs(2);

impl Worker {
    /// The container's image; else when to look again.
    pub(super) async fn image(
        &mut self,
        container: &Container,
    ) -> Result<Ready, Option<Timestamp>> {
        let wanted = container.image.clone().unwrap_or_default();
        if let Some(ready) = self.pulled.remove(&container.name) {
            return Ok(ready);
        }
        let name = match parse_name(&wanted) {
            Ok(name) => name,
            Err(error) => {
                let message = format!("Failed to apply default image tag \"{wanted}\": {error}");
                if self.wait_for(container, "InvalidImageName", message.clone()) {
                    self.node.event(&self.me, Warning, "InspectFailed", message);
                    self.node
                        .event(&self.me, Warning, "Failed", "Error: InvalidImageName");
                }
                return Err(None);
            }
        };
        let images = self.node.images.clone();
        let lookup = name.clone();
        let found = blocking(move || images.find(&lookup).map_err(io::Error::other)).await;
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(image = wanted, %error, "the image store can't be read: pulling");
            None
        });
        let is_latest = name.tag() == Some("latest") && name.digest().is_none();
        let policy = container
            .image_pull_policy
            .as_deref()
            .unwrap_or(if is_latest { "Always" } else { "IfNotPresent" });
        match (policy, found) {
            ("IfNotPresent" | "Never", Some(ready)) => {
                let message = format!("Container image \"{wanted}\" already present on machine");
                self.node.event(&self.me, Normal, "Pulled", message);
                Ok(ready)
            }
            ("Never", None) => {
                let message = format!(
                    "Container image \"{wanted}\" is not present with pull policy of Never"
                );
                if self.wait_for(container, "ErrImageNeverPull", message.clone()) {
                    self.node
                        .event(&self.me, Warning, "ErrImageNeverPull", message);
                    self.node
                        .event(&self.me, Warning, "Failed", "Error: ErrImageNeverPull");
                }
                // It may be imported at any time.
                Err(self.retry_later(container))
            }
            _ => Err(self.pull(container, &wanted, name)),
        }
    }

    /// Begins a pull, unless it is too early.
    fn pull(&mut self, container: &Container, wanted: &str, name: Reference) -> Option<Timestamp> {
        let now = Timestamp::now();
        let own = self.record.container(&container.name);
        if let Some(failure) = own.pull_failed.clone()
            && let Some(wait) = own.pull.wait(failure.at, now)
        {
            let shown = failure.at.checked_add(SHOW_FAILURE).unwrap_or(wait.until);
            if now < shown {
                return Some(shown);
            }
            let message = format!(
                "Back-off pulling image \"{wanted}\": ErrImagePull: {}",
                failure.message
            );
            if self.wait_for(container, "ImagePullBackOff", message) {
                self.node.event(
                    &self.me,
                    Normal,
                    "BackOff",
                    format!("Back-off pulling image \"{wanted}\""),
                );
                self.node
                    .event(&self.me, Warning, "Failed", "Error: ImagePullBackOff");
            }
            return Some(wait.until);
        }
        self.node.event(
            &self.me,
            Normal,
            "Pulling",
            format!("Pulling image \"{wanted}\""),
        );
        self.pulling.insert(container.name.clone());
        let (images, own, container) = (
            self.node.images.clone(),
            self.own.clone(),
            container.name.clone(),
        );
        tokio::spawn(async move {
            let begun = Instant::now();
            let result = images.pull(name).await.map(Box::new);
            let millis = begun.elapsed().as_millis();
            if own
                .send(Wake::Pulled {
                    container,
                    result,
                    millis,
                })
                .is_err()
            {
                tracing::debug!("an image was pulled for a pod that is gone");
            }
        });
        None
    }

    pub(super) fn pull_ended(
        &mut self,
        container: &str,
        result: Result<Box<Image>, Arc<ImageError>>,
        millis: u128,
    ) {
        self.pulling.remove(container);
        let all = self.pod.spec.iter().flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        });
        let wanted = all
            .into_iter()
            .find(|own| own.name == container)
            .and_then(|own| own.image.clone());
        let wanted = wanted.unwrap_or_default();
        let ready = result.map_err(|error| error.to_string()).and_then(|image| {
            let name = parse_name(&wanted).map_err(|error| error.to_string())?;
            let ready = self
                .node
                .images
                .find(&name)
                .map_err(|error| error.to_string())?;
            ready
                .map(|ready| (ready, image.size))
                .ok_or_else(|| "the image vanished from the store".to_owned())
        });
        let now = Timestamp::now();
        let own = self.record.container(container);
        match ready {
            Ok((ready, size)) => {
                own.pull_failed = None;
                let (seconds, rest) = (millis / 1000, millis % 1000);
                let took = if seconds == 0 {
                    format!("{rest}ms")
                } else {
                    format!("{seconds}.{rest:03}s")
                };
                let text = format!(
                    "Successfully pulled image \"{wanted}\" in {took} ({took} including waiting). Image size: {size} bytes."
                );
                self.pulled.insert(container.to_owned(), ready);
                self.node.event(&self.me, Normal, "Pulled", text);
            }
            Err(message) => {
                own.pull.advance(now, now);
                own.waiting = Some(Waiting::new("ErrImagePull", message.clone()));
                own.pull_failed = Some(PullFailure {
                    at: now,
                    message: message.clone(),
                });
                let text = format!("Failed to pull image \"{wanted}\": {message}");
                self.node.event(&self.me, Warning, "Failed", text);
                self.node
                    .event(&self.me, Warning, "Failed", "Error: ErrImagePull");
            }
        }
    }
}
