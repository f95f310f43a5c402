//! How a worker finds containers again, and how it brings them to their end.
#![forbid(unsafe_code)]

use std::io;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use super::{
    EventSeverity::Normal,
    worker::{Worker, earlier},
};
use crate::runtime::{container::Found, mount};

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
                Ok(Found::Running(running)) => self.watch(container, instance.id, running),
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

    /// Asks every container to end, once; kills them when `deadline` has passed.
    pub(super) fn stop_all(&mut self, now: Timestamp, deadline: Timestamp) {
        for (name, live) in &self.live {
            let own = self
                .record
                .containers
                .get_mut(name)
                .and_then(|own| own.current.as_mut());
            let Some(current) = own else { continue };
            let first = current.stopping_since.is_none();
            current.stopping_since.get_or_insert(now);
            if first {
                self.node.event(
                    &self.me,
                    Normal,
                    "Killing",
                    format!("Stopping container {name}"),
                );
            }
            let signal = match Signal::try_from(current.stop_signal) {
                _ if now >= deadline => Signal::SIGKILL,
                Ok(signal) if first => signal,
                Ok(_) => continue,
                Err(_) => Signal::SIGTERM,
            };
            if let Err(error) = live.container.signal(signal) {
                tracing::warn!(container = name, %signal, %error, "cannot signal a container");
            }
        }
    }

    /// Kills containers that were told to end and did not. When the next is due.
    pub(super) fn kill_overdue(&mut self, now: Timestamp) -> Option<Timestamp> {
        let spec = self.pod.spec.as_ref();
        let grace = spec
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(30)
            .max(0);
        let mut next = None;
        for (name, live) in &self.live {
            let current = self
                .record
                .containers
                .get(name)
                .and_then(|own| own.current.as_ref());
            let Some(since) = current.and_then(|current| current.stopping_since) else {
                continue;
            };
            let due = since
                .checked_add(SignedDuration::from_secs(grace))
                .unwrap_or(Timestamp::MAX);
            if now < due {
                next = earlier(next, Some(due));
            } else if let Err(error) = live.container.signal(Signal::SIGKILL) {
                tracing::warn!(container = name, %error, "cannot kill a container");
            }
        }
        next
    }
}
