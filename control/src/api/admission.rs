//! Admission: what other parts of the control plane add to a write before it is validated, such as addresses and ports
//! that must be allocated. What admission takes is given back when the write does not come about.

use async_trait::async_trait;
use serde_json::Value;

use super::{Caller, ObjectKey, ResourceId, Status};

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
