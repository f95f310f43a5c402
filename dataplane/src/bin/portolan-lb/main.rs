//! `portolan-lb`: the dataplane alone, for a host with no cluster.

#![forbid(unsafe_code)]

mod bench;
mod pins;
mod space;

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
    /// Measure what each way through this host costs
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(options) => bench::run(&options),
    }
}
