//! The agent: runs a node's pods and their network, and feeds the dataplane.

pub mod admin;
pub mod bpffs;
pub mod cli;
pub mod cluster;
pub mod errors;
pub mod files;
pub mod image;
pub mod join;
pub mod lock;
pub mod network;
pub mod pod;
pub mod query;
pub mod routes;
pub mod run;
pub mod runtime;
pub mod teardown;
