//! `portolan-lb`: the dataplane alone, for a host with no cluster.

#![forbid(unsafe_code)]

mod apply;
mod bench;
mod declaration;
mod interrupt;
mod pins;
mod space;
mod status;
mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Routes services by XDP and tcx on a host with no cluster, and measures forwarding paths.
#[derive(Debug, Parser)]
#[command(name = "portolan-lb", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this host as a file says: attach, make and change services, take away what the file does not name
    Apply(apply::ApplyArgs),
    /// The same, and go on: age flows, follow the file. What it made stays when it ends
    Run(apply::ApplyArgs),
    /// Show devices, services and counters
    Status(status::StatusArgs),
    /// Show services with their rates, over and over
    Watch(status::WatchArgs),
    /// Show what is decided on chosen packets
    Trace(trace::TraceArgs),
    /// Take everything away: programs, maps and pins
    Detach(apply::PinArgs),
    /// Measure what each way through this host costs
    Bench(bench::Options),
    /// Load a table, and say what that took: the benchmark asks a process of its own
    #[command(hide = true)]
    Hold(bench::HoldOptions),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<interrupt::Interrupted>() {
                ExitCode::from(interrupt::EXIT_CODE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Apply(args) => apply::apply(&args),
        Command::Run(args) => apply::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Watch(args) => status::watch(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Detach(args) => apply::detach(&args),
        Command::Bench(options) => bench::run(&options),
        Command::Hold(options) => bench::hold(&options),
    }
}
