//! kubectl port-forward, by the oldest and the newest kubectl: connections to a pod from where kubectl runs.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From};

use crate::{
    daily::{ENDS, kubectl},
    life::Stage,
};

/// A kubectl that forwards a port until it is dropped.
struct Forwarding {
    child: Child,
    /// It would end if nobody read what it says.
    _words: BufReader<ChildStdout>,
    /// "127.0.0.1:PORT" here.
    address: String,
}

impl Forwarding {
    fn begin(cluster: &Cluster, version: &str, target: &str, port: u16) -> Result<Self> {
        let mut child = kubectl(cluster, version)?
            .args(["port-forward", "--address=127.0.0.1", target])
            .arg(format!(":{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run kubectl {version} port-forward"))?;
        let stdout = child
            .stdout
            .take()
            .context("stdout was asked to be a pipe")?;
        let mut words = BufReader::new(stdout);
        let mut line = String::new();
        words.read_line(&mut line)?;
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split(' ').next())
            .map(str::to_owned);
        let forwarding = Self {
            child,
            _words: words,
            address: address.clone().unwrap_or_default(),
        };
        ensure!(address.is_some(), "kubectl {version} says {line:?}");
        Ok(forwarding)
    }

    /// Ends it; what it has complained of.
    fn end(mut self) -> Result<String> {
        self.child.kill()?;
        let mut words = String::new();
        let stderr = self.child.stderr.take();
        stderr
            .context("stderr was asked to be a pipe")?
            .read_to_string(&mut words)?;
        Ok(words)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("kubectl port-forward cannot be ended: {error}");
        }
    }
}

/// Many connections over one kubectl are all answered by the pod; of a port where nobody listens kubectl says why.
pub fn ports_of_pods_are_reached_from_here(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for version in ENDS {
        for target in ["deployment/web", "service/web"] {
            let port = if target.starts_with("service") {
                80
            } else {
                8080
            };
            let forwarding = Forwarding::begin(&cluster, version, target, port)?;
            let load = cluster.load(From::Host, "tcp", &forwarding.address, 50)?;
            let complaints = forwarding.end()?;
            load.ensure_all_answered()
                .with_context(|| format!("{target} by kubectl {version}: {complaints}"))?;
            ensure!(load.by_pod.len() == 1, "one pod answers: {load:?}");
        }
        let forwarding = Forwarding::begin(&cluster, version, "deployment/web", 9)?;
        let load = cluster.load(From::Host, "tcp", &forwarding.address, 1)?;
        ensure!(load.ok == 0, "nobody listens there: {load:?}");
        let complaints = forwarding.end()?;
        ensure!(
            complaints.contains("error forwarding port 9 to pod") && complaints.contains("refused"),
            "kubectl {version} says {complaints:?}"
        );
    }
    Ok(())
}
