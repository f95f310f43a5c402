//! Watching packets: one flag in the node's configuration turns the programs' reports on, a map says which packets
//! are wanted, and a ring buffer brings them.

use std::{
    fs::File,
    io,
    mem::{offset_of, size_of},
    os::fd::AsFd,
    path::Path,
    sync::atomic::Ordering,
};

use aya::maps::{Map, MapData, RingBuf};
use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use portolan_abi::{
    config::{NodeConfig, flags},
    report::{Report, Watch},
};

use crate::{
    Error,
    maps::{failed, mapped, names},
    report::Filter,
    sys::{self, Mapped},
};

/// Reports as the programs wrote them; [`crate::Dataplane::describe`] puts them into words.
#[derive(Clone, Debug, Default)]
pub struct Observed(pub(crate) Vec<Report>);

/// Somebody who watches; packets are reported until it is dropped. Needs no [`crate::Dataplane`], only its pins.
pub struct Watcher {
    config: Mapped<NodeConfig>,
    reports: RingBuf<MapData>,
    // Held for as long as it watches.
    _only: Flock<File>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl Watcher {
    /// Waits until there is something to read; false if there is nothing after so many milliseconds.
    pub fn wait(&self, milliseconds: u16) -> Result<bool, Error> {
        let mut readable = [PollFd::new(self.reports.as_fd(), PollFlags::POLLIN)];
        match poll(&mut readable, PollTimeout::from(milliseconds)) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(failed("wait for", Path::new(names::REPORTS), errno.into())),
        }
    }

    /// Begins to watch, unless somebody else does.
    pub fn start(pins: &Path, filter: &Filter) -> Result<Self, Error> {
        let only = alone(pins)?;
        let config = mapped::<NodeConfig>(pins, names::CONFIG)?;
        let watch = mapped::<Watch>(pins, names::WATCH)?;
        let path = pins.join(names::REPORTS);
        let ring =
            |source: aya::maps::MapError| failed("open map", &path, io::Error::other(source));
        let map = MapData::from_pin(&path).map_err(ring)?;
        let mut reports = RingBuf::try_from(Map::RingBuf(map)).map_err(ring)?;
        // What the last watcher left unread.
        while reports.next().is_some() {}
        watch.set(0, filter.to_watch());
        set(&config, true);
        Ok(Self {
            config,
            reports,
            _only: only,
        })
    }

    /// Everything that has been reported since, which may be nothing.
    pub fn read(&mut self) -> Observed {
        let mut observed = Vec::new();
        while let Some(entry) = self.reports.next() {
            if entry.len() >= size_of::<Report>() {
                observed.push(sys::plain::<Report>(&entry));
            }
        }
        Observed(observed)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        set(&self.config, false);
    }
}

/// Turns reports off that a killed watcher left on.
pub fn forget_lost(pins: &Path, config: &Mapped<NodeConfig>) {
    if alone(pins).is_ok() {
        set(config, false);
    }
}

fn set(config: &Mapped<NodeConfig>, watched: bool) {
    let word = config.half(0, offset_of!(NodeConfig, flags));
    if watched {
        word.fetch_or(flags::WATCHED, Ordering::Release);
    } else {
        word.fetch_and(!flags::WATCHED, Ordering::Release);
    }
}

/// The ring buffer has one reader: whoever holds the lock of the folder of pins.
fn alone(pins: &Path) -> Result<Flock<File>, Error> {
    let folder = File::open(pins).map_err(|error| failed("open", pins, error))?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            Error::AlreadyWatched
        } else {
            failed("lock", pins, errno.into())
        }
    })
}
