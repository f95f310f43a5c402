//! Kubernetes' Status: the one shape of every answer that is not an object.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ResourceId;
use crate::store;

/// A failed request, as the client sees it: `kind: Status` with code, reason, message and causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The HTTP code.
    pub code: u16,
    /// metav1.StatusReason: `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`, `Expired`, ...
    pub reason: String,
    /// For people, in Kubernetes' words.
    pub message: String,
    /// Which object and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
}

impl Status {
    fn plain(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: None,
        }
    }

    fn about(code: u16, reason: &str, resource: ResourceId, name: &str, message: String) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message,
            details: Some(Box::new(Details {
                name: name.to_owned(),
                group: resource.group.to_owned(),
                kind: resource.plural.to_owned(),
                ..Details::default()
            })),
        }
    }

    /// 404: the object does not exist.
    pub fn not_found(resource: ResourceId, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::about(404, "NotFound", resource, name, message)
    }

    /// 404: nothing is served at this path.
    pub fn no_such_path() -> Self {
        Self {
            details: Some(Box::new(Details::default())),
            ..Self::plain(
                404,
                "NotFound",
                "the server could not find the requested resource",
            )
        }
    }

    /// 409: a create met an object of that name.
    pub fn already_exists(resource: ResourceId, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::about(409, "AlreadyExists", resource, name, message)
    }

    /// 409: a write was based on something that no longer holds.
    pub fn conflict(resource: ResourceId, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.qualified()
        );
        Self::about(409, "Conflict", resource, name, message)
    }

    /// 409: a write was based on an older version of the object.
    pub fn modified(resource: ResourceId, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403: an admission rule refuses the request.
    pub fn forbidden(resource: ResourceId, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", resource.qualified())
        } else {
            format!("{} \"{name}\" is forbidden: {why}", resource.qualified())
        };
        Self::about(403, "Forbidden", resource, name, message)
    }

    /// 422: fields are at fault; `group` and `kind` name the object's kind ("apps", "Deployment").
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let faults: Vec<String> = causes.iter().map(Cause::line).collect();
        let faults = match faults.as_slice() {
            [only] => only.clone(),
            _ => format!("[{}]", faults.join(", ")),
        };
        let qualified = qualified(kind, group);
        Self {
            code: 422,
            reason: "Invalid".to_owned(),
            message: format!("{qualified} \"{name}\" is invalid: {faults}"),
            details: Some(Box::new(Details {
                name: name.to_owned(),
                group: group.to_owned(),
                kind: kind.to_owned(),
                causes,
                ..Details::default()
            })),
        }
    }

    /// 422: the request makes no sense against the object that it is about (a failed JSON patch test). Kubernetes does
    /// not say why.
    pub fn unprocessable() -> Self {
        Self {
            details: Some(Box::new(Details::default())),
            ..Self::plain(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            )
        }
    }

    /// 400: the request can't be read.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    /// 401: the credentials are not known.
    pub fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed() -> Self {
        Self {
            details: Some(Box::new(Details::default())),
            ..Self::plain(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 406: no encoding that the client accepts.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::plain(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// 408 or 504: it took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self {
            details: Some(Box::new(Details {
                retry_after_seconds: Some(1),
                ..Details::default()
            })),
            ..Self::plain(504, "Timeout", message)
        }
    }

    /// 410: the version asked for is forgotten.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }

    /// 410: the version that a list went on at is forgotten; with `token` it goes on with what there is now.
    pub fn continue_expired(token: String) -> Self {
        Self {
            details: Some(Box::new(Details {
                continue_token: Some(token),
                ..Details::default()
            })),
            ..Self::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and \
                 now may show up in the list.",
            )
        }
    }

    /// 413: the body is over the limit.
    pub fn too_large(limit: usize) -> Self {
        Self::plain(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415: the body's media type is not read here.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::plain(415, "UnsupportedMediaType", message)
    }

    /// 500: our own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            details: Some(Box::new(Details {
                causes: vec![Cause {
                    reason: String::new(),
                    message: message.clone(),
                    field: String::new(),
                }],
                ..Details::default()
            })),
            ..Self::plain(
                500,
                "InternalError",
                format!("Internal error occurred: {message}"),
            )
        }
    }

    /// 503: a part that the answer needs is away.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", message)
    }

    /// Whether it says that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether a write lost against another one.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether a create met an object of that name.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// Whether the version asked for is forgotten, so that the client must list anew.
    pub fn is_expired(&self) -> bool {
        self.code == 410
    }

    /// The object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        match &self.details {
            Some(details) if details.continue_token.is_some() => {
                body["metadata"]["continue"] = json!(details.continue_token);
            }
            Some(details) => body["details"] = json!(details),
            None => {}
        }
        body
    }
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Compacted { requested, oldest } => {
                Self::expired(format!("too old resource version: {requested} ({oldest})"))
            }
            store::Error::Future { requested, current } => Self::timeout(format!(
                "Too large resource version: {requested}, current: {current}"
            )),
            store::Error::TooLarge { .. } => Self::plain(
                413,
                "RequestEntityTooLarge",
                format!("etcdserver: request is too large: {error}"),
            ),
            store::Error::Full(_) => Self::plain(
                507,
                "InsufficientStorage",
                format!("nothing was written: {}", chain(&error)),
            ),
            store::Error::Sealed { .. } => Self::internal(chain(&error)),
            store::Error::NoSuchLease(_) | store::Error::Fenced | store::Error::Unavailable(_) => {
                Self::unavailable(chain(&error))
            }
        }
    }
}

/// An error with its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// "deployments.apps" or, in the core group, "pods".
pub fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
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
    /// Where a list may go on all the same; shown as the Status' metadata.continue.
    #[serde(skip)]
    pub continue_token: Option<String>,
}

/// One fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// metav1.CauseType: `FieldValueRequired`, `FieldValueInvalid`, `FieldValueDuplicate`, ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// The path, for example "spec.containers[0].image".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Cause {
    /// The fault with its path, as a message shows it.
    pub fn line(&self) -> String {
        if self.field.is_empty() {
            self.message.clone()
        } else {
            format!("{}: {}", self.field, self.message)
        }
    }
}
