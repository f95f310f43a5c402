//! `cargo xtask`: every developer command, one file each.

fn main() {}
