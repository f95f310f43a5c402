//! Clusters that come and go: replaced, crashed half-way, taken away.

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use portolan_tests::{
    Cluster, From,
    cluster::{all_words, down, target_folder, xtask},
    daemon,
    machine::{self, Snapshot},
    wait_for,
};

use crate::recovery::Minute;

/// The cluster that is up just now, if any; the first test that needs one starts it.
#[derive(Default)]
pub struct Stage {
    scene: Mutex<Scene>,
    minute: Mutex<Option<Minute>>,
}

#[derive(Default)]
struct Scene {
    before: Option<Snapshot>,
    cluster: Option<Cluster>,
    took: Duration,
    /// What `up` was told.
    arguments: Vec<String>,
    /// Why the last start failed. Tests that need a cluster then fail at once: each would wait as long in vain.
    failed: Option<String>,
}

/// Exclusive use of the cluster.
pub struct Use<'a>(MutexGuard<'a, Scene>);

/// The options of a cluster with a tunnel between its nodes.
const TUNNELLED: [&str; 2] = ["--network", "vxlan"];
/// Those of one in which any server may die.
const REDUNDANT: [&str; 3] = ["--servers", "3", "--no-demo"];

impl Stage {
    /// The cluster, started if there is none.
    pub fn cluster(&self) -> Result<Use<'_>> {
        let mut scene = self.scene();
        if let Some(failed) = &scene.failed {
            bail!("there is no cluster since a start of one failed: {failed}");
        }
        if scene.cluster.is_none() {
            scene.start(&[])?;
        }
        Ok(Use(scene))
    }

    /// A cluster whose nodes have a tunnel between them, in place of one that has none.
    pub fn tunnelled(&self) -> Result<Use<'_>> {
        self.with(&TUNNELLED)
    }

    /// A cluster of three control servers without the demo, in place of another.
    pub fn redundant(&self) -> Result<Use<'_>> {
        self.with(&REDUNDANT)
    }

    fn with(&self, arguments: &[&str]) -> Result<Use<'_>> {
        let mut scene = self.scene();
        if scene.cluster.is_none() || scene.arguments != arguments {
            if let Some(old) = scene.cluster.take() {
                old.abandon();
            }
            scene.start(arguments)?;
        }
        Ok(Use(scene))
    }

    /// The requests that go on while other tests run.
    pub fn minute(&self) -> MutexGuard<'_, Option<Minute>> {
        // Set and taken whole.
        self.minute
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn scene(&self) -> MutexGuard<'_, Scene> {
        // A test that panicked has failed already; the others may still use the cluster.
        self.scene
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Scene {
    fn start(&mut self, arguments: &[&str]) -> Result<()> {
        if self.before.is_none() {
            // What an earlier crashed run may have left is not ours to be blamed for.
            down()?;
            self.before = Some(machine::snapshot()?);
        }
        let begun = Instant::now();
        let started = Cluster::up(arguments);
        self.failed = started.as_ref().err().map(|error| format!("{error:#}"));
        self.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.cluster = Some(started?);
        self.took = begun.elapsed();
        Ok(())
    }
}

impl Use<'_> {
    /// How long `cargo xtask up` took.
    pub fn start_took(&self) -> Duration {
        self.0.took
    }
}

impl std::ops::Deref for Use<'_> {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0
            .cluster
            .as_ref()
            .expect("only made when there is a cluster")
    }
}

/// `up` over a running cluster: the old one goes with its objects, the new one works, with another store and more nodes.
pub fn up_replaces_a_cluster(stage: &Stage) -> Result<()> {
    {
        let cluster = stage.cluster()?;
        cluster.apply(&super::commands::config_map("of-the-old-cluster"))?;
    }
    let mut scene = stage.scene();
    if let Some(old) = scene.cluster.take() {
        old.abandon();
    }
    scene.start(&["--store", "etcd", "--nodes", "3"])?;
    drop(scene);
    let cluster = stage.cluster()?;
    ensure!(
        cluster.report.contains("etcd"),
        "the report names the store:\n{}",
        cluster.report
    );
    ensure!(
        cluster.report.contains("node/n3") && cluster.report.contains("10.89.0.13:30080"),
        "the third node takes part:\n{}",
        cluster.report
    );
    let answer = cluster.try_kubectl(&["get", "configmap", "of-the-old-cluster"], "")?;
    ensure!(
        answer.stderr.contains("(NotFound)"),
        "the old cluster's objects are gone: {answer:?}"
    );
    let address = super::traffic::cluster_address(&cluster, 4)?;
    cluster
        .load(From::Pod("client"), "tcp", &address, 100)?
        .ensure_all_answered()
}

/// `up` killed in the middle leaves half a cluster; `down` takes that away.
pub fn down_works_after_a_crash_of_up(stage: &Stage) -> Result<()> {
    drop(stage.cluster()?);
    let mut scene = stage.scene();
    crash_an_up(&mut scene)?;
    let before = scene.before.clone().context("a cluster was started")?;
    ensure!(machine::snapshot()? != before, "half a cluster is there");
    down()?;
    left_since(&before)
}

/// `up` killed in the middle leaves half a cluster; the next one clears it and works.
pub fn up_works_after_a_crash_of_up(stage: &Stage) -> Result<()> {
    let mut scene = stage.scene();
    if scene.before.is_none() {
        // Even if this test is the only one to run, it has to know what was there before.
        scene.start(&[])?;
    }
    crash_an_up(&mut scene)?;
    // The next test wants such a one.
    scene.start(&TUNNELLED)?;
    drop(scene);
    let cluster = stage.cluster()?;
    let address = super::traffic::cluster_address(&cluster, 4)?;
    cluster
        .load(From::Pod("client"), "tcp", &address, 100)?
        .ensure_all_answered()
}

/// Takes the cluster away and kills the start of the next one in the middle.
fn crash_an_up(scene: &mut Scene) -> Result<()> {
    if let Some(old) = scene.cluster.take() {
        old.down()?;
    }
    let control = target_folder()?.join("portolan/run/control.json");
    let mut up = xtask("up")
        .arg("--no-demo")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start an up to be killed")?;
    let started = wait_for(
        "control of the up to be killed",
        Duration::from_mins(1),
        || {
            Ok(if control.exists() {
                Ok(())
            } else {
                Err("no record of it".to_owned())
            })
        },
    );
    // `cargo xtask` has become xtask's parent; both go.
    for child in children(up.id())? {
        daemon::kill(child)?;
    }
    up.kill().context("kill cargo")?;
    up.wait().context("wait for cargo")?;
    started
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.split_whitespace()
        .map(|child| child.parse().context("a process number"))
        .collect()
}

/// After `down` the machine is as it was: processes, namespaces, interfaces, mounts, control groups, pins.
pub fn down_leaves_nothing(stage: &Stage) -> Result<()> {
    drop(stage.cluster()?);
    let mut scene = stage.scene();
    let before = scene.before.clone().context("a cluster was started")?;
    let during = machine::snapshot()?;
    ensure!(
        during.len() > before.len() + 10,
        "a running cluster is seen: {during:?}"
    );
    if let Some(cluster) = scene.cluster.take() {
        let folder = cluster.state();
        let words = cluster.down()?;
        ensure!(words.contains("nothing is left"), "{words}");
        ensure!(
            !words.contains("by force"),
            "the agents cleared their nodes away: {words}"
        );
        let kept: Vec<_> = fs::read_dir(&folder)
            .with_context(|| format!("read {}", folder.display()))?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        ensure!(kept == ["logs"], "only the logs are kept: {kept:?}");
    }
    ensure!(
        !Path::new("/run/portolan-up.json").exists(),
        "the record is gone"
    );
    left_since(&before)?;
    let again = xtask("down").output().context("run down again")?;
    ensure!(
        again.status.success() && all_words(&again).contains("there was nothing"),
        "down without a cluster says so: {}",
        all_words(&again)
    );
    Ok(())
}

/// Fails if something is there that was not.
fn left_since(before: &Snapshot) -> Result<()> {
    let after = machine::snapshot()?;
    let left: Vec<_> = after.difference(before).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}
