//! What a Deployment needs done, from what the caches show; no IO. Each round writes to each ReplicaSet at most once;
//! the change that comes of it triggers the next round.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::{
    action::{Action, new_set},
    proportion, sets,
    sets::{
        available, existing, fenceposts, has_template_of, new_set_annotations, replicas, revision,
        size_annotations, wanted,
    },
    status::{self, Found},
};
use crate::controllers::meta;

/// What a round knows.
pub struct View<'a> {
    /// The Deployment.
    pub deployment: &'a Deployment,
    /// The sets that it controls, and those of its namespace that nobody does.
    pub sets: &'a [Arc<ReplicaSet>],
    /// The uids of sets that have pods which have not ended.
    pub running: &'a BTreeSet<String>,
    /// What time it is.
    pub now: Timestamp,
}

/// What there is to do, in order, and the status to write afterwards.
#[derive(Debug, Default)]
pub struct Plan {
    /// The writes.
    pub actions: Vec<Action>,
    /// The status that the Deployment should show.
    pub status: DeploymentStatus,
    /// When to look again even if nothing changes: the progress deadline.
    pub look_again: Option<Duration>,
}

/// The round's own state: the sets, sorted by age, and the sizes that they are given.
struct Round<'a> {
    view: &'a View<'a>,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    sizes: BTreeMap<String, i32>,
    actions: Vec<Action>,
    found: Found,
}

/// Plans a round.
pub fn plan(view: &View<'_>) -> Plan {
    let mut round = Round::begin(view);
    if !meta::is_terminating(&view.deployment.metadata) {
        round.decide();
    }
    let (status, look_again) = round.status();
    Plan {
        actions: round.actions,
        status,
        look_again,
    }
}

impl<'a> Round<'a> {
    fn begin(view: &'a View<'a>) -> Self {
        let deployment = view.deployment;
        let terminating = meta::is_terminating(&deployment.metadata);
        let uid = meta::uid(&deployment.metadata);
        let mut actions = Vec::new();
        let mut mine = Vec::new();
        for set in view.sets {
            let selected = deployment
                .spec
                .as_ref()
                .is_some_and(|spec| meta::matches(&spec.selector, set.metadata.labels.as_ref()));
            match (meta::is_controlled_by(&set.metadata, uid), selected) {
                (true, true) => mine.push(Arc::clone(set)),
                (true, false) if !terminating => actions.push(Action::Release(Arc::clone(set))),
                (false, true)
                    if !terminating
                        && meta::controller_of(&set.metadata).is_none()
                        && !meta::is_terminating(&set.metadata) =>
                {
                    actions.push(Action::Adopt(Arc::clone(set)));
                }
                _ => {}
            }
        }
        mine.sort_by_key(|set| {
            let created = set.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, meta::name(&set.metadata).to_owned())
        });
        let new = mine
            .iter()
            .find(|set| has_template_of(set, deployment))
            .cloned();
        let is_new = |set: &ReplicaSet| {
            new.as_ref()
                .is_some_and(|new| new.metadata.uid == set.metadata.uid)
        };
        let old = mine.iter().filter(|set| !is_new(set)).cloned().collect();
        let sizes = mine
            .iter()
            .map(|set| (meta::uid(&set.metadata).to_owned(), replicas(set)))
            .collect();
        Self {
            view,
            new,
            old,
            sizes,
            actions,
            found: Found::Nothing,
        }
    }

    fn decide(&mut self) {
        let spec = self.view.deployment.spec.as_ref();
        if spec.and_then(|spec| spec.paused) == Some(true) {
            if !self.annotate_new() {
                self.scale_as_it_stands();
                self.clean_up();
            }
        } else if self.was_scaled() {
            if !self.annotate_new() {
                self.scale_as_it_stands();
            }
        } else if sets::recreates(self.view.deployment) {
            self.recreate();
        } else {
            self.roll();
        }
    }

    fn size(&self, set: &ReplicaSet) -> i32 {
        self.sizes
            .get(meta::uid(&set.metadata))
            .copied()
            .unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }

    /// How many pods of a set serve once it has the size that it is given. Its status may still count some that are
    /// about to go; those that do not serve go first.
    fn serving(&self, set: &ReplicaSet) -> i32 {
        available(set).min(self.size(set))
    }

    fn total(&self) -> i32 {
        self.all().map(|set| self.size(set)).sum()
    }

    fn resize(&mut self, set: &Arc<ReplicaSet>, to: i32) {
        self.sizes.insert(meta::uid(&set.metadata).to_owned(), to);
    }

    /// Turns the sizes that were decided on into actions.
    fn apply_sizes(&mut self) -> bool {
        let noted = size_annotations(self.view.deployment);
        let before = self.actions.len();
        let sets: Vec<_> = self.all().cloned().collect();
        for set in sets {
            let to = self.size(&set);
            let is_noted = noted
                .iter()
                .all(|(key, value)| meta::annotation(&set.metadata, key) == Some(value));
            // A set without pods is told of a new size when it gets some again.
            if to != replicas(&set) || (to > 0 && !is_noted) {
                self.actions.push(Action::Scale { set, to });
            }
        }
        self.actions.len() > before
    }

    /// Whether spec.replicas changed since the sets were scaled last.
    fn was_scaled(&self) -> bool {
        let wanted = wanted(self.view.deployment);
        self.all()
            .filter(|set| replicas(set) > 0)
            .filter_map(|set| sets::number(set, sets::DESIRED))
            .any(|desired| desired != wanted)
    }

    fn new_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
    }

    /// Brings the new set's annotations and the Deployment's revision up to date; true when that ends the round.
    fn annotate_new(&mut self) -> bool {
        let deployment = self.view.deployment;
        let Some(new) = self.new.clone() else {
            return false;
        };
        let annotations = new_set_annotations(deployment, Some(&new), self.new_revision());
        let min_ready = |spec: Option<i32>| spec.unwrap_or(0);
        let asked = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds);
        let has = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let noted = new.metadata.annotations.clone().unwrap_or_default();
        if annotations != noted || min_ready(asked) != min_ready(has) {
            self.actions.push(Action::Annotate {
                set: new,
                annotations,
            });
            return true;
        }
        let current = meta::annotation(&deployment.metadata, sets::REVISION);
        let revision = revision(&new);
        if current != Some(revision.to_string().as_str()) {
            self.actions.push(Action::SetRevision(revision));
        }
        self.found = Found::Existing(meta::name(&new.metadata).to_owned());
        false
    }

    /// Makes sure that there is a new set; true when that ends the round.
    fn ensure_new(&mut self) -> bool {
        if self.new.is_some() {
            return self.annotate_new();
        }
        let deployment = self.view.deployment;
        let size = if sets::recreates(deployment) {
            wanted(deployment)
        } else {
            let (surge, _) = fenceposts(deployment);
            let room = wanted(deployment) + surge - self.total();
            room.clamp(0, wanted(deployment))
        };
        let set = new_set(deployment, size, self.new_revision());
        let name = meta::name(&set.metadata).to_owned();
        self.actions.push(Action::Create(Box::new(set)));
        self.actions.push(Action::SetRevision(self.new_revision()));
        self.found = Found::Created(name);
        true
    }

    fn recreate(&mut self) {
        let old = self.old.clone();
        for set in old.iter().filter(|set| replicas(set) > 0) {
            self.resize(set, 0);
        }
        if self.apply_sizes_of_old() || self.old_pods_run() || self.ensure_new() {
            return;
        }
        if let Some(new) = self.new.clone() {
            self.resize(&new, wanted(self.view.deployment));
        }
        if !self.apply_sizes() {
            self.clean_up_when_complete();
        }
    }

    /// As [`Round::apply_sizes`], but leaves the new set for later.
    fn apply_sizes_of_old(&mut self) -> bool {
        let new = self.new.take();
        let applied = self.apply_sizes();
        self.new = new;
        applied
    }

    fn old_pods_run(&self) -> bool {
        self.old
            .iter()
            .any(|set| self.view.running.contains(meta::uid(&set.metadata)))
    }

    fn roll(&mut self) {
        if self.ensure_new() {
            return;
        }
        if self.grow_new() || self.shrink_old() {
            self.apply_sizes();
            return;
        }
        if !self.apply_sizes() {
            self.clean_up_when_complete();
        }
    }

    /// Brings the new set towards what is wanted, as far as maxSurge allows.
    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new.clone() else {
            return false;
        };
        let wanted = wanted(self.view.deployment);
        let size = self.size(&new);
        let (surge, _) = fenceposts(self.view.deployment);
        let to = if size >= wanted {
            wanted
        } else {
            let room = (wanted + surge - self.total()).max(0);
            size + room.min(wanted - size)
        };
        self.resize(&new, to);
        to != size
    }

    /// Takes from the old sets what can go: first pods that serve nobody, then as many as are more than enough.
    fn shrink_old(&mut self) -> bool {
        let (_, unavailable) = fenceposts(self.view.deployment);
        let least = wanted(self.view.deployment) - unavailable;
        let new_unavailable = self
            .new
            .as_ref()
            .map_or(0, |new| self.size(new) - self.serving(new));
        let mut spare = self.total() - least - new_unavailable;
        let old = self.old.clone();
        let mut shrunk = false;
        for set in &old {
            let size = self.size(set);
            let unhealthy = (size - self.serving(set)).min(spare);
            if unhealthy > 0 {
                self.resize(set, size - unhealthy);
                spare -= unhealthy;
                shrunk = true;
            }
        }
        if spare <= 0 && !shrunk {
            return false;
        }
        let serving: i32 = self.all().map(|set| self.serving(set)).sum();
        let mut surplus = serving - least;
        for set in &old {
            let size = self.size(set);
            let gone = size.min(surplus);
            if gone > 0 {
                self.resize(set, size - gone);
                surplus -= gone;
                shrunk = true;
            }
        }
        shrunk
    }

    /// Follows spec.replicas without rolling anything out: the one set that has pods takes it all; in the middle of a
    /// rollout each takes its share.
    fn scale_as_it_stands(&mut self) {
        let deployment = self.view.deployment;
        let wanted = wanted(deployment);
        let active: Vec<_> = self
            .all()
            .filter(|set| replicas(set) > 0)
            .cloned()
            .collect();
        let only = match active.as_slice() {
            [] => self.new.clone().or_else(|| self.old.last().cloned()),
            [only] => Some(Arc::clone(only)),
            _ => None,
        };
        if let Some(only) = only {
            self.resize(&only, wanted);
        } else if self
            .new
            .as_ref()
            .is_some_and(|new| is_saturated(new, wanted))
        {
            for set in self.old.clone() {
                self.resize(&set, 0);
            }
        } else if !sets::recreates(deployment) {
            for (set, to) in proportion::shares(deployment, &active) {
                self.resize(&set, to);
            }
        }
        self.apply_sizes();
    }

    fn clean_up_when_complete(&mut self) {
        let (status, _) = self.status();
        if status::is_complete(self.view.deployment, &status) {
            self.clean_up();
        }
    }

    /// Deletes old, empty sets beyond the history limit, the oldest revisions first.
    fn clean_up(&mut self) {
        let limit = self
            .view
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        let mut old: Vec<_> = self
            .old
            .iter()
            .filter(|set| !meta::is_terminating(&set.metadata))
            .cloned()
            .collect();
        old.sort_by_key(|set| revision(set));
        let excess = old
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in old.into_iter().take(excess) {
            let observed = set
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            let is_settled = set.metadata.generation.unwrap_or(0) <= observed.unwrap_or(0);
            if existing(&set) == 0 && replicas(&set) == 0 && is_settled {
                self.actions.push(Action::Delete(set));
            }
        }
    }

    fn status(&self) -> (DeploymentStatus, Option<Duration>) {
        status::status(
            self.view.deployment,
            self.new.as_deref(),
            &self.old,
            &self.found,
            self.view.now,
        )
    }
}

fn is_saturated(set: &ReplicaSet, wanted: i32) -> bool {
    sets::number(set, sets::DESIRED) == Some(wanted)
        && replicas(set) == wanted
        && available(set) == wanted
}
