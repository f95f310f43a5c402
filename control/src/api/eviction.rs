//! Evictions: deletions of pods that their disruption budgets allow.

use serde_json::{Value, json};

use super::engine::Engine;
use super::history::Stored;
use super::object::{encode, parse};
use super::selector::LabelSelector;
use super::status::{Cause, Details};
use super::{Caller, DeleteOptions, ObjectKey, Status, WriteOptions, meta};
use crate::resource::rows::{DISRUPTION_BUDGETS, PODS};
use crate::store::{Guard, Written};

/// The refusal of an eviction that a budget does not allow.
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl Engine {
    /// Evicts a pod, or says why its budget does not allow that now.
    pub(super) async fn evict(
        &self,
        caller: &Caller,
        key: &ObjectKey,
        (eviction, options): (&Value, &WriteOptions),
    ) -> Result<(), Status> {
        self.cache.catch_up().await?;
        let pod = self
            .cached(self.row(PODS)?, key)
            .ok_or_else(|| Status::not_found(PODS, &key.name))?;
        let asked = |path: &[&str]| {
            let text = meta::text(eviction, path);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let dry_run = options.dry_run
            || meta::list(eviction, &["deleteOptions", "dryRun"]).contains(&json!("All"));
        let delete = DeleteOptions {
            grace_period_seconds: meta::number(eviction, &["deleteOptions", "gracePeriodSeconds"]),
            propagation_policy: asked(&["deleteOptions", "propagationPolicy"]),
            uid: asked(&["deleteOptions", "preconditions", "uid"])
                .or_else(|| Some(meta::uid(&pod.value).to_owned())),
            resource_version: asked(&["deleteOptions", "preconditions", "resourceVersion"]),
            dry_run,
        };
        let phase = meta::text(&pod.value, &["status", "phase"]);
        let idle = matches!(phase, "Pending" | "Succeeded" | "Failed");
        if !idle && !meta::is_terminating(&pod.value) {
            self.spend(key, &pod, dry_run).await?;
        }
        self.delete_object(caller, PODS, key, &delete).await?;
        Ok(())
    }

    /// Takes one from the budget of a pod, if it has one.
    async fn spend(&self, key: &ObjectKey, pod: &Stored, dry_run: bool) -> Result<(), Status> {
        let namespace = key.namespace.as_deref().unwrap_or("");
        let budgets = self.cache.kind(DISRUPTION_BUDGETS).map(|kind| {
            let near = kind.snapshot(&format!("{namespace}/")).items;
            let labels = meta::at(&pod.value, &["metadata", "labels"]);
            near.into_iter()
                .filter(|(_, budget)| {
                    let selector = meta::at(&budget.value, &["spec", "selector"]);
                    selector.is_some_and(|selector| {
                        LabelSelector::from_spec(selector).matches_labels(labels)
                    })
                })
                .map(|(_, budget)| meta::key(&budget.value))
                .collect::<Vec<_>>()
        });
        let budget = match budgets.unwrap_or_default().as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            _ => {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let row = self.row(DISRUPTION_BUDGETS)?;
        let store_key = Self::store_key(row, &budget);
        let mut found = self.store.get(store_key.as_bytes()).await?;
        while let Some(stored) = found {
            let current = parse(&stored)?;
            let Some(changed) = self.spent(&current.value, &pod.value)? else {
                return Ok(());
            };
            if dry_run {
                return Ok(());
            }
            let guard = Guard::At(current.revision);
            let written = self
                .store
                .put(store_key.as_bytes(), encode(&changed), guard, None)
                .await?;
            match written {
                Written::Done(_) => return Ok(()),
                Written::Refused(newer) => found = newer,
            }
        }
        Ok(())
    }

    /// The budget with one eviction taken from it; `None`: the pod may go without.
    fn spent(&self, budget: &Value, pod: &Value) -> Result<Option<Value>, Status> {
        let number = |field: &str| meta::number(budget, &["status", field]).unwrap_or(0);
        let ready = meta::list(pod, &["status", "conditions"])
            .iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let enough =
            number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if !ready && (always || enough) {
            return Ok(None);
        }
        let generation = meta::number(budget, &["metadata", "generation"]);
        let observed = meta::number(budget, &["status", "observedGeneration"]);
        if observed < generation {
            return Err(refused(
                10,
                "The disruption budget is still being processed by the server.",
            ));
        }
        if number("disruptionsAllowed") <= 0 {
            return Err(refused(
                0,
                &format!(
                    "The disruption budget {} needs {} healthy pods and has {} currently",
                    meta::name(budget),
                    number("desiredHealthy"),
                    number("currentHealthy")
                ),
            ));
        }
        let mut budget = budget.clone();
        let status = meta::child_mut(&mut budget, "status");
        let left = status.get("disruptionsAllowed").and_then(Value::as_i64);
        status.insert(
            "disruptionsAllowed".to_owned(),
            json!(left.unwrap_or(1) - 1),
        );
        let pods = status.entry("disruptedPods").or_insert_with(|| json!({}));
        pods[meta::name(pod)] = json!(meta::time((self.clock)()));
        Ok(Some(budget))
    }
}

/// 429, as kubectl drain expects it: it tries again.
fn refused(seconds: u32, why: &str) -> Status {
    Status {
        code: 429,
        reason: "TooManyRequests".to_owned(),
        message: VIOLATES.to_owned(),
        details: Some(Box::new(Details {
            causes: vec![Cause {
                reason: "DisruptionBudget".to_owned(),
                message: why.to_owned(),
                field: String::new(),
            }],
            retry_after_seconds: Some(seconds).filter(|seconds| *seconds > 0),
            ..Details::default()
        })),
    }
}
