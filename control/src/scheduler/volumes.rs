//! Persistent volumes: where a pod's claims let it go, and which volumes its unbound claims would get there.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use super::{
    demand::Demand,
    filter::{self, Refusal},
    nodes::NodeState,
};
use crate::{
    api::ObjectKey,
    controllers::{meta, volumes::matching},
};

const ELSEWHERE: Refusal =
    Refusal::lasting("node(s) didn't match PersistentVolume's node affinity");
const NONE: Refusal = Refusal::lasting("node(s) didn't find available persistent volumes to bind");
const LOST: Refusal =
    Refusal::lasting("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");

/// All volumes, claims and classes.
#[derive(Debug, Default)]
pub struct Volumes {
    /// By key.
    pub claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    /// By name.
    pub volumes: BTreeMap<String, Arc<PersistentVolume>>,
    /// By name.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// Volumes that were given to claims a moment ago, by name.
    pub assumed: HashMap<String, ObjectKey>,
}

/// A claim with the volume that it is to get.
pub type Choice = (Arc<PersistentVolumeClaim>, Arc<PersistentVolume>);

/// What the claims of a pod ask for.
#[derive(Default)]
pub struct Needs {
    /// The volumes that it has, by name; `None`: gone.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// The claims that get one when it has a node.
    unbound: Vec<Arc<PersistentVolumeClaim>>,
}

impl Volumes {
    /// Forgets what was assumed of a volume that shows by now who has it.
    pub fn set_volume(&mut self, volume: &Arc<PersistentVolume>) {
        let name = meta::name(&volume.metadata);
        if matching::holder(volume).is_some() {
            self.assumed.remove(name);
        }
        self.volumes.insert(name.to_owned(), Arc::clone(volume));
    }

    /// What a pod's claims ask for; or why it can't be placed anywhere.
    pub fn needs(&self, demand: &Demand) -> Result<Needs, Cow<'static, str>> {
        let mut needs = Needs::default();
        for name in &demand.claims {
            let key = ObjectKey {
                namespace: demand.key.namespace.clone(),
                name: name.clone(),
            };
            let Some(claim) = self.claims.get(&key) else {
                let why = format!("persistentvolumeclaim \"{name}\" not found");
                return Err(Cow::Owned(why));
            };
            if meta::is_terminating(&claim.metadata) {
                let why = format!("persistentvolumeclaim \"{name}\" is being deleted");
                return Err(Cow::Owned(why));
            }
            if matching::is_bound(claim) {
                let volume = self.volumes.get(matching::volume_name(claim));
                needs.bound.push(volume.cloned());
            } else if self.waits(claim) {
                needs.unbound.push(Arc::clone(claim));
            } else {
                return Err(Cow::Borrowed(
                    "pod has unbound immediate PersistentVolumeClaims",
                ));
            }
        }
        // Those that ask for least choose first: they leave the large ones to the others.
        needs.unbound.sort_by_key(|claim| matching::request(claim));
        Ok(needs)
    }

    fn waits(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.classes.get(matching::class_of_claim(claim));
        let mode = class.and_then(|class| class.volume_binding_mode.as_deref());
        matching::volume_name(claim).is_empty() && mode == Some("WaitForFirstConsumer")
    }

    /// The volumes that a pod's unbound claims would get on a node, those that are `taken` left alone; or why it can't
    /// go there.
    pub fn choose(
        &self,
        needs: &Needs,
        node: &NodeState,
        taken: &HashSet<String>,
    ) -> Result<Vec<Choice>, Refusal> {
        for volume in &needs.bound {
            match volume {
                None => return Err(LOST),
                Some(volume) if !is_on(volume, node) => return Err(ELSEWHERE),
                Some(_) => {}
            }
        }
        let mut chosen: Vec<Choice> = Vec::new();
        for claim in &needs.unbound {
            let is_free = |volume: &&Arc<PersistentVolume>| {
                let name = meta::name(&volume.metadata);
                !self.assumed.contains_key(name)
                    && !taken.contains(name)
                    && !chosen.iter().any(|(_, other)| Arc::ptr_eq(other, volume))
                    && is_on(volume, node)
            };
            let best = matching::best(self.volumes.values().filter(is_free), claim);
            let volume = best.ok_or(NONE)?;
            let choice = (Arc::clone(claim), Arc::clone(volume));
            chosen.push(choice);
        }
        Ok(chosen)
    }
}

/// Whether a volume can be reached from a node.
fn is_on(volume: &PersistentVolume, node: &NodeState) -> bool {
    let affinity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref());
    let terms: Option<&Vec<NodeSelectorTerm>> = affinity
        .and_then(|affinity| affinity.required.as_ref())
        .map(|required| &required.node_selector_terms);
    terms.is_none_or(|terms| terms.iter().any(|term| filter::matches(term, node)))
}
