//! Services that ask for what can't be had: said where a user looks, with the routes that there are untouched.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::{Cluster, From, wait_for};
use serde_json::{Value, json};

use crate::{life::Stage, traffic::cluster_address};

/// An external address that two Services want.
const WANTED: &str = "198.51.100.7";

fn service(name: &str, annotations: &Value, external: &[&str]) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
            "externalIPs": external,
        },
    })
    .to_string()
}

/// A service as n1 has it.
fn on_node(cluster: &Cluster, name: &str) -> Result<Option<Value>> {
    let services = cluster.agent("n1", "services")?;
    let mut all = services.as_array().into_iter().flatten();
    Ok(all.find(|listed| listed["name"] == name).cloned())
}

/// Of two that want one address the first keeps it; the second is not there, and says why.
pub fn a_taken_address_stays_with_who_has_it(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let limit = Duration::from_secs(10);
    cluster.apply(&service("first", &json!({}), &[WANTED]))?;
    let first = wait_for("the first service", limit, || {
        let found = on_node(&cluster, "default/first:80/TCP")?;
        Ok(found.ok_or_else(|| "it is not there".to_owned()))
    })?;
    ensure!(first["error"].is_null(), "{first}");
    cluster.apply(&service("second", &json!({}), &[WANTED]))?;
    let error = wait_for("what the second is told", limit, || {
        let found = on_node(&cluster, "default/second:80/TCP")?;
        let error = found.as_ref().and_then(|found| found["error"].as_str());
        Ok(error.map(str::to_owned).ok_or(format!("{found:?}")))
    })?;
    let owner = format!("{WANTED}:80/TCP belongs to default/first:80/TCP already");
    ensure!(error.contains(&owner), "{error}");
    let load = cluster.load(From::Pod("client"), "tcp", &format!("{WANTED}:80"), 50)?;
    load.ensure_all_answered()?;
    let load = cluster.load(
        From::Pod("client"),
        "tcp",
        &cluster_address(&cluster, 4)?,
        50,
    )?;
    load.ensure_all_answered()?;
    // When the owner goes, the address is the other's.
    cluster.kubectl(&["delete", "service", "first"])?;
    wait_for("the second service", limit, || {
        let found = on_node(&cluster, "default/second:80/TCP")?;
        let is_there = found.as_ref().is_some_and(|found| found["error"].is_null());
        Ok(if is_there {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        })
    })?;
    let load = cluster.load(From::Pod("client"), "tcp", &format!("{WANTED}:80"), 50)?;
    load.ensure_all_answered()?;
    cluster.kubectl(&["delete", "service", "second"]).map(drop)
}

/// An annotation's unknown value is an event on the Service; the default holds.
pub fn an_unknown_value_is_an_event(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let annotations = json!({"portolan.dev/algorithm": "fastest"});
    cluster.apply(&service("hasty", &annotations, &[]))?;
    let words = "annotation portolan.dev/algorithm: \"fastest\" is none of maglev, least-connections; maglev holds";
    wait_for("an event", Duration::from_secs(10), || {
        let described = cluster.kubectl(&["describe", "service", "hasty"])?;
        Ok(if described.contains(words) {
            Ok(())
        } else {
            Err(described)
        })
    })?;
    let address = cluster.get("service", "hasty")?["spec"]["clusterIP"].clone();
    let address = address.as_str().unwrap_or_default();
    let load = cluster.load(From::Pod("client"), "tcp", &format!("{address}:80"), 50)?;
    load.ensure_all_answered()?;
    cluster.kubectl(&["delete", "service", "hasty"]).map(drop)
}
