//! The map of sockets from userspace: which backends it refers to, and what becomes of sockets whose backend is gone.
//!
//! A datagram socket that names its receivers asks again for each of them. A connected one asks nobody any more, and
//! would go on sending to an address where nobody lives: such sockets are ended, so that their owners connect again.
//! The kernel programs write the map; what a backend that is gone leaves of datagram sockets is taken out here.

use std::{
    collections::BTreeSet,
    mem::offset_of,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use portolan_abi::{
    address::V6,
    backend::state,
    protocol,
    socket_table::{SocketBucket, Translation, WAYS, WRITING, kind},
};

use crate::{maps::Maps, sys};

/// One way of the map that a socket owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owned {
    cookie: u64,
    backend: u32,
    kind: u32,
}

/// Bucket and way of a translation.
type Place = (u32, usize);

/// All that there can be.
fn places(maps: &Maps) -> impl Iterator<Item = Place> {
    (0..maps.sockets.len()).flat_map(|bucket| (0..WAYS as usize).map(move |way| (bucket, way)))
}

/// The word with a way's owner.
fn owner(maps: &Maps, (bucket, way): Place) -> &AtomicU64 {
    maps.sockets.word(bucket, way * size_of::<u64>())
}

/// What a way holds, read by `read` with where the translation begins in its bucket; nothing of one that has no owner or
/// another while it is read.
fn with_owner<T>(maps: &Maps, place: Place, read: impl Fn(usize) -> T) -> Option<(u64, T)> {
    let owner = owner(maps, place);
    let cookie = owner.load(Ordering::Acquire);
    if cookie == 0 || cookie & WRITING != 0 {
        return None;
    }
    let at = offset_of!(SocketBucket, translations) + place.1 * size_of::<Translation>();
    let read = read(at);
    (owner.load(Ordering::Acquire) == cookie).then_some((cookie, read))
}

/// Every way that has an owner.
fn owned(maps: &Maps) -> impl Iterator<Item = Owned> {
    places(maps).filter_map(|place| owned_at(maps, place))
}

fn owned_at(maps: &Maps, place: Place) -> Option<Owned> {
    let half = |at| maps.sockets.half(place.0, at).load(Ordering::Acquire);
    let read = |at| {
        let backend = half(at + offset_of!(Translation, id));
        (backend, half(at + offset_of!(Translation, kind)))
    };
    with_owner(maps, place, read).map(|(cookie, (backend, kind))| Owned {
        cookie,
        backend,
        kind,
    })
}

/// What one socket was given, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    pub client: IpAddr,
    pub frontend: (IpAddr, u16),
    pub backend: u32,
    pub kind: u32,
    pub protocol: u8,
}

/// What every socket was given.
pub fn list(maps: &Maps) -> impl Iterator<Item = Given> {
    places(maps).filter_map(|place| {
        let table = &maps.sockets;
        let half = |at| table.half(place.0, at).load(Ordering::Acquire);
        let address = |at| {
            let word = |at| table.word(place.0, at).load(Ordering::Acquire);
            IpAddr::from(V6([word(at), word(at + 8)]).octets()).to_canonical()
        };
        // The frontend's port is the first of the two in its word.
        let port = |at| {
            let [first, second, ..] = half(at).to_ne_bytes();
            u16::from_be_bytes([first, second])
        };
        let read = |at| Given {
            client: address(at + offset_of!(Translation, client)),
            frontend: (
                address(at + offset_of!(Translation, frontend)),
                port(at + offset_of!(Translation, frontend_port)),
            ),
            backend: half(at + offset_of!(Translation, id)),
            kind: half(at + offset_of!(Translation, kind)),
            protocol: u8::try_from(half(at + offset_of!(Translation, protocol))).unwrap_or(0),
        };
        with_owner(maps, place, read).map(|(_, given)| given)
    })
}

/// Takes out what datagram sockets were given that name their receivers, where its backend is gone: they choose again.
fn forget_dead(maps: &Maps) {
    for place in places(maps) {
        if let Some(socket) = owned_at(maps, place)
            && socket.kind == kind::NAMED
            && is_dead(maps, socket)
        {
            // Should it have been written anew since, it stays, and is looked at again.
            let word = owner(maps, place);
            let _ = word.compare_exchange(socket.cookie, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Calls `note` with the backend id that each translation of a socket refers to.
pub fn each_backend(maps: &Maps, note: impl FnMut(u32)) {
    owned(maps).map(|socket| socket.backend).for_each(note);
}

/// Ends sockets whose backends are gone.
#[derive(Debug, Default)]
pub struct Ender {
    /// Those that were ended and are still in the map, since their owners have not closed them.
    ended: BTreeSet<Owned>,
    /// Whether it has been said that this kernel cannot.
    complained: bool,
}

impl Ender {
    /// Ends the sockets that are connected to a backend that is gone; says how many.
    pub fn end_dead(&mut self, maps: &Maps) -> u64 {
        forget_dead(maps);
        let all: BTreeSet<Owned> = owned(maps)
            .filter(|socket| is_dead(maps, *socket))
            .collect();
        self.ended.retain(|socket| all.contains(socket));
        let mut count = 0;
        for (kind, protocol) in [
            (kind::CONNECTED, protocol::TCP),
            (kind::CONNECTED_DATAGRAM, protocol::UDP),
        ] {
            let dead: BTreeSet<Owned> = all
                .difference(&self.ended)
                .filter(|socket| socket.kind == kind)
                .copied()
                .collect();
            if dead.is_empty() {
                continue;
            }
            let cookies = dead.iter().map(|socket| socket.cookie).collect();
            match sys::end_sockets(protocol, &cookies) {
                // Of those that were not found, some may be about to connect: the next sweep looks again.
                Ok(ended) => {
                    count += ended.len() as u64;
                    self.ended
                        .extend(dead.iter().filter(|socket| ended.contains(&socket.cookie)));
                }
                Err(error) => self.complain(&error),
            }
        }
        count
    }

    fn complain(&mut self, error: &std::io::Error) {
        if !self.complained {
            tracing::warn!(
                %error,
                "sockets that are connected to backends that are gone cannot be ended: their owners must notice by themselves"
            );
            self.complained = true;
        }
    }
}

/// Whether a socket's backend will not answer it any more, and nothing else will tell it so.
fn is_dead(maps: &Maps, socket: Owned) -> bool {
    if socket.backend >= maps.backends.len() {
        return false;
    }
    let state = maps.backends.get(socket.backend).state;
    match socket.kind {
        // A connection to a backend that left its service finishes; one to a pod that is gone has nobody to finish it.
        kind::CONNECTED => state == state::GONE,
        kind::CONNECTED_DATAGRAM | kind::NAMED => state != state::LIVE,
        _ => false,
    }
}
