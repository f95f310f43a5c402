//! What keeps the programs attached when this process ends: a pin for each, named PROGRAM-INTERFACE.
//!
//! XDP and tcx have links of the kernel's, which are pinned. A clsact filter has none; it stays until it is taken away,
//! and its pin is a symbolic link that says the interface's number.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    xdp::XdpLink,
};

use super::{LOOPBACK, NODE, Programs, UPLINK, XDP, kernel};
use crate::{
    Error,
    maps::failed,
    model::{TcMode, XdpMode},
    sys,
};

/// Where our filters stand among those of an interface: first, as tcx programs stand before all filters. The handle is
/// one that nobody is given who asks for none.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x706f);

impl Programs {
    /// Replaces the programs behind all pins by those just loaded; pins of interfaces that are gone go too.
    pub fn adopt(&mut self) -> Result<(), Error> {
        for (name, interface) in self.pinned()? {
            let path = self.links.join(&name);
            if interface != 0 && self.replace(&name, &path, interface).is_ok() {
                continue;
            }
            tracing::warn!(
                link = name,
                "its interface is gone or its link is broken: removing it"
            );
            unhook(&path)?;
        }
        self.adopt_sockets()
    }

    fn replace(&mut self, name: &str, path: &Path, interface: u32) -> Result<(), Error> {
        if path.is_symlink() {
            return self.replace_filter(program_of(name), path, interface);
        }
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
            let program = self.tc(program_of(name))?;
            let id = program
                .attach_to_link(link)
                .map_err(|source| kernel("replace program of", path, source))?;
            program
                .take_link(id)
                .map(drop)
                .map_err(|source| kernel("keep", path, source))
        }
    }

    /// The kernel swaps the program of the filter that has the same place.
    fn replace_filter(&mut self, program: &str, path: &Path, index: u32) -> Result<(), Error> {
        let interface =
            sys::name_of(index).map_err(|error| failed("find interface of", path, error))?;
        let filter = filter(&interface, direction(program))
            .map_err(|source| kernel("find filter of", path, source))?;
        let loaded = self.tc(program)?;
        let id = loaded
            .attach_to_link(filter)
            .map_err(|source| kernel("replace program of", path, source))?;
        let link = loaded
            .take_link(id)
            .map_err(|source| kernel("keep", path, source))?;
        // Dropped, it would take the filter away.
        std::mem::forget(link);
        Ok(())
    }

    /// The pins with the interfaces that their programs are attached to; 0 for one that is gone.
    pub fn pinned(&self) -> Result<Vec<(String, u32)>, Error> {
        let read = |error| failed("list", &self.links, error);
        let mut pinned = Vec::new();
        for entry in fs::read_dir(&self.links).map_err(read)? {
            let entry = entry.map_err(read)?;
            let interface = interface_of(&entry.path()).unwrap_or(0);
            pinned.push((entry.file_name().to_string_lossy().into_owned(), interface));
        }
        Ok(pinned)
    }

    /// Where the link of a program on an interface is pinned.
    fn pin(&self, program: &str, interface: &str) -> PathBuf {
        // A bpffs refuses names with dots, which those of VLAN interfaces have.
        self.links
            .join(format!("{program}-{}", interface.replace('.', ",")))
    }

    /// How tc programs are attached.
    pub fn tc_mode(&self) -> TcMode {
        self.mode
    }

    /// Attaches a tc program to an interface, unless it is already.
    pub fn attach_tc(&mut self, program: &str, interface: &str, index: u32) -> Result<(), Error> {
        let path = self.pin(program, interface);
        if attached(&path, index)? {
            return Ok(());
        }
        match self.mode {
            TcMode::Tcx => self.attach_tcx(program, interface, &path),
            TcMode::Clsact => self.attach_filter(program, interface, index, &path),
        }
    }

    fn attach_tcx(&mut self, program: &str, interface: &str, path: &Path) -> Result<(), Error> {
        let loaded = self.tc(program)?;
        let order = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::default());
        let id = loaded
            .attach_with_options(interface, direction(program), order)
            .map_err(|source| kernel("attach tcx to", Path::new(interface), source))?;
        let link = loaded
            .take_link(id)
            .map_err(|source| kernel("keep", path, source))?;
        let link = FdLink::try_from(link).map_err(|_| Error::FeatureMissing {
            feature: "tcx",
            since: "6.6",
            source: None,
        })?;
        link.pin(path)
            .map(drop)
            .map_err(|source| kernel("pin", path, source))
    }

    fn attach_filter(
        &mut self,
        program: &str,
        interface: &str,
        index: u32,
        path: &Path,
    ) -> Result<(), Error> {
        let object = Path::new(interface);
        match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            // It stays when filters go, and may be another's.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(kernel("add clsact to", object, error)),
        }
        // What a process that died before it had written the pin left behind.
        drop(filter(interface, direction(program)));
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            classid: None,
        });
        let loaded = self.tc(program)?;
        let id = loaded
            .attach_with_options(interface, direction(program), options)
            .map_err(|source| kernel("attach filter to", object, source))?;
        let link = loaded
            .take_link(id)
            .map_err(|source| kernel("keep", path, source))?;
        symlink(index.to_string(), path).map_err(|error| failed("pin", path, error))?;
        // Dropped, it would take the filter away.
        std::mem::forget(link);
        Ok(())
    }

    /// Attaches XDP to an interface, unless it is already: in the driver, else in the stack, else not at all.
    ///
    /// With a wish, only as wished.
    pub fn attach_xdp(
        &mut self,
        interface: &str,
        index: u32,
        wish: Option<XdpMode>,
    ) -> Result<XdpMode, Error> {
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
            if wish.is_some_and(|wish| wish != mode) {
                continue;
            }
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
                        source: None,
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

    /// Attaches the program for the node's own processes to its uplink and its loopback interface.
    pub fn attach_node(&mut self, uplink: &str, index: u32) -> Result<(), Error> {
        let loopback =
            sys::index_of(LOOPBACK).map_err(|_| Error::InterfaceMissing(LOOPBACK.to_owned()))?;
        self.attach_tc(NODE, uplink, index)?;
        self.attach_tc(NODE, LOOPBACK, loopback)
    }

    /// Detaches what hangs on an uplink or a tunnel that is no longer the node's; 0 is none.
    pub fn leave_other_uplinks(&self, uplink: u32, tunnel: u32) -> Result<(), Error> {
        for (name, interface) in self.pinned()? {
            if interface != 0 && [uplink, tunnel].contains(&interface) {
                continue;
            }
            if let Some(uplink) = name.strip_prefix(UPLINK) {
                unhook(&self.links.join(format!("{NODE}{uplink}")))?;
            }
            if name.starts_with(XDP) || name.starts_with(UPLINK) {
                unhook(&self.links.join(name))?;
            }
        }
        if uplink == 0 {
            self.detach(NODE, LOOPBACK)?;
        }
        Ok(())
    }

    /// Detaches XDP from an interface, in whatever mode it runs.
    pub fn detach_xdp(&self, interface: &str) -> Result<(), Error> {
        ["native", "generic"]
            .iter()
            .try_for_each(|word| self.detach(&format!("{XDP}_{word}"), interface))
    }

    /// Detaches a program from an interface; succeeds if it is not attached.
    pub fn detach(&self, program: &str, interface: &str) -> Result<(), Error> {
        unhook(&self.pin(program, interface))
    }
}

/// The program that a pin is of.
fn program_of(name: &str) -> &str {
    name.split('-').next().unwrap_or_default()
}

/// On which side of an interface a tc program stands.
fn direction(program: &str) -> TcAttachType {
    if program == NODE {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

/// Our filter on an interface, to be replaced, or dropped to take it away.
fn filter(interface: &str, direction: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None)
}

/// The interface that a pin's program is attached to; 0 when that interface is gone.
pub fn interface_of(path: &Path) -> io::Result<u32> {
    if !path.is_symlink() {
        return sys::link_interface(path);
    }
    let target = fs::read_link(path)?;
    let index = target.to_str().and_then(|text| text.parse().ok());
    Ok(index
        .filter(|index| sys::name_of(*index).is_ok())
        .unwrap_or(0))
}

/// Whether a program is attached to the interface; what is attached to another of the same name is detached.
fn attached(path: &Path, index: u32) -> Result<bool, Error> {
    match interface_of(path) {
        Ok(interface) if interface == index => Ok(true),
        Ok(_) => unhook(path).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(failed("open link", path, error)),
    }
}

/// Detaches the program of a pin, if it is there, and removes the pin.
pub fn unhook(path: &Path) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.is_symlink()
        && let Ok(index) = interface_of(path)
        && let Ok(interface) = sys::name_of(index)
    {
        drop(filter(&interface, direction(program_of(&name))));
    } else if let Err(error) = sys::detach_link(path) {
        // Of an interface that is gone, there is nothing left to detach.
        tracing::debug!(link = %name, %error, "not detached");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unpin", path, error)),
        _ => Ok(()),
    }
}
