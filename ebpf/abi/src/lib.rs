//! What the kernel programs and userspace share: map layouts, keys, drop reasons, and every routing decision as a
//! pure function.
//!
//! ```text
//!   packet bytes --parse--> Packet --route(hook, tables)--> Outcome, Rewrite --checksum--> packet bytes
//!                                    |
//!                 client -> reply -> open: three places where a flow may be found or made,
//!                 each over one bucket of one table (flow_table), under one lock bit
//! ```
//!
//! The kernel programs implement [`tables::Tables`] over BPF maps, the tests over plain memory; both run the same
//! [`route::route`], and a differential test holds the two against each other.
//!
//! # Invariants
//! - Every map value is `repr(C)` with explicit padding, asserted at compile time; no `bool`, `Option` or Rust enum.
//! - What has the network's byte order says so in its type: [`bytes::Be16`], [`bytes::Be32`], the addresses.
//! - A change of any layout raises [`ABI_VERSION`]; pinned maps of another version are refused, never misread.
//! - A flow has one slot. A slot that holds a live flow is only given to another when its bucket has none that is
//!   empty, closed or stale; that is counted ([`drop_reason::Event`]).
//!
//! # How to test
//! `cargo test -p portolan-abi` runs the unit and property tests; the packet tests are in the dataplane crate.
#![no_std]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "the verifier follows calls one by one: what is not inlined is either refused or slower"
)]

#[cfg(not(target_endian = "little"))]
compile_error!("the layouts are those of little-endian machines, as the kernel target bpfel is");

#[cfg(test)]
extern crate std;

pub mod address;
pub mod affinity;
pub mod backend;
pub mod bytes;
pub mod checksum;
pub mod choice;
pub mod client;
pub mod config;
pub mod counters;
pub mod crc32c;
pub mod drive;
pub mod drop_reason;
pub mod echo;
pub mod flow;
pub mod flow_table;
pub mod fragment;
pub mod hash;
pub mod hit;
pub mod icmp;
pub mod ip;
pub mod layout;
pub mod martian;
pub mod masquerade;
pub mod namespace;
pub mod network;
pub mod open;
pub mod outcome;
pub mod parse;
pub mod pod;
pub mod protocol;
pub mod quoted;
pub mod refusal;
pub mod reply;
pub mod report;
pub mod rewrite;
pub mod route;
pub mod sctp;
pub mod sender;
pub mod service;
pub mod socket;
pub mod socket_table;
pub mod source_nat;
pub mod source_range;
pub mod tables;
pub mod tcp;
pub mod too_big;
pub mod tunnel;

/// The version of every layout in this crate, kept in the first word of the node's configuration.
pub const ABI_VERSION: u32 = 4;
