//! What a container has done right after its start and right before its end.
#![forbid(unsafe_code)]

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::{
    EventSeverity::Warning,
    handler,
    worker::{Wake, Worker},
};

/// The two hooks of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// Until it has ended, the container does not count as running.
    PostStart,
    /// Until it has ended, the container is not asked to end.
    PreStop,
}

impl Worker {
    /// A container has started: it runs, or does so once its hook has ended.
    pub(super) fn post_start(&mut self, container: &Container) {
        let lifecycle = container.lifecycle.as_ref();
        match lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref()) {
            None => self.runs(container),
            Some(hook) => self.run_hook(container, HookKind::PostStart, hook),
        }
    }

    /// Begins a container's preStop hook, if it has one.
    pub(super) fn pre_stop(&mut self, name: &str) {
        let pod = Arc::clone(&self.pod);
        let Some(container) = super::container_named(&pod, name) else {
            return;
        };
        let lifecycle = container.lifecycle.as_ref();
        if let Some(hook) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
            self.run_hook(container, HookKind::PreStop, hook);
        }
    }

    fn run_hook(&mut self, container: &Container, kind: HookKind, hook: &LifecycleHandler) {
        let Some(id) = self.live.get(&container.name).map(|live| live.id.clone()) else {
            return;
        };
        let (target, hook, own) = (self.target(container, &id), hook.clone(), self.own.clone());
        let (name, run) = (container.name.clone(), id);
        let task = tokio::spawn(async move {
            let result = handler::hook(&hook, &target).await;
            let wake = Wake::Hooked {
                container: name,
                id: run,
                kind,
                result,
            };
            if own.send(wake).is_err() {
                tracing::debug!("a hook ended after its pod's worker");
            }
        });
        if let Some(live) = self.live.get_mut(&container.name) {
            live.tasks.push(task.abort_handle());
            live.hook = Some(kind);
        }
    }

    /// Whether a container's hook runs that others wait for.
    pub(super) fn is_starting(&self, name: &str) -> bool {
        let live = self.live.get(name);
        live.is_some_and(|live| live.hook == Some(HookKind::PostStart))
    }

    /// A hook has ended.
    pub(super) fn hooked(
        &mut self,
        name: &str,
        id: &str,
        kind: HookKind,
        result: Result<(), String>,
    ) {
        let Some(live) = self.live.get_mut(name).filter(|live| live.id == id) else {
            return;
        };
        // A container that is told to end while it starts has its last hook instead of its first.
        if live.hook != Some(kind) {
            return;
        }
        live.hook = None;
        let (reason, title) = match kind {
            HookKind::PostStart => ("FailedPostStartHook", "PostStartHook failed"),
            HookKind::PreStop => ("FailedPreStopHook", "PreStopHook failed"),
        };
        if let Err(why) = &result {
            let text = format!("{title}: {why}");
            self.node.event(&self.me, Warning, reason, text);
        }
        if kind == HookKind::PreStop {
            return;
        }
        let pod = Arc::clone(&self.pod);
        match (result, super::container_named(&pod, name)) {
            (Ok(()), Some(container)) => self.runs(container),
            _ => self.stop(name, Timestamp::now(), self.grace(), reason.to_owned()),
        }
    }
}
