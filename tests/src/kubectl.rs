//! The user's own kubectl, unmodified.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{Cluster, wait_for};

/// How a kubectl ended.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Cluster {
    /// kubectl, talking to this cluster.
    pub fn kubectl_command(&self) -> Command {
        // `cargo xtask test` puts the tools that it has unpacked on PATH.
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs kubectl to its end, however it ends.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<Answer> {
        let mut child = self
            .kubectl_command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl")?;
        let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
        // A kubectl that refuses its arguments reads nothing; its own words then say why.
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context("wait for kubectl")?;
        if output.status.success() {
            written.context("write to kubectl")?;
        }
        Ok(Answer {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs kubectl, which must succeed, and returns its stdout.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// Like [`Cluster::kubectl`], with something on its stdin.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let answer = self.try_kubectl(arguments, input)?;
        if answer.code != Some(0) {
            bail!("kubectl {}: {answer:?}", arguments.join(" "));
        }
        Ok(answer.stdout)
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifest)
    }

    /// An object as the API server has it.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).context("understand kubectl's JSON")
    }

    /// The objects with a label.
    pub fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", kind, "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text).context("understand kubectl's JSON")?;
        list["items"]
            .as_array()
            .cloned()
            .context("a list has items")
    }

    /// Scales a deployment and waits until just so many of its pods are there and ready.
    pub fn scale(&self, deployment: &str, replicas: usize) -> Result<Vec<Value>> {
        self.kubectl(&[
            "scale",
            "deployment",
            deployment,
            &format!("--replicas={replicas}"),
        ])?;
        self.wait_for_pods(&format!("app={deployment}"), replicas)
    }

    /// Waits until just so many pods with a label are there, all ready and none of them ending.
    pub fn wait_for_pods(&self, selector: &str, count: usize) -> Result<Vec<Value>> {
        wait_for(
            &format!("{count} ready pods with {selector}"),
            Duration::from_secs(40),
            || {
                let pods = self.list("pods", selector)?;
                let ready = pods.iter().filter(|pod| is_ready(pod)).count();
                let seen = format!("{ready} ready of {}", pods.len());
                Ok(if ready == count && pods.len() == count {
                    Ok(pods)
                } else {
                    Err(seen)
                })
            },
        )
    }
}

/// Whether a pod serves: its Ready condition is true and it is not about to end.
pub fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
