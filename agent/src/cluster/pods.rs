//! The pods bound to this node: watched, and passed on as commands.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, utils::Backoff as WatchBackoff, watcher, watcher::Event},
};
use tokio::sync::mpsc;

use super::reporter::ReporterInput;
use crate::{
    errors::{Backoff, chain},
    pod::PodCommand,
};

/// Follows the pods of a node until one of the receivers is gone. A lost watch is resumed, or begun again with a list.
pub async fn follow_pods(
    client: Client,
    node_name: String,
    commands: mpsc::Sender<PodCommand>,
    reporter: mpsc::Sender<ReporterInput>,
) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut events =
        std::pin::pin!(watcher(Api::<Pod>::all(client), config).backoff(Pauses::default()));
    let mut translator = Translator::default();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the watch of this node's pods broke");
                continue;
            }
        };
        let (command, observations) = translator.translate(event);
        for observation in observations {
            if reporter.send(observation).await.is_err() {
                return;
            }
        }
        if let Some(command) = command
            && commands.send(command).await.is_err()
        {
            return;
        }
    }
}

/// Turns what a watch yields into what the pod manager and the reporter are told.
#[derive(Default)]
struct Translator {
    /// The list that is coming in; the manager hears of it once it is whole.
    list: Vec<Arc<Pod>>,
}

impl Translator {
    fn translate(&mut self, event: Event<Pod>) -> (Option<PodCommand>, Vec<ReporterInput>) {
        match event {
            Event::Init => {
                self.list.clear();
                (None, Vec::new())
            }
            Event::InitApply(pod) => {
                self.list.push(Arc::new(pod));
                (None, Vec::new())
            }
            Event::InitDone => {
                let list = std::mem::take(&mut self.list);
                let present = ReporterInput::Present(list.clone());
                (Some(PodCommand::Sync(list)), vec![present])
            }
            Event::Apply(pod) => {
                let pod = Arc::new(pod);
                let observed = ReporterInput::Observed(pod.clone());
                (Some(PodCommand::Apply(pod)), vec![observed])
            }
            Event::Delete(pod) => match pod.metadata.uid {
                Some(uid) => (
                    Some(PodCommand::Remove(uid.clone())),
                    vec![ReporterInput::Gone(uid)],
                ),
                None => (None, Vec::new()),
            },
        }
    }
}

/// Short pauses: a node should hear of its pods soon after the control plane is back.
struct Pauses(Backoff);

impl Default for Pauses {
    fn default() -> Self {
        Self(Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(5),
        ))
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.pause())
    }
}

impl WatchBackoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod
    }

    #[test]
    fn a_list_is_passed_on_whole_and_only_at_its_end() {
        let mut translator = Translator::default();
        for event in [
            Event::Init,
            Event::InitApply(pod("half")),
            Event::Init,
            Event::InitApply(pod("a")),
            Event::InitApply(pod("b")),
        ] {
            assert!(translator.translate(event).0.is_none());
        }
        let (command, _) = translator.translate(Event::InitDone);
        let Some(PodCommand::Sync(list)) = command else {
            panic!("{command:?}");
        };
        let uids: Vec<_> = list
            .iter()
            .filter_map(|pod| pod.metadata.uid.as_deref())
            .collect();
        assert_eq!(uids, ["a", "b"]);
    }

    #[test]
    fn an_object_that_is_gone_is_removed_by_uid() {
        let (command, inputs) = Translator::default().translate(Event::Delete(pod("a")));
        assert!(matches!(command, Some(PodCommand::Remove(uid)) if uid == "a"));
        assert!(matches!(&inputs[..], [ReporterInput::Gone(uid)] if uid == "a"));
    }
}
