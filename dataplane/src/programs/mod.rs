//! Loading the kernel object, and running its programs on packets. aya stays in this module.

mod links;
mod slow;
mod sockets;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp},
    util::KernelVersion,
};

use portolan_abi::socket_table::WAYS;

use crate::{Capacity, Config, Error, maps::failed, model::TcMode, object, sys};

pub use links::{interface_of, unhook};
use sockets::Hooks;

/// The folder of the links, among the pins.
pub const LINKS: &str = "links";
/// The folder of the socket hooks' links, among the pins.
pub const SOCKETS: &str = "sockets";
/// The XDP program on the uplink.
pub const XDP: &str = "xdp_uplink";
/// The program on pods' veths.
pub const POD: &str = "pod_egress";
/// The tcx program on the uplink.
pub const UPLINK: &str = "uplink_ingress";
/// The tcx program on whatever the node's own processes send by.
pub const NODE: &str = "node_egress";
/// The interface of the node's processes among themselves.
pub const LOOPBACK: &str = "lo";

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
    links: PathBuf,
    /// How tc programs are attached from now on.
    mode: TcMode,
    /// The folder of the socket hooks' links.
    sockets: PathBuf,
    /// Whether the socket hooks are loaded, which takes as long as all the rest: not before they are needed.
    hooks: Option<Hooks>,
}

impl Programs {
    /// Loads the object: maps that are pinned are used as they are, others are made and pinned. Of the programs, those of
    /// the ways that are wanted are loaded.
    pub fn load(config: &Config) -> Result<Self, Error> {
        let (file, pins) = (config.object.as_deref(), config.pin_dir.as_path());
        let is_old = !is_at_least(5, 12);
        if is_old {
            tracing::info!("this kernel is older than 5.12: its programs lock buckets by addition");
        }
        let mut bytes = object::node(file, is_old)?;
        let has_fragments = prepare(&mut bytes);
        let name = file.unwrap_or(Path::new("the built-in kernel programs"));
        let mut loader = EbpfLoader::new();
        let jiffies =
            sys::clock::jiffies().map_err(|error| failed("ask for jiffies for", name, error))?;
        loader
            .override_global("NANOSECONDS_PER_JIFFY", &jiffies.nanoseconds, true)
            .override_global("FIRST_JIFFY", &jiffies.first, true);
        if !has_fragments {
            tracing::info!("this kernel's XDP has no packets in fragments: it takes none of them");
            loader.override_global("XDP_FRAGMENTS", &0_u32, true);
        }
        loader
            .default_map_pin_directory(pins)
            // Of a program that is refused, the reason without every instruction on the way to it.
            .verifier_log_level(VerifierLogLevel::STATS);
        size(&mut loader, &config.capacity);
        let mut object_code = loader
            .load(&bytes)
            .map_err(|source| kernel("load", name, source))?;
        for (name, program) in object_code.programs_mut() {
            let result = match program {
                Program::Xdp(program) if config.ways.xdp => program.load(),
                Program::SchedClassifier(program) if config.ways.tcx => program.load(),
                _ => continue,
            };
            if let Err(error) = &result
                && slow::is_slow(name)
            {
                tracing::warn!(
                    program = name,
                    error = error as &dyn std::error::Error,
                    "this kernel refuses the program for fragments, ICMP errors, SCTP and the like: they are left to its stack"
                );
                continue;
            }
            let name = name.to_owned();
            result.map_err(|source| kernel("load program", Path::new(&name), source))?;
        }
        slow::join(&mut object_code)?;
        let [links, sockets] = [LINKS, SOCKETS].map(|folder| pins.join(folder));
        for folder in [&links, &sockets] {
            fs::create_dir_all(folder).map_err(|error| failed("make folder", folder, error))?;
        }
        Ok(Self {
            object: object_code,
            links,
            mode: config.tc.unwrap_or_else(tc_mode),
            sockets,
            hooks: None,
        })
    }

    fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        let program = self.object.program_mut(XDP).ok_or_else(|| absent(XDP))?;
        program
            .try_into()
            .map_err(|source| kernel("use program", Path::new(XDP), source))
    }

    fn tc(&mut self, name: &str) -> Result<&mut SchedClassifier, Error> {
        let program = self.object.program_mut(name).ok_or_else(|| absent(name))?;
        program
            .try_into()
            .map_err(|source| kernel("use program", Path::new(name), source))
    }

    /// Runs a program on a packet, as if the packet had come in at an interface; nothing is sent.
    pub fn run(&self, name: &str, packet: &[u8], interface: u32) -> Result<Run, Error> {
        run(&self.object, name, packet, interface, 1)
    }

    /// The loaded object.
    pub fn object(&self) -> &Ebpf {
        &self.object
    }

    /// What the kernel says of each program that is loaded, socket hooks included.
    pub fn info(&mut self) -> Result<Vec<ProgramInfo>, Error> {
        self.hooks();
        let mut all = Vec::new();
        for (name, program) in self.object.programs() {
            if program.fd().is_err() {
                continue;
            }
            let info = program
                .info()
                .map_err(|source| kernel("look at program", Path::new(name), source))?;
            all.push(ProgramInfo {
                name: name.to_owned(),
                instructions: info.verified_instruction_count().unwrap_or(0),
                bytes: info.size_jitted(),
            });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// Says how large the maps are.
fn size(loader: &mut EbpfLoader<'_>, capacity: &Capacity) {
    let slots = portolan_abi::flow::SLOTS;
    loader
        .map_max_entries("SERVICES_V4", capacity.frontends)
        .map_max_entries("SERVICES_V6", capacity.frontends)
        .map_max_entries("CHOICES", capacity.choice_lines)
        .map_max_entries("BACKENDS", capacity.backends)
        .map_max_entries("LOADS", capacity.backends)
        .map_max_entries("SHARES", capacity.services)
        .map_max_entries("RANGES", capacity.source_ranges)
        .map_max_entries("NETWORKS", capacity.networks)
        .map_max_entries("AFFINITY", capacity.affinities)
        .map_max_entries(
            "FLOWS_V4",
            capacity.flows_v4.next_power_of_two().max(slots) / slots,
        )
        .map_max_entries(
            "FLOWS_V6",
            capacity.flows_v6.next_power_of_two().max(slots) / slots,
        )
        .map_max_entries(
            "SOCKETS",
            capacity.sockets.next_power_of_two().max(WAYS) / WAYS,
        )
        .map_max_entries("PODS_V4", capacity.pod_addresses)
        .map_max_entries("PODS_V6", capacity.pod_addresses)
        .map_max_entries("NAMESPACES", capacity.pod_addresses)
        .map_max_entries("COUNTS", capacity.services)
        .map_max_entries("RECORDS", capacity.services);
}

/// Runs a program of an object over and over on one packet, which stays as each run leaves it.
pub fn run(
    object: &Ebpf,
    name: &str,
    packet: &[u8],
    interface: u32,
    repeat: u32,
) -> Result<Run, Error> {
    let program = object.program(name).ok_or_else(|| absent(name))?;
    let mut out = vec![0; packet.len() + 512];
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.data_out = Some(&mut out);
    options.repeat = repeat;
    let object = Path::new(name);
    let result = match program {
        Program::Xdp(program) => {
            let context = xdp_context(packet.len(), interface);
            // Before 5.14, the packet of a run of XDP comes in at the namespace's loopback interface.
            options.ctx_in = is_at_least(5, 14).then_some(context.as_slice());
            program.test_run(options)
        }
        Program::SchedClassifier(program) => {
            let context = skb_context(interface);
            options.ctx_in = Some(&context);
            program.test_run(options)
        }
        _ => return Err(absent(name)),
    };
    let result = result.map_err(|source| kernel("run program", object, source))?;
    out.truncate(result.data_size_out as usize);
    Ok(Run {
        verdict: result.return_value.cast_signed(),
        packet: out,
        duration: result.duration,
    })
}

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its name.
    pub name: String,
    /// How many instructions the verifier looked at; 0 where the kernel does not say.
    pub instructions: u32,
    /// Its size as machine code.
    pub bytes: u32,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it returned.
    pub verdict: i32,
    /// What it left of the packet.
    pub packet: Vec<u8>,
    /// How long the kernel says that it took.
    pub duration: Duration,
}

/// `struct xdp_md` of a packet of a length that came in at an interface.
fn xdp_context(length: usize, interface: u32) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    [0, length, 0, interface, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// `struct __sk_buff` of a packet that came in at an interface: `ifindex` is its eleventh word.
fn skb_context(interface: u32) -> Vec<u8> {
    let mut words = [0_u32; 48];
    words[10] = interface;
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Whether this kernel is of a version or newer. One that does not say which it is, is taken to be.
fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().map_or(true, |version| {
        version >= KernelVersion::new(major, minor, 0)
    })
}

/// What this kernel has.
fn tc_mode() -> TcMode {
    if is_at_least(6, 6) {
        return TcMode::Tcx;
    }
    tracing::warn!("this kernel has no tcx (Linux 6.6 and newer have it): attaching by clsact");
    TcMode::Clsact
}

/// Makes ready for loading an object: what this kernel cannot load is taken out. Whether XDP may take packets in fragments.
pub fn prepare(object: &mut [u8]) -> bool {
    sys::lift_memory_limit();
    let has_fragments = is_at_least(5, 18);
    if !has_fragments {
        without_fragments(object);
    }
    has_fragments
}

/// Makes the object's XDP programs ones that take whole packets alone. That they take others, their section's name says.
fn without_fragments(object: &mut [u8]) {
    // The section's relocations may share the name: ".relxdp.frags".
    const NAME: &[u8] = b"xdp.frags\0";
    let mut at = 0;
    while let Some(found) = object[at..]
        .windows(NAME.len())
        .position(|window| window == NAME)
    {
        at += found;
        object[at + b"xdp".len()] = 0;
    }
}

/// There is no such program or map.
pub fn absent(program: &str) -> Error {
    Error::Kernel {
        operation: "find program",
        object: program.to_owned(),
        source: "the object has no such program".into(),
    }
}

/// An error of the loader's.
pub fn kernel(
    operation: &'static str,
    object: &Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Kernel {
        operation,
        object: object.display().to_string(),
        source: Box::new(source),
    }
}
