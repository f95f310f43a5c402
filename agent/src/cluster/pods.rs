//! The pods bound to this node: watched, and passed on as commands.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{watcher, watcher::Event},
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
    let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client), config));
    let mut translator = Translator::default();
    // Short pauses: a node should hear of its pods soon after the control plane is back.
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let pause = backoff.pause();
                tracing::warn!(error = %chain(&error), retry_in = ?pause, "no news of this node's pods");
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        // The beginning of a list is no success yet: it is said before anything was asked.
        if !matches!(event, Event::Init) {
            backoff.reset();
        }
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
