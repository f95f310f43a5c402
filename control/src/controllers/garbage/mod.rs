//! Garbage collection: an object whose owners are all gone goes too. An owner that is deleted in the foreground waits for
//! its dependents; one that is deleted as an orphaner lets them go first.

mod graph;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;
use tracing::warn;

use super::{
    Context,
    client::Precondition,
    resources::Kind,
    worker::{Controller, Error, Outcome},
};
use crate::api::ObjectKey;

pub use graph::{Graph, Item, Known};

/// The finalizer of an owner that waits until its dependents are gone.
const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner that waits until its dependents no longer name it.
const ORPHAN: &str = "orphan";

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<Item> {
    let shared = Arc::clone(context);
    let graph = Arc::new(Graph::default());
    let of_row = Arc::clone(&graph);
    let row = Controller::new("garbage-collector", &context.clock, move |item| {
        let context = Arc::clone(&shared);
        let graph = Arc::clone(&of_row);
        async move { reconcile(&context, &graph, &item).await }
    })
    .workers(16);
    for informer in context.informers.all() {
        let graph = Arc::clone(&graph);
        let queue = Arc::clone(row.queue());
        informer.on_metadata(Box::new(move |resource, old, new| {
            for item in graph.change(resource, old, new) {
                queue.add(item);
            }
        }));
    }
    row
}

/// How an object stands to one of its owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// It lives.
    Present,
    /// It waits for this dependent to go.
    Waiting,
    /// It is gone.
    Absent,
}

async fn reconcile(context: &Context, graph: &Graph, item: &Item) -> Result<Outcome, Error> {
    let Some(known) = graph.known(item) else {
        return Ok(Outcome::Done);
    };
    if known.waits_for(ORPHAN) {
        return orphan(context, graph, item, &known).await;
    }
    if known.waits_for(FOREGROUND) {
        return delete_dependents(context, graph, item, &known).await;
    }
    if known.is_terminating || known.owners.is_empty() {
        return Ok(Outcome::Done);
    }
    let mut absent = Vec::new();
    let mut waiting = false;
    let mut present = false;
    for owner in &known.owners {
        match standing(context, graph, item, owner).await? {
            Owner::Present => present = true,
            Owner::Waiting => waiting = true,
            Owner::Absent => absent.push(owner.uid.clone()),
        }
    }
    if present {
        if !absent.is_empty() {
            forget_owners(context, item, &known, |owner| absent.contains(&owner.uid)).await?;
        }
        return Ok(Outcome::Done);
    }
    // Its own dependents are waited for when someone waits for it.
    let has_blocking = graph
        .dependents(&known.uid)
        .iter()
        .any(|(_, dependent)| blocks(dependent, &known.uid));
    let policy = if waiting && has_blocking {
        "Foreground"
    } else {
        "Background"
    };
    let precondition = Precondition {
        uid: Some(known.uid.clone()),
        resource_version: None,
    };
    context
        .client
        .delete(item.resource, &item.key, precondition, None, Some(policy))
        .await?;
    Ok(Outcome::Done)
}

/// Whether an owner is there: by the graph, or, as caches of two kinds may be at different moments, by the store.
async fn standing(
    context: &Context,
    graph: &Graph,
    item: &Item,
    owner: &OwnerReference,
) -> Result<Owner, Error> {
    if let Some(known) = graph.by_uid(&owner.uid) {
        return Ok(if known.waits_for(FOREGROUND) {
            Owner::Waiting
        } else {
            Owner::Present
        });
    }
    let Some(kind) = kind_of(&context.kinds, owner) else {
        // Not ours to judge: an owner of a kind that is not served is left alone.
        warn!(
            ?item,
            kind = owner.kind,
            "an owner is of a kind that does not exist"
        );
        return Ok(Owner::Present);
    };
    let namespace = item.key.namespace.clone().filter(|_| kind.namespaced);
    if kind.namespaced && namespace.is_none() {
        // A cluster-wide object can't have an owner in a namespace; such a reference resolves to nothing anywhere.
        return Ok(Owner::Absent);
    }
    let key = ObjectKey {
        namespace,
        name: owner.name.clone(),
    };
    let live = context.client.live(kind.resource, &key).await?;
    let is_there = live.is_some_and(|live| live["metadata"]["uid"].as_str() == Some(&owner.uid));
    Ok(if is_there {
        Owner::Present
    } else {
        Owner::Absent
    })
}

fn kind_of<'a>(kinds: &'a [Kind], owner: &OwnerReference) -> Option<&'a Kind> {
    let group = owner
        .api_version
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    kinds
        .iter()
        .find(|kind| kind.kind == owner.kind && kind.resource.group == group)
}

fn blocks(dependent: &Known, owner: &str) -> bool {
    dependent
        .owners
        .iter()
        .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
}

/// Foreground: deletes the dependents, and lets the owner go when none is left that blocks.
async fn delete_dependents(
    context: &Context,
    graph: &Graph,
    item: &Item,
    known: &Known,
) -> Result<Outcome, Error> {
    let dependents = graph.dependents(&known.uid);
    if !dependents
        .iter()
        .any(|(_, dependent)| blocks(dependent, &known.uid))
    {
        return remove_finalizer(context, item, known, FOREGROUND).await;
    }
    for (dependent, dependent_known) in dependents {
        if dependent_known.is_terminating {
            continue;
        }
        let others = dependent_known
            .owners
            .iter()
            .filter(|owner| owner.uid != known.uid);
        let mut is_kept = false;
        for owner in others {
            is_kept |= standing(context, graph, &dependent, owner).await? == Owner::Present;
        }
        if is_kept {
            forget_owners(context, &dependent, &dependent_known, |owner| {
                owner.uid == known.uid
            })
            .await?;
            continue;
        }
        let has_dependents = !graph.dependents(&dependent_known.uid).is_empty();
        let policy = if has_dependents {
            "Foreground"
        } else {
            "Background"
        };
        let precondition = Precondition {
            uid: Some(dependent_known.uid.clone()),
            resource_version: None,
        };
        context
            .client
            .delete(
                dependent.resource,
                &dependent.key,
                precondition,
                None,
                Some(policy),
            )
            .await?;
    }
    // Each dependent that goes has its owner looked at again.
    Ok(Outcome::Done)
}

/// Orphan: takes the owner off its dependents, then lets it go.
async fn orphan(
    context: &Context,
    graph: &Graph,
    item: &Item,
    known: &Known,
) -> Result<Outcome, Error> {
    for (dependent, dependent_known) in graph.dependents(&known.uid) {
        forget_owners(context, &dependent, &dependent_known, |owner| {
            owner.uid == known.uid
        })
        .await?;
    }
    remove_finalizer(context, item, known, ORPHAN).await
}

async fn forget_owners(
    context: &Context,
    item: &Item,
    known: &Known,
    gone: impl Fn(&OwnerReference) -> bool,
) -> Result<(), Error> {
    let left: Vec<_> = known.owners.iter().filter(|owner| !gone(owner)).collect();
    let patch = json!({"metadata": {"ownerReferences": left}});
    write(context, item, known, patch).await
}

async fn remove_finalizer(
    context: &Context,
    item: &Item,
    known: &Known,
    finalizer: &str,
) -> Result<Outcome, Error> {
    let left: Vec<_> = known
        .finalizers
        .iter()
        .filter(|held| *held != finalizer)
        .collect();
    let patch = json!({"metadata": {"finalizers": left}});
    write(context, item, known, patch).await?;
    Ok(Outcome::Done)
}

async fn write(
    context: &Context,
    item: &Item,
    known: &Known,
    patch: serde_json::Value,
) -> Result<(), Error> {
    let version = known.resource_version.as_deref();
    let client = &context.client;
    match client
        .merge_at(item.resource, &item.key, None, version, patch)
        .await
    {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}
