//! What the maps keep of a service beside its entries: its name and what was asked for, by its id.

use portolan_abi::service::{NAME_BYTES, ServiceRecord, record};

use crate::{
    frontends,
    model::{Algorithm, Backend, Distribution, ReturnPath, Service, ServiceName, TrafficPolicy},
};

const DISTRIBUTIONS: [Distribution; 4] = [
    Distribution::LoadAware,
    Distribution::SameNode,
    Distribution::SameZone,
    Distribution::Even,
];
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Maglev, Algorithm::LeastConnections];

/// The record of a service whose name is not too long.
pub fn to_record(service: &Service, protocol: u8) -> ServiceRecord {
    let bytes = service.name.0.as_bytes();
    let mut name = [0; NAME_BYTES];
    name[..bytes.len()].copy_from_slice(bytes);
    let options = [
        (
            record::INTERNAL_LOCAL,
            service.internal_policy == TrafficPolicy::Local,
        ),
        (
            record::EXTERNAL_LOCAL,
            service.external_policy == TrafficPolicy::Local,
        ),
        (record::PUBLISH_NOT_READY, service.publish_not_ready),
        (
            record::DIRECT_RETURN,
            service.return_path == ReturnPath::Direct,
        ),
    ];
    ServiceRecord {
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
        options: options
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .fold(0, |bits, (bit, _)| bits | bit),
        name_length: u8::try_from(bytes.len()).unwrap_or(u8::MAX),
        protocol,
        distribution: place(&DISTRIBUTIONS, service.distribution),
        algorithm: place(&ALGORITHMS, service.algorithm),
        reserved: [0; 2],
        name,
    }
}

fn place<T: PartialEq + Copy>(all: &[T], one: T) -> u8 {
    let index = all.iter().position(|other| *other == one);
    index
        .and_then(|index| u8::try_from(index).ok())
        .unwrap_or(0)
}

/// The service that a record names, with what its backends' entries say; its frontends are in other maps.
pub fn from_record(record: &ServiceRecord, backends: Vec<Backend>) -> Service {
    let length = usize::from(record.name_length).min(NAME_BYTES);
    let is_set = |bit| record.options & bit != 0;
    let policy = |bit| {
        if is_set(bit) {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        }
    };
    let name = ServiceName(String::from_utf8_lossy(&record.name[..length]).into_owned());
    let protocol = frontends::protocol(record.protocol);
    Service {
        backends,
        internal_policy: policy(record::INTERNAL_LOCAL),
        external_policy: policy(record::EXTERNAL_LOCAL),
        distribution: DISTRIBUTIONS
            .get(usize::from(record.distribution))
            .copied()
            .unwrap_or_default(),
        algorithm: ALGORITHMS
            .get(usize::from(record.algorithm))
            .copied()
            .unwrap_or_default(),
        affinity_seconds: Some(record.affinity_seconds).filter(|seconds| *seconds != 0),
        return_path: if is_set(record::DIRECT_RETURN) {
            ReturnPath::Direct
        } else {
            ReturnPath::SourceNat
        },
        publish_not_ready: is_set(record::PUBLISH_NOT_READY),
        ..Service::new(name, protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn a_record_gives_back_what_was_asked_for() {
        for distribution in DISTRIBUTIONS {
            let service = Service {
                distribution,
                algorithm: Algorithm::LeastConnections,
                affinity_seconds: Some(86_400),
                return_path: ReturnPath::Direct,
                publish_not_ready: true,
                external_policy: TrafficPolicy::Local,
                ..Service::new(ServiceName("default/web:80/UDP".to_owned()), Protocol::Udp)
            };
            let record = to_record(&service, portolan_abi::protocol::UDP);
            assert_eq!(from_record(&record, Vec::new()), service);
        }
    }
}
