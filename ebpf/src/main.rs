//! The kernel programs of Portolan's dataplane.
//!
//! ```text
//!            world, other nodes                                    pods of this node
//!                   |                                                     ^ |
//!   uplink:  xdp_uplink --- source-NATed flows: XDP_TX ---> world         | |
//!                   | everything else                                     | |
//!            uplink_ingress (tcx) ---- redirect_peer ---------------------' |
//!                   ^                                                       v
//!                   '------ redirect_neigh ------ pod_egress (tcx, the node's end of a pod's veth)
//!
//!   a process of the node -> its stack -> node_egress (tcx, on the way out of lo, the uplink, a pod's veth)
//!        client's packet:   redirect to a pod's veth, redirect_neigh, or to lo's ingress for the node itself
//!        backend's reply:   on to its client as the frontend's
//!   reply to a process of the node: seen by pod_egress or uplink_ingress -> lo's ingress -> its stack
//! ```
//!
//! Processes of this node need not go that way: the socket hooks on their control group ([`socket`]) put a backend's
//! address in place of the frontend's when a socket connects or names a receiver, and no packet is translated at all.
//!
//! Each program is parse -> [`portolan_abi::route`] -> rewrite -> verdict. Before it, [`known`] tries the short way, by
//! [`portolan_abi::hit`], which most packets go. The decisions are in `portolan-abi`; here are only packet access, maps and
//! verdicts.
//!
//! # Invariants
//! - A packet is rewritten whole or not at all: what can fail is tried first, and what fails later drops the packet.
//! - XDP sends out only what comes in at the uplink and leaves by it again. What it leaves alone it has not changed,
//!   and `uplink_ingress` handles that the same way.
//! - What is for the node's own processes comes in at lo, where a source that is the node's own address is no forgery.
//! - XDP leaves packets alone whose checksum is still to be completed by a device, because XDP cannot say so of what
//!   it sends; tcx can.
//! - What takes more to read or to answer goes on to a slow program ([`slow`]), which starts anew from its bytes.
//! - `unsafe` is in `frame`, `handed`, `known`, `lock`, `maps`, `hops`, `bucket`, `socket_bucket`, `socket`, `stages`,
//!   `skb`, `xdp`, `edit` and `watch`, nowhere else.
//!
//! # How to build, inspect and test
//! `cargo xtask build-ebpf`; `bpftool prog show`, `bpftool map dump pinned DIR/BACKENDS`; the tests are in
//! `dataplane/tests`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::inline_always,
    reason = "the verifier follows calls one by one: what is not inlined is either refused or slower"
)]

mod bucket;
mod count;
mod edit;
mod exits;
mod frame;
mod handed;
mod hooks;
mod hops;
mod known;
mod lock;
mod maps;
mod skb;
mod slow;
mod socket;
mod socket_bucket;
mod stages;
mod tc;
mod tunnel;
mod uplink;
mod watch;
mod world;
mod xdp;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
