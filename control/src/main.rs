//! `portolan-control`: see the library's front page.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use portolan_control::cli::{Cli, Command, TokenCommand};
use portolan_control::{backups, run, token_client};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portolan-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(options) => {
                let shutdown = stopped_by_signals().context("can't wait for signals")?;
                run::serve(options, shutdown).await?;
            }
            Command::Token {
                command: TokenCommand::Create(options),
            } => println!("{}", token_client::create(&options).await?),
            Command::Backup(options) => println!("{}", backups::backup(&options).await?),
            Command::Restore(options) => println!("{}", backups::restore(&options).await?),
        }
        Ok(())
    })
}

/// A token that SIGTERM and SIGINT cancel.
fn stopped_by_signals() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(shutdown)
}
