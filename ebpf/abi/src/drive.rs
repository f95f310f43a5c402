//! What the generator of the microbenchmarks is told: the packet it restores before every run, and whose flow is next.

use crate::assert_layout;

/// Bytes of a packet that the generator writes anew before every run.
pub const FRAME_BYTES: usize = 80;

/// The first client's IPv4 address; flow numbers fill up to 22 bits below.
pub const CLIENT_V4: u32 = 0x6440_0000;
/// The first client's port.
pub const CLIENT_PORT: u16 = 1_024;
/// The first service's IPv4 address; service numbers fill the 17 bits below.
pub const SERVICE_V4: u32 = 0x0a80_0000;

/// The only value of the generator's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Drive {
    /// The state of the random numbers; not zero.
    pub random: u64,
    /// How many packets have been made.
    pub made: u64,
    /// The flow that is next, where flows come in order.
    pub next: u32,
    /// How many flows there are, a power of two, minus one.
    pub flow_mask: u32,
    /// How many services they go to.
    pub services: u32,
    /// Nonzero: flows come in order, not at random.
    pub in_order: u32,
    /// How many of a flow number's low bits go into the client's address, 22 at most; the rest goes into its port.
    pub address_bits: u32,
    /// Zero.
    pub reserved: u32,
    /// The sum of the IPv4 header's words without addresses and checksum.
    pub header_sum: u32,
    /// The sum of what the transport's checksum covers, without addresses and client port.
    pub transport_sum: u32,
    /// The packet, without what the generator fills in.
    pub frame: [u64; FRAME_BYTES / 8],
}

assert_layout!(
    Drive,
    size = 128,
    align = 8,
    fields = [u64, u64, [u32; 8], [u64; FRAME_BYTES / 8]]
);

/// How many words a [`Drive`] is.
pub const WORDS: usize = size_of::<Drive>() / 8;

impl Drive {
    /// Its words in memory order.
    pub fn words(&self) -> [u64; WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut words = [0; WORDS];
        words[..6].copy_from_slice(&[
            self.random,
            self.made,
            pair(self.next, self.flow_mask),
            pair(self.services, self.in_order),
            pair(self.address_bits, self.reserved),
            pair(self.header_sum, self.transport_sum),
        ]);
        words[6..].copy_from_slice(&self.frame);
        words
    }
}

/// A flow's client: the low bits of its address, and its port.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ports wrap around")]
pub const fn client_of(flow: u32, address_bits: u32) -> (u32, u16) {
    let bits = address_bits & 31;
    (
        flow & ((1 << bits) - 1),
        CLIENT_PORT.wrapping_add((flow >> bits) as u16),
    )
}

/// A flow's service.
#[inline(always)]
pub const fn service_of(flow: u32, services: u32) -> u32 {
    // Neighbouring flows go to distant services; a remainder alone would let all services of a small table share pages.
    match flow.wrapping_mul(0x9e37_79b1).checked_rem(services) {
        Some(service) => service,
        None => 0,
    }
}
