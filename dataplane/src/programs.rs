//! Loading the kernel object, and the pinned links by which its programs stay attached. aya stays in this module.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions, Xdp,
        links::FdLink, links::PinnedLink, tc::SchedClassifierLink, xdp::XdpLink,
    },
};

use crate::{Capacity, Error, maps::failed, model::XdpMode, sys};

const XDP: &str = "xdp_uplink";
/// The program on pods' veths.
pub const POD: &str = "pod_egress";
/// The tcx program on the uplink.
pub const UPLINK: &str = "uplink_ingress";
const LINKS: &str = "links";

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
    links: PathBuf,
}

impl Programs {
    /// Loads the object: maps that are pinned are used as they are, others are made and pinned.
    pub fn load(object: &Path, pins: &Path, capacity: &Capacity) -> Result<Self, Error> {
        let bytes = fs::read(object).map_err(|source| Error::ObjectMissing {
            path: object.to_owned(),
            source,
        })?;
        let slots = portolan_abi::flow::SLOTS;
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(pins)
            // Of a program that is refused, the reason without every instruction on the way to it.
            .verifier_log_level(VerifierLogLevel::STATS)
            .map_max_entries("SERVICES_V4", capacity.frontends)
            .map_max_entries("SERVICES_V6", capacity.frontends)
            .map_max_entries("CHOICES", capacity.choice_lines)
            .map_max_entries("BACKENDS", capacity.backends)
            .map_max_entries("LOADS", capacity.backends)
            .map_max_entries("SHARES", capacity.services)
            .map_max_entries("RANGES", capacity.source_ranges)
            .map_max_entries("AFFINITY", capacity.affinities)
            .map_max_entries(
                "FLOWS_V4",
                capacity.flows_v4.next_power_of_two().max(slots) / slots,
            )
            .map_max_entries(
                "FLOWS_V6",
                capacity.flows_v6.next_power_of_two().max(slots) / slots,
            )
            .map_max_entries("PODS_V4", capacity.pod_addresses)
            .map_max_entries("PODS_V6", capacity.pod_addresses)
            .map_max_entries("COUNTS", capacity.services)
            .map_max_entries("RECORDS", capacity.services);
        let mut object_code = loader
            .load(&bytes)
            .map_err(|source| kernel("load", object, source))?;
        for (name, program) in object_code.programs_mut() {
            let result = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            let name = name.to_owned();
            result.map_err(|source| kernel("load program", Path::new(&name), source))?;
        }
        let links = pins.join(LINKS);
        fs::create_dir_all(&links).map_err(|error| failed("make folder", &links, error))?;
        Ok(Self {
            object: object_code,
            links,
        })
    }

    /// Replaces the programs behind all pinned links by those just loaded; links of interfaces that are gone go too.
    pub fn adopt(&mut self) -> Result<(), Error> {
        for (name, _) in self.pinned()? {
            let path = self.links.join(&name);
            if sys::link_interface(&path).is_ok_and(|interface| interface != 0)
                && self.replace(&name, &path).is_ok()
            {
                continue;
            }
            tracing::warn!(
                link = name,
                "its interface is gone or its link is broken: removing it"
            );
            remove(&path)?;
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, path: &Path) -> Result<(), Error> {
        let link =
            PinnedLink::from_pin(path).map_err(|source| kernel("open link", path, source))?;
        let link = FdLink::from(link);
        if name.starts_with(XDP) {
            let link =
                XdpLink::try_from(link).map_err(|source| kernel("use link", path, source))?;
            let program = self.xdp()?;
            let id = program
                .attach_to_link(link)
                .map_err(|source| kernel("replace program of", path, source))?;
            program
                .take_link(id)
                .map(drop)
                .map_err(|source| kernel("keep", path, source))
        } else {
            let link = SchedClassifierLink::try_from(link)
                .map_err(|source| kernel("use link", path, source))?;
            let program = self.tc(name.split('-').next().unwrap_or_default())?;
            let id = program
                .attach_to_link(link)
                .map_err(|source| kernel("replace program of", path, source))?;
            program
                .take_link(id)
                .map(drop)
                .map_err(|source| kernel("keep", path, source))
        }
    }

    /// The pinned links with the interfaces that they hang on.
    pub fn pinned(&self) -> Result<Vec<(String, u32)>, Error> {
        let read = |error| failed("list", &self.links, error);
        let mut pinned = Vec::new();
        for entry in fs::read_dir(&self.links).map_err(read)? {
            let entry = entry.map_err(read)?;
            let interface = sys::link_interface(&entry.path()).unwrap_or(0);
            pinned.push((entry.file_name().to_string_lossy().into_owned(), interface));
        }
        Ok(pinned)
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

    /// Where the link of a program on an interface is pinned.
    fn pin(&self, program: &str, interface: &str) -> PathBuf {
        // A bpffs refuses names with dots, which those of VLAN interfaces have.
        self.links
            .join(format!("{program}-{}", interface.replace('.', ",")))
    }

    /// Attaches a tcx program to an interface, unless it is already.
    pub fn attach_tcx(&mut self, program: &str, interface: &str, index: u32) -> Result<(), Error> {
        let path = self.pin(program, interface);
        if attached(&path, index)? {
            return Ok(());
        }
        let loaded = self.tc(program)?;
        let id = loaded
            .attach(interface, TcAttachType::Ingress)
            .map_err(|source| kernel("attach tcx to", Path::new(interface), source))?;
        let link = loaded
            .take_link(id)
            .map_err(|source| kernel("keep", &path, source))?;
        let link = FdLink::try_from(link).map_err(|_| Error::FeatureMissing {
            feature: "tcx",
            since: "6.6",
        })?;
        link.pin(&path)
            .map(drop)
            .map_err(|source| kernel("pin", &path, source))
    }

    /// Attaches XDP to an interface, unless it is already: in the driver, else in the stack, else not at all.
    pub fn attach_xdp(&mut self, interface: &str, index: u32) -> Result<XdpMode, Error> {
        let modes = [
            (XdpMode::Native, "native", aya::programs::XdpMode::Driver),
            (XdpMode::Generic, "generic", aya::programs::XdpMode::Skb),
        ];
        for (mode, word, _) in modes {
            if attached(&self.pin(&format!("{XDP}_{word}"), interface), index)? {
                return Ok(mode);
            }
        }
        for (mode, word, flag) in modes {
            let path = self.pin(&format!("{XDP}_{word}"), interface);
            match self.xdp()?.attach(interface, flag) {
                Ok(id) => {
                    let link = self
                        .xdp()?
                        .take_link(id)
                        .map_err(|source| kernel("keep", &path, source))?;
                    let link = FdLink::try_from(link).map_err(|_| Error::FeatureMissing {
                        feature: "XDP links",
                        since: "5.9",
                    })?;
                    link.pin(&path)
                        .map_err(|source| kernel("pin", &path, source))?;
                    return Ok(mode);
                }
                Err(ProgramError::UnknownInterface { name }) => {
                    return Err(Error::InterfaceMissing(name));
                }
                Err(error) => {
                    let error = kernel("attach XDP to", Path::new(interface), error);
                    tracing::warn!(
                        interface,
                        mode = word,
                        error = &error as &dyn std::error::Error,
                        "XDP cannot be attached in this mode"
                    );
                }
            }
        }
        Ok(XdpMode::Absent)
    }

    /// Detaches what hangs on an uplink that is no longer the node's.
    pub fn leave_other_uplinks(&self, index: u32) -> Result<(), Error> {
        for (name, interface) in self.pinned()? {
            if interface != index && (name.starts_with(XDP) || name.starts_with(UPLINK)) {
                remove(&self.links.join(name))?;
            }
        }
        Ok(())
    }

    /// Detaches a program from an interface; succeeds if it is not attached.
    pub fn detach(&self, program: &str, interface: &str) -> Result<(), Error> {
        remove(&self.pin(program, interface))
    }

    /// Runs a program on a packet, as if the packet had come in at an interface; nothing is sent.
    pub fn run(&self, name: &str, packet: &[u8], interface: u32) -> Result<Run, Error> {
        let program = self.object.program(name).ok_or_else(|| absent(name))?;
        let mut out = vec![0; packet.len() + 512];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let object = Path::new(name);
        let result = match program {
            Program::Xdp(program) => {
                let context = xdp_context(packet.len(), interface);
                options.ctx_in = Some(&context);
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

/// Whether a link is pinned and hangs on the interface; one that hangs on another is removed.
fn attached(path: &Path, index: u32) -> Result<bool, Error> {
    match sys::link_interface(path) {
        Ok(interface) if interface == index => Ok(true),
        Ok(_) => remove(path).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(failed("open link", path, error)),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unpin", path, error)),
        _ => Ok(()),
    }
}

fn absent(program: &str) -> Error {
    Error::Kernel {
        operation: "find program",
        object: program.to_owned(),
        source: "the object has no such program".into(),
    }
}

fn kernel(
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
