//! Tokens of service accounts: asked for through the subresource "token", shown as credentials, reviewed for others. A
//! token holds as long as its account is the same, and the pod or secret that it is bound to.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::engine::Engine;
use super::rbac::SERVICE_ACCOUNT_USER;
use super::{Caller, ObjectKey, ResourceId, Status, meta};
use crate::resource::rows::{NODES, PODS, SECRETS, SERVICE_ACCOUNTS};
use crate::resource::{Faults, Path};

/// Who issues tokens, and whom they are for where nothing else is asked.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The claim with Kubernetes' own words.
const CLAIM: &str = "kubernetes.io";
/// Seconds that a token is valid where nothing else is asked, and at least and at most.
const LIFE: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

impl Engine {
    /// Answers a TokenRequest for an account.
    pub(super) fn request_token(
        &self,
        caller: &Caller,
        key: &ObjectKey,
        mut request: Value,
    ) -> Result<Value, Status> {
        let account = self
            .cached(self.row(SERVICE_ACCOUNTS)?, key)
            .ok_or_else(|| Status::not_found(SERVICE_ACCOUNTS, &key.name))?;
        let asked = meta::number(&request, &["spec", "expirationSeconds"]);
        let seconds = asked.unwrap_or(LIFE);
        let mut faults = Faults::new();
        let path = Path::new("spec.expirationSeconds");
        if seconds < SHORTEST {
            let why = "may not specify a duration less than 10 minutes";
            faults.invalid(&path, &json!(seconds), why);
        } else if seconds > LONGEST {
            let why = "may not specify a duration larger than 2^32 seconds";
            faults.invalid(&path, &json!(seconds), why);
        }
        if !faults.is_empty() {
            let (group, kind) = ("authentication.k8s.io", "TokenRequest");
            return Err(Status::invalid(group, kind, "", faults.into_causes()));
        }
        let mut audiences = meta::list(&request, &["spec", "audiences"]).to_vec();
        if audiences.is_empty() {
            audiences.push(json!(ISSUER));
        }
        let (namespace, name) = (key.namespace.as_deref().unwrap_or(""), &key.name);
        let mut own = json!({
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": meta::uid(&account.value)},
        });
        let bound = &request["spec"]["boundObjectRef"];
        if bound.is_object() {
            self.bind_token(caller, bound, (namespace, name), &mut own)?;
        }
        let now = (self.clock)();
        let end = now.as_second() + seconds;
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("{SERVICE_ACCOUNT_USER}{namespace}:{name}"),
            "aud": audiences,
            "iat": now.as_second(),
            "nbf": now.as_second(),
            "exp": end,
            "jti": meta::new_uid(),
            CLAIM: own,
        });
        let token = self
            .tokens
            .sign(&claims)
            .map_err(|error| Status::internal(error.to_string()))?;
        let end = Timestamp::from_second(end).unwrap_or(now + SignedDuration::from_secs(LIFE));
        request["kind"] = json!("TokenRequest");
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["metadata"] =
            json!({"name": name, "namespace": namespace, "creationTimestamp": meta::time(now)});
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = json!(seconds);
        request["status"] = json!({"token": token, "expirationTimestamp": meta::time(end)});
        Ok(request)
    }

    /// Ties a token to a pod, secret or node; a node's agent gets tokens for its own pods only.
    fn bind_token(
        &self,
        caller: &Caller,
        bound: &Value,
        (namespace, account): (&str, &str),
        own: &mut Value,
    ) -> Result<(), Status> {
        let (kind, name) = (meta::text(bound, &["kind"]), meta::text(bound, &["name"]));
        let (id, field) = bound_kind(kind).ok_or_else(|| {
            Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to {kind} with name {name:?}"
            ))
        })?;
        let found = self.bound_object(id, namespace, name)?;
        let uid = meta::text(bound, &["uid"]);
        if !uid.is_empty() && uid != meta::uid(&found) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            );
            return Err(Status::conflict(id, name, &why));
        }
        if id == PODS && meta::text(&found, &["spec", "serviceAccountName"]) != account {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        own[field] = json!({"name": name, "uid": meta::uid(&found)});
        let node = meta::text(&found, &["spec", "nodeName"]);
        if id == PODS && !node.is_empty() {
            own["node"] = json!({"name": node});
        }
        match caller.node() {
            Some(agent) if id != PODS || node != agent => Err(Status::forbidden(
                SERVICE_ACCOUNTS,
                account,
                "node requested token bound to a pod scheduled on a different node",
            )),
            _ => Ok(()),
        }
    }

    fn bound_object(&self, id: ResourceId, namespace: &str, name: &str) -> Result<Value, Status> {
        let row = self.row(id)?;
        let key = ObjectKey {
            namespace: row.namespaced.then(|| namespace.to_owned()),
            name: name.to_owned(),
        };
        let found = self.cached(row, &key);
        let found = found.ok_or_else(|| Status::not_found(id, name))?;
        Ok(found.value.clone())
    }

    /// The public keys that tokens can be checked by.
    pub fn token_keys(&self) -> Value {
        self.tokens.key_set()
    }

    /// Who shows a token; `None`: it does not hold, or not for any of these audiences.
    pub async fn authenticate(&self, token: &str, audiences: &[&str]) -> Option<Caller> {
        let claims = self.tokens.verify(token)?;
        let now = (self.clock)().as_second();
        let time = |claim: &str| meta::number(&claims, &[claim]);
        let named = meta::list(&claims, &["aud"]);
        let meant = named.iter().filter_map(Value::as_str);
        let holds = claims["iss"] == ISSUER
            && time("exp")? > now
            && time("nbf")? <= now + 60
            && meant.into_iter().any(|one| audiences.contains(&one));
        if !holds {
            return None;
        }
        // An account that has just been made, or deleted, counts.
        self.cache.catch_up().await.ok()?;
        let own = &claims[CLAIM];
        let namespace = meta::text(own, &["namespace"]);
        for (id, field) in [
            (SERVICE_ACCOUNTS, "serviceaccount"),
            (PODS, "pod"),
            (SECRETS, "secret"),
        ] {
            if !own[field].is_object() {
                continue;
            }
            let found = self.bound_object(id, namespace, meta::text(own, &[field, "name"]));
            if meta::uid(&found.ok()?) != meta::text(own, &[field, "uid"]) {
                return None;
            }
        }
        Some(service_account(
            namespace,
            own,
            meta::text(&claims, &["jti"]),
        ))
    }
}

fn bound_kind(kind: &str) -> Option<(ResourceId, &'static str)> {
    match kind {
        "Pod" => Some((PODS, "pod")),
        "Secret" => Some((SECRETS, "secret")),
        "Node" => Some((NODES, "node")),
        _ => None,
    }
}

/// The caller that a token's claims speak for.
fn service_account(namespace: &str, own: &Value, id: &str) -> Caller {
    let name = meta::text(own, &["serviceaccount", "name"]);
    let mut extra = BTreeMap::new();
    for (key, value) in [
        ("credential-id", format!("JTI={id}")),
        ("node-name", meta::text(own, &["node", "name"]).to_owned()),
        ("pod-name", meta::text(own, &["pod", "name"]).to_owned()),
        ("pod-uid", meta::text(own, &["pod", "uid"]).to_owned()),
    ] {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    }
    Caller {
        user: format!("{SERVICE_ACCOUNT_USER}{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        uid: meta::text(own, &["serviceaccount", "uid"]).to_owned(),
        extra,
    }
}
