//! The socket hooks: attaching them to a control group, replacing them, and detaching them.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, Program, ProgramError,
        links::{FdLink, LinkError},
    },
};

use super::{Programs, absent, kernel, unhook};
use crate::{Error, maps::failed, sys};

/// The programs, in the order in which they are attached: no socket is given a backend before all is there that tells it
/// the frontend again and forgets it.
pub const HOOKS: [&str; 9] = [
    "socket_release",
    "socket_receive4",
    "socket_receive6",
    "socket_peer4",
    "socket_peer6",
    "socket_send4",
    "socket_send6",
    "socket_connect4",
    "socket_connect6",
];

/// What became of loading the socket hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// The kernel has them.
    Loaded,
    /// The kernel has not what they need, and said so.
    Refused(String),
}

fn load(object: &mut Ebpf) -> Result<(), ProgramError> {
    for name in HOOKS {
        match object.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => program.load()?,
            Some(Program::CgroupSock(program)) => program.load()?,
            _ => {}
        }
    }
    Ok(())
}

impl Programs {
    /// Loads the socket hooks, unless they are.
    pub(super) fn hooks(&mut self) -> &Hooks {
        self.hooks
            .get_or_insert_with(|| match load(&mut self.object) {
                Ok(()) => Hooks::Loaded,
                Err(error) => Hooks::Refused(format!("{error:?}")),
            })
    }

    fn socket_pin(&self, hook: &str) -> PathBuf {
        self.sockets.join(hook)
    }

    /// Replaces the programs behind pinned links; links of a control group that is gone go too.
    pub(super) fn adopt_sockets(&mut self) -> Result<(), Error> {
        for hook in HOOKS {
            let path = self.socket_pin(hook);
            match sys::link_cgroup(&path) {
                Ok(group) if group != 0 => self.replace_socket_hook(hook, &path)?,
                Ok(_) => unhook(&path)?,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed("open link", &path, error)),
            }
        }
        Ok(())
    }

    fn replace_socket_hook(&mut self, hook: &str, path: &Path) -> Result<(), Error> {
        if *self.hooks() != Hooks::Loaded {
            return unhook(path);
        }
        let program = match self.object.program(hook) {
            Some(Program::CgroupSockAddr(program)) => program.fd(),
            Some(Program::CgroupSock(program)) => program.fd(),
            _ => return Err(absent(hook)),
        };
        let program = program.map_err(|source| kernel("use program", Path::new(hook), source))?;
        sys::replace_program(path, program.as_fd())
            .map_err(|error| failed("replace program of", path, error))
    }

    /// Attaches the socket hooks to a control group of version 2, and to no other. Idempotent.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), Error> {
        if let Hooks::Refused(reason) = self.hooks() {
            tracing::debug!(reason, "the socket hooks were not loaded");
            return Err(Error::FeatureMissing {
                feature: "socket hooks that can refuse a connection",
                since: "5.18",
                source: None,
            });
        }
        let read = |error| failed("open control group", cgroup, error);
        let group = File::open(cgroup).map_err(read)?;
        let id = group.metadata().map_err(read)?.ino();
        for hook in HOOKS {
            let path = self.socket_pin(hook);
            match sys::link_cgroup(&path) {
                Ok(attached) if attached == id => continue,
                Ok(_) => unhook(&path)?,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed("open link", &path, error)),
            }
            let link = self.attach_socket_hook(hook, cgroup, &group)?;
            link.pin(&path)
                .map_err(|source| kernel("pin", &path, source))?;
        }
        Ok(())
    }

    fn attach_socket_hook(
        &mut self,
        hook: &str,
        cgroup: &Path,
        group: &File,
    ) -> Result<FdLink, Error> {
        let failed = |source| kernel("attach socket hooks to", cgroup, source);
        let unpinnable = |source: LinkError| kernel("pin link of", Path::new(hook), source);
        let mode = CgroupAttachMode::Single;
        // aya's links are of as many types as there are kinds of programs.
        match self.object.program_mut(hook) {
            Some(Program::CgroupSockAddr(program)) => {
                let id = program.attach(group, mode).map_err(failed)?;
                let link = program.take_link(id).map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
            Some(Program::CgroupSock(program)) => {
                let id = program.attach(group, mode).map_err(failed)?;
                let link = program.take_link(id).map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
            _ => Err(absent(hook)),
        }
    }

    /// Detaches the socket hooks, in the opposite order; succeeds if they are not attached.
    pub fn detach_sockets(&self) -> Result<(), Error> {
        HOOKS
            .iter()
            .rev()
            .try_for_each(|hook| unhook(&self.socket_pin(hook)))
    }

    /// Whether every socket hook hangs on a control group that exists.
    pub fn has_sockets(&self) -> bool {
        HOOKS
            .iter()
            .all(|hook| sys::link_cgroup(&self.socket_pin(hook)).is_ok_and(|group| group != 0))
    }
}
