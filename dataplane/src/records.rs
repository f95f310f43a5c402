//! What the maps keep of a service beside its entries: its name and policies, by its id.

use portolan_abi::service::{NAME_BYTES, ServiceRecord};

use crate::model::{Backend, Protocol, Service, ServiceName, TrafficPolicy};

/// The record of a service whose name is not too long.
pub fn to_record(service: &Service, protocol: u8) -> ServiceRecord {
    let bytes = service.name.0.as_bytes();
    let mut name = [0; NAME_BYTES];
    name[..bytes.len()].copy_from_slice(bytes);
    ServiceRecord {
        name_length: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
        protocol,
        internal_local: u8::from(service.internal_policy == TrafficPolicy::Local),
        external_local: u8::from(service.external_policy == TrafficPolicy::Local),
        reserved: [0; 3],
        name,
    }
}

/// The service that a record names, with what its backends' entries say; its frontends are in other maps.
pub fn from_record(record: &ServiceRecord, backends: Vec<Backend>) -> Service {
    let length = usize::from(record.name_length).min(NAME_BYTES);
    let policy = |local: u8| {
        if local == 0 {
            TrafficPolicy::Cluster
        } else {
            TrafficPolicy::Local
        }
    };
    let tcp = record.protocol == portolan_abi::protocol::TCP;
    let name = ServiceName(String::from_utf8_lossy(&record.name[..length]).into_owned());
    let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
    Service {
        backends,
        internal_policy: policy(record.internal_local),
        external_policy: policy(record.external_local),
        ..Service::new(name, protocol)
    }
}
