//! Services and endpoint slices.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, Faults, columns};
use super::{each_mut, fill, map_mut, service_rules};
use crate::api::meta;

/// How long session affinity lasts, in seconds.
const AFFINITY_SECONDS: i64 = 10_800;

/// What services do.
pub struct Services;
/// What endpoint slices do.
pub struct EndpointSlices;

/// Whether a service of a type has ports on every node.
pub fn has_node_ports(kind: &str) -> bool {
    matches!(kind, "NodePort" | "LoadBalancer")
}

impl Behaviour for Services {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "type", "ClusterIP");
        fill(spec, "sessionAffinity", "None");
        if spec["sessionAffinity"] == "None" {
            spec.remove("sessionAffinityConfig");
        }
        if spec["sessionAffinity"] == "ClientIP" {
            fill(spec, "sessionAffinityConfig", json!({}));
            if let Some(config) = map_mut(spec, "sessionAffinityConfig") {
                fill(config, "clientIP", json!({}));
                if let Some(client) = map_mut(config, "clientIP") {
                    fill(client, "timeoutSeconds", AFFINITY_SECONDS);
                }
            }
        }
        let kind = spec["type"].as_str().unwrap_or("").to_owned();
        if kind != "ExternalName" {
            fill(spec, "internalTrafficPolicy", "Cluster");
        }
        if has_node_ports(&kind) {
            fill(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            fill(spec, "allocateLoadBalancerNodePorts", true);
        }
        for port in each_mut(spec, "ports") {
            fill(port, "protocol", "TCP");
            let own = port.get("port").cloned();
            let missing = port
                .get("targetPort")
                .is_none_or(|target| target == "" || *target == 0);
            if let Some(own) = own.filter(|_| missing) {
                port.insert("targetPort".to_owned(), own);
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        service_rules::follow_first_address(object, old);
        service_rules::carry_over(object, old);
        service_rules::drop_with_type(object, old);
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        service_rules::service(object, faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        service_rules::service_update(object, old, faults);
    }

    fn returns_deleted(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::services::SERVICES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::services::service(object, now)
    }
}

impl Behaviour for EndpointSlices {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fill(fields, "endpoints", json!([]));
            for port in each_mut(fields, "ports") {
                fill(port, "name", "");
                fill(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        service_rules::endpoint_slice(object, faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        super::super::metadata::immutable(object, old, &["addressType"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::services::ENDPOINT_SLICES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::services::endpoint_slice(object, now)
    }
}
