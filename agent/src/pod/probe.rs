//! Probes: a task each, which tells the worker when its verdict changes.
#![forbid(unsafe_code)]

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    EventSeverity::{Normal, Warning},
    worker::{Wake, Worker},
};
use crate::runtime::{bundle::Bundle, container::Launcher};

/// As much of an answer as is read and shown.
const LONGEST_ANSWER: u64 = 10 * 1024;

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether the others may begin.
    Startup,
    /// Whether the container is restarted.
    Liveness,
    /// Whether it gets requests.
    Readiness,
}

impl ProbeKind {
    /// In events: "Readiness probe failed: ...".
    fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// Where a probe finds its container.
#[derive(Clone)]
struct Target {
    address: Option<IpAddr>,
    /// Named ports.
    ports: Vec<(String, u16)>,
    bundle: Bundle,
    launcher: Launcher,
}

impl Worker {
    /// Begins the probes that a container may have now: startup, or once that has succeeded, the others.
    pub(super) fn probes(
        &self,
        container: &Container,
        id: &str,
        started: bool,
    ) -> Vec<AbortHandle> {
        let ports = container.ports.iter().flatten();
        let target = Target {
            address: self.addresses().first().copied(),
            ports: ports
                .filter_map(|port| {
                    Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))
                })
                .collect(),
            bundle: self.dir.bundle(id),
            launcher: self.node.launcher.clone(),
        };
        let wanted = if started {
            vec![
                (ProbeKind::Readiness, &container.readiness_probe),
                (ProbeKind::Liveness, &container.liveness_probe),
            ]
        } else {
            vec![(ProbeKind::Startup, &container.startup_probe)]
        };
        let mut tasks = Vec::new();
        for (kind, probe) in wanted {
            if let Some(probe) = probe {
                let (probe, target, own) = (probe.clone(), target.clone(), self.own.clone());
                let names = (container.name.clone(), id.to_owned());
                tasks.push(tokio::spawn(run(kind, probe, target, names, own)).abort_handle());
            }
        }
        tasks
    }

    /// A probe has said something.
    pub(super) fn probed(
        &mut self,
        name: &str,
        id: &str,
        kind: ProbeKind,
        verdict: &Result<(), String>,
        decided: bool,
    ) {
        if self.live.get(name).is_none_or(|live| live.id != id) {
            return;
        }
        if let Err(message) = verdict {
            let text = format!("{} probe failed: {message}", kind.title());
            self.node.event(&self.me, Warning, "Unhealthy", text);
        }
        if !decided {
            return;
        }
        match (kind, verdict.is_ok()) {
            (ProbeKind::Readiness, ready) => self.record.container(name).ready = ready,
            (ProbeKind::Startup, true) => self.began(name),
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => self.unhealthy(name, kind),
        }
    }

    fn began(&mut self, name: &str) {
        let spec = self.pod.spec.clone().unwrap_or_default();
        let mut all = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        let Some(container) = all.find(|container| container.name == name) else {
            return;
        };
        let own = self.record.container(name);
        own.started = true;
        own.ready = container.readiness_probe.is_none();
        let Some(id) = self.live.get(name).map(|live| live.id.clone()) else {
            return;
        };
        let tasks = self.probes(container, &id, true);
        if let Some(live) = self.live.get_mut(name) {
            live.tasks.extend(tasks);
        }
    }

    /// Asks the container to end; its restart policy does the rest.
    fn unhealthy(&mut self, name: &str, kind: ProbeKind) {
        let Some(current) = self.record.container(name).current.as_mut() else {
            return;
        };
        if current.stopping_since.is_some() {
            return;
        }
        current.stopping_since = Some(jiff::Timestamp::now());
        let signal = nix::sys::signal::Signal::try_from(current.stop_signal);
        let kind = kind.title().to_lowercase();
        let text = format!("Container {name} failed {kind} probe, will be restarted");
        self.node.event(&self.me, Normal, "Killing", text);
        let signalled = self.live.get(name).map(|live| {
            live.container
                .signal(signal.unwrap_or(nix::sys::signal::Signal::SIGTERM))
        });
        if let Some(Err(error)) = signalled {
            tracing::warn!(container = name, %error, "cannot signal a container");
        }
    }
}

async fn run(
    kind: ProbeKind,
    probe: Probe,
    target: Target,
    (container, id): (String, String),
    own: mpsc::UnboundedSender<Wake>,
) {
    let seconds = |value: Option<i32>, default: u64| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|&value| value > 0)
            .unwrap_or(default)
    };
    let period = Duration::from_secs(seconds(probe.period_seconds, 10));
    let limit = Duration::from_secs(seconds(probe.timeout_seconds, 1));
    let to_fail = seconds(probe.failure_threshold, 3);
    let to_succeed = seconds(probe.success_threshold, 1);
    let mut verdict = None;
    let (mut good, mut bad) = (0, 0);
    let mut due = Instant::now() + Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    loop {
        sleep_until(due).await;
        // From the last due time, not from now: a slow probe does not stretch its period.
        due = (due + period).max(Instant::now());
        let result = match timeout(limit, once(&probe, &target)).await {
            Ok(result) => result,
            Err(_) => Err(format!("timeout: no answer within {} s", limit.as_secs())),
        };
        let healthy = result.is_ok();
        (good, bad) = if healthy { (good + 1, 0) } else { (0, bad + 1) };
        let reached = if healthy {
            good >= to_succeed
        } else {
            bad >= to_fail
        };
        let decided = reached && verdict != Some(healthy);
        if decided {
            verdict = Some(healthy);
        }
        if decided || !healthy {
            let wake = Wake::Probed {
                container: container.clone(),
                id: id.clone(),
                kind,
                verdict: result,
                decided,
            };
            if own.send(wake).is_err() {
                return;
            }
        }
        if decided && (kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !healthy)) {
            return;
        }
    }
}

async fn once(probe: &Probe, target: &Target) -> Result<(), String> {
    if let Some(http) = &probe.http_get {
        return http_get(http, target).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let (host, port) = target.endpoint(tcp.host.as_deref(), &tcp.port)?;
        return TcpStream::connect((host.as_str(), port))
            .await
            .map(drop)
            .map_err(|error| format!("dial tcp {host}:{port}: {error}"));
    }
    if let Some(exec) = &probe.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        let done = target
            .launcher
            .exec(&target.bundle, command)
            .await
            .map_err(|error| error.to_string())?;
        return if done.code == 0 {
            Ok(())
        } else {
            Err(done.output)
        };
    }
    Err("this kind of probe is not supported".into())
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

/// A GET of one answer's head: redirects count as success, as they do in Kubernetes.
async fn http_get(http: &HTTPGetAction, target: &Target) -> Result<(), String> {
    if http.scheme.as_deref() == Some("HTTPS") {
        return Err("probes over HTTPS are not supported".into());
    }
    let (host, port) = target.endpoint(http.host.as_deref(), &http.port)?;
    let path = http
        .path
        .as_deref()
        .filter(|path| path.starts_with('/'))
        .unwrap_or("/");
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    let headers = http.http_headers.iter().flatten();
    let has = |name: &str| {
        http.http_headers
            .iter()
            .flatten()
            .any(|own| own.name.eq_ignore_ascii_case(name))
    };
    for (name, value) in [
        ("Host", format!("{bracketed}:{port}")),
        ("User-Agent", "kube-probe/1.36".to_owned()),
        ("Accept", "*/*".to_owned()),
    ] {
        if !has(name) {
            request.extend([name, ": ", value.as_str(), "\r\n"]);
        }
    }
    for header in headers {
        request.extend([header.name.as_str(), ": ", header.value.as_str(), "\r\n"]);
    }
    request.push_str("Connection: close\r\n\r\n");
    let fail = |error: std::io::Error| format!("Get \"http://{bracketed}:{port}{path}\": {error}");
    let mut stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(fail)?;
    stream.write_all(request.as_bytes()).await.map_err(fail)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(LONGEST_ANSWER);
    while !answer.contains(&b'\n') {
        if limited.read_buf(&mut answer).await.map_err(fail)? == 0 {
            break;
        }
    }
    match status_code(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!(
            "Get \"http://{bracketed}:{port}{path}\": malformed HTTP response"
        )),
    }
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        assert_eq!(status_code(b"HTTP/1.1 200 OK\r\nX: y"), Some(200));
        assert_eq!(status_code(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(status_code(b"SSH-2.0\r\n"), None);
    }
}
