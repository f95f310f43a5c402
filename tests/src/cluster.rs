//! A cluster as `cargo xtask up` starts it; `cargo xtask down` follows when it goes out of scope.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The namespace of the client beyond the fabric.
pub const OUTSIDE: &str = "/run/netns/portolan-outside";

/// A running cluster of this source tree.
pub struct Cluster {
    target: PathBuf,
    /// What `up` printed.
    pub report: String,
    is_up: bool,
}

impl Cluster {
    /// Starts a cluster, in place of an earlier one.
    pub fn up(arguments: &[&str]) -> Result<Self> {
        let mut cluster = Self {
            target: target_folder()?,
            report: String::new(),
            // If `up` fails half-way there is something to take away.
            is_up: true,
        };
        let output = xtask("up")
            .args(arguments)
            .output()
            .context("run cargo xtask up")?;
        cluster.report = all_words(&output);
        if !output.status.success() {
            bail!(
                "cargo xtask up ended with {}:\n{}",
                output.status,
                cluster.report
            );
        }
        Ok(cluster)
    }

    /// Takes the cluster away and returns what `down` printed.
    pub fn down(mut self) -> Result<String> {
        self.is_up = false;
        down()
    }

    /// Hands the cluster over to a second `up`, which has to replace it.
    pub fn abandon(mut self) {
        self.is_up = false;
    }

    /// The folder with everything of the cluster.
    pub fn state(&self) -> PathBuf {
        self.target.join("portolan")
    }

    /// A node's folder.
    pub fn node_state(&self, node: &str) -> PathBuf {
        self.state().join(node)
    }

    /// The administrator's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// An executable of the build that the cluster runs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// The static demo program, which also is the load generator.
    pub fn demo(&self) -> PathBuf {
        self.target.join("portolan-demo")
    }

    /// What a node's agent says as JSON.
    pub fn agent(&self, node: &str, verb: &str) -> Result<Value> {
        let output = Command::new(self.program("portolan-agent"))
            .args([verb, "--json", "--state-dir"])
            .arg(self.node_state(node))
            .output()
            .context("run portolan-agent")?;
        if !output.status.success() {
            bail!("portolan-agent {verb} on {node}: {}", all_words(&output));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("understand {}", all_words(&output)))
    }

    /// A node's pods, by what its agent says.
    pub fn pods_on(&self, node: &str) -> Result<Vec<Value>> {
        let status = self.agent(node, "status")?;
        status["pods"]
            .as_array()
            .cloned()
            .with_context(|| format!("{status} lists pods"))
    }

    /// Where a pod has its network namespace.
    pub fn pod_namespace(&self, node: &str, pod: &str) -> Result<PathBuf> {
        self.pods_on(node)?
            .iter()
            .find(|listed| listed["name"] == pod)
            .and_then(|listed| listed["netns"].as_str())
            .map(|path| Path::new(path).to_owned())
            .with_context(|| format!("{node} has no pod {pod}"))
    }

    /// A service's counter by its JSON pointer, "/local/flows" for example, summed over nodes.
    pub fn counter(&self, nodes: &[&str], service: &str, name: &str) -> Result<u64> {
        let mut sum = 0;
        for node in nodes {
            let services = self.agent(node, "services")?;
            sum += services
                .as_array()
                .into_iter()
                .flatten()
                .find(|listed| listed["name"] == service)
                .and_then(|listed| listed["counters"].pointer(name)?.as_u64())
                .with_context(|| format!("{node} counts {name} of {service} in {services}"))?;
        }
        Ok(sum)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_up
            && let Err(error) = down()
        {
            eprintln!("{error:#}");
        }
    }
}

/// `cargo xtask VERB`, ready for arguments.
pub fn xtask(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(["xtask", verb])
        .stdin(Stdio::null());
    command
}

/// Runs `cargo xtask down`.
pub fn down() -> Result<String> {
    let output = xtask("down").output().context("run cargo xtask down")?;
    let words = all_words(&output);
    if !output.status.success() {
        bail!("cargo xtask down ended with {}:\n{words}", output.status);
    }
    Ok(words)
}

/// Cargo's target folder, by where it put this test.
pub fn target_folder() -> Result<PathBuf> {
    let executable = env::current_exe().context("find the test's own executable")?;
    executable
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .map(Path::to_owned)
        .with_context(|| format!("{} lies in no target folder", executable.display()))
}

/// What a command wrote, stdout first.
pub fn all_words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
