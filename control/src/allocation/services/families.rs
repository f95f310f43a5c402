//! Which address families a Service has: what it asks for, filled in by what the cluster has.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Error, family, invalid, strings};

/// Fills in spec.ipFamilyPolicy and spec.ipFamilies; `configured` are the cluster's families, the primary one first.
pub fn fill_in(service: &mut Value, configured: &[&str]) -> Result<(), Error> {
    let spec = &service["spec"];
    let asked = strings(&spec["clusterIPs"]);
    let mut families = strings(&spec["ipFamilies"]);
    // An address that is asked for says its family.
    for address in asked.iter().skip(families.len()) {
        if let Ok(address) = address.parse::<IpAddr>() {
            families.push(family(address).to_owned());
        }
    }
    let has_selector = spec["selector"]
        .as_object()
        .is_some_and(|selector| !selector.is_empty());
    let is_headless = spec["clusterIP"] == "None";
    let is_free = is_headless && !has_selector;
    let default = if is_free {
        "RequireDualStack"
    } else {
        "SingleStack"
    };
    let policy = spec["ipFamilyPolicy"]
        .as_str()
        .unwrap_or(default)
        .to_owned();
    check(spec, &policy, &families, &asked)?;
    if !is_free {
        check_configured(&policy, &families, configured)?;
    }
    if families.is_empty() {
        families.extend(configured.first().map(|primary| (*primary).to_owned()));
    }
    let wants_two = policy != "SingleStack" && (is_free || configured.len() > 1);
    if wants_two && families.len() == 1 {
        let other = if families[0] == "IPv4" {
            "IPv6"
        } else {
            "IPv4"
        };
        families.push(other.to_owned());
    }
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service["spec"]["ipFamilies"] = json!(families);
    Ok(())
}

fn check(spec: &Value, policy: &str, families: &[String], asked: &[String]) -> Result<(), Error> {
    if policy != "SingleStack" {
        return Ok(());
    }
    let many = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    if spec["ipFamilies"].as_array().map_or(0, Vec::len) > 1 {
        let why = format!("{many} IP families are specified");
        return Err(invalid("spec.ipFamilyPolicy", &json!(policy), &why));
    }
    if asked.len() > 1 || families.len() > 1 {
        let why = format!("{many} cluster IPs are specified");
        return Err(invalid("spec.ipFamilyPolicy", &json!(policy), &why));
    }
    Ok(())
}

fn check_configured(policy: &str, families: &[String], configured: &[&str]) -> Result<(), Error> {
    if policy == "RequireDualStack" && configured.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        return Err(invalid("spec.ipFamilyPolicy", &json!(policy), why));
    }
    for (index, family) in families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            let field = format!("spec.ipFamilies[{index}]");
            return Err(invalid(
                &field,
                &json!(family),
                "not configured on this cluster",
            ));
        }
    }
    Ok(())
}
