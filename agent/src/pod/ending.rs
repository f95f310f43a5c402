//! How a worker finds containers again, and how it brings them to their end.
#![forbid(unsafe_code)]

use std::{io, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use super::{
    EventSeverity::Normal,
    hooks::HookKind,
    record::Stopping,
    status,
    worker::{RETRY, Worker, earlier},
};
use crate::runtime::{container::Found, mount};

/// What a container has left when its hook has used up its grace period, as Kubernetes has it.
const LAST_CHANCE: SignedDuration = SignedDuration::from_secs(2);

impl Worker {
    /// What became of containers while there was no agent. How many run.
    pub(super) async fn adopt(&mut self) -> usize {
        // Mounts do not survive a restart of the machine; what is remembered of them does.
        if self.record.sandbox
            && !mount::is_mount_point(&self.dir.namespace("ipc")).unwrap_or(false)
        {
            self.record.sandbox = false;
            self.record.network = None;
        }
        let spec = self.pod.spec.clone().unwrap_or_default();
        for container in spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
        {
            let Some(instance) = self.record.container(&container.name).current.clone() else {
                continue;
            };
            match self
                .node
                .launcher
                .find(&self.dir.bundle(&instance.id))
                .await
            {
                // A hook that an agent has begun and not ended is not repeated.
                Ok(Found::Running(running)) => {
                    self.watch(container, instance.id, running);
                    self.runs(container);
                }
                Ok(Found::Ended(exit)) => self.settle(&container.name, Some(&exit)),
                Ok(Found::Lost(_)) => self.settle(&container.name, None),
                Ok(Found::NeverStarted) => {
                    let own = self.record.container(&container.name);
                    own.current = None;
                    own.attempts = own.attempts.saturating_sub(1);
                    self.clear(&instance.id);
                }
                Err(error) => {
                    tracing::error!(container = container.name, %error, "cannot tell what became of a container");
                    self.settle(&container.name, None);
                }
            }
        }
        self.live.len()
    }

    /// Clears folders of containers away that the record does not know.
    pub(super) fn clear_strays(&mut self) {
        let entries = match std::fs::read_dir(self.dir.containers()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(%error, "cannot look for left-over containers");
                return;
            }
        };
        let known: Vec<String> = self.live.values().map(|live| live.id.clone()).collect();
        for entry in entries.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&id) {
                self.clear(&id);
            }
        }
    }

    /// How long containers of the pod may take to end, in seconds.
    pub(super) fn grace(&self) -> i64 {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(30)
            .max(0)
    }

    /// Asks every container to end within `grace` seconds.
    pub(super) fn stop_all(&mut self, now: Timestamp, grace: i64) {
        let names: Vec<String> = self.live.keys().cloned().collect();
        for name in names {
            self.stop(&name, now, grace, format!("Stopping container {name}"));
        }
    }

    /// Asks a container to end within `grace` seconds: its preStop hook, its signal, and SIGKILL. One that is ending
    /// already may be given less time, not more.
    pub(super) fn stop(&mut self, name: &str, now: Timestamp, grace: i64, message: String) {
        if !self.live.contains_key(name) {
            return;
        }
        let Some(current) = &mut self.record.container(name).current else {
            return;
        };
        let deadline = now
            .checked_add(SignedDuration::from_secs(grace))
            .unwrap_or(Timestamp::MAX);
        if let Some(stopping) = &mut current.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            // Nothing is left to wait for.
            stopping.is_signalled |= grace == 0;
            return;
        }
        current.stopping = Some(Stopping {
            deadline,
            is_signalled: grace == 0,
        });
        self.node.event(&self.me, Normal, "Killing", message);
        if grace > 0 {
            self.pre_stop(name);
        }
    }

    /// Carries on with containers that are to end: signals those that need not wait any longer, kills the overdue. When
    /// to look again.
    pub(super) fn end_further(&mut self, now: Timestamp) -> Option<Timestamp> {
        let names: Vec<String> = self.live.keys().cloned().collect();
        let mut next = None;
        for name in names {
            next = earlier(next, self.end_one(&name, now));
        }
        next
    }

    fn end_one(&mut self, name: &str, now: Timestamp) -> Option<Timestamp> {
        let live = self.live.get(name)?;
        let waits = live.hook == Some(HookKind::PreStop) || self.is_needed(name);
        let container = Arc::clone(&live.container);
        let current = self.record.containers.get_mut(name)?.current.as_mut()?;
        let wanted = Signal::try_from(current.stop_signal).unwrap_or(Signal::SIGTERM);
        let stopping = current.stopping.as_mut()?;
        let signal = if stopping.is_signalled {
            (now >= stopping.deadline).then_some(Signal::SIGKILL)
        } else if waits && now < stopping.deadline {
            None
        } else {
            if waits {
                // Cut off: what it waited for has had all the time there was.
                stopping.deadline = now.checked_add(LAST_CHANCE).unwrap_or(Timestamp::MAX);
            }
            stopping.is_signalled = true;
            Some(wanted)
        };
        if let Some(signal) = signal
            && let Err(error) = container.signal(signal)
        {
            tracing::warn!(container = name, %signal, %error, "cannot signal a container");
        }
        if now < stopping.deadline {
            Some(stopping.deadline)
        } else {
            now.checked_add(RETRY).ok()
        }
    }

    /// Whether others of an ending pod still need this container: a sidecar outlives those that begin after it.
    fn is_needed(&self, name: &str) -> bool {
        let Some(spec) = self.pod.spec.as_ref().filter(|_| self.is_ending()) else {
            return false;
        };
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let Some(place) = inits.iter().position(|init| init.name == name) else {
            return false;
        };
        let mut after = inits[place + 1..].iter().chain(&spec.containers);
        after.any(|other| self.live.contains_key(&other.name))
    }

    /// Whether none of the pod's containers is to run any longer.
    fn is_ending(&self) -> bool {
        self.record.ending_since.is_some() || status::is_over(&self.pod, &self.record)
    }
}
