//! Admission: what other parts of the control plane add to a write before it is validated, such as addresses and ports
//! that must be allocated. What admission takes is given back when the write does not come about.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::engine::Engine;
use super::{Caller, ObjectKey, ResourceId, Status};
use crate::resource::Resource;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes an object.
    Create,
    /// Changes one, by update or patch, its subresources included.
    Update,
    /// Takes one out of the store for good.
    Delete,
}

/// A request under admission.
#[derive(Clone, Copy, Debug)]
pub struct Review<'a> {
    /// What it does.
    pub operation: Operation,
    /// To which kind.
    pub resource: ResourceId,
    /// To which object; the name is final, also where it was generated.
    pub key: &'a ObjectKey,
    /// Through which subresource.
    pub subresource: Option<&'a str>,
    /// The object before; `None` for a create.
    pub old: Option<&'a Value>,
    /// For whom.
    pub caller: &'a Caller,
    /// Nothing may be kept: the write is only tried.
    pub dry_run: bool,
}

/// A rule that sees writes before they happen. After every `admit` that returned `Ok`, exactly one of `committed` and
/// `abandoned` follows, unless the process dies in between: what a rule keeps must survive that (be found and freed).
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Whether it wants to see writes of a kind.
    fn handles(&self, resource: ResourceId) -> bool;

    /// Changes the object (it is defaulted, not yet validated) or refuses the request. For a delete the object is what
    /// will be gone, and changes to it have no effect.
    async fn admit(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Status>;

    /// The write took place; for a delete, the object is gone.
    async fn committed(&self, review: &Review<'_>, object: &Value);

    /// The write did not take place.
    async fn abandoned(&self, review: &Review<'_>, object: &Value);
}

/// The admissions that have said yes to a request.
pub(super) struct Admitted<'a> {
    review: Review<'a>,
    rules: Vec<&'a Arc<dyn Admission>>,
}

impl Admitted<'_> {
    /// The write took place or not.
    pub(super) async fn settle(self, took_place: bool, object: &Value) {
        for rule in self.rules {
            if took_place && !self.review.dry_run {
                rule.committed(&self.review, object).await;
            } else {
                rule.abandoned(&self.review, object).await;
            }
        }
    }
}

impl Engine {
    /// Asks every rule that handles the kind.
    pub(super) async fn admit<'a>(
        &'a self,
        review: Review<'a>,
        object: &mut Value,
    ) -> Result<Admitted<'a>, Status> {
        let mut admitted = Admitted {
            review,
            rules: Vec::new(),
        };
        for rule in &self.admissions {
            if !rule.handles(review.resource) {
                continue;
            }
            match rule.admit(&review, object).await {
                Ok(()) => admitted.rules.push(rule),
                Err(status) => {
                    admitted.settle(false, object).await;
                    return Err(status);
                }
            }
        }
        Ok(admitted)
    }

    /// Whether an object is there already, where admission would take something for another one before the store says so.
    pub(super) async fn is_taken(&self, row: &Resource, key: &ObjectKey) -> Result<bool, Status> {
        if !self.admissions.iter().any(|rule| rule.handles(row.id)) {
            return Ok(false);
        }
        let store_key = Self::store_key(row, key);
        Ok(self.store.get(store_key.as_bytes()).await?.is_some())
    }
}
