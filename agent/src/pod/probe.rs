//! Probes: a task each, which tells the worker when its verdict changes.
#![forbid(unsafe_code)]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    EventSeverity::Warning,
    handler::{self, Target},
    worker::{Wake, Worker},
};

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

impl Worker {
    /// Begins the probes that a container may have now: startup, or once that has succeeded, the others.
    pub(super) fn probes(
        &self,
        container: &Container,
        id: &str,
        started: bool,
    ) -> Vec<AbortHandle> {
        let target = self.target(container, id);
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

    /// Its startup probe has succeeded, or it needs none: the other probes begin.
    pub(super) fn began(&mut self, name: &str) {
        let pod = std::sync::Arc::clone(&self.pod);
        let Some(container) = super::container_named(&pod, name) else {
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
        let pod = std::sync::Arc::clone(&self.pod);
        let container = super::container_named(&pod, name);
        let probe = container.and_then(|container| match kind {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            _ => container.liveness_probe.as_ref(),
        });
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let grace = own.unwrap_or_else(|| self.grace());
        let kind = kind.title().to_lowercase();
        let text = format!("Container {name} failed {kind} probe, will be restarted");
        self.stop(name, Timestamp::now(), grace, text);
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
        let result = match timeout(limit, handler::probe(&probe, &target)).await {
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
