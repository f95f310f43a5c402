//! A container's environment and arguments: literals, the pod's own fields, what `ConfigMap`s and `Secret`s hold, and
//! `$(VAR)` in all of them.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector,
};

use super::{Capacity, ReferenceError, References, quantity};

/// Why a container has no environment; a `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// A `ConfigMap` or `Secret` could not be read.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// The key.
        key: String,
        /// "`ConfigMap`" or "Secret".
        kind: &'static str,
        /// Of the pod.
        namespace: String,
        /// metadata.name.
        name: String,
    },
    /// What no process can be given.
    #[error("environment variable {0} contains a nul byte")]
    Nul(String),
    /// A field that no pod has.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that no container has.
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// What the pod's fields are read from.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The pod's object.
    pub pod: &'a Pod,
    /// status.podIPs.
    pub addresses: &'a [IpAddr],
    /// status.hostIPs.
    pub node_addresses: &'a [IpAddr],
    /// Of the node.
    pub capacity: Capacity,
}

/// The environment of `container` on top of its image's, as "NAME=value" in the order of definition.
pub async fn environment(
    container: &Container,
    image: &[String],
    facts: Facts<'_>,
    references: &dyn References,
) -> Result<Vec<String>, EnvironmentError> {
    let mut all = Variables::default();
    for variable in image {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        all.set(name, value.to_owned());
    }
    // The image's variables are not expanded into others.
    let mut own = BTreeMap::new();
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = facts.pod.spec.as_ref();
    let all_services = spec.and_then(|spec| spec.enable_service_links) != Some(false);
    for (name, value) in references.names().variables(namespace, all_services) {
        own.insert(name.clone(), value.clone());
        all.set(&name, value);
    }
    for source in container.env_from.iter().flatten() {
        for (name, value) in bulk(source, facts.pod, references).await? {
            own.insert(name.clone(), value.clone());
            all.set(&name, value);
        }
    }
    for variable in container.env.iter().flatten() {
        let Some(value) = value(variable, container, &own, facts, references).await? else {
            continue;
        };
        own.insert(variable.name.clone(), value.clone());
        all.set(&variable.name, value);
    }
    if let Some((name, _)) = all.0.iter().find(|(_, value)| value.contains('\0')) {
        return Err(EnvironmentError::Nul(name.clone()));
    }
    Ok(all
        .0
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

/// The command line: the pod's command replaces the image's entry point and its arguments with it.
pub fn command_line(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    environment: &[String],
) -> Vec<String> {
    let known: BTreeMap<String, String> = environment
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let expanded = |list: &Vec<String>| {
        list.iter()
            .map(|text| expand(text, &known))
            .collect::<Vec<_>>()
    };
    let set =
        |list: &Option<Vec<String>>| list.as_ref().filter(|list| !list.is_empty()).map(expanded);
    let (command, arguments) = match (set(&container.command), set(&container.args)) {
        (None, None) => (entrypoint.to_vec(), cmd.to_vec()),
        (None, Some(arguments)) => (entrypoint.to_vec(), arguments),
        (Some(command), arguments) => (command, arguments.unwrap_or_default()),
    };
    [command, arguments].concat()
}

/// In order of first definition; the last value counts.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

async fn value(
    variable: &EnvVar,
    container: &Container,
    known: &BTreeMap<String, String>,
    facts: Facts<'_>,
    references: &dyn References,
) -> Result<Option<String>, EnvironmentError> {
    let Some(source) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(text, known)));
    };
    if let Some(field) = &source.field_ref {
        return self::field(&field.field_path, facts).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return resource(selector, container, facts).map(Some);
    }
    referenced(source, facts.pod, references).await
}

async fn referenced(
    source: &EnvVarSource,
    pod: &Pod,
    references: &dyn References,
) -> Result<Option<String>, EnvironmentError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (kind, name, key, optional, found) = if let Some(selector) = &source.config_map_key_ref {
        let found = references.config_map(namespace, &selector.name).await;
        let found = found.map(|map| map.data.and_then(|mut data| data.remove(&selector.key)));
        (
            "ConfigMap",
            &selector.name,
            &selector.key,
            selector.optional,
            found,
        )
    } else if let Some(selector) = &source.secret_key_ref {
        let found = references.secret(namespace, &selector.name).await;
        let found = found.map(|secret| secret.data.and_then(|mut data| data.remove(&selector.key)));
        let found =
            found.map(|value| value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()));
        (
            "Secret",
            &selector.name,
            &selector.key,
            selector.optional,
            found,
        )
    } else {
        return Ok(Some(String::new()));
    };
    let optional = optional.unwrap_or(false);
    match found {
        Ok(Some(value)) => Ok(Some(value)),
        Ok(None) | Err(ReferenceError::NotFound { .. }) if optional => Ok(None),
        Ok(None) => Err(EnvironmentError::Key {
            key: key.clone(),
            kind,
            namespace: namespace.to_owned(),
            name: name.clone(),
        }),
        Err(error) => Err(error.into()),
    }
}

async fn bulk(
    source: &EnvFromSource,
    pod: &Pod,
    references: &dyn References,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let (found, optional) = if let Some(map) = &source.config_map_ref {
        let found = references.config_map(namespace, &map.name).await;
        (found.map(|map| map.data.unwrap_or_default()), map.optional)
    } else if let Some(secret) = &source.secret_ref {
        let found = references.secret(namespace, &secret.name).await;
        let text = |data: BTreeMap<String, k8s_openapi::ByteString>| {
            data.into_iter()
                .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
                .collect()
        };
        (
            found.map(|secret| secret.data.map(text).unwrap_or_default()),
            secret.optional,
        )
    } else {
        return Ok(Vec::new());
    };
    match found {
        Ok(data) => Ok(data
            .into_iter()
            .map(|(key, value)| (format!("{prefix}{key}"), value))
            .collect()),
        Err(ReferenceError::NotFound { .. }) if optional.unwrap_or(false) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What one file of a downward API volume holds.
pub fn environment_field(
    field_ref: Option<&ObjectFieldSelector>,
    resource_ref: Option<&ResourceFieldSelector>,
    facts: Facts<'_>,
) -> Result<String, EnvironmentError> {
    match (field_ref, resource_ref) {
        (Some(selector), _) => field(&selector.field_path, facts),
        (None, Some(selector)) => resource(selector, &Container::default(), facts),
        (None, None) => Ok(String::new()),
    }
}

/// A field of the pod by its path.
fn field(path: &str, facts: Facts<'_>) -> Result<String, EnvironmentError> {
    let metadata = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let list = |addresses: &[IpAddr]| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let first = |addresses: &[IpAddr]| addresses.first().map(ToString::to_string);
    let value = match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => Some(lines(metadata.labels.as_ref())),
        "metadata.annotations" => Some(lines(metadata.annotations.as_ref())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" => first(facts.node_addresses),
        "status.hostIPs" => Some(list(facts.node_addresses)),
        "status.podIP" => first(facts.addresses),
        "status.podIPs" => Some(list(facts.addresses)),
        _ => return keyed(path, metadata),
    };
    Ok(value.unwrap_or_default())
}

/// `metadata.labels['app']`, `metadata.annotations['note']`.
fn keyed(
    path: &str,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Result<String, EnvironmentError> {
    let inner = |prefix: &str| {
        path.strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")
    };
    let map = if let Some(key) = inner("metadata.labels") {
        metadata.labels.as_ref().and_then(|labels| labels.get(key))
    } else if let Some(key) = inner("metadata.annotations") {
        metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(key))
    } else {
        return Err(EnvironmentError::Field(path.to_owned()));
    };
    Ok(map.cloned().unwrap_or_default())
}

/// As downward API volumes write maps.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let all = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"));
    all.collect::<Vec<_>>().join("\n")
}

fn resource(
    selector: &ResourceFieldSelector,
    container: &Container,
    facts: Facts<'_>,
) -> Result<String, EnvironmentError> {
    let name = selector
        .container_name
        .as_deref()
        .unwrap_or(&container.name);
    let unknown = || EnvironmentError::Resource(selector.resource.clone());
    let spec = facts.pod.spec.as_ref().ok_or_else(unknown)?;
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let of = all
        .into_iter()
        .find(|container| container.name == name)
        .unwrap_or(container);
    let (which, kind) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let resources = of.resources.as_ref();
    let map = match which {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unknown()),
    };
    let set = map.and_then(|map| map.get(kind));
    let (value, divisor) = match kind {
        "cpu" => {
            let value = set.and_then(quantity::millis).unwrap_or(match which {
                "limits" => facts.capacity.cpu_millis,
                _ => 0,
            });
            (
                value,
                selector
                    .divisor
                    .as_ref()
                    .and_then(quantity::millis)
                    .unwrap_or(1000),
            )
        }
        "memory" | "ephemeral-storage" => {
            let value = set
                .and_then(quantity::units)
                .unwrap_or(match (which, kind) {
                    ("limits", "memory") => facts.capacity.memory_bytes,
                    _ => 0,
                });
            (
                value,
                selector
                    .divisor
                    .as_ref()
                    .and_then(quantity::units)
                    .unwrap_or(1),
            )
        }
        _ => return Err(unknown()),
    };
    // A divisor of "0", which the API fills in, means the unit.
    let divisor = match (divisor, kind) {
        (0, "cpu") => 1000,
        (0, _) => 1,
        (divisor, _) => divisor,
    };
    Ok(value.div_ceil(divisor).to_string())
}

/// Replaces `$(NAME)` where NAME is known; `$$` is a dollar sign.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match known.get(name) {
                Some(value) => result.push_str(value),
                None => result.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ];
        for (given, expected) in cases {
            assert_eq!(expand(given, &known), expected, "{given}");
        }
    }

    #[test]
    fn commands_replace_entry_points() {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let container = |command: &[&str], args: &[&str]| Container {
            command: Some(own(command)),
            args: Some(own(args)),
            ..Container::default()
        };
        let cases: [(Container, &[&str]); 4] = [
            (container(&[], &[]), &["entry", "cmd"]),
            (container(&[], &["$(X)"]), &["entry", "7"]),
            (container(&["own"], &[]), &["own"]),
            (container(&["own"], &["arg"]), &["own", "arg"]),
        ];
        for (container, expected) in cases {
            let line = command_line(&container, &own(&["entry"]), &own(&["cmd"]), &own(&["X=7"]));
            assert_eq!(line, own(expected));
        }
    }
}
