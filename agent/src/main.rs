//! `portolan-agent`: see the library's front page.

#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use portolan_agent::{
    admin::Request,
    cli::{Cli, Command, ImageCommand},
    image,
    query::{images, query, watch},
    run, runtime,
    teardown::teardown,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match args.split_first() {
        // Before anything that makes a thread: see `runtime::shim`.
        Some((verb, rest)) if verb == "shim" => return runtime::shim_main(rest),
        _ => {}
    }
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    let show = |args: portolan_agent::cli::QueryArgs, request| -> anyhow::Result<()> {
        print!("{}", query(&args.state_dir, request, args.json)?);
        Ok(())
    };
    match command {
        Command::Run(args) => {
            log_to_stderr();
            // rustls wants to be told which of its providers a process uses.
            let provider = rustls::crypto::ring::default_provider();
            if provider.install_default().is_err() {
                tracing::debug!("a crypto provider is installed already");
            }
            async_runtime()?.block_on(run::run(*args))
        }
        Command::Services(args) => show(args, Request::Services),
        Command::Flows(args) if args.follow => Ok(watch(
            &args.query.state_dir,
            args.filter.flows(),
            args.filter.count,
            args.query.json,
        )?),
        Command::Flows(args) => show(args.query, Request::Flows),
        Command::Trace(args) => Ok(watch(
            &args.query.state_dir,
            args.filter.packets(),
            args.filter.count,
            args.query.json,
        )?),
        Command::Drops(args) => show(args, Request::Drops),
        Command::Status(args) => show(args, Request::Status),
        Command::Image(command) => image_command(command),
        Command::Teardown(args) => {
            log_to_stderr();
            async_runtime()?.block_on(teardown(&args.state_dir))
        }
    }
}

fn image_command(command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import {
            state_dir,
            name,
            path,
        } => {
            std::fs::create_dir_all(&state_dir)?;
            let mut progress = |line: &str| eprintln!("{line}");
            for name in image::import(&state_dir, name.as_deref(), &path, &mut progress)? {
                println!("{name}");
            }
        }
        ImageCommand::List(args) => print!("{}", images(&args.state_dir, args.json)?),
    }
    Ok(())
}

fn async_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

fn log_to_stderr() {
    // kube's client logs every failed request; what fails is said by the part that asked.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}
