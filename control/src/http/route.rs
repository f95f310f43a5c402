//! Paths: what a URL is about.

use std::sync::Arc;

use crate::api::ObjectKey;
use crate::resource::{Resource, Table};

/// What a path is about.
pub enum Route {
    /// "/": which paths there are.
    Index,
    /// "/livez", "/readyz", "/healthz", or one check of it.
    Health(String, Option<String>),
    /// "/portolan/backup".
    Backup,
    /// "/metrics".
    Metrics,
    /// "/version".
    Version,
    /// "/api".
    CoreVersions,
    /// "/apis".
    Groups,
    /// "/apis/G".
    Group(String),
    /// "/api/v1" or "/apis/G/V".
    Resources(String, String),
    /// "/.well-known/openid-configuration".
    Issuer,
    /// "/openid/v1/jwks".
    TokenKeys,
    /// "/openapi/v2".
    OpenApi2,
    /// "/openapi/v3".
    OpenApiIndex,
    /// "/openapi/v3/apis/G/V".
    OpenApi(String, String),
    /// All objects of a kind, or those of a namespace.
    Collection(Arc<Resource>, Option<String>),
    /// One object, or a subresource of it.
    Object(Arc<Resource>, ObjectKey, Option<String>),
}

/// Finds what a path is about; `None`: nothing is served there.
pub fn find(path: &str, table: &Table) -> Option<Route> {
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(decoded)
        .collect::<Option<_>>()?;
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Some(Route::Index),
        [health @ ("livez" | "readyz" | "healthz")] => {
            Some(Route::Health((*health).to_owned(), None))
        }
        [health @ ("livez" | "readyz" | "healthz"), check] => Some(Route::Health(
            (*health).to_owned(),
            Some((*check).to_owned()),
        )),
        ["portolan", "backup"] => Some(Route::Backup),
        ["metrics"] => Some(Route::Metrics),
        ["version"] => Some(Route::Version),
        ["api"] => Some(Route::CoreVersions),
        ["apis"] => Some(Route::Groups),
        ["apis", group] => Some(Route::Group((*group).to_owned())),
        [".well-known", "openid-configuration"] => Some(Route::Issuer),
        ["openid", "v1", "jwks"] => Some(Route::TokenKeys),
        ["openapi", "v2"] => Some(Route::OpenApi2),
        ["openapi", "v3"] => Some(Route::OpenApiIndex),
        ["openapi", "v3", "api", version] => {
            Some(Route::OpenApi(String::new(), (*version).to_owned()))
        }
        ["openapi", "v3", "apis", group, version] => {
            Some(Route::OpenApi((*group).to_owned(), (*version).to_owned()))
        }
        ["api", version, rest @ ..] => resource("", version, rest, table),
        ["apis", group, version, rest @ ..] => resource(group, version, rest, table),
        _ => None,
    }
}

fn resource(group: &str, version: &str, rest: &[&str], table: &Table) -> Option<Route> {
    let row = |plural: &str| table.find(group, version, plural).cloned();
    if rest.is_empty() {
        return Some(Route::Resources(group.to_owned(), version.to_owned()));
    }
    if let ["namespaces", namespace, plural, rest @ ..] = rest {
        let inner = row(plural).filter(|row| row.namespaced);
        if let Some(row) = inner {
            let namespace = Some((*namespace).to_owned());
            return match rest {
                [] => Some(Route::Collection(row, namespace)),
                [name] => Some(object(row, namespace, name, None)),
                [name, subresource] => Some(object(row, namespace, name, Some(subresource))),
                _ => None,
            };
        }
    }
    let row = row(rest[0])?;
    match rest {
        [_] => Some(Route::Collection(row, None)),
        [_, name] if !row.namespaced => Some(object(row, None, name, None)),
        [_, name, subresource] if !row.namespaced => {
            Some(object(row, None, name, Some(subresource)))
        }
        _ => None,
    }
}

fn object(
    row: Arc<Resource>,
    namespace: Option<String>,
    name: &str,
    subresource: Option<&str>,
) -> Route {
    let key = ObjectKey {
        namespace,
        name: name.to_owned(),
    };
    Route::Object(row, key, subresource.map(str::to_owned))
}

/// A path segment without its percent signs.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(path: &str) -> String {
        match find(path, &Table::built_in()) {
            None => "none".to_owned(),
            Some(Route::Collection(row, namespace)) => {
                format!("list {} {}", row.id.plural, namespace.unwrap_or_default())
            }
            Some(Route::Object(row, key, subresource)) => format!(
                "{} {}/{} {}",
                row.id.plural,
                key.namespace.unwrap_or_default(),
                key.name,
                subresource.unwrap_or_default()
            ),
            Some(Route::Resources(group, version)) => format!("resources {group}/{version}"),
            Some(_) => "other".to_owned(),
        }
    }

    #[test]
    fn paths_are_kubernetes() {
        for (path, expected) in [
            ("/api/v1/pods", "list pods "),
            ("/api/v1/namespaces/a/pods", "list pods a"),
            ("/api/v1/namespaces/a/pods/b", "pods a/b "),
            ("/api/v1/namespaces/a/pods/b/status", "pods a/b status"),
            ("/api/v1/namespaces", "list namespaces "),
            ("/api/v1/namespaces/a", "namespaces /a "),
            ("/api/v1/namespaces/a/finalize", "namespaces /a finalize"),
            ("/api/v1/nodes/n1/status", "nodes /n1 status"),
            (
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                "deployments a/b scale",
            ),
            ("/apis/apps/v1", "resources apps/v1"),
            ("/apis/apps/v1/foos", "none"),
            ("/api/v1/namespaces/a/nodes/x", "none"),
            ("/api/v1/namespaces/a/pods/b%2Ec", "pods a/b.c "),
            ("/version", "other"),
            ("/nothing", "none"),
        ] {
            assert_eq!(shown(path), expected, "{path}");
        }
    }
}
