//! Which addresses of a Service range may be handed out, and which to try first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range of Service addresses.
#[derive(Clone, Debug)]
pub struct Addresses {
    cidr: IpNet,
}

impl Addresses {
    /// The addresses of a CIDR.
    pub fn new(cidr: IpNet) -> Self {
        Self { cidr: cidr.trunc() }
    }

    /// The range as text.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// "IPv4" or "IPv6".
    pub fn family(&self) -> &'static str {
        family(self.cidr.network())
    }

    /// Whether an address can be handed out: neither the network's own nor the broadcast address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address)
            && address != self.cidr.network()
            && !(self.cidr.network().is_ipv4() && address == self.cidr.broadcast())
    }

    /// How many addresses there are, as far as anyone will ever use.
    fn size(&self) -> u64 {
        let bits = u32::from(self.cidr.max_prefix_len() - self.cidr.prefix_len()).min(32);
        let all = 1_u64 << bits;
        if self.cidr.network().is_ipv4() {
            all.saturating_sub(2)
        } else {
            all - 1
        }
    }

    /// The address at a place in the range, the first at 0.
    fn at(&self, offset: u64) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset + 1).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().saturating_add(offset)))
            }
            IpAddr::V6(base) => {
                IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() + u128::from(offset) + 1))
            }
        }
    }

    /// The address of default/kubernetes.
    pub fn first(&self) -> IpAddr {
        self.at(0)
    }

    /// Addresses to try, every one once: from a random place in the upper part on, then the lower part, which is left
    /// for addresses that are asked for by name as long as there are others. The first address is never among them.
    pub fn candidates(
        &self,
        random: &mut fastrand::Rng,
    ) -> impl Iterator<Item = IpAddr> + Send + use<> {
        let size = self.size();
        let lower = (size / 16).clamp(16, 256).min(size / 2).max(1);
        let upper = size.saturating_sub(lower);
        let start = if upper > 0 { random.u64(..upper) } else { 0 };
        let range = self.clone();
        let above = (0..upper).map(move |step| lower + (start + step) % upper);
        above.chain(1..lower).map(move |offset| range.at(offset))
    }
}

/// "IPv4" or "IPv6".
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
