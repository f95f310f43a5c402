//! How a worker brings a container to life: image, description, files, shim; and how it brings it to an end.
#![forbid(unsafe_code)]

use std::{io, net::IpAddr, sync::Arc, time::Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use nix::sys::signal::Signal;

use super::{
    EventSeverity::{Normal, Warning},
    backoff::in_go,
    container::{ConfigError, Ingredients, describe, stop_signal},
    environment::Facts,
    node::blocking,
    pulls::Ready,
    record::{Instance, PullFailure, Termination, Waiting},
    status,
    worker::{Live, RETRY, Wake, Worker},
};
use crate::{
    image::{ImageError, parse_name},
    runtime::{
        bundle::{Bundle, LogConfig, ShimConfig},
        container::{Container as Running, Found},
        mount, spec,
    },
};

/// As kubelet's defaults: 10 Mi a file, five files.
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;
/// How long a failed pull is shown as such before it is shown as waiting for the next.
const SHOW_FAILURE: SignedDuration = SignedDuration::from_secs(2);

/// Why a container was not made.
enum MakeError {
    /// What it refers to is not there, or what it asks for can't be.
    Config(ConfigError),
    /// The node could not.
    Io(&'static str, io::Error),
}

impl Worker {
    /// What the pod's fields are read from.
    pub(super) fn facts<'a>(&'a self, addresses: &'a [IpAddr]) -> Facts<'a> {
        Facts {
            pod: &self.pod,
            addresses,
            node_addresses: &self.node.config.node_addresses,
            capacity: self.node.config.capacity,
        }
    }

    /// status.podIPs.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        if self.pod.spec.as_ref().is_some_and(status::is_host_network) {
            return self.node.config.node_addresses.clone();
        }
        self.record
            .network
            .as_ref()
            .map(|network| network.addresses.clone())
            .unwrap_or_default()
    }

    /// Starts a container that should run and does not, unless it is too early. When to look again.
    pub(super) async fn advance(
        &mut self,
        spec: &PodSpec,
        container: &Container,
        is_init: bool,
    ) -> Option<Timestamp> {
        let now = Timestamp::now();
        let name = &container.name;
        let own = self.record.container(name);
        if own.current.is_some() || self.pulling.contains(name) {
            return None;
        }
        let mut failed = None;
        if let Some(end) = own.last_end() {
            if !status::restarts(spec, container, is_init, end.exit_code) {
                own.waiting = None;
                return None;
            }
            failed = Some(end.finished_at);
            if let Some(wait) = own.backoff.wait(end.finished_at, now) {
                self.crash_loop(container, wait.delay);
                return Some(wait.until);
            }
        }
        if let Some(&at) = self.retries.get(name).filter(|&&at| now < at) {
            return Some(at);
        }
        let image = match self.image(container).await {
            Ok(image) => image,
            Err(again) => return again,
        };
        if let Some(failed) = failed {
            self.record.container(name).backoff.advance(failed, now);
        }
        self.start(container, image).await
    }

    fn crash_loop(&mut self, container: &Container, delay: SignedDuration) {
        let name = &container.name;
        let whole = super::full_name(&self.pod);
        let message = format!(
            "back-off {} restarting failed container={name} pod={whole}",
            in_go(delay)
        );
        if self.wait_for(container, "CrashLoopBackOff", message) {
            let text = format!("Back-off restarting failed container {name} in pod {whole}");
            self.node.event(&self.me, Warning, "BackOff", text);
        }
    }

    /// Shows why a container does not run; `true` when that is news.
    fn wait_for(&mut self, container: &Container, reason: &str, message: String) -> bool {
        let waiting = Some(Waiting::new(reason, message));
        let own = self.record.container(&container.name);
        let news = own.waiting != waiting;
        own.waiting = waiting;
        news
    }

    fn retry_later(&mut self, container: &Container) -> Option<Timestamp> {
        let at = Timestamp::now().checked_add(RETRY).ok()?;
        self.retries.insert(container.name.clone(), at);
        Some(at)
    }

    /// The container's image; else when to look again.
    async fn image(&mut self, container: &Container) -> Result<Ready, Option<Timestamp>> {
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
    fn pull(
        &mut self,
        container: &Container,
        wanted: &str,
        name: crate::image::Reference,
    ) -> Option<Timestamp> {
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
        result: Result<Box<crate::image::Image>, Arc<ImageError>>,
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

    /// Makes and starts a container. When to look again after a failure.
    async fn start(&mut self, container: &Container, image: Ready) -> Option<Timestamp> {
        let name = container.name.clone();
        let attempt = self.record.container(&name).attempts;
        let id = new_id(&self.me.uid, &name, attempt);
        let bundle = self.dir.bundle(&id);
        if let Err(error) = self.make(container, &image, &bundle, attempt).await {
            self.clear(&id);
            let (reason, message) = match error {
                MakeError::Config(error) => ("CreateContainerConfigError", super::chain(&error)),
                MakeError::Io(operation, error) => (
                    "CreateContainerError",
                    format!("failed to create container: {operation}: {error}"),
                ),
            };
            if self.wait_for(container, reason, message.clone()) {
                self.node
                    .event(&self.me, Warning, "Failed", format!("Error: {message}"));
            }
            return self.retry_later(container);
        }
        let instance = Instance {
            id: id.clone(),
            image: image.image.name.clone(),
            image_id: image.image.id(),
            started_at: None,
            stop_signal: stop_signal(container, &image.config.config) as i32,
            stopping_since: None,
        };
        let own = self.record.container(&name);
        own.attempts += 1;
        own.current = Some(instance.clone());
        // Remembered first: an agent that dies here must find what it began.
        if let Err(error) = self.save_now() {
            let own = self.record.container(&name);
            own.attempts -= 1;
            own.current = None;
            self.clear(&id);
            self.wait_for(
                container,
                "CreateContainerError",
                format!("failed to reserve container name: {error}"),
            );
            return self.retry_later(container);
        }
        self.node.event(
            &self.me,
            Normal,
            "Created",
            format!("Created container: {name}"),
        );
        match self.node.launcher.start(&bundle).await {
            Ok(running) => {
                self.node.event(
                    &self.me,
                    Normal,
                    "Started",
                    format!("Started container {name}"),
                );
                self.watch(container, id, running);
                None
            }
            Err(error) => self.not_started(container, instance, &super::chain(&error)),
        }
    }

    fn not_started(
        &mut self,
        container: &Container,
        instance: Instance,
        why: &str,
    ) -> Option<Timestamp> {
        let message = format!(
            "failed to create shim task: OCI runtime create failed: unable to start container process: \
             error during container init: {why}"
        );
        let id = instance.id.clone();
        let now = Timestamp::now();
        let end = Termination::not_started(&instance, message.clone(), now);
        let spec = self.pod.spec.clone().unwrap_or_default();
        let is_init = spec
            .init_containers
            .iter()
            .flatten()
            .any(|init| init.name == container.name);
        let own = self.record.container(&container.name);
        own.end(end);
        own.waiting = status::restarts(&spec, container, is_init, 128)
            .then(|| Waiting::new("RunContainerError", message.clone()));
        self.clear(&id);
        self.node
            .event(&self.me, Warning, "Failed", format!("Error: {message}"));
        // At once: the first restart does not wait.
        Some(now)
    }

    /// A container's files, its root mounted and its configuration written.
    async fn make(
        &self,
        container: &Container,
        image: &Ready,
        bundle: &Bundle,
        attempt: u32,
    ) -> Result<(), MakeError> {
        let (layers, place) = (image.layers.clone(), bundle.clone());
        blocking(move || {
            std::fs::create_dir_all(place.path())?;
            mount::mount_root(&layers, &place)?;
            std::fs::write(place.termination_message(), "")?;
            // Whoever runs in the container may leave its last words.
            std::fs::set_permissions(
                place.termination_message(),
                std::os::unix::fs::PermissionsExt::from_mode(0o666),
            )
        })
        .await
        .map_err(|error| MakeError::Io("mount the image", error))?;
        let addresses = self.addresses();
        let id = bundle.path().file_name().unwrap_or_default();
        let cgroup = self.node.pod_cgroup(&self.me.uid).join(id);
        let is_host = self.pod.spec.as_ref().is_some_and(status::is_host_network);
        let netns = self
            .record
            .network
            .as_ref()
            .map(|network| network.netns.clone());
        let ingredients = Ingredients {
            facts: self.facts(&addresses),
            dir: &self.dir,
            bundle,
            image: &image.config.config,
            netns: netns.filter(|_| !is_host),
            cgroup: cgroup.clone(),
            state_dir: &self.node.config.state_dir,
        };
        let described = describe(container, &ingredients, &*self.node.references).await;
        let config = described.map_err(MakeError::Config)?;
        let document = spec::document(&config, &bundle.rootfs());
        let shim = ShimConfig {
            id: id.to_string_lossy().into_owned(),
            cgroup,
            log: LogConfig {
                path: self.log_path(&container.name, attempt),
                max_bytes: LOG_BYTES,
                max_files: LOG_FILES,
            },
            uid: config.user.uid,
        };
        let place = bundle.clone();
        blocking(move || {
            let text = serde_json::to_vec(&document).map_err(io::Error::other)?;
            std::fs::write(place.config(), text)?;
            place.shim_config().write(&shim)
        })
        .await
        .map_err(|error| MakeError::Io("write the configuration", error))
    }

    /// STATE/logs/NAMESPACE_POD_UID/CONTAINER/RESTART.log.
    pub(super) fn log_path(&self, container: &str, restart: u32) -> std::path::PathBuf {
        let pod = format!("{}_{}_{}", self.me.namespace, self.me.name, self.me.uid);
        self.node
            .config
            .logs_dir()
            .join(pod)
            .join(container)
            .join(format!("{restart}.log"))
    }

    /// A container runs: whoever must know is told when it ends.
    pub(super) fn watch(&mut self, container: &Container, id: String, running: Running) {
        let running = Arc::new(running);
        let has = |probe: &Option<_>| probe.is_some();
        let own = self.record.container(&container.name);
        own.waiting = None;
        if let Some(current) = &mut own.current {
            current.started_at = Some(running.started().at);
        }
        let adopted = own.started;
        own.started = own.started || !has(&container.startup_probe);
        own.ready = (adopted && own.ready) || (own.started && !has(&container.readiness_probe));
        let (watched, sender, name, run) = (
            Arc::clone(&running),
            self.own.clone(),
            container.name.clone(),
            id.clone(),
        );
        let watch = tokio::spawn(async move {
            let exit = match watched.ended().await {
                Ok(()) => watched.exit().await,
                Err(error) => Err(error),
            };
            let ended = Wake::Ended {
                container: name,
                id: run,
                exit,
            };
            if sender.send(ended).is_err() {
                tracing::debug!("a container ended after its pod's worker");
            }
        });
        let mut live = Live {
            container: running,
            id,
            tasks: vec![watch.abort_handle()],
        };
        let started = self.record.container(&container.name).started;
        let probes = self.probes(container, &live.id, started);
        live.tasks.extend(probes);
        self.live.insert(container.name.clone(), live);
    }

    /// What became of containers while there was no agent. How many run.
    pub(super) async fn adopt(&mut self) -> usize {
        let spec = self.pod.spec.clone().unwrap_or_default();
        for container in spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
        {
            let Some(instance) = self.record.container(&container.name).current.clone() else {
                continue;
            };
            match self
                .node
                .launcher
                .find(&self.dir.bundle(&instance.id))
                .await
            {
                Ok(Found::Running(running)) => self.watch(container, instance.id, running),
                Ok(Found::Ended(exit)) => self.settle(&container.name, Some(&exit)),
                Ok(Found::Lost(_)) => self.settle(&container.name, None),
                Ok(Found::NeverStarted) => {
                    let own = self.record.container(&container.name);
                    own.current = None;
                    own.attempts = own.attempts.saturating_sub(1);
                    self.clear(&instance.id);
                }
                Err(error) => {
                    tracing::error!(container = container.name, %error, "cannot tell what became of a container");
                    self.settle(&container.name, None);
                }
            }
        }
        self.live.len()
    }

    /// Clears folders of containers away that the record does not know.
    pub(super) fn clear_strays(&mut self) {
        let entries = match std::fs::read_dir(self.dir.containers()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(%error, "cannot look for left-over containers");
                return;
            }
        };
        let known: Vec<String> = self.live.values().map(|live| live.id.clone()).collect();
        for entry in entries.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&id) {
                self.clear(&id);
            }
        }
    }

    /// Asks every container to end, once; kills them when `deadline` has passed.
    pub(super) fn stop_all(&mut self, now: Timestamp, deadline: Timestamp) {
        for (name, live) in &self.live {
            let own = self
                .record
                .containers
                .get_mut(name)
                .and_then(|own| own.current.as_mut());
            let Some(current) = own else { continue };
            let first = current.stopping_since.is_none();
            current.stopping_since.get_or_insert(now);
            if first {
                self.node.event(
                    &self.me,
                    Normal,
                    "Killing",
                    format!("Stopping container {name}"),
                );
            }
            let signal = match Signal::try_from(current.stop_signal) {
                _ if now >= deadline => Signal::SIGKILL,
                Ok(signal) if first => signal,
                Ok(_) => continue,
                Err(_) => Signal::SIGTERM,
            };
            if let Err(error) = live.container.signal(signal) {
                tracing::warn!(container = name, %signal, %error, "cannot signal a container");
            }
        }
    }

    /// Kills containers that were told to end and did not. When the next is due.
    pub(super) fn kill_overdue(&mut self, now: Timestamp) -> Option<Timestamp> {
        let spec = self.pod.spec.as_ref();
        let grace = spec
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(30)
            .max(0);
        let mut next = None;
        for (name, live) in &self.live {
            let current = self
                .record
                .containers
                .get(name)
                .and_then(|own| own.current.as_ref());
            let Some(since) = current.and_then(|current| current.stopping_since) else {
                continue;
            };
            let due = since
                .checked_add(SignedDuration::from_secs(grace))
                .unwrap_or(Timestamp::MAX);
            if now < due {
                next = super::worker::earlier(next, Some(due));
            } else if let Err(error) = live.container.signal(Signal::SIGKILL) {
                tracing::warn!(container = name, %error, "cannot kill a container");
            }
        }
        next
    }
}

/// Unique on the node, and in its history: 64 hex digits as other runtimes have.
fn new_id(uid: &str, container: &str, attempt: u32) -> String {
    let seed = format!(
        "{uid}/{container}/{attempt}/{}",
        Timestamp::now().as_nanosecond()
    );
    crate::image::digest(seed.as_bytes())
        .trim_start_matches("sha256:")
        .to_owned()
}
