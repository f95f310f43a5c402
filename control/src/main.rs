//! `portolan-control`: see the library's front page.

fn main() {}
