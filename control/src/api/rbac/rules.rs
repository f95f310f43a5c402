//! What a rule of a role allows; pure.

use serde_json::Value;

use crate::api::meta;

/// What a caller is about to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action<'a> {
    /// "get".
    pub verb: &'a str,
    /// "" for core.
    pub group: &'a str,
    /// "pods".
    pub resource: &'a str,
    /// "log".
    pub subresource: Option<&'a str>,
    /// Where; `None`: in the whole cluster.
    pub namespace: Option<&'a str>,
    /// Which object, where it is one.
    pub name: Option<&'a str>,
    /// "/metrics": an action on a path instead of a resource.
    pub path: Option<&'a str>,
}

fn has(rule: &Value, field: &str, wanted: &str) -> bool {
    let listed = meta::list(rule, &[field]);
    listed.iter().any(|one| one == "*" || one == wanted)
}

/// "pods/log" is matched by itself, by "*/log" and by "*"; "pods" by itself and by "*".
fn has_resource(rule: &Value, resource: &str, subresource: Option<&str>) -> bool {
    let listed = meta::list(rule, &["resources"]).iter();
    listed.filter_map(Value::as_str).any(|one| {
        let Some(subresource) = subresource.filter(|name| !name.is_empty()) else {
            return one == "*" || one == resource;
        };
        one == "*"
            || one
                .split_once('/')
                .is_some_and(|(of, sub)| sub == subresource && (of == "*" || of == resource))
    })
}

/// Whether a rule allows an action.
pub fn matches(rule: &Value, action: &Action<'_>) -> bool {
    if !has(rule, "verbs", action.verb) {
        return false;
    }
    if let Some(path) = action.path {
        let listed = meta::list(rule, &["nonResourceURLs"]).iter();
        return listed
            .filter_map(Value::as_str)
            .any(|one| match one.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => one == path,
            });
    }
    let names = meta::list(rule, &["resourceNames"]);
    has(rule, "apiGroups", action.group)
        && has_resource(rule, action.resource, action.subresource)
        && (names.is_empty()
            || action
                .name
                .is_some_and(|name| names.iter().any(|one| one == name)))
}

/// A rule of one verb on one resource or path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Single {
    verb: String,
    /// Group, resource as rules write it, and a name where it is one object's.
    resource: Option<(String, String, Option<String>)>,
    path: Option<String>,
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    let listed = meta::list(rule, &[field]).iter();
    listed.filter_map(Value::as_str).collect()
}

/// A rule, taken apart.
pub fn singles(rule: &Value) -> Vec<Single> {
    let mut found = Vec::new();
    let names = texts(rule, "resourceNames");
    let names: Vec<Option<String>> = match names.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some((*name).to_owned())).collect(),
    };
    for verb in texts(rule, "verbs") {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                found.extend(names.iter().map(|name| Single {
                    verb: verb.to_owned(),
                    resource: Some((group.to_owned(), resource.to_owned(), name.clone())),
                    path: None,
                }));
            }
        }
        found.extend(
            texts(rule, "nonResourceURLs")
                .into_iter()
                .map(|path| Single {
                    verb: verb.to_owned(),
                    resource: None,
                    path: Some(path.to_owned()),
                }),
        );
    }
    found
}

impl Single {
    /// Whether a rule covers this one. What is asked for may itself be "*", which only "*" covers.
    pub fn is_covered_by(&self, rule: &Value) -> bool {
        if !has(rule, "verbs", &self.verb) {
            return false;
        }
        if let Some(path) = &self.path {
            return texts(rule, "nonResourceURLs").iter().any(|one| {
                *one == path
                    || one
                        .strip_suffix('*')
                        .is_some_and(|prefix| path.starts_with(prefix))
            });
        }
        let Some((group, resource, name)) = &self.resource else {
            return false;
        };
        let (of, sub) = match resource.split_once('/') {
            Some((of, sub)) => (of, Some(sub)),
            None => (resource.as_str(), None),
        };
        let names = texts(rule, "resourceNames");
        has(rule, "apiGroups", group)
            && has_resource(rule, of, sub)
            && (names.is_empty() || name.as_deref().is_some_and(|name| names.contains(&name)))
    }

    /// As a refusal lists it.
    pub fn shown(&self) -> String {
        match (&self.resource, &self.path) {
            (Some((group, resource, name)), _) => {
                let name = name.as_ref();
                let names =
                    name.map_or_else(String::new, |name| format!(", ResourceNames:[{name:?}]"));
                format!(
                    "{{APIGroups:[{group:?}], Resources:[{resource:?}]{names}, Verbs:[{:?}]}}",
                    self.verb
                )
            }
            (None, Some(path)) => {
                format!("{{NonResourceURLs:[{path:?}], Verbs:[{:?}]}}", self.verb)
            }
            (None, None) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_match_as_kubernetes_says() {
        let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]});
        let logs = json!({"apiGroups": [""], "resources": ["*/log"], "verbs": ["get"]});
        let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        let one = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]});
        let paths = json!({"nonResourceURLs": ["/healthz", "/api/*"], "verbs": ["get"]});
        let get = Action {
            verb: "get",
            resource: "pods",
            ..Action::default()
        };
        let log = Action {
            subresource: Some("log"),
            ..get
        };
        let named = |name| Action {
            name: Some(name),
            ..get
        };
        let path = |path| Action {
            verb: "get",
            path: Some(path),
            ..Action::default()
        };
        for (rule, action, expected) in [
            (&pods, get, true),
            (&pods, log, false),
            (
                &pods,
                Action {
                    verb: "delete",
                    ..get
                },
                false,
            ),
            (
                &pods,
                Action {
                    group: "apps",
                    ..get
                },
                false,
            ),
            (&logs, log, true),
            (&logs, get, false),
            (&all, log, true),
            (&all, path("/healthz"), false),
            (&one, named("a"), true),
            (&one, named("b"), false),
            (&one, get, false),
            (&paths, path("/api/v1"), true),
            (&paths, path("/healthz"), true),
            (&paths, path("/metrics"), false),
        ] {
            assert_eq!(matches(rule, &action), expected, "{rule} {action:?}");
        }
    }

    #[test]
    fn stars_are_covered_by_stars_only() {
        let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        let pods = json!({"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]});
        let covered =
            |wanted: &Value, by: &Value| singles(wanted).iter().all(|one| one.is_covered_by(by));
        assert!(covered(&pods, &all));
        assert!(covered(&all, &all));
        assert!(!covered(&all, &pods));
        assert!(covered(&pods, &pods));
        let one = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]});
        assert!(covered(&one, &pods));
        assert!(!covered(&pods, &one));
    }
}
