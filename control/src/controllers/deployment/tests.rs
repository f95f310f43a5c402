//! Plans as text, and a rollout played through with pods that come up in any order.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Action, Plan, View, plan, sets};
use crate::controllers::{meta, patch};

fn deployment(replicas: i32, image: &str, strategy: &Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": strategy,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1,
            "template": template(image),
        },
    }))
    .expect("a deployment")
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn rolling(surge: impl Into<Value>, unavailable: impl Into<Value>) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge.into(), "maxUnavailable": unavailable.into()}})
}

/// The cluster as far as one Deployment sees it.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    running: BTreeSet<String>,
    made: usize,
    now: Timestamp,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            running: BTreeSet::new(),
            made: 0,
            now: Timestamp::from_second(1_800_000_000).expect("in range"),
        }
    }

    fn plan(&self) -> Plan {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        plan(&View {
            deployment: &self.deployment,
            sets: &sets,
            running: &self.running,
            now: self.now,
        })
    }

    /// Plans, writes the plan down, and carries it out.
    fn step(&mut self) -> String {
        let plan = self.plan();
        let text: Vec<_> = plan.actions.iter().map(ToString::to_string).collect();
        for action in plan.actions {
            self.apply(action);
        }
        self.deployment.status = Some(plan.status);
        text.join("\n")
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Create(set) => {
                self.made += 1;
                let mut set = *set;
                set.metadata.uid = Some(format!("s{}", self.made));
                set.metadata.creation_timestamp = Some(
                    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
                );
                self.now =
                    crate::controllers::clock::after(self.now, std::time::Duration::from_secs(1));
                self.sets.push(set);
            }
            Action::Scale { set, to } => {
                let noted = sets::size_annotations(&self.deployment);
                let set = self.find(&set);
                set.spec.get_or_insert_default().replicas = Some(to);
                set.metadata
                    .annotations
                    .get_or_insert_default()
                    .extend(noted);
            }
            Action::Annotate { set, annotations } => {
                self.find(&set).metadata.annotations = Some(annotations);
            }
            Action::Delete(set) => {
                self.sets
                    .retain(|candidate| candidate.metadata.uid != set.metadata.uid);
            }
            Action::SetRevision(revision) => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                annotations.insert(sets::REVISION.to_owned(), revision.to_string());
            }
            Action::Adopt(set) => {
                let owner =
                    meta::controller_reference("apps/v1", "Deployment", &self.deployment.metadata);
                self.find(&set).metadata.owner_references = Some(vec![owner]);
            }
            Action::Release(set) => self.find(&set).metadata.owner_references = None,
        }
    }

    fn find(&mut self, set: &ReplicaSet) -> &mut ReplicaSet {
        self.sets
            .iter_mut()
            .find(|candidate| candidate.metadata.uid == set.metadata.uid)
            .expect("plans name sets that exist")
    }

    /// The pods of a set: how many there are, and how many of them are available.
    fn pods(&mut self, index: usize, existing: i32, available: i32) {
        let status = self.sets[index].status.get_or_insert_default();
        status.replicas = existing;
        status.ready_replicas = Some(available);
        status.available_replicas = Some(available);
    }

    /// Every set has what it was asked for, all available.
    fn settle(&mut self) {
        for index in 0..self.sets.len() {
            let replicas = sets::replicas(&self.sets[index]);
            self.pods(index, replicas, replicas);
        }
    }

    fn settle_until_quiet(&mut self) -> String {
        let mut text = Vec::new();
        for _ in 0..30 {
            let step = self.step();
            self.settle();
            if step.is_empty() && self.step().is_empty() {
                return text.join("\n");
            }
            if !step.is_empty() {
                text.push(step);
            }
        }
        panic!("no end to it:\n{}", text.join("\n"));
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().expect("it has a spec");
        spec.template = serde_json::from_value(template(image)).expect("a template");
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    fn conditions(&self) -> String {
        let status = self.deployment.status.as_ref().expect("it has a status");
        let conditions = status.conditions.iter().flatten();
        conditions
            .map(|c| {
                format!(
                    "{}={} {}",
                    c.type_,
                    c.status,
                    c.reason.as_deref().unwrap_or("")
                )
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn hash(image: &str) -> String {
    let template = serde_json::from_value(template(image)).expect("a template");
    sets::template_hash(&template, None)
}

/// Set names with the template's hash replaced by its image.
fn readable(text: &str) -> String {
    ["v1", "v2", "v3", "v4"]
        .iter()
        .fold(text.to_owned(), |text, image| {
            text.replace(&hash(image), image)
        })
}

#[test]
fn the_first_rollout() {
    let mut world = World::new(deployment(3, "v1", &rolling("25%", "25%")));
    assert_eq!(
        readable(&world.step()),
        "create web-v1 with 3 at revision 1\nset revision 1"
    );
    assert_eq!(
        world.conditions(),
        "Available=False MinimumReplicasUnavailable\nProgressing=True NewReplicaSetCreated"
    );
    world.pods(0, 3, 2);
    assert_eq!(world.step(), "");
    assert_eq!(
        world.conditions(),
        "Available=False MinimumReplicasUnavailable\nProgressing=True ReplicaSetUpdated",
        "25% of 3 rounds down to 0: all three must be there"
    );
    world.settle();
    assert_eq!(world.step(), "");
    assert_eq!(
        world.conditions(),
        "Available=True MinimumReplicasAvailable\nProgressing=True NewReplicaSetAvailable"
    );
    assert_eq!(world.step(), "", "nothing left to do");
}

#[test]
fn a_rolling_update_keeps_within_its_bounds() {
    let mut world = World::new(deployment(4, "v1", &rolling(1, 1)));
    world.settle_until_quiet();
    world.set_image("v2");
    let text = world.settle_until_quiet();
    assert_eq!(
        readable(&text),
        "create web-v2 with 1 at revision 2\nset revision 2\n\
         scale web-v1 from 4 to 2\n\
         scale web-v2 from 1 to 3\n\
         scale web-v1 from 2 to 0\n\
         scale web-v2 from 3 to 4"
    );
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(deployment(2, "v1", &json!({"type": "Recreate"})));
    world.settle_until_quiet();
    world.running.insert("s1".to_owned());
    world.set_image("v2");
    assert_eq!(readable(&world.step()), "scale web-v1 from 2 to 0");
    world.settle();
    assert_eq!(world.step(), "", "its pods still run");
    world.running.clear();
    assert_eq!(
        readable(&world.step()),
        "create web-v2 with 2 at revision 2\nset revision 2"
    );
}

#[test]
fn old_sets_go_beyond_the_history_limit_and_undo_finds_the_one_that_is_kept() {
    let mut world = World::new(deployment(1, "v1", &rolling(1, 0)));
    for image in ["v2", "v3"] {
        world.settle_until_quiet();
        world.set_image(image);
    }
    let text = world.settle_until_quiet();
    assert!(
        readable(&text).ends_with("delete web-v1"),
        "{}",
        readable(&text)
    );
    world.set_image("v2");
    let text = readable(&world.settle_until_quiet());
    assert_eq!(
        text,
        "annotate web-v2 with revision 4\n\
         set revision 4\nscale web-v2 from 0 to 1\n\
         scale web-v3 from 1 to 0"
    );
    let kept = world
        .sets
        .iter()
        .find(|set| sets::revision(set) == 4)
        .expect("it is there");
    assert_eq!(
        meta::annotation(&kept.metadata, sets::REVISION_HISTORY),
        Some("2")
    );
}

#[test]
fn paused_means_scaled_but_not_rolled_out() {
    let mut world = World::new(deployment(2, "v1", &rolling(1, 0)));
    world.settle_until_quiet();
    world.deployment.spec.as_mut().expect("a spec").paused = Some(true);
    world.set_image("v2");
    world.deployment.spec.as_mut().expect("a spec").replicas = Some(3);
    assert_eq!(readable(&world.step()), "scale web-v1 from 2 to 3");
    assert!(
        world
            .conditions()
            .ends_with("Progressing=Unknown DeploymentPaused")
    );
    world.deployment.spec.as_mut().expect("a spec").paused = None;
    world.settle();
    assert_eq!(
        readable(&world.step()),
        "create web-v2 with 1 at revision 2\nset revision 2"
    );
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_shared_out() {
    let mut world = World::new(deployment(10, "v1", &rolling(3, 2)));
    world.settle_until_quiet();
    world.set_image("v2");
    world.step();
    world.pods(0, 10, 10);
    world.pods(1, 3, 0);
    assert_eq!(readable(&world.step()), "scale web-v1 from 10 to 8");
    world.pods(0, 8, 8);
    assert_eq!(readable(&world.step()), "scale web-v2 from 3 to 5");
    world.deployment.spec.as_mut().expect("a spec").replicas = Some(15);
    assert_eq!(
        readable(&world.step()),
        "scale web-v1 from 8 to 11\nscale web-v2 from 5 to 7"
    );
}

#[test]
fn a_rollout_that_does_not_get_on_times_out_and_says_so() {
    let mut world = World::new(deployment(2, "v1", &rolling(1, 0)));
    world.step();
    world.step();
    let look_again = world.plan().look_again.expect("the deadline is running");
    world.now = crate::controllers::clock::after(world.now, look_again);
    assert_eq!(world.step(), "");
    assert!(
        world
            .conditions()
            .contains("Progressing=False ProgressDeadlineExceeded"),
        "{}",
        world.conditions()
    );
    world.settle();
    world.step();
    assert!(
        world
            .conditions()
            .contains("Progressing=True NewReplicaSetAvailable")
    );
}

#[test]
fn sets_without_a_controller_are_adopted_and_those_that_do_not_match_released() {
    let mut world = World::new(deployment(1, "v1", &rolling(1, 0)));
    world.settle_until_quiet();
    world.sets[0].metadata.owner_references = None;
    assert!(readable(&world.step()).starts_with("adopt web-v1"));
    let labels = world.sets[0]
        .metadata
        .labels
        .as_mut()
        .expect("it has labels");
    labels.insert("app".to_owned(), "other".to_owned());
    assert!(readable(&world.step()).starts_with("release web-v1"));
}

#[test]
fn a_quiet_deployment_is_written_nothing() {
    let mut world = World::new(deployment(2, "v1", &rolling(1, 0)));
    world.settle_until_quiet();
    let before = world.deployment.status.clone();
    let after = world.plan().status;
    assert_eq!(patch::diff(&before, &Some(after)).expect("JSON"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever order pods become available and end in: never more pods asked for than wanted plus surge, and never
    /// fewer left available by choice than wanted minus unavailable.
    #[test]
    fn never_over_surge_and_never_under_available(
        wanted in 1_i32..12,
        surge in 0_i32..4,
        unavailable in 0_i32..4,
        changes in 1_usize..3,
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(deployment(wanted, "v0", &rolling(surge, unavailable)));
        world.settle_until_quiet();
        let (surge, unavailable) = sets::fenceposts(&world.deployment);
        let mut changes = changes;
        for round in 0..200 {
            if changes > 0 && (round == 0 || random.u8(..) < 8) {
                changes -= 1;
                world.set_image(&format!("v{changes}"));
            }
            world.step();
            let total: i32 = world.sets.iter().map(sets::replicas).sum();
            prop_assert!(total <= wanted + surge, "{total} pods of {wanted} + {surge}");
            for index in 0..world.sets.len() {
                let asked = sets::replicas(&world.sets[index]);
                let existing = sets::existing(&world.sets[index]);
                let mut available = sets::available(&world.sets[index]);
                let existing = if random.bool() { asked } else { existing.clamp(asked.min(existing), asked.max(existing)) };
                available = available.min(existing);
                if available < existing && random.bool() {
                    available += 1;
                }
                world.pods(index, existing, available);
            }
            let available: i32 = world.sets.iter().map(sets::available).sum();
            prop_assert!(available >= wanted - unavailable, "{available} of {wanted} - {unavailable}");
        }
        world.settle_until_quiet();
        let new: Vec<_> = world.sets.iter().filter(|set| sets::replicas(set) > 0).collect();
        prop_assert_eq!(new.len(), 1);
        prop_assert_eq!(sets::replicas(new[0]), wanted);
    }
}
