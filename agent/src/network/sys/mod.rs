//! The one room of the network module where memory safety is argued by hand: ioctls that no safe wrapper covers.

pub mod ethtool;
