//! `apply`, `run` and `detach`: making the host as the file says, keeping it so, and leaving it as it was.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use portolan_dataplane::{Config, Dataplane, model::XdpMode};

use crate::{
    declaration::{self, Declaration},
    pins,
};

/// Where maps and links are pinned.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The folder of the pinned maps and links, on a bpf file system
    #[arg(
        long,
        env = "PORTOLAN_LB_PINS",
        default_value = "/sys/fs/bpf/portolan-lb"
    )]
    pub pins: PathBuf,
}

/// What `apply` and `run` need to know.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The file that says what the host is to do, in YAML or JSON
    #[arg(short, long)]
    file: PathBuf,
    /// An object with kernel programs in place of the built-in ones
    #[arg(long)]
    ebpf_object: Option<PathBuf>,
    #[command(flatten)]
    pins: PinArgs,
}

/// Makes the host as the file says.
pub fn apply(args: &ApplyArgs) -> Result<()> {
    let declaration = declaration::read(&args.file)?;
    let mut dataplane = open(args, &declaration)?;
    install(&mut dataplane, &declaration)?;
    dataplane.sweep()?;
    Ok(())
}

/// The same, again whenever the file changes, until it is told to end; what it made stays.
pub fn run(args: &ApplyArgs) -> Result<()> {
    let declaration = declaration::read(&args.file)?;
    let mut dataplane = open(args, &declaration)?;
    install(&mut dataplane, &declaration)?;
    let end = end_by_signal()?;
    keep(args, &mut dataplane, &end);
    Ok(())
}

/// Becomes true when this process is told to end. Before any other thread is made.
pub fn end_by_signal() -> Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("wait for signals")?;
    let end = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&end);
    thread::spawn(move || {
        // Whatever ends the wait, a process that nothing could end would be worse.
        if let Err(error) = signals.wait() {
            eprintln!("cannot wait for signals: {error}");
        }
        told.store(true, Ordering::Release);
    });
    Ok(end)
}

fn keep(args: &ApplyArgs, dataplane: &mut Dataplane, end: &AtomicBool) {
    let mut seen = changed(&args.file);
    while !end.load(Ordering::Acquire) {
        thread::sleep(Duration::from_secs(1));
        // An uplink that is gone comes back, perhaps; flows age meanwhile.
        if let Err(error) = dataplane.sweep() {
            eprintln!("{error}");
        }
        let now = changed(&args.file);
        if now != seen {
            seen = now;
            let applied = declaration::read(&args.file)
                .and_then(|declaration| install(dataplane, &declaration));
            if let Err(error) = applied {
                eprintln!("the last file that was good stays in force: {error:#}");
            }
        }
    }
}

fn changed(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file)
        .and_then(|file| file.modified())
        .ok()
}

fn open(args: &ApplyArgs, declaration: &Declaration) -> Result<Dataplane> {
    pins::ensure(&args.pins.pins)?;
    let mut config = Config::new(
        args.ebpf_object.clone(),
        args.pins.pins.clone(),
        declaration.addresses.clone(),
    );
    config.xdp = declaration.uplink.as_ref().and_then(|uplink| uplink.xdp);
    Ok(Dataplane::open(config)?)
}

fn install(dataplane: &mut Dataplane, declaration: &Declaration) -> Result<()> {
    match &declaration.uplink {
        Some(uplink) => {
            let mode = dataplane.attach_uplink(&uplink.name)?;
            println!("{}: uplink, XDP {}", uplink.name, mode_name(mode));
        }
        None => dataplane.detach_uplink()?,
    }
    let wanted: BTreeSet<&str> = declaration
        .ports
        .iter()
        .map(|port| port.host_interface.as_str())
        .collect();
    for port in dataplane.pods()? {
        if !wanted.contains(port.host_interface.as_str()) {
            dataplane.detach_pod(&port.host_interface)?;
            println!("{}: detached", port.host_interface);
        }
    }
    for port in &declaration.ports {
        dataplane.attach_pod(port)?;
        println!("{}: port", port.host_interface);
    }
    for service in &declaration.services {
        dataplane.upsert(service)?;
    }
    let keep = declaration
        .services
        .iter()
        .map(|service| service.name.clone())
        .collect();
    let gone = dataplane.prune(&keep)?;
    println!("{} services, {gone} taken away", declaration.services.len());
    Ok(())
}

fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Absent => "off",
    }
}

/// Takes everything away.
pub fn detach(args: &PinArgs) -> Result<()> {
    Dataplane::remove_pins(&args.pins)?;
    match std::fs::remove_dir(&args.pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", args.pins.display()))
        }
        _ => Ok(()),
    }
}
