//! What a Service asks for beside its ports and addresses: fields of its spec, and annotations of Portolan's own.
//!
//! | annotation | on | values |
//! |---|---|---|
//! | `portolan.dev/distribution` | Service | `load-aware`, `same-node`, `same-zone`, `even`; stands above spec.trafficDistribution |
//! | `portolan.dev/algorithm` | Service | `maglev`, `least-connections` |
//! | `portolan.dev/return-path` | Service | `source-nat`, `direct`; without it as each node is configured |
//! | `portolan.dev/weight` | Pod | 0 to 10000, where 100 is ordinary; 0 gets no new flows |
//! | `portolan.dev/weights` | `EndpointSlice` | a JSON object from addresses to weights; the controller writes it from the pods |

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::table::{Algorithm, Distribution, Options, ReturnPath};

/// A pod's share of new flows.
pub const WEIGHT: &str = "portolan.dev/weight";
/// The shares of a slice's endpoints, by address.
pub const WEIGHTS: &str = "portolan.dev/weights";
/// The largest weight.
pub const LARGEST_WEIGHT: u32 = 10_000;

const DISTRIBUTION: &str = "portolan.dev/distribution";
const ALGORITHM: &str = "portolan.dev/algorithm";
const RETURN_PATH: &str = "portolan.dev/return-path";
/// From before the field was in the spec; kube-proxy still reads it.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const DISTRIBUTIONS: &[(&str, Distribution)] = &[
    ("load-aware", Distribution::LoadAware),
    ("same-node", Distribution::SameNode),
    ("same-zone", Distribution::SameZone),
    ("even", Distribution::Even),
];
const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("maglev", Algorithm::Maglev),
    ("least-connections", Algorithm::LeastConnections),
];
const RETURN_PATHS: &[(&str, Option<ReturnPath>)] = &[
    ("source-nat", Some(ReturnPath::SourceNat)),
    ("direct", Some(ReturnPath::Direct)),
];

/// What a Service asks for. An annotation that is not understood is as good as absent; [`complaints`] says so.
pub(super) fn of(service: &Service) -> Options {
    let spec = service.spec.clone().unwrap_or_default();
    let asked = match spec.traffic_distribution.as_deref() {
        Some("PreferSameNode") => Distribution::SameNode,
        Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
        _ => Distribution::default(),
    };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref();
        let client = config.and_then(|config| config.client_ip.as_ref());
        let seconds = client.and_then(|client| client.timeout_seconds);
        seconds
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(AFFINITY_SECONDS)
    });
    Options {
        distribution: annotated(service, DISTRIBUTION, DISTRIBUTIONS).unwrap_or(asked),
        algorithm: annotated(service, ALGORITHM, ALGORITHMS).unwrap_or_default(),
        return_path: annotated(service, RETURN_PATH, RETURN_PATHS).unwrap_or_default(),
        affinity_seconds: affinity,
        source_ranges: source_ranges(service),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        health_check_node_port: spec
            .health_check_node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
    }
}

/// How long a client keeps its endpoint where the Service does not say, in seconds.
const AFFINITY_SECONDS: u32 = 10_800;

fn source_ranges(service: &Service) -> Vec<IpNet> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.load_balancer_source_ranges.clone());
    let listed = listed.filter(|listed| !listed.is_empty());
    let annotated = || {
        let text = annotation(&service.metadata, SOURCE_RANGES)?;
        Some(text.split(',').map(str::to_owned).collect())
    };
    let texts: Vec<String> = listed.or_else(annotated).unwrap_or_default();
    let mut ranges: Vec<IpNet> = texts
        .iter()
        .filter_map(|text| text.trim().parse().ok())
        .collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn annotated<T: Copy>(service: &Service, name: &str, values: &[(&str, T)]) -> Option<T> {
    let text = annotation(&service.metadata, name)?;
    let found = values.iter().find(|(word, _)| *word == text)?;
    Some(found.1)
}

/// What is said of a Service's annotations that are not understood, each with what holds instead.
pub fn complaints(service: &Service) -> Vec<String> {
    let words = |values: &[&str]| values.join(", ");
    let distributions: Vec<_> = DISTRIBUTIONS.iter().map(|(word, _)| *word).collect();
    let algorithms: Vec<_> = ALGORITHMS.iter().map(|(word, _)| *word).collect();
    let return_paths: Vec<_> = RETURN_PATHS.iter().map(|(word, _)| *word).collect();
    let known = [
        (DISTRIBUTION, distributions, "spec.trafficDistribution"),
        (ALGORITHM, algorithms, "maglev"),
        (RETURN_PATH, return_paths, "the node's own setting"),
    ];
    let complain = |(name, values, instead): (&str, Vec<&str>, &str)| {
        let text = annotation(&service.metadata, name)?;
        (!values.contains(&text)).then(|| {
            format!(
                "annotation {name}: {text:?} is none of {}; {instead} holds",
                words(&values)
            )
        })
    };
    known.into_iter().filter_map(complain).collect()
}

/// A weight as annotations say it.
pub fn weight(text: &str) -> Option<u32> {
    text.trim()
        .parse()
        .ok()
        .filter(|weight| *weight <= LARGEST_WEIGHT)
}

/// The weights of a slice's endpoints that are not ordinary.
pub(super) fn weights(slice: &ObjectMeta) -> BTreeMap<IpAddr, u32> {
    let text = annotation(slice, WEIGHTS).unwrap_or("{}");
    let weights: BTreeMap<IpAddr, u32> = serde_json::from_str(text).unwrap_or_default();
    weights
        .into_iter()
        .filter(|(_, weight)| *weight <= LARGEST_WEIGHT)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(annotations: &Value, spec: &Value) -> Service {
        let object = json!({"metadata": {"name": "s", "annotations": annotations}, "spec": spec});
        serde_json::from_value(object).expect("a service")
    }

    #[test]
    fn asking_for_nothing_is_load_aware_consistent_hashing() {
        let options = of(&service(&json!({}), &json!({"sessionAffinity": "None"})));
        assert_eq!(options, Options::default());
        assert_eq!(options.distribution, Distribution::LoadAware);
        assert_eq!(options.algorithm, Algorithm::Maglev);
    }

    #[test]
    fn fields_and_annotations_are_understood() {
        for (field, expected) in [
            ("PreferClose", Distribution::SameZone),
            ("PreferSameZone", Distribution::SameZone),
            ("PreferSameNode", Distribution::SameNode),
        ] {
            let spec = json!({"trafficDistribution": field});
            assert_eq!(of(&service(&json!({}), &spec)).distribution, expected);
            let above = json!({DISTRIBUTION: "even"});
            let options = of(&service(&above, &spec));
            assert_eq!(options.distribution, Distribution::Even);
        }
        let annotations = json!({ALGORITHM: "least-connections", RETURN_PATH: "direct"});
        let options = of(&service(&annotations, &json!({})));
        assert_eq!(options.algorithm, Algorithm::LeastConnections);
        assert_eq!(options.return_path, Some(ReturnPath::Direct));
        let spec = json!({
            "sessionAffinity": "ClientIP", "publishNotReadyAddresses": true, "healthCheckNodePort": 32000,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
        });
        let options = of(&service(&json!({}), &spec));
        assert_eq!(options.affinity_seconds, Some(30));
        assert!(options.publish_not_ready);
        assert_eq!(options.health_check_node_port, Some(32_000));
        let spec = json!({"sessionAffinity": "ClientIP"});
        let options = of(&service(&json!({}), &spec));
        assert_eq!(options.affinity_seconds, Some(10_800));
    }

    #[test]
    fn source_ranges_come_from_the_spec_or_the_old_annotation() {
        let texts = |service: &Service| -> Vec<String> {
            let ranges = source_ranges(service);
            ranges.iter().map(ToString::to_string).collect()
        };
        let old = json!({SOURCE_RANGES: " 10.0.0.0/8, fd00::/8"});
        assert_eq!(
            texts(&service(&old, &json!({}))),
            ["10.0.0.0/8", "fd00::/8"]
        );
        let spec = json!({"loadBalancerSourceRanges": ["198.51.100.0/24 "]});
        assert_eq!(texts(&service(&old, &spec)), ["198.51.100.0/24"]);
    }

    #[test]
    fn an_unknown_value_is_said_and_the_default_holds() {
        let annotations = json!({ALGORITHM: "fastest", DISTRIBUTION: "same-node", RETURN_PATH: ""});
        let service = service(&annotations, &json!({}));
        assert_eq!(
            complaints(&service),
            [
                "annotation portolan.dev/algorithm: \"fastest\" is none of maglev, least-connections; maglev holds",
                "annotation portolan.dev/return-path: \"\" is none of source-nat, direct; the node's own setting holds",
            ]
        );
        let options = of(&service);
        assert_eq!(options.algorithm, Algorithm::Maglev);
        assert_eq!(options.return_path, None);
    }

    #[test]
    fn weights_are_whole_and_not_negative() {
        assert_eq!(weight(" 250"), Some(250));
        for broken in ["-1", "1.5", "", "x", "10001"] {
            assert_eq!(weight(broken), None, "{broken:?}");
        }
    }
}
