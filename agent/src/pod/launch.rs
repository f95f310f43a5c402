//! How a worker brings a container to life: description, files, shim.
#![forbid(unsafe_code)]

use std::{io, net::IpAddr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{
    EventSeverity::{Normal, Warning},
    PodReport,
    backoff::in_go,
    container::{ConfigError, Ingredients, describe, stop_signal},
    environment::Facts,
    node::blocking,
    pulls::Ready,
    record::{Instance, Termination, Waiting},
    status,
    worker::{Live, RETRY, Wake, Worker},
};
use crate::runtime::{
    bundle::{Bundle, LogConfig, ShimConfig},
    container::Container as Running,
    mount, spec,
};

/// As kubelet's defaults: 10 Mi a file, five files.
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;

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
    pub(super) fn wait_for(
        &mut self,
        container: &Container,
        reason: &str,
        message: String,
    ) -> bool {
        let waiting = Some(Waiting::new(reason, message));
        let own = self.record.container(&container.name);
        let news = own.waiting != waiting;
        own.waiting = waiting;
        news
    }

    pub(super) fn retry_later(&mut self, container: &Container) -> Option<Timestamp> {
        let at = Timestamp::now().checked_add(RETRY).ok()?;
        self.retries.insert(container.name.clone(), at);
        Some(at)
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
            stopping: None,
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
                self.post_start(container);
                None
            }
            Err(error) => Some(self.not_started(container, &instance, &super::chain(&error))),
        }
    }

    fn not_started(&mut self, container: &Container, instance: &Instance, why: &str) -> Timestamp {
        let message = format!(
            "failed to create shim task: OCI runtime create failed: unable to start container process: \
             error during container init: {why}"
        );
        let id = instance.id.clone();
        let now = Timestamp::now();
        let end = Termination::not_started(instance, message.clone(), now);
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
        now
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
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
            privileged: config.security.privileged,
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
        let name = format!("{restart}.log");
        self.logs_dir().join(container).join(name)
    }

    /// STATE/logs/NAMESPACE_POD_UID.
    pub(super) fn logs_dir(&self) -> std::path::PathBuf {
        let pod = format!("{}_{}_{}", self.me.namespace, self.me.name, self.me.uid);
        self.node.config.logs_dir().join(pod)
    }

    /// A container runs: whoever must know is told when it ends.
    pub(super) fn watch(&mut self, container: &Container, id: String, running: Running) {
        let running = Arc::new(running);
        let (watched, sender, name, run) = (
            Arc::clone(&running),
            self.own.clone(),
            container.name.clone(),
            id.clone(),
        );
        let (outbox, pod) = (self.node.outbox.clone(), self.me.clone());
        let watch = tokio::spawn(async move {
            let exit = match watched.ended().await {
                Ok(()) => {
                    // Before its shim has written down how: until the backend is withdrawn, clients are refused.
                    outbox.put(PodReport::Died { pod });
                    watched.exit().await
                }
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
        let live = Live {
            container: running,
            id,
            tasks: vec![watch.abort_handle()],
            hook: None,
        };
        self.live.insert(container.name.clone(), live);
    }

    /// A container counts as running from here on: its probes begin.
    pub(super) fn runs(&mut self, container: &Container) {
        let Some(live) = self.live.get(&container.name) else {
            return;
        };
        let (id, at) = (live.id.clone(), live.container.started().at);
        let has = |probe: &Option<_>| probe.is_some();
        let own = self.record.container(&container.name);
        own.waiting = None;
        if let Some(current) = &mut own.current {
            current.started_at = Some(at);
        }
        let adopted = own.started;
        own.started = own.started || !has(&container.startup_probe);
        own.ready = (adopted && own.ready) || (own.started && !has(&container.readiness_probe));
        let started = own.started;
        let probes = self.probes(container, &id, started);
        if let Some(live) = self.live.get_mut(&container.name) {
            live.tasks.extend(probes);
        }
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
