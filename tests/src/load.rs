//! Requests from where a client would send them, counted by who answered.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{Cluster, cluster::OUTSIDE};

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// The demo's client pod on n1, or another pod there.
    Pod(&'a str),
    /// Beyond the fabric.
    Outside,
    /// This machine, where kubectl runs.
    Host,
}

/// What the load generator tells.
#[derive(Clone, Debug, Deserialize)]
pub struct Load {
    /// Requests made.
    pub requests: u64,
    /// Requests answered.
    pub ok: u64,
    /// Turned away at once.
    pub refused: u64,
    /// Without an answer within the timeout.
    pub hung: u64,
    /// Connections broken off.
    pub reset: u64,
    /// Other failures, by their words.
    pub errors: BTreeMap<String, u64>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Answers by node.
    pub by_node: BTreeMap<String, u64>,
    /// Answers by the client's address, as the server saw it.
    pub by_client: BTreeMap<String, u64>,
    /// When the first request failed, in seconds from the beginning on.
    pub first_failure_s: Option<f64>,
    /// How long it all took.
    pub seconds: f64,
    /// The slowest request.
    pub max_us: u64,
}

/// A load under way; it ends when nobody waits for it any more.
pub struct Running {
    child: Option<Child>,
    what: String,
}

impl Cluster {
    /// Sends requests and waits for the last answer.
    pub fn load(
        &self,
        from: From<'_>,
        protocol: &str,
        target: &str,
        requests: u64,
    ) -> Result<Load> {
        let count = requests.to_string();
        self.start_load(from, protocol, target, &["--requests", &count])?
            .finish()
    }

    /// Starts to send requests.
    pub fn start_load(
        &self,
        from: From<'_>,
        protocol: &str,
        target: &str,
        options: &[&str],
    ) -> Result<Running> {
        let namespace = match from {
            From::Pod(pod) => self.pod_namespace("n1", pod)?,
            From::Outside => PathBuf::from(OUTSIDE),
            From::Host => PathBuf::from("/proc/self/ns/net"),
        };
        let child = in_namespace(&namespace)
            .arg(self.demo())
            .args(["load", "--protocol", protocol, "--target", target])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("run the load generator")?;
        Ok(Running {
            child: Some(child),
            what: format!("{protocol} from {from:?} to {target}"),
        })
    }
}

impl Running {
    /// Waits for the last answer.
    pub fn finish(mut self) -> Result<Load> {
        let output = self
            .child
            .take()
            .context("a load is waited for once")?
            .wait_with_output()
            .context("wait for the load generator")?;
        // Unanswered requests make it fail, but its report is what counts.
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the load generator ({}) tells its counts", self.what))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing to do.
            if child.kill().and_then(|()| child.wait()).is_err() {
                eprintln!("the load generator ({}) cannot be ended", self.what);
            }
        }
    }
}

impl Load {
    /// Fails unless every request was answered.
    pub fn ensure_all_answered(&self) -> Result<()> {
        ensure!(
            self.ok == self.requests && self.requests > 0,
            "not every request was answered: {self:?}"
        );
        Ok(())
    }

    /// The answers of one node.
    pub fn of_node(&self, node: &str) -> u64 {
        self.by_node.get(node).copied().unwrap_or(0)
    }
}

/// A command line that goes on in a network namespace.
pub fn in_namespace(namespace: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace.display()))
        .arg("--");
    command
}
