//! Questions about access: kinds that are only ever created, answered at once and never stored.

use serde_json::{Map, Value, json};

use super::engine::Engine;
use super::rbac::Action;
use super::tokens::ISSUER;
use super::{Caller, Status, meta};
use crate::resource::{Faults, Path, Resource};

/// What a kind asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Who am I?
    WhoAmI,
    /// May I?
    MayI,
    /// May that user?
    MayThey,
    /// What may I?
    WhatMayI,
    /// Whose token is this?
    WhoseToken,
}

impl Engine {
    /// Answers a question by filling in its status.
    pub(super) async fn answer(
        &self,
        caller: &Caller,
        row: &Resource,
        question: Question,
        mut object: Value,
    ) -> Result<Value, Status> {
        self.cache.catch_up().await?;
        let status = match question {
            Question::WhoAmI => json!({"userInfo": user_info(caller)}),
            Question::MayI => self.may(caller, row, &object)?,
            Question::MayThey => {
                let they = subject(row, &object)?;
                self.may(&they, row, &object)?
            }
            Question::WhatMayI => self.rules(caller, meta::text(&object, &["spec", "namespace"])),
            Question::WhoseToken => self.whose(&object).await,
        };
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        object["status"] = status;
        Ok(object)
    }

    fn may(&self, caller: &Caller, row: &Resource, object: &Value) -> Result<Value, Status> {
        let spec = &object["spec"];
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let mut faults = Faults::new();
        if resource.is_object() == path.is_object() {
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            faults.invalid(&Path::new("spec.resourceAttributes"), resource, why);
            return Err(Status::invalid(
                row.id.group,
                row.kind,
                "",
                faults.into_causes(),
            ));
        }
        let some = |of: &'_ Value, field: &str| {
            let text = meta::text(of, &[field]).to_owned();
            (!text.is_empty()).then_some(text)
        };
        let texts = ["namespace", "name", "subresource"].map(|field| some(resource, field));
        let [namespace, name, subresource] = texts.each_ref().map(Option::as_deref);
        let action = if resource.is_object() {
            Action {
                verb: meta::text(resource, &["verb"]),
                group: meta::text(resource, &["group"]),
                resource: meta::text(resource, &["resource"]),
                subresource,
                namespace,
                name,
                path: None,
            }
        } else {
            Action {
                verb: meta::text(path, &["verb"]),
                path: Some(meta::text(path, &["path"])),
                ..Action::default()
            }
        };
        Ok(match self.decide(caller, &action) {
            Some(reason) if reason.is_empty() => json!({"allowed": true}),
            Some(reason) => json!({"allowed": true, "reason": reason}),
            None => json!({"allowed": false}),
        })
    }

    fn rules(&self, caller: &Caller, namespace: &str) -> Value {
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        if caller.is_administrator() {
            resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        for granted in self.rules_of(caller, Some(namespace)) {
            let rule = granted.rule();
            let part = |fields: &[&str]| -> Value {
                let kept = fields.iter().filter_map(|field| {
                    let value = rule.get(*field)?;
                    Some(((*field).to_owned(), value.clone()))
                });
                Value::Object(kept.collect::<Map<String, Value>>())
            };
            if meta::list(rule, &["nonResourceURLs"]).is_empty() {
                resources.push(part(&["verbs", "apiGroups", "resources", "resourceNames"]));
            } else {
                paths.push(part(&["verbs", "nonResourceURLs"]));
            }
        }
        // Nodes may more than roles say.
        let incomplete = caller.node().is_some();
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete})
    }

    async fn whose(&self, object: &Value) -> Value {
        let asked = meta::list(object, &["spec", "audiences"]);
        let mut audiences: Vec<&str> = asked.iter().filter_map(Value::as_str).collect();
        if audiences.is_empty() {
            audiences.push(ISSUER);
        }
        let token = meta::text(object, &["spec", "token"]);
        match self.authenticate(token, &audiences).await {
            Some(caller) => json!({
                "authenticated": true, "user": user_info(&caller), "audiences": audiences,
            }),
            None => json!({"authenticated": false, "error": "the token is not valid here"}),
        }
    }
}

fn user_info(caller: &Caller) -> Value {
    let mut info = json!({"username": caller.user, "groups": caller.groups});
    if !caller.uid.is_empty() {
        info["uid"] = json!(caller.uid);
    }
    if !caller.extra.is_empty() {
        info["extra"] = json!(caller.extra);
    }
    info
}

/// Whom a SubjectAccessReview asks about.
fn subject(row: &Resource, object: &Value) -> Result<Caller, Status> {
    let spec = &object["spec"];
    let groups = meta::list(spec, &["groups"]).iter();
    let groups: Vec<String> = groups
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let user = meta::text(spec, &["user"]).to_owned();
    if user.is_empty() && groups.is_empty() {
        let mut faults = Faults::new();
        let why = "at least one of user or group must be specified";
        faults.invalid_text(&Path::new("spec.user"), "", why);
        return Err(Status::invalid(
            row.id.group,
            row.kind,
            "",
            faults.into_causes(),
        ));
    }
    let namespace = meta::namespace(object);
    let asked = meta::text(spec, &["resourceAttributes", "namespace"]);
    if row.namespaced && asked != namespace {
        let mut faults = Faults::new();
        let why = "must match metadata.namespace";
        faults.invalid_text(&Path::new("spec.resourceAttributes.namespace"), asked, why);
        return Err(Status::invalid(
            row.id.group,
            row.kind,
            "",
            faults.into_causes(),
        ));
    }
    Ok(Caller {
        user,
        groups,
        ..Caller::default()
    })
}
