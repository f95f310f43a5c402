//! The agent: runs a node's pods and their network, and feeds the dataplane.
//!
//! ```text
//!                    cluster (API: pods, node, lease, events)          routes (gRPC: services, nodes)
//!                      | PodCommand            ^ PodReport                |                    |
//!                      v                       |                          v                    v
//!   image, runtime <- pod ---------------------+--- withdrawals --> dataplane thread     network (routes to
//!                      | attach, detach                                   ^               other nodes' pods)
//!                      +-> network (namespace, veth, addresses) ----------+
//!   streams answers control: logs, commands in containers, connections to ports
//!   join makes the node's certificate; run starts all of it; admin and query show it; teardown removes it
//! ```
//!
//! Invariants:
//! - No thread of the agent ever changes its network namespace, but for the short-lived ones of `network::netns`.
//! - rtnetlink's types stay in `network`, libcontainer's in `runtime`, kube's client in `cluster`.
//! - Killing the agent disturbs no container and no packet; the next one adopts what it finds.
//! - After the first join the agent starts without a control plane, from its state directory alone.
//!
//! Inspect a running agent with `portolan-agent status|services|flows|drops --state-dir DIR`. The tests in `tests/` need
//! root and make namespaces of their own: `cargo test -p portolan-agent`.

pub mod admin;
pub mod bpffs;
pub mod cli;
pub mod cluster;
pub mod errors;
pub mod files;
pub mod image;
pub mod join;
pub mod lock;
pub mod metrics;
pub mod names;
pub mod network;
pub mod pod;
pub mod query;
pub mod routes;
pub mod run;
pub mod runtime;
pub mod servers;
pub mod streams;
pub mod teardown;
