//! Randomness that nobody can guess, for keys, tokens and serial numbers.

/// Fills a new array from the system's generator.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the system's random number generator works");
    bytes
}

/// A certificate's serial number: positive and not zero.
pub fn serial_number() -> [u8; 16] {
    let mut number: [u8; 16] = bytes();
    number[0] = (number[0] & 0x3f) | 0x40;
    number
}

/// A word of `length` lower-case letters and digits, each as likely as the others.
pub fn word(length: usize) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // Bytes from here on would make the first letters likelier.
    const FAIR: u8 = 252;
    let mut word = String::with_capacity(length);
    while word.len() < length {
        let [byte] = bytes();
        if byte < FAIR {
            word.push(char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
        }
    }
    word
}
