//! An XDP program that lets every packet pass, without maps, so that any loader can attach it.
//!
//! A veth drops what its peer's XDP program sends out (`XDP_TX`) unless it runs a program itself: this one will do.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "the macro makes a function of its own")]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Passes.
#[xdp(frags)]
pub fn xdp_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
