//! What the model's decisions read and write, for each family.

use std::net::IpAddr;

use portolan_abi::{
    address::{V4, V6},
    affinity::{AffinityEntry, AffinityKey},
    backend::Backend,
    choice::{Load, Place},
    config,
    ip::ReadIp,
    network,
    parse::ParseAddress,
    pod::PodEntry,
    refusal::Refuse,
    sender::OfSender,
    service::{ServiceEntry, ServiceKey},
    source_range::RangeMember,
    tables::Stages,
    tunnel::Encapsulate,
};

use super::{
    memory::{View, View6},
    model::Model,
    tables::{Tables, longest},
};

/// A family with its tables.
pub trait Family: ParseAddress + ReadIp + Encapsulate + Refuse + OfSender {
    /// Its source NAT address.
    fn node_address(config: &config::NodeConfig) -> Self;
    /// An address as the standard library has it.
    fn ip(self) -> IpAddr;
    /// The pod of an address.
    fn pod(tables: &Tables, address: Self) -> Option<PodEntry>;
    /// An outer header's bytes.
    fn bytes(header: Self::Header) -> Vec<u8>;
}

impl Family for V4 {
    fn node_address(config: &config::NodeConfig) -> Self {
        config.node_v4
    }

    fn ip(self) -> IpAddr {
        self.octets().into()
    }

    fn pod(tables: &Tables, address: Self) -> Option<PodEntry> {
        tables.pods_v4.get(&address).copied()
    }

    fn bytes(header: [u8; 20]) -> Vec<u8> {
        header.to_vec()
    }
}

impl Family for V6 {
    fn node_address(config: &config::NodeConfig) -> Self {
        config.node_v6
    }

    fn ip(self) -> IpAddr {
        self.octets().into()
    }

    fn pod(tables: &Tables, address: Self) -> Option<PodEntry> {
        tables.pods_v6.get(&address).copied()
    }

    fn bytes(header: [u64; 5]) -> Vec<u8> {
        header.map(u64::to_ne_bytes).concat()
    }
}

macro_rules! tables {
    ($family:ty, $view:ident, $mask:ident, $services:ident, $flows:literal, $source_nat:literal) => {
        impl<'a> portolan_abi::tables::Tables<$family> for &'a Model {
            type Bucket = $view<'a>;

            fn seed(&self) -> u64 {
                self.config().seed
            }

            fn now(&self) -> u64 {
                self.now.get()
            }

            fn node_address(&self) -> $family {
                <$family as Family>::node_address(self.config())
            }

            fn flows(&self, hash: u64) -> Option<$view<'a>> {
                let index = (hash >> 32) & u64::from(self.config().$mask);
                let index = usize::try_from(index).expect("32 bits fit");
                let model: &'a Model = self;
                model.bucket($flows, index).map($view)
            }

            fn source_nat(&self, bucket: u32) -> Option<$view<'a>> {
                let model: &'a Model = self;
                model.bucket($source_nat, bucket as usize).map($view)
            }

            fn service(&self, key: &ServiceKey<$family>) -> Option<&ServiceEntry> {
                self.tables.$services.get(key)
            }

            fn choice(&self, place: Place) -> Option<u32> {
                let line = self.tables.choices.get(place.line as usize)?;
                line.backends.get(place.lane as usize).copied()
            }

            fn backend(&self, id: u32) -> Option<&Backend> {
                Model::backend(self, id)
            }

            fn away(&self, service: u32) -> u32 {
                let share = self.tables.shares.get(service as usize);
                share.map_or(0, |share| share.away)
            }

            fn load(&self, backend: u32) -> Option<Load> {
                self.loads.borrow().get(backend as usize).copied()
            }

            fn add_connection(&self, backend: u32) {
                if let Some(load) = self.loads.borrow_mut().get_mut(backend as usize) {
                    load.connections += 1;
                }
            }

            fn is_in_ranges(&self, set: u32, client: $family) -> bool {
                let member = RangeMember::new(set, client);
                longest(&self.tables.ranges, &member).is_some()
            }

            fn masquerades(&self) -> bool {
                let config = self.config();
                config.flags & config::flags::MASQUERADE != 0 && config.uplink != 0
            }

            fn network(&self, address: $family) -> u32 {
                let member = RangeMember::new(network::SET, address);
                longest(&self.tables.networks, &member).unwrap_or(0)
            }

            fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
                self.affinities.borrow().get(key).copied()
            }

            fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) {
                self.affinities.borrow_mut().insert(*key, *entry);
            }
        }

        impl Stages<$family> for &Model {}
    };
}

tables!(V4, View, flow_mask_v4, services_v4, 0, 2);
tables!(V6, View6, flow_mask_v6, services_v6, 1, 3);
