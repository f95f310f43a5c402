//! The socket hooks as the dataplane's callers see them.

use std::path::Path;

use super::Dataplane;
use crate::Error;

impl Dataplane {
    /// Attaches the socket hooks to a control group of version 2: sockets of the processes in it and below it are given
    /// their backend when they connect or name a receiver. Idempotent; what hung on another group is detached.
    ///
    /// Fails with [`Error::FeatureMissing`] where the kernel has no hooks that can refuse a connection. Everything works
    /// without them, packet by packet.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), Error> {
        self.programs.attach_sockets(cgroup)
    }

    /// Detaches the socket hooks. Connections go on; from then on they are told their backend's address as their peer's,
    /// and replies to datagrams of before have the backend as their sender. Succeeds if they are not attached.
    pub fn detach_sockets(&mut self) -> Result<(), Error> {
        self.programs.detach_sockets()
    }

    /// Whether the socket hooks are attached.
    pub fn has_sockets(&self) -> bool {
        self.programs.has_sockets()
    }

    /// Ends sockets that are connected to a backend that has been released since the last call.
    pub(super) fn follow_deaths(&mut self) {
        if self.backends.take_released() {
            self.ender.end_dead(&self.maps);
        }
    }
}
