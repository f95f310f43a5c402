//! `portolan-agent`: see the library's front page.

use std::{env, ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match args.split_first() {
        // Before anything that makes a thread: see `runtime::shim`.
        Some((verb, rest)) if verb == "shim" => portolan_agent::runtime::shim_main(rest),
        _ => ExitCode::FAILURE,
    }
}
