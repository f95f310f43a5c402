//! A server that says which pod and node it is, over HTTP and UDP, and a client that counts who answered.
//!
//! It is built as one static executable, so that an image needs nothing else. It has no dependency that a container
//! without a C library would miss, and reads its arguments by hand.
//!
//! ```text
//! portolan-demo serve [--port 8080]
//! portolan-demo load --target ADDR:PORT --protocol tcp|udp [--requests N | --seconds S] [--workers W] [--timeout-ms T]
//!                    [--pause-us U] [--first-port P]
//! portolan-demo idle
//! portolan-demo exit CODE [AFTER_SECONDS]
//! ```

#![forbid(unsafe_code)]

mod arguments;
mod load;
mod report;
mod serve;

use std::{process::ExitCode, thread, time::Duration};

use nix::sys::signal::{SigSet, Signal};

use arguments::Arguments;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(message) => {
            eprintln!("portolan-demo: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let mut arguments = Arguments::of_process();
    match arguments.command().as_deref() {
        Some("serve") | None => {
            // Threads inherit the mask, so it must be there before them.
            let ends = blocked_ends()?;
            serve::start(arguments.number("--port", 8080)?)?;
            until_told_to_end(&ends)
        }
        Some("idle") => until_told_to_end(&blocked_ends()?),
        Some("load") => {
            let plan = load::Plan::from_arguments(&mut arguments)?;
            let report = load::run(&plan);
            println!("{}", report.to_json());
            Ok(if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Some("exit") => {
            let code = arguments.positional(0)?;
            let after = arguments.positional(0).unwrap_or(0);
            thread::sleep(Duration::from_secs(after));
            eprintln!("ending with {code}");
            Ok(ExitCode::from(
                u8::try_from(code).map_err(|_| format!("{code} is not an exit code"))?,
            ))
        }
        Some(other) => Err(format!("there is no command {other:?}")),
    }
}

/// Holds SIGTERM and SIGINT back for [`until_told_to_end`]. As the first process of a container we would otherwise be
/// deaf to them: the kernel delivers to a pid namespace's first process only what it asked for.
fn blocked_ends() -> Result<SigSet, String> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()
        .map_err(|error| format!("block signals: {error}"))?;
    Ok(ends)
}

fn until_told_to_end(ends: &SigSet) -> Result<ExitCode, String> {
    let signal = ends
        .wait()
        .map_err(|error| format!("wait for a signal: {error}"))?;
    eprintln!("ending on {signal}");
    Ok(ExitCode::SUCCESS)
}
