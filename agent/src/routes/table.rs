//! The routing table with its generation, and what an update changes in it. No IO.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use portolan_dataplane::model::ServiceName;
use portolan_wire::v1::{self as wire, route_update};
use serde::{Deserialize, Serialize};

use super::convert::{ConvertError, NodeRoute, ServiceRoute};

/// Why an update is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// It would take the table back.
    #[error("generation {offered} is older than {held}")]
    Older {
        /// The agent's.
        held: u64,
        /// The update's.
        offered: u64,
    },
    /// It says what changed in a table that the agent does not hold.
    #[error("a delta on generation {base} of epoch {epoch:?} does not fit generation {held}")]
    WrongBase {
        /// The agent's.
        held: u64,
        /// The delta's.
        base: u64,
        /// The delta's.
        epoch: String,
    },
    /// It says nothing.
    #[error("an update without a change")]
    Empty,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The history that `generation` counts in.
    pub epoch: String,
    /// Grows with every change.
    pub generation: u64,
    /// The services.
    pub services: BTreeMap<ServiceName, Arc<ServiceRoute>>,
    /// The nodes.
    pub nodes: BTreeMap<String, NodeRoute>,
}

/// What an update changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Services that are new or different.
    pub upserted: BTreeSet<ServiceName>,
    /// Services that are gone.
    pub deleted: BTreeSet<ServiceName>,
    /// Whether a node came, went or changed.
    pub nodes_changed: bool,
    /// Entries that can't be so; their older versions stay.
    pub rejected: Vec<ConvertError>,
}

impl Table {
    /// Takes an update in, or refuses it and stays as it is.
    pub fn apply(&mut self, update: wire::RouteUpdate) -> Result<Change, UpdateError> {
        let is_same_history = update.epoch == self.epoch;
        if is_same_history && update.generation < self.generation {
            return Err(UpdateError::Older {
                held: self.generation,
                offered: update.generation,
            });
        }
        let mut change = match update.change.ok_or(UpdateError::Empty)? {
            route_update::Change::Snapshot(snapshot) => self.replace(snapshot),
            route_update::Change::Delta(delta)
                if is_same_history && delta.base_generation == self.generation =>
            {
                self.advance(delta)
            }
            route_update::Change::Delta(delta) => {
                return Err(UpdateError::WrongBase {
                    held: self.generation,
                    base: delta.base_generation,
                    epoch: update.epoch,
                });
            }
        };
        self.epoch = update.epoch;
        self.generation = update.generation;
        if change.nodes_changed {
            let concerned = self.services.values();
            let concerned = concerned.filter(|service| service.concerns_nodes());
            change
                .upserted
                .extend(concerned.map(|service| service.name.clone()));
        }
        Ok(change)
    }

    fn replace(&mut self, snapshot: wire::Snapshot) -> Change {
        let mut change = Change::default();
        let named: BTreeSet<ServiceName> = snapshot
            .services
            .iter()
            .map(|service| ServiceName(service.id.clone()))
            .collect();
        let gone: Vec<ServiceName> = self
            .services
            .keys()
            .filter(|name| !named.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.delete_service(name, &mut change);
        }
        let named: BTreeSet<&str> = snapshot
            .nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect();
        let before = self.nodes.len();
        self.nodes.retain(|name, _| named.contains(name.as_str()));
        change.nodes_changed = self.nodes.len() != before;
        self.upsert(snapshot.services, snapshot.nodes, &mut change);
        change
    }

    fn advance(&mut self, delta: wire::Delta) -> Change {
        let mut change = Change::default();
        for name in delta.deleted_services {
            self.delete_service(ServiceName(name), &mut change);
        }
        for name in delta.deleted_nodes {
            change.nodes_changed |= self.nodes.remove(&name).is_some();
        }
        self.upsert(delta.upserted_services, delta.upserted_nodes, &mut change);
        change
    }

    fn delete_service(&mut self, name: ServiceName, change: &mut Change) {
        if self.services.remove(&name).is_some() {
            change.deleted.insert(name);
        }
    }

    fn upsert(
        &mut self,
        services: Vec<wire::ServicePort>,
        nodes: Vec<wire::Node>,
        change: &mut Change,
    ) {
        for service in services {
            match ServiceRoute::try_from(service) {
                Ok(route)
                    if self
                        .services
                        .get(&route.name)
                        .is_some_and(|held| **held == route) => {}
                Ok(route) => {
                    change.deleted.remove(&route.name);
                    change.upserted.insert(route.name.clone());
                    self.services.insert(route.name.clone(), Arc::new(route));
                }
                Err(error) => change.rejected.push(error),
            }
        }
        for node in nodes {
            match NodeRoute::try_from(node) {
                Ok(route) if self.nodes.get(&route.name) == Some(&route) => {}
                Ok(route) => {
                    change.nodes_changed = true;
                    self.nodes.insert(route.name.clone(), route);
                }
                Err(error) => change.rejected.push(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(id: &str, port: u32) -> wire::ServicePort {
        wire::ServicePort {
            id: id.to_owned(),
            protocol: wire::Protocol::Tcp.into(),
            frontends: vec![wire::Frontend {
                kind: wire::FrontendKind::ClusterIp.into(),
                address: vec![10, 96, 0, 1],
                port,
            }],
            ..wire::ServicePort::default()
        }
    }

    fn snapshot(generation: u64, services: Vec<wire::ServicePort>) -> wire::RouteUpdate {
        wire::RouteUpdate {
            epoch: "e".to_owned(),
            generation,
            change: Some(route_update::Change::Snapshot(wire::Snapshot {
                services,
                nodes: Vec::new(),
            })),
        }
    }

    fn delta(
        base: u64,
        generation: u64,
        upserted: Vec<wire::ServicePort>,
        deleted: &[&str],
    ) -> wire::RouteUpdate {
        wire::RouteUpdate {
            epoch: "e".to_owned(),
            generation,
            change: Some(route_update::Change::Delta(wire::Delta {
                base_generation: base,
                upserted_services: upserted,
                deleted_services: deleted.iter().map(|&name| name.to_owned()).collect(),
                ..wire::Delta::default()
            })),
        }
    }

    fn names(set: &BTreeSet<ServiceName>) -> Vec<&str> {
        set.iter().map(|name| name.0.as_str()).collect()
    }

    #[test]
    fn a_snapshot_says_what_came_changed_and_went() {
        let mut table = Table::default();
        let change = table
            .apply(snapshot(1, vec![service("a", 80), service("b", 80)]))
            .expect("applied");
        assert_eq!(names(&change.upserted), ["a", "b"]);
        let change = table
            .apply(snapshot(2, vec![service("b", 81), service("c", 80)]))
            .expect("applied");
        assert_eq!(names(&change.upserted), ["b", "c"]);
        assert_eq!(names(&change.deleted), ["a"]);
        let change = table
            .apply(snapshot(3, vec![service("b", 81), service("c", 80)]))
            .expect("applied");
        assert_eq!(change, Change::default());
        assert_eq!(table.generation, 3);
    }

    #[test]
    fn older_generations_are_refused() {
        let mut table = Table::default();
        table
            .apply(snapshot(5, vec![service("a", 80)]))
            .expect("applied");
        let before = table.clone();
        let error = table.apply(snapshot(4, Vec::new())).expect_err("older");
        assert_eq!(
            error,
            UpdateError::Older {
                held: 5,
                offered: 4
            }
        );
        assert_eq!(table, before);
        let mut other_history = snapshot(1, Vec::new());
        other_history.epoch = "f".to_owned();
        table
            .apply(other_history)
            .expect("another epoch counts anew");
        assert_eq!((table.generation, table.services.len()), (1, 0));
    }

    #[test]
    fn a_delta_on_another_base_is_refused() {
        let mut table = Table::default();
        table.apply(snapshot(5, Vec::new())).expect("applied");
        let before = table.clone();
        for update in [
            delta(4, 6, vec![service("a", 80)], &[]),
            delta(6, 7, Vec::new(), &[]),
            wire::RouteUpdate {
                epoch: "f".to_owned(),
                ..delta(5, 6, Vec::new(), &[])
            },
        ] {
            let error = table.apply(update).expect_err("another base");
            assert!(
                matches!(error, UpdateError::WrongBase { held: 5, .. }),
                "{error}"
            );
        }
        let empty = wire::RouteUpdate {
            generation: 6,
            epoch: "e".to_owned(),
            change: None,
        };
        assert_eq!(table.apply(empty), Err(UpdateError::Empty));
        assert_eq!(table, before);
    }

    #[test]
    fn a_broken_service_keeps_its_older_version() {
        let mut table = Table::default();
        table
            .apply(snapshot(1, vec![service("a", 80)]))
            .expect("applied");
        let change = table
            .apply(snapshot(2, vec![service("a", 0), service("b", 80)]))
            .expect("applied");
        assert_eq!(change.rejected.len(), 1);
        assert_eq!(names(&change.upserted), ["b"]);
        assert!(change.deleted.is_empty());
        assert!(table.services.contains_key(&ServiceName("a".to_owned())));
    }

    #[test]
    fn nodes_come_change_and_go() {
        let mut table = Table::default();
        let with_nodes = |generation, names: &[&str]| {
            let mut update = snapshot(generation, Vec::new());
            if let Some(route_update::Change::Snapshot(snapshot)) = &mut update.change {
                snapshot.nodes = names
                    .iter()
                    .map(|&name| wire::Node {
                        name: name.to_owned(),
                        ..wire::Node::default()
                    })
                    .collect();
            }
            update
        };
        assert!(
            table
                .apply(with_nodes(1, &["n1", "n2"]))
                .expect("applied")
                .nodes_changed
        );
        assert!(
            !table
                .apply(with_nodes(2, &["n2", "n1"]))
                .expect("applied")
                .nodes_changed
        );
        assert!(
            table
                .apply(with_nodes(3, &["n2"]))
                .expect("applied")
                .nodes_changed
        );
    }

    proptest! {
        /// Deltas from any state lead where a snapshot of the result leads, and say exactly what differs.
        #[test]
        fn deltas_and_snapshots_agree(
            before in prop::collection::btree_map("[a-f]", 1..4_u32, 0..6),
            after in prop::collection::btree_map("[a-f]", 1..4_u32, 0..6),
        ) {
            let wire_of = |services: &BTreeMap<String, u32>| -> Vec<_> {
                services.iter().map(|(id, port)| service(id, *port)).collect()
            };
            let mut by_delta = Table::default();
            by_delta.apply(snapshot(1, wire_of(&before))).expect("applied");
            let mut by_snapshot = by_delta.clone();
            let gone: Vec<&str> = before.keys().filter(|id| !after.contains_key(*id)).map(String::as_str).collect();
            let one = by_delta.apply(delta(1, 2, wire_of(&after), &gone)).expect("applied");
            let other = by_snapshot.apply(snapshot(2, wire_of(&after))).expect("applied");
            prop_assert_eq!(by_delta, by_snapshot);
            prop_assert_eq!(&one, &other);
            let differs = after.iter().filter(|(id, port)| before.get(*id) != Some(port)).count();
            prop_assert_eq!(one.upserted.len(), differs);
            prop_assert_eq!(one.deleted.len(), gone.len());
        }
    }
}
