//! One pod's worker: looks at what should be, at what is, does the next step, and sleeps until something happens.
//!
//! Level-triggered: a step never asks what has changed, only what is missing. So a step that fails is tried again, and
//! a new agent's worker goes on from the record on disk.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{
    ContainerSnapshot, EventSeverity, PodRef, PodReport, PodSnapshot,
    hooks::HookKind,
    node::Node,
    probe::ProbeKind,
    pulls::Ready,
    record::{PodDir, PodRecord, Termination},
    sandbox,
    status::{self, Place},
    tokens::Tokens,
    volumes,
};
use crate::{
    image::ImageError,
    network::HostPort,
    runtime::{bundle::Exit, container::Container},
};

/// Between tries of what failed.
pub(super) const RETRY: SignedDuration = SignedDuration::from_secs(2);
/// How often volumes with a limit are measured.
const MEASURE: SignedDuration = SignedDuration::from_secs(5);
/// How long a new pod waits for a new node to hear of the cluster's name server.
const NAMES: std::time::Duration = std::time::Duration::from_secs(10);
/// How often volumes made of API objects are brought up to date.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);

/// What wakes a worker.
pub enum Wake {
    /// The pod's object is new or has changed.
    Apply(Arc<Pod>),
    /// The pod's object is gone.
    Remove,
    /// A container has ended.
    Ended {
        /// Its name.
        container: String,
        /// Which run of it.
        id: String,
        /// How; `None` when nobody knows.
        exit: io::Result<Option<Exit>>,
    },
    /// A pull has ended.
    Pulled {
        /// For which container.
        container: String,
        /// How.
        result: Result<Box<crate::image::Image>, Arc<ImageError>>,
        /// In how many milliseconds.
        millis: u128,
    },
    /// A hook has ended.
    Hooked {
        /// Of which container.
        container: String,
        /// Which run of it.
        id: String,
        /// Which hook.
        kind: HookKind,
        /// Why it failed.
        result: Result<(), String>,
    },
    /// A probe has come to another verdict, or has failed once more.
    Probed {
        /// Of which container.
        container: String,
        /// Which run of it.
        id: String,
        /// Which probe.
        kind: ProbeKind,
        /// What it says now.
        verdict: Result<(), String>,
        /// Whether that is final, by its thresholds.
        decided: bool,
    },
}

/// A container that runs, and the tasks that watch it.
pub(super) struct Live {
    pub container: Arc<Container>,
    pub id: String,
    pub tasks: Vec<AbortHandle>,
    /// The hook that runs.
    pub hook: Option<HookKind>,
}

impl Drop for Live {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Runs one pod.
pub struct Worker {
    pub(super) node: Arc<Node>,
    pub(super) me: PodRef,
    pub(super) pod: Arc<Pod>,
    pub(super) dir: PodDir,
    pub(super) record: PodRecord,
    pub(super) live: BTreeMap<String, Live>,
    pub(super) pulling: BTreeSet<String>,
    pub(super) pulled: BTreeMap<String, Ready>,
    /// When to try again what failed, by container; "" is what they share.
    pub(super) retries: BTreeMap<String, Timestamp>,
    pub(super) own: mpsc::UnboundedSender<Wake>,
    pub(super) clearing: JoinSet<()>,
    /// Of the pod's service account.
    tokens: Tokens,
    pub(super) removed: bool,
    /// Whether this agent has asked for the pod's network, which it does once also for pods that have one.
    attached: bool,
    refresh_at: Option<Timestamp>,
    /// When the pod's volumes are measured.
    measure_at: Option<Timestamp>,
    /// What users were told last of what containers share; told again only when it changes.
    trouble: Option<String>,
    inbox: mpsc::UnboundedReceiver<Wake>,
    saved: Option<PodRecord>,
    published: Option<PodStatus>,
    snapshot: Arc<Mutex<PodSnapshot>>,
}

/// What a worker does after a step.
pub(super) enum Next {
    Sleep(Option<Timestamp>),
    Leave,
}

impl Worker {
    /// For a pod that may have a past on disk.
    pub fn new(
        node: Arc<Node>,
        pod: Arc<Pod>,
        snapshot: Arc<Mutex<PodSnapshot>>,
    ) -> io::Result<(Worker, mpsc::UnboundedSender<Wake>)> {
        let me = super::pod_ref(&pod);
        let dir = node.pod_dir(&me.uid);
        std::fs::create_dir_all(dir.root())?;
        let record = dir
            .record()
            .read()?
            .unwrap_or_else(|| PodRecord::new(Timestamp::now()));
        dir.object().write(&pod)?;
        let (own, inbox) = mpsc::unbounded_channel();
        let worker = Worker {
            node,
            me,
            pod,
            dir,
            record,
            live: BTreeMap::new(),
            pulling: BTreeSet::new(),
            pulled: BTreeMap::new(),
            retries: BTreeMap::new(),
            own: own.clone(),
            clearing: JoinSet::new(),
            tokens: Tokens::default(),
            removed: false,
            attached: false,
            refresh_at: None,
            measure_at: None,
            trouble: None,
            inbox,
            saved: None,
            published: None,
            snapshot,
        };
        Ok((worker, own))
    }

    /// Until nothing is left of the pod.
    pub async fn run(mut self) {
        loop {
            let next = self.step().await;
            self.publish();
            let Next::Sleep(until) = next else { return };
            self.save();
            while self.clearing.try_join_next().is_some() {}
            let now = Timestamp::now();
            let sleep = until.map(|until| {
                std::time::Duration::try_from(until.duration_since(now)).unwrap_or_default()
            });
            let wake = tokio::select! {
                wake = self.inbox.recv() => wake,
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => continue,
            };
            let Some(wake) = wake else { return };
            self.wake(wake);
            while let Ok(wake) = self.inbox.try_recv() {
                self.wake(wake);
            }
            // Before the next step, which may start a dead container again: its backend is to be withdrawn meanwhile.
            self.publish();
        }
    }

    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Apply(pod) => self.apply(pod),
            Wake::Remove => self.removed = true,
            Wake::Ended {
                container,
                id,
                exit,
            } => self.ended(&container, &id, exit),
            Wake::Pulled {
                container,
                result,
                millis,
            } => self.pull_ended(&container, result, millis),
            Wake::Hooked {
                container,
                id,
                kind,
                result,
            } => self.hooked(&container, &id, kind, result),
            Wake::Probed {
                container,
                id,
                kind,
                verdict,
                decided,
            } => {
                self.probed(&container, &id, kind, &verdict, decided);
            }
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        if let Err(error) = self.dir.object().write(&pod) {
            tracing::warn!(pod = self.me.name, %error, "cannot remember the pod");
        }
        // What the API shows of a pod that others have touched is written again.
        let theirs = pod.status.as_ref();
        let differs = self
            .published
            .as_ref()
            .is_some_and(|ours| theirs.is_none_or(|theirs| !status::is_shown(ours, theirs)));
        self.pod = pod;
        if differs {
            self.published = None;
        }
    }

    async fn step(&mut self) -> Next {
        if self.removed || self.pod.metadata.deletion_timestamp.is_some() {
            return self.end_pod().await;
        }
        let now = Timestamp::now();
        let deadline = self.pass_deadline(now);
        if status::is_over(&self.pod, &self.record) {
            return Next::Sleep(self.finish(now).await);
        }
        let mut next = earlier(deadline, self.end_further(now));
        next = earlier(next, self.measure(now).await);
        if let Some(&at) = self.retries.get("").filter(|&&at| now < at) {
            return Next::Sleep(earlier(next, Some(at)));
        }
        if let Err(message) = self.share().await {
            self.node
                .event(&self.me, EventSeverity::Warning, message.0, message.1);
            let at = now.checked_add(RETRY).ok();
            if let Some(at) = at {
                self.retries.insert(String::new(), at);
            }
            return Next::Sleep(earlier(next, at));
        }
        self.trouble = None;
        let pod = Arc::clone(&self.pod);
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let begun = status::initialized(spec, &self.record);
        for container in spec.init_containers.iter().flatten() {
            if begun && !status::is_sidecar(container) {
                continue;
            }
            next = earlier(next, self.advance(spec, container, true).await);
            if !begun && !status::is_done(container, &self.record) {
                return Next::Sleep(next);
            }
        }
        for container in &spec.containers {
            next = earlier(next, self.advance(spec, container, false).await);
            if self.is_starting(&container.name) {
                break;
            }
        }
        Next::Sleep(earlier(next, self.refresh_at))
    }

    /// Looks whether the pod has more in its volumes than it may. When to look again.
    async fn measure(&mut self, now: Timestamp) -> Option<Timestamp> {
        if !volumes::is_limited(&self.pod) {
            return None;
        }
        if self.measure_at.is_some_and(|at| at <= now) {
            let (dir, pod) = (self.dir.clone(), Arc::clone(&self.pod));
            match super::node::blocking(move || volumes::excess(&dir, &pod)).await {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.fail("Evicted", message);
                    // The next step ends it.
                    return Some(now);
                }
                Err(error) => {
                    tracing::warn!(pod = self.me.name, %error, "cannot measure a pod's volumes");
                }
            }
            self.measure_at = None;
        }
        if self.measure_at.is_none() {
            self.measure_at = now.checked_add(MEASURE).ok();
        }
        self.measure_at
    }

    /// Makes what containers share. The error is an event: reason and message.
    async fn share(&mut self) -> Result<(), (&'static str, String)> {
        let failed = |message: String| {
            (
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {message}"),
            )
        };
        let is_host = self.pod.spec.as_ref().is_some_and(status::is_host_network);
        if !self.attached && !is_host {
            let ports = self.pod.spec.as_ref().map(HostPort::of).unwrap_or_default();
            let network = self.node.network.attach(&self.me.uid, &ports).await;
            self.record.network = Some(network.map_err(|error| failed(super::chain(&error)))?);
        }
        self.attached = true;
        if !self.record.sandbox {
            let (dir, pod, addresses) = (self.dir.clone(), Arc::clone(&self.pod), self.addresses());
            let names = self.node.references.names();
            names.wait(NAMES).await;
            let (servers, conf) = (names.servers(), self.node.config.resolv_conf.clone());
            super::node::blocking(move || sandbox::create(&dir, &pod, &addresses, &servers, &conf))
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        let now = Timestamp::now();
        if !self.record.sandbox || self.refresh_at.is_some_and(|at| at <= now) {
            let addresses = self.addresses();
            let mut tokens = std::mem::take(&mut self.tokens);
            let facts = self.facts(&addresses);
            let prepared =
                volumes::prepare(&self.dir, facts, &*self.node.references, &mut tokens).await;
            self.tokens = tokens;
            prepared.map_err(|error| ("FailedMount", super::chain(&error)))?;
            self.refresh_at = None;
        }
        if self.refresh_at.is_none() && volumes::are_live(&self.pod) {
            self.refresh_at = now.checked_add(REFRESH).ok();
        }
        self.record.sandbox = true;
        Ok(())
    }

    fn ended(&mut self, container: &str, id: &str, exit: io::Result<Option<Exit>>) {
        if self.live.get(container).is_none_or(|live| live.id != id) {
            return;
        }
        self.live.remove(container);
        let exit = exit.unwrap_or_else(|error| {
            tracing::warn!(container, %error, "cannot tell how a container ended");
            None
        });
        self.settle(container, exit.as_ref());
    }

    /// Writes a container's end into the record, and clears its files away.
    pub(super) fn settle(&mut self, container: &str, exit: Option<&Exit>) {
        let Some(instance) = self.record.container(container).current.clone() else {
            return;
        };
        let message = exit.and_then(|exit| self.last_words(container, &instance.id, exit));
        let termination = match exit {
            Some(exit) => Termination::seen(&instance, exit, message),
            None => Termination::lost(&instance, Timestamp::now()),
        };
        self.record.container(container).end(termination);
        self.clear(&instance.id);
    }

    /// Clears a container's files away, beside the worker.
    pub(super) fn clear(&mut self, id: &str) {
        let (node, uid, bundle) = (
            Arc::clone(&self.node),
            self.me.uid.clone(),
            self.dir.bundle(id),
        );
        self.clearing.spawn_blocking(move || {
            if let Err(error) = node.clear_container(&uid, &bundle) {
                // Tried again when the pod goes, and when the agent starts.
                tracing::warn!(bundle = %bundle.path().display(), %error, "cannot clear a container away");
            }
        });
    }

    fn save(&mut self) {
        if self.saved.as_ref() == Some(&self.record) {
            return;
        }
        match self.dir.record().write(&self.record) {
            Ok(()) => self.saved = Some(self.record.clone()),
            Err(error) => {
                tracing::error!(pod = self.me.name, %error, "cannot remember the pod's state");
            }
        }
    }

    /// Saves now, for a step that must not be forgotten. The caller shows the error.
    pub(super) fn save_now(&mut self) -> io::Result<()> {
        self.dir.record().write(&self.record)?;
        self.saved = Some(self.record.clone());
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        let place = Place {
            node_addresses: &self.node.config.node_addresses,
            now: Timestamp::now(),
        };
        let status = status::status(&self.pod, &self.record, place);
        self.record.conditions = status.conditions.clone().unwrap_or_default();
        let addresses = self.addresses();
        let running = self.record.containers.iter().filter_map(|(name, own)| {
            let live = self.live.get(name)?;
            Some(ContainerSnapshot {
                name: name.clone(),
                pid: live.container.started().init.pid,
                id: live.id.clone(),
                restarts: own.restarts(),
            })
        });
        let snapshot = PodSnapshot {
            namespace: self.me.namespace.clone(),
            name: self.me.name.clone(),
            uid: self.me.uid.clone(),
            netns: self
                .record
                .network
                .as_ref()
                .map(|network| network.netns.clone()),
            addresses,
            containers: running.collect(),
        };
        *self
            .snapshot
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = snapshot;
        if self.published.as_ref() != Some(&status) {
            self.published = Some(status.clone());
            self.node.outbox.put(PodReport::Status {
                pod: self.me.clone(),
                status: Box::new(status),
            });
        }
    }
}

/// The earlier of two times, where `None` is never.
pub(super) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
