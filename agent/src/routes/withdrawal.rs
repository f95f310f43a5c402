//! Which of this node's pods must not get new flows, from what the pod manager reports, before the cluster knows.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::PodStatus;

use crate::pod::PodReport;

/// What to do in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No new flows to the address.
    Withdraw(IpAddr),
    /// New flows again.
    Restore(IpAddr),
}

/// What is known of a pod.
#[derive(Debug, Default)]
struct Health {
    addresses: Vec<IpAddr>,
    was_ready: bool,
}

/// Remembers the health of this node's pods.
#[derive(Debug, Default)]
pub struct Withdrawals {
    pods: HashMap<String, Health>,
    withdrawn: HashSet<IpAddr>,
    /// Shared by pods that use the node's network: never withdrawn, since others answer there too.
    node_addresses: HashSet<IpAddr>,
}

impl Withdrawals {
    /// For a node with these addresses.
    pub fn new(node_addresses: &[IpAddr]) -> Self {
        Self {
            node_addresses: node_addresses.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// What a report means for the maps.
    pub fn on_report(&mut self, report: &PodReport) -> Vec<Action> {
        match report {
            PodReport::Status { pod, status } => self.on_status(&pod.uid, status),
            // Its addresses lead nowhere until another pod has them.
            PodReport::Terminated { pod } => match self.pods.remove(&pod.uid) {
                Some(health) => self.withdraw(health.addresses),
                None => Vec::new(),
            },
            // The status that follows says whether it is over or starts again.
            PodReport::Died { pod } => match self.pods.get(&pod.uid) {
                Some(health) if health.was_ready => self.withdraw(health.addresses.clone()),
                _ => Vec::new(),
            },
            PodReport::Event { .. } => Vec::new(),
        }
    }

    fn on_status(&mut self, uid: &str, status: &PodStatus) -> Vec<Action> {
        let addresses = self.own_addresses(status);
        let is_new = !self.pods.contains_key(uid);
        let health = self.pods.entry(uid.to_owned()).or_default();
        let was_ready = health.was_ready;
        health.was_ready = is_ready(status);
        health.addresses.clone_from(&addresses);
        if health.was_ready {
            return self.restore(addresses);
        }
        // A pod that runs but was never ready may be meant to have traffic all the same (publishNotReadyAddresses).
        if was_ready || has_dead_container(status) {
            return self.withdraw(addresses);
        }
        // The addresses of an earlier pod, had by one whose health says nothing against it.
        if is_new {
            self.restore(addresses)
        } else {
            Vec::new()
        }
    }

    fn own_addresses(&self, status: &PodStatus) -> Vec<IpAddr> {
        let list = status.pod_ips.as_deref().unwrap_or_default();
        list.iter()
            .filter_map(|pod_ip| pod_ip.ip.parse().ok())
            .filter(|address| !self.node_addresses.contains(address))
            .collect()
    }

    fn withdraw(&mut self, addresses: Vec<IpAddr>) -> Vec<Action> {
        let fresh = addresses
            .into_iter()
            .filter(|address| self.withdrawn.insert(*address));
        fresh.map(Action::Withdraw).collect()
    }

    fn restore(&mut self, addresses: Vec<IpAddr>) -> Vec<Action> {
        let back = addresses
            .into_iter()
            .filter(|address| self.withdrawn.remove(address));
        back.map(Action::Restore).collect()
    }
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_dead_container(status: &PodStatus) -> bool {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    containers.iter().any(|container| {
        let state = container.state.as_ref();
        state.is_none_or(|state| state.running.is_none())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::PodRef;

    const ADDRESS: &str = "10.244.1.1";

    fn report(uid: &str, ready: &str, container: &str) -> PodReport {
        let status = json!({
            "podIPs": [{"ip": ADDRESS}],
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {container: {"exitCode": 1}},
            }],
        });
        PodReport::Status {
            pod: pod(uid),
            status: serde_json::from_value(status).expect("a status"),
        }
    }

    fn pod(uid: &str) -> PodRef {
        PodRef {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn address() -> IpAddr {
        ADDRESS.parse().expect("an address")
    }

    #[test]
    fn a_dead_pod_leaves_once_and_comes_back_when_ready() {
        let mut withdrawals = Withdrawals::default();
        let mut on = |ready, container| withdrawals.on_report(&report("a", ready, container));
        assert_eq!(on("True", "running"), []);
        assert_eq!(on("False", "terminated"), [Action::Withdraw(address())]);
        assert_eq!(on("False", "waiting"), []);
        assert_eq!(on("False", "running"), [], "restarted, not ready yet");
        assert_eq!(on("True", "running"), [Action::Restore(address())]);
    }

    #[test]
    fn a_death_is_enough_before_anyone_says_how() {
        let mut withdrawals = Withdrawals::default();
        let died = || PodReport::Died { pod: pod("a") };
        assert_eq!(withdrawals.on_report(&died()), [], "a pod nobody knows");
        withdrawals.on_report(&report("a", "False", "running"));
        assert_eq!(withdrawals.on_report(&died()), [], "an init container's");
        withdrawals.on_report(&report("a", "True", "running"));
        assert_eq!(
            withdrawals.on_report(&died()),
            [Action::Withdraw(address())]
        );
        assert_eq!(
            withdrawals.on_report(&report("a", "False", "terminated")),
            [],
            "withdrawn already"
        );
        assert_eq!(
            withdrawals.on_report(&report("a", "True", "running")),
            [Action::Restore(address())]
        );
    }

    #[test]
    fn a_pod_that_stops_being_ready_leaves() {
        let mut withdrawals = Withdrawals::default();
        withdrawals.on_report(&report("a", "True", "running"));
        let actions = withdrawals.on_report(&report("a", "False", "running"));
        assert_eq!(actions, [Action::Withdraw(address())]);
    }

    #[test]
    fn a_pod_that_died_while_no_agent_ran_leaves_at_the_first_report() {
        let actions = Withdrawals::default().on_report(&report("a", "False", "terminated"));
        assert_eq!(actions, [Action::Withdraw(address())]);
    }

    #[test]
    fn a_running_pod_that_was_never_ready_is_the_clusters_business() {
        assert_eq!(
            Withdrawals::default().on_report(&report("a", "False", "running")),
            []
        );
    }

    #[test]
    fn an_ended_pods_address_comes_back_with_its_next_owner() {
        let mut withdrawals = Withdrawals::default();
        withdrawals.on_report(&report("a", "True", "running"));
        let ended = PodReport::Terminated { pod: pod("a") };
        assert_eq!(withdrawals.on_report(&ended), [Action::Withdraw(address())]);
        let actions = withdrawals.on_report(&report("b", "False", "running"));
        assert_eq!(actions, [Action::Restore(address())]);
    }

    #[test]
    fn the_nodes_own_addresses_stay() {
        let mut withdrawals = Withdrawals::new(&[address()]);
        withdrawals.on_report(&report("a", "True", "running"));
        assert_eq!(
            withdrawals.on_report(&report("a", "False", "terminated")),
            []
        );
    }
}
