//! The manager: one worker a pod, told by commands, heard through reports.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

use super::{
    Adoption, Config, PodChannels, PodCommand, PodSnapshot, References,
    node::Node,
    outbox::Outbox,
    pulls::Images,
    record::PodDir,
    sandbox,
    worker::{Wake, Worker},
};
use crate::{
    image::{ImageError, Store},
    network::PodNetwork,
    runtime::{cgroup, container::Launcher},
};

/// Commands and reports that may wait before their sender does.
const CHANNEL_DEPTH: usize = 1024;

/// Why a manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A folder of the state directory could not be made or read.
    #[error("cannot use {path}: {source}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image store could not be opened.
    #[error("cannot open the image store")]
    Images(#[from] ImageError),
}

/// Runs the pods of one node.
pub struct Manager {
    adoption: Adoption,
    pods: Pods,
    tasks: Vec<JoinHandle<()>>,
}

/// The workers by pod uid.
type Pods = Arc<Mutex<BTreeMap<String, Handle>>>;

struct Handle {
    wake: mpsc::UnboundedSender<Wake>,
    snapshot: Arc<Mutex<PodSnapshot>>,
    task: JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Manager {
    /// Takes over what runs already, clears away what no pod owns, and serves commands. Needs a tokio runtime.
    pub async fn start(
        config: Config,
        network: Arc<dyn PodNetwork>,
        references: Arc<dyn References>,
    ) -> Result<(PodChannels, Manager), ManagerError> {
        let begun = Instant::now();
        for path in [config.pods_dir(), config.logs_dir(), config.images_dir()] {
            std::fs::create_dir_all(&path)
                .map_err(|source| ManagerError::State { path, source })?;
        }
        let store = Store::open(&config.images_dir())?;
        store.clear_scratch()?;
        let node = Arc::new(Node {
            launcher: Launcher::new(config.executable.clone()),
            images: Images::new(store),
            outbox: Outbox::default(),
            network,
            references,
            config,
        });
        let pods = Pods::default();
        let containers = adopt_all(&node, &pods).await?;
        let adoption = Adoption {
            containers,
            elapsed: begun.elapsed(),
        };
        tracing::info!(
            containers,
            elapsed_ms = adoption.elapsed.as_millis(),
            "adopted what was running"
        );
        let (commands, inbox) = mpsc::channel(CHANNEL_DEPTH);
        let (outbox, reports) = mpsc::channel(CHANNEL_DEPTH);
        let tasks = vec![
            tokio::spawn(node.outbox.clone().pump(outbox)),
            tokio::spawn(serve(Arc::clone(&node), Arc::clone(&pods), inbox)),
        ];
        let manager = Manager {
            adoption,
            pods,
            tasks,
        };
        Ok((PodChannels { commands, reports }, manager))
    }

    /// What was running when this manager started.
    pub fn adoption(&self) -> Adoption {
        self.adoption
    }

    /// The pods of the node, for `status`.
    pub fn snapshot(&self) -> Vec<PodSnapshot> {
        let pods = lock(&self.pods);
        pods.values()
            .filter(|handle| !handle.task.is_finished())
            .map(|handle| {
                handle
                    .snapshot
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone()
            })
            .collect()
    }

    /// Stops managing. Containers run on, for the next manager.
    pub async fn shutdown(self) {
        for task in &self.tasks {
            task.abort();
        }
        let handles: Vec<Handle> = std::mem::take(&mut *lock(&self.pods))
            .into_values()
            .collect();
        for mut handle in handles {
            handle.task.abort();
            if let Err(error) = (&mut handle.task).await
                && error.is_panic()
            {
                tracing::error!(%error, "a pod's worker has panicked");
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        lock(&self.pods).clear();
    }
}

/// What nobody owns goes; what runs gets a worker. How many containers run.
async fn adopt_all(node: &Arc<Node>, pods: &Pods) -> Result<usize, ManagerError> {
    let path = node.config.pods_dir();
    let fail = |source| ManagerError::State {
        path: path.clone(),
        source,
    };
    let mut adopting = JoinSet::new();
    let mut known = BTreeSet::new();
    for entry in std::fs::read_dir(&path).map_err(fail)? {
        let dir = PodDir::at(entry.map_err(fail)?.path());
        match dir.object().read() {
            Ok(Some(pod)) => {
                known.insert(super::pod_ref(&pod).uid);
                let node = Arc::clone(node);
                adopting.spawn(async move { adopt(node, pod).await });
            }
            Ok(None) => clear(&dir),
            Err(error) => {
                tracing::error!(pod = %dir.root().display(), %error, "a pod's past can't be read: clearing it away");
                clear(&dir);
            }
        }
    }
    let mut containers = 0;
    while let Some(adopted) = adopting.join_next().await {
        let (count, handle) = adopted
            .map_err(io::Error::other)
            .and_then(|result| result)
            .map_err(fail)?;
        containers += count;
        lock(pods).insert(handle.0, handle.1);
    }
    clear_groups(&node.config.cgroup_root, &known);
    Ok(containers)
}

async fn adopt(node: Arc<Node>, pod: Pod) -> io::Result<(usize, (String, Handle))> {
    let snapshot = Arc::default();
    let uid = super::pod_ref(&pod).uid;
    let (mut worker, wake) = Worker::new(node, Arc::new(pod), Arc::clone(&snapshot))?;
    let running = worker.adopt().await;
    worker.clear_strays();
    let task = tokio::spawn(worker.run());
    Ok((
        running,
        (
            uid,
            Handle {
                wake,
                snapshot,
                task,
            },
        ),
    ))
}

/// Groups whose pod is not remembered: their containers have no agent that would ever end them.
fn clear_groups(root: &Path, known: &BTreeSet<String>) {
    let children = cgroup::children(root).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look for left-over control groups");
        Vec::new()
    });
    for name in children {
        let Some(uid) = name.strip_prefix("pod") else {
            continue;
        };
        if !known.contains(uid)
            && let Err(error) = cgroup::remove(&root.join(&name))
        {
            tracing::warn!(name, %error, "cannot remove a left-over control group");
        }
    }
}

fn clear(dir: &PodDir) {
    if let Err(error) = sandbox::remove(dir) {
        tracing::warn!(pod = %dir.root().display(), %error, "cannot clear away what is left of a pod");
    }
}

async fn serve(node: Arc<Node>, pods: Pods, mut inbox: mpsc::Receiver<PodCommand>) {
    while let Some(command) = inbox.recv().await {
        match command {
            PodCommand::Apply(pod) => apply(&node, &pods, pod),
            PodCommand::Remove(uid) => remove(&pods, &uid),
            PodCommand::Sync(all) => {
                let wanted: BTreeSet<String> =
                    all.iter().map(|pod| super::pod_ref(pod).uid).collect();
                let known: Vec<String> = lock(&pods).keys().cloned().collect();
                for uid in known.iter().filter(|uid| !wanted.contains(*uid)) {
                    remove(&pods, uid);
                }
                for pod in all {
                    apply(&node, &pods, pod);
                }
            }
        }
    }
}

fn apply(node: &Arc<Node>, pods: &Pods, pod: Arc<Pod>) {
    let uid = super::pod_ref(&pod).uid;
    if !is_plain(&uid) {
        tracing::error!(uid, "a pod's uid must not be a path");
        return;
    }
    let mut pods = lock(pods);
    if let Some(handle) = pods.get(&uid)
        && handle.wake.send(Wake::Apply(Arc::clone(&pod))).is_ok()
    {
        return;
    }
    // New here, or its worker has ended: one that was told to end says so again.
    let snapshot = Arc::default();
    match Worker::new(Arc::clone(node), pod, Arc::clone(&snapshot)) {
        Ok((worker, wake)) => {
            let task = tokio::spawn(worker.run());
            pods.insert(
                uid,
                Handle {
                    wake,
                    snapshot,
                    task,
                },
            );
        }
        Err(error) => tracing::error!(uid, %error, "cannot remember a pod, so it does not run"),
    }
}

fn remove(pods: &Pods, uid: &str) {
    let mut pods = lock(pods);
    let gone = pods
        .get(uid)
        .is_some_and(|handle| handle.wake.send(Wake::Remove).is_err());
    if gone {
        pods.remove(uid);
    }
}

/// Uids become names of folders and control groups.
fn is_plain(uid: &str) -> bool {
    !uid.is_empty()
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn lock(pods: &Pods) -> std::sync::MutexGuard<'_, BTreeMap<String, Handle>> {
    // Single insertions and removals: a panic leaves nothing half-done.
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}
