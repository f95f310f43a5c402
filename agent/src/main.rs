//! `portolan-agent`: see the library's front page.

fn main() {}
