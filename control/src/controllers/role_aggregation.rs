//! Cluster roles that are put together from others: their rules are those of all roles that their selectors match.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::json;

use super::{
    Context,
    cache::{Change, key_of},
    meta,
    resources::CLUSTER_ROLES,
    worker::{Controller, Error, Outcome},
};
use crate::api::ObjectKey;

/// The row. Whichever role changes, every role that is put together may be another then.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let shared = Arc::clone(context);
    let roles = Arc::clone(&context.informers.cluster_roles);
    Controller::new("role-aggregation", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(
        &context.informers.cluster_roles,
        move |_: &Change<ClusterRole>| {
            let all = roles.cache().all();
            let aggregated = all.iter().filter(|role| role.aggregation_rule.is_some());
            aggregated.map(|role| key_of(&role.metadata)).collect()
        },
    )
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let all = context.informers.cluster_roles.cache();
    let Some(role) = all.get(key) else {
        return Ok(Outcome::Done);
    };
    let Some(aggregation) = &role.aggregation_rule else {
        return Ok(Outcome::Done);
    };
    let selectors = aggregation.cluster_role_selectors.as_deref();
    let mut rules = Vec::new();
    for part in all.all() {
        let labels = part.metadata.labels.as_ref();
        let selected = selectors
            .unwrap_or_default()
            .iter()
            .any(|selector| meta::matches(selector, labels));
        if part.metadata.name == role.metadata.name || !selected {
            continue;
        }
        for rule in part.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    if role.rules.as_ref().is_some_and(|now| *now == rules) {
        return Ok(Outcome::Done);
    }
    let version = role.metadata.resource_version.as_deref();
    let patched = context
        .client
        .merge_at(CLUSTER_ROLES, key, None, version, json!({"rules": rules}))
        .await;
    match patched {
        Err(error) if error.code() == Some(404) => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}
