//! Starts the store and the control servers: one of each, or several that stand in for each other.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    Store,
    start::{Run, token_file, wait_for},
};
use crate::{
    cluster::{API_PORT, loopback_address, server_addresses},
    command, daemon,
    machine::ProcessId,
};

/// Starts the store and returns what control is told of it.
pub fn start_store(run: &Run<'_>) -> Result<String> {
    if run.store == Store::Embedded {
        let folder = run.cluster.state().join("control");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        return Ok(format!("embedded:{}", folder.join("store").display()));
    }
    let step = run.progress.step("etcd");
    let program = run
        .workspace
        .find_program("etcd")
        .context("there is no etcd: run `cargo xtask setup`")?;
    let members = (1..=run.servers)
        .map(Member::new)
        .collect::<Result<Vec<_>>>()?;
    let peers: Vec<String> = members
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer))
        .collect();
    let mut started = Vec::new();
    for member in &members {
        let etcd = member.command(run, &program, &peers.join(","));
        started.push(daemon::start(run.cluster, &member.name, &etcd)?);
    }
    for (member, process) in members.iter().zip(&started) {
        let address = member.client.trim_start_matches("http://");
        wait_for(run, &member.name, process, "etcd's port", || {
            TcpStream::connect(address).is_ok()
        })?;
    }
    let clients: Vec<&str> = members
        .iter()
        .map(|member| member.client.as_str())
        .collect();
    step.done(&clients.join(" "));
    Ok(format!("etcd:{}", clients.join(",")))
}

/// One member of etcd.
struct Member {
    name: String,
    client: String,
    peer: String,
}

impl Member {
    fn new(number: u8) -> Result<Self> {
        Ok(Self {
            name: numbered("etcd", number),
            client: format!("http://127.0.0.1:{}", free_port()?),
            peer: format!("http://127.0.0.1:{}", free_port()?),
        })
    }

    fn command(&self, run: &Run<'_>, program: &PathBuf, peers: &str) -> Command {
        let Self { name, client, peer } = self;
        let mut etcd = Command::new(program);
        etcd.args(["--name", name, "--data-dir"])
            .arg(run.cluster.state().join(name))
            .args(["--listen-client-urls", client])
            .args(["--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer])
            .args(["--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", peers]);
        etcd
    }
}

/// The first keeps the plain name.
fn numbered(name: &str, number: u8) -> String {
    match number {
        1 => name.to_owned(),
        _ => format!("{name}{number}"),
    }
}

/// A port that nobody listens on just now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("read the port")?.port())
}

/// Starts the control servers and waits until all are ready. The first makes what the others find: the cluster's
/// certificates, its encryption key, its join token.
pub fn start(run: &Run<'_>, store: &str) -> Result<()> {
    let step = run.progress.step("control");
    let begun = Instant::now();
    let first = start_one(run, store, 1)?;
    wait_until_ready(run, 1, &first)?;
    let ready = begun.elapsed();
    let others = (2..=run.servers)
        .map(|number| Ok((number, start_one(run, store, number)?)))
        .collect::<Result<Vec<_>>>()?;
    for (number, process) in &others {
        wait_until_ready(run, *number, process)?;
    }
    step.done(&format!(
        "ready {:.2} s after its start",
        ready.as_secs_f64()
    ));
    Ok(())
}

fn start_one(run: &Run<'_>, store: &str, number: u8) -> Result<ProcessId> {
    let [v4, v6] = server_addresses(number);
    let loopback = loopback_address(number);
    let mut control = Command::new(run.programs.control());
    control.arg("serve");
    // Only this machine and the nodes can reach it: the cluster's own credentials are no reason to face the world.
    for address in [&loopback, &v4, &format!("[{v6}]")] {
        control.args(["--listen", &format!("{address}:{API_PORT}")]);
    }
    for name in [&loopback, "localhost", &v4, &v6] {
        control.args(["--advertise", name]);
    }
    control
        .args(["--store", store, "--encryption-key-file"])
        .arg(run.cluster.state().join("encryption-keys"))
        .args(["--service-cidr", "10.96.0.0/16,fd00:10:96::/112"])
        .args(["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"])
        .args(["--node-port-range", "30000-32767", "--admin-kubeconfig"])
        .arg(kubeconfig(run, number))
        .arg("--join-token-file")
        .arg(token_file(run));
    daemon::start(run.cluster, &numbered("control", number), &control)
}

/// Each server writes one that leads to itself.
fn kubeconfig(run: &Run<'_>, number: u8) -> PathBuf {
    let first = run.cluster.kubeconfig();
    match number {
        1 => first,
        _ => first.with_file_name(numbered("kubeconfig", number)),
    }
}

fn wait_until_ready(run: &Run<'_>, number: u8, process: &ProcessId) -> Result<()> {
    let name = numbered("control", number);
    let kubeconfig = kubeconfig(run, number);
    let address = format!("{}:{API_PORT}", loopback_address(number));
    wait_for(run, &name, process, "the API server's port", || {
        kubeconfig.exists() && TcpStream::connect(&address).is_ok()
    })?;
    let mut kubectl = run.cluster.kubectl(run.workspace)?;
    kubectl
        .env("KUBECONFIG", &kubeconfig)
        .args(["get", "--raw", "/readyz"]);
    wait_for(run, &name, process, "/readyz", || {
        command::succeeds(&mut kubectl)
    })
}
