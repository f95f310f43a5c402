//! The agent: runs a node's pods and their network, and feeds the dataplane.

pub mod files;
pub mod image;
pub mod network;
pub mod pod;
pub mod runtime;
