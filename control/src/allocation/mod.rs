//! Cluster IPs, node ports and pod CIDRs: each is a key in the store that is written only where none was, so no two
//! owners ever hold the same one, whatever crashes in between.
//!
//! ```text
//! /portolan/allocations/addresses/10.96.0.17     {"owner":"default/web"}
//! /portolan/allocations/node-ports/30080         {"owner":"default/web"}
//! /portolan/allocations/pod-cidrs/10.244.1.0-24  {"owner":"n1"}
//! ```
//!
//! A Service's are reserved before the Service is written and committed or rolled back after. What a crash leaves behind
//! in between is freed by [`repair`], which also takes again what is in use but not held.

use std::{ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;

use crate::{
    api::status::Cause,
    store::{self, Store},
};

mod addresses;
pub mod admission;
mod ledger;
pub mod pod_cidrs;
pub mod repair;
pub mod services;
#[cfg(test)]
mod tests;

use addresses::Addresses;
use ledger::Ledger;
use pod_cidrs::PodCidrs;
use services::Services;

/// Why something could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for what it can't have; each cause names its field, in Kubernetes' words.
    #[error("{}", .0.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join(", "))]
    Invalid(Vec<Cause>),
    /// Nothing is left.
    #[error("failed to allocate {what}: range is full")]
    Full {
        /// Of what.
        what: String,
    },
    /// The store did not answer.
    #[error("the allocations can't be read or written")]
    Store(#[from] store::Error),
    /// A key under the prefix does not hold what this program writes.
    #[error("allocation {key} is not readable")]
    Corrupt {
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What there is to hand out.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Service addresses, the primary family first; one or two, of different families.
    pub service_cidrs: Vec<IpNet>,
    /// Pod addresses, the primary family first; one or two, of different families.
    pub cluster_cidrs: Vec<IpNet>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

/// Everything that is handed out.
pub struct Allocations {
    /// Addresses and ports of Services.
    pub services: Services,
    /// Pod address ranges of nodes.
    pub pod_cidrs: PodCidrs,
}

impl Allocations {
    /// Hands out these ranges, remembering in the store; `seed` decides what is tried first.
    pub fn new(store: &Arc<dyn Store>, ranges: &Ranges, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            services: Services::new(
                ranges
                    .service_cidrs
                    .iter()
                    .map(|cidr| Addresses::new(*cidr))
                    .collect(),
                ranges.node_ports.clone(),
                Ledger::new(store, "addresses"),
                Ledger::new(store, "node-ports"),
                seed,
            ),
            pod_cidrs: PodCidrs::new(
                ranges.cluster_cidrs.clone(),
                Ledger::new(store, "pod-cidrs"),
            ),
        })
    }
}
