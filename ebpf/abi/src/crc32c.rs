//! SCTP's checksum (RFC 9260, appendix A): CRC32c, whole and by difference.
//!
//! A CRC is linear: what a change of some bytes does to it is the CRC of the bits that change, carried over the bytes that
//! follow. Carrying over n bytes is a multiplication by x^(8n) modulo the polynomial: for each power of two in n a look
//! into a table by each of the eight nibbles, however long the packet is.

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The product of two polynomials, lowest power in the highest bit.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= b & (a >> (31 - bit) & 1).wrapping_neg();
        b = b >> 1 ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

/// x^8, and its squares: what carries a CRC over 1, 2, 4, ... bytes.
const OVER: [u32; 16] = {
    let mut over = [1 << 23; 16];
    let mut power = 1;
    while power < over.len() {
        over[power] = multiply(over[power - 1], over[power - 1]);
        power += 1;
    }
    over
};

/// What each nibble of a CRC adds to it once it is carried over 1, 2, 4, ... bytes.
static CARRIED: [[[u32; 16]; 8]; OVER.len()] = {
    let mut carried = [[[0; 16]; 8]; OVER.len()];
    let mut power = 0;
    while power < OVER.len() {
        let mut place = 0;
        while place < 8 {
            let mut nibble: u32 = 0;
            while nibble < 16 {
                let bits = nibble << (place * 4);
                carried[power][place][nibble as usize] = multiply(bits, OVER[power]);
                nibble += 1;
            }
            place += 1;
        }
        power += 1;
    }
    carried
};

/// What changes the checksum of `length` bytes, the first four of which change by `difference` (exclusive or, as they lie
/// in memory): it is to be combined with the checksum by exclusive or.
#[inline(always)]
pub fn of_first_word(difference: u32, length: u32) -> u32 {
    let mut crc = u32::from_le(difference);
    let mut power = 0;
    while power < CARRIED.len() {
        if length >> power & 1 != 0 {
            crc = carry(crc, power);
        }
        power += 1;
    }
    crc
}

#[inline(always)]
fn carry(crc: u32, power: usize) -> u32 {
    let mut carried = 0;
    let mut place = 0;
    while place < 8 {
        carried ^= CARRIED[power][place][(crc >> (place * 4) & 15) as usize];
        place += 1;
    }
    carried
}

/// A checksum with one more byte.
#[inline(always)]
pub const fn update(crc: u32, byte: u8) -> u32 {
    let mut crc = crc ^ byte as u32;
    let mut bit = 0;
    while bit < 8 {
        crc = crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        bit += 1;
    }
    crc
}

/// The checksum of bytes.
pub const fn whole(bytes: &[u8]) -> u32 {
    let mut crc = !0;
    let mut at = 0;
    while at < bytes.len() {
        crc = update(crc, bytes[at]);
        at += 1;
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_3720() {
        assert_eq!(whole(&[0; 32]), 0x8a91_36aa);
        assert_eq!(whole(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(whole(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn a_difference_equals_summing_again(mut bytes in proptest::collection::vec(any::<u8>(), 4..3_000), word: [u8; 4]) {
            let before = whole(&bytes);
            let old = [bytes[0], bytes[1], bytes[2], bytes[3]];
            bytes[..4].copy_from_slice(&word);
            let difference = u32::from_ne_bytes(old) ^ u32::from_ne_bytes(word);
            let length = u32::try_from(bytes.len()).expect("short");
            prop_assert_eq!(before ^ of_first_word(difference, length), whole(&bytes));
        }
    }
}
