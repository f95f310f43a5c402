//! What the tcx programs hand over.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::slow;

/// Routes what takes more to read.
#[classifier]
pub fn slow_tcx(context: TcContext) -> i32 {
    slow::tc(&context)
}
