//! Kubernetes' Status: the one shape of every answer that is not an object.

use serde::{Deserialize, Serialize};

/// A failed request, as the client sees it: `kind: Status` with code, reason, message and causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The HTTP code.
    pub code: u16,
    /// metav1.StatusReason: "NotFound", "AlreadyExists", "Conflict", "Invalid", "Gone", ...
    pub reason: String,
    /// For people, in Kubernetes' words.
    pub message: String,
    /// Which object and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// Which object a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// metadata.name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The kind, or the plural where Kubernetes says the plural.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Every fault that was found, not just the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// After how many seconds to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// One fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// metav1.CauseType: "FieldValueRequired", "FieldValueInvalid", "FieldValueDuplicate", ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// The path, for example "spec.containers[0].image".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}
