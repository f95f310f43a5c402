//! What probes and hooks can do to a container: run a command in it, or ask one of its ports.
#![forbid(unsafe_code)]

mod grpc;
mod http;

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, ExecAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::worker::Worker;
use crate::runtime::{bundle::Bundle, container::Launcher};

/// Where a probe or hook finds its container.
#[derive(Clone)]
pub struct Target {
    address: Option<IpAddr>,
    /// Named ports.
    ports: Vec<(String, u16)>,
    bundle: Bundle,
    launcher: Launcher,
}

impl Worker {
    /// A run of a container, as its probes and hooks find it.
    pub(super) fn target(&self, container: &Container, id: &str) -> Target {
        let ports = container.ports.iter().flatten();
        Target {
            address: self.addresses().first().copied(),
            ports: ports
                .filter_map(|port| {
                    Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))
                })
                .collect(),
            bundle: self.dir.bundle(id),
            launcher: self.node.launcher.clone(),
        }
    }
}

/// Asks once.
pub async fn probe(probe: &Probe, target: &Target) -> Result<(), String> {
    if let Some(action) = &probe.http_get {
        return http::get(action, target).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        return connect(tcp.host.as_deref(), &tcp.port, target).await;
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        let (host, port) = target.endpoint(None, &IntOrString::Int(action.port))?;
        return grpc::check(&host, port, service).await;
    }
    if let Some(action) = &probe.exec {
        return exec(action, target).await.map_err(|(_, output)| output);
    }
    Err("this kind of probe is not supported".into())
}

/// Runs a hook of a container to its end.
pub async fn hook(hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        return exec(action, target).await.map_err(|(code, output)| {
            let command = action.command.as_deref().unwrap_or_default().join(" ");
            format!("command '{command}' exited with {code}: {output}")
        });
    }
    if let Some(action) = &hook.http_get {
        return http::get(action, target).await;
    }
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    if let Some(tcp) = &hook.tcp_socket {
        return connect(tcp.host.as_deref(), &tcp.port, target).await;
    }
    Err("invalid handler: it says nothing to do".into())
}

/// Runs a command in the container. The error is its code and what it printed.
async fn exec(action: &ExecAction, target: &Target) -> Result<(), (i32, String)> {
    let command = action.command.as_deref().unwrap_or_default();
    let done = target.launcher.exec(&target.bundle, command).await;
    let done = done.map_err(|error| (-1, error.to_string()))?;
    if done.code == 0 {
        Ok(())
    } else {
        Err((done.code, done.output))
    }
}

async fn connect(host: Option<&str>, port: &IntOrString, target: &Target) -> Result<(), String> {
    let (host, port) = target.endpoint(host, port)?;
    TcpStream::connect((host.as_str(), port))
        .await
        .map(drop)
        .map_err(|error| format!("dial tcp {}: {error}", at(&host, port)))
}

/// "10.0.0.1:80", "[fd00::1]:80".
fn at(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl Target {
    fn endpoint(&self, host: Option<&str>, port: &IntOrString) -> Result<(String, u16), String> {
        let number = match port {
            IntOrString::Int(port) => u16::try_from(*port).ok(),
            IntOrString::String(name) => self
                .ports
                .iter()
                .find(|(own, _)| own == name)
                .map(|(_, port)| *port)
                .or_else(|| name.parse().ok()),
        };
        let port = number.ok_or_else(|| {
            "the probe's port is neither a number nor a port of the container".to_owned()
        })?;
        let own = self.address.map(|address| address.to_string());
        let host = host
            .filter(|host| !host.is_empty())
            .map(ToOwned::to_owned)
            .or(own);
        Ok((
            host.ok_or_else(|| "the pod has no address".to_owned())?,
            port,
        ))
    }
}
