//! Discovery: which groups, versions and kinds are served, in the old form (a document a group version) and in the new
//! one (all in one document).

use serde_json::{Map, Value, json};

use crate::api::tokens::ISSUER;
use crate::resource::{Resource, Subresource, Table, Verb};

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.name()).collect()
}

/// "/api".
pub fn core_versions(table: &Table) -> Value {
    let core = table.groups().into_iter().find(|(name, _)| name.is_empty());
    let versions = core.map(|(_, versions)| versions).unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [],
    })
}

fn group_value(name: &str, versions: &[&str]) -> Value {
    let listed: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = listed.first().cloned().unwrap_or(Value::Null);
    json!({"name": name, "versions": listed, "preferredVersion": preferred})
}

/// "/apis".
pub fn groups(table: &Table) -> Value {
    let groups: Vec<Value> = table
        .groups()
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, versions)| group_value(name, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// "/apis/G".
pub fn group(table: &Table, name: &str) -> Option<Value> {
    let groups = table.groups();
    let (_, versions) = groups.iter().find(|(found, _)| *found == name)?;
    let mut value = group_value(name, versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

fn rows_of<'a>(
    table: &'a Table,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Resource> {
    table
        .rows()
        .iter()
        .map(std::convert::AsRef::as_ref)
        .filter(move |row| row.id.group == group && row.id.version == version)
}

/// "/api/v1" or "/apis/G/V".
pub fn resources(table: &Table, group: &str, version: &str) -> Option<Value> {
    let mut listed = Vec::new();
    for row in rows_of(table, group, version) {
        let mut shown = json!({
            "name": row.id.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": verbs(row.verbs),
        });
        if !row.short_names.is_empty() {
            shown["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            shown["categories"] = json!(row.categories);
        }
        listed.push(shown);
        listed.extend(row.subresources.iter().map(|sub| subresource(row, sub)));
    }
    if listed.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": listed,
    }))
}

fn subresource(row: &Resource, sub: &Subresource) -> Value {
    let (group, version, kind) = sub.kind;
    let mut shown = json!({
        "name": format!("{}/{}", row.id.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": kind,
        "verbs": verbs(sub.verbs),
    });
    if (group, version) != (row.id.group, row.id.version) {
        shown["group"] = json!(group);
        shown["version"] = json!(version);
    }
    shown
}

/// "/api" or "/apis" in the aggregated form of a version ("v2").
pub fn aggregated(table: &Table, core: bool, version: &str) -> Value {
    let items: Vec<Value> = table
        .groups()
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        rows_of(table, name, version).map(aggregated_row).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = Map::new();
            if !name.is_empty() {
                metadata.insert("name".to_owned(), json!(name));
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_row(row: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(sub.kind),
                "verbs": verbs(sub.verbs),
            })
        })
        .collect();
    let mut shown = json!({
        "resource": row.id.plural,
        "responseKind": kind((row.id.group, row.id.version, row.kind)),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": verbs(row.verbs),
    });
    for (field, list) in [
        ("shortNames", row.short_names),
        ("categories", row.categories),
    ] {
        if !list.is_empty() {
            shown[field] = json!(list);
        }
    }
    if !subresources.is_empty() {
        shown["subresources"] = json!(subresources);
    }
    shown
}

/// "/.well-known/openid-configuration": where to find the keys that tokens are checked by (OpenID Connect Discovery 1.0).
pub fn issuer() -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// "/version".
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": concat!("v1.36.0+portolan.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// "/": the paths there are.
pub fn index(table: &Table) -> Value {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for (group, versions) in table.groups() {
        for version in versions {
            paths.push(if group.is_empty() {
                format!("/api/{version}")
            } else {
                format!("/apis/{group}/{version}")
            });
        }
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    json!({"paths": paths})
}
