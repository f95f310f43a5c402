//! The agent: runs a node's pods and their network, and feeds the dataplane.

pub mod network;
pub mod pod;
