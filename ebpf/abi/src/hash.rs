//! The hash of flows: multiply and xorshift with the node's seed, one multiplication a word.

use crate::{address::Address, bytes::Be16};

const MULTIPLIER: u64 = 0x9fb2_1c65_1e98_df25;

/// Stirs one word into a hash.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

/// Where a flow lives: by its client alone, so that it is found from both directions.
#[inline(always)]
pub fn of_client<A: Address>(seed: u64, client: A, port: Be16, protocol: u8) -> u64 {
    let ends = u64::from(port.0) | (u64::from(protocol) << 16);
    let words = client.words();
    if A::IS_V6 {
        mix(mix(mix(seed, words[0]), words[1]), ends)
    } else {
        // The port and protocol stand above the address, which fills the low half.
        mix(mix(seed, words[0] | (ends << 40)), seed)
    }
}

/// Which backend a new flow gets: by everything that the client says.
#[inline(always)]
pub fn of_choice<A: Address>(client_hash: u64, frontend: A, port: Be16) -> u64 {
    let words = frontend.words();
    mix(
        mix(client_hash, words[0] ^ words[1].rotate_left(17)),
        u64::from(port.0),
    )
}

/// Which backend a client's flows get where all of them must get the same: by its address alone, the same on every node.
#[inline(always)]
pub fn of_affinity<A: Address>(client: A) -> u64 {
    let [a, b] = client.words();
    mix(mix(mix(MULTIPLIER, a), b), a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};
    use std::{collections::HashSet, vec};

    #[test]
    fn protocol_and_port_and_address_all_matter_for_ipv4() {
        let mut seen = HashSet::new();
        for protocol in [6, 17, 132] {
            for port in 0..2_000 {
                for last in 0..8 {
                    let client = V4::from_octets([10, 0, 0, last]);
                    seen.insert(of_client(7, client, Be16::new(port), protocol));
                }
            }
        }
        assert_eq!(seen.len(), 3 * 2_000 * 8);
    }

    #[test]
    fn consecutive_ports_spread_evenly_over_buckets() {
        let mut buckets = vec![0_u32; 1_024];
        for port in 0..u16::MAX {
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            let hash = of_client(99, V6::from_octets(octets), Be16::new(port), 6);
            buckets[usize::try_from(hash >> 32).expect("32 bits fit") & 1_023] += 1;
        }
        let most = buckets.iter().max().expect("there are buckets");
        assert!(*most < 110, "a bucket has {most} of 64 expected");
    }
}
