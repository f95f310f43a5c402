//! The transports that services are told apart by, under their IANA numbers.

/// RFC 9293.
pub const TCP: u8 = 6;
/// RFC 768.
pub const UDP: u8 = 17;
/// RFC 9260.
pub const SCTP: u8 = 132;
/// RFC 792. Also the protocol of echoes of either family, as flows are told apart.
pub const ICMP: u8 = 1;
/// RFC 4443.
pub const ICMPV6: u8 = 58;
