//! Rules for probes and lifecycle hooks.

use serde_json::Value;

use super::super::metadata::NOT_NEGATIVE;
use super::super::{Faults, Path};
use super::service_rules::target_port;
use crate::api::meta;

/// What a probe or hook can do, in the order of messages.
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// What is wrong with a container's probes and hooks.
pub fn of_container(container: &Value, path: &Path, faults: &mut Faults) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(name) else {
            continue;
        };
        let path = path.child(name);
        handler(probe, &path, faults);
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            let number = meta::number(probe, &[field]).unwrap_or(0);
            if number < 0 {
                faults.invalid(&path.child(field), &Value::from(number), NOT_NEGATIVE);
            }
        }
        let successes = meta::number(probe, &["successThreshold"]).unwrap_or(1);
        if name != "readinessProbe" && successes != 1 {
            faults.invalid(
                &path.child("successThreshold"),
                &Value::from(successes),
                "must be 1",
            );
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = meta::at(container, &["lifecycle", name]) {
            handler(hook, &path.child("lifecycle").child(name), faults);
        }
    }
}

fn handler(value: &Value, path: &Path, faults: &mut Faults) {
    let mut found = 0;
    for name in HANDLERS {
        let Some(handler) = value.get(name) else {
            continue;
        };
        let path = path.child(name);
        found += 1;
        if found > 1 {
            faults.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match name {
            "exec" if meta::list(handler, &["command"]).is_empty() => {
                faults.required(&path.child("command"), "");
            }
            "httpGet" => {
                if meta::text(handler, &["path"]).is_empty() {
                    faults.required(&path.child("path"), "");
                }
                let scheme = meta::text(handler, &["scheme"]);
                if !matches!(scheme, "HTTP" | "HTTPS") {
                    faults.unsupported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
                }
                target_port(handler.get("port"), &path.child("port"), faults);
            }
            "tcpSocket" | "grpc" => target_port(handler.get("port"), &path.child("port"), faults),
            _ => {}
        }
    }
    if found == 0 {
        faults.required(path, "must specify a handler type");
    }
}
