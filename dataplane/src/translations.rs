//! The map of sockets from userspace: which backends it refers to, and what becomes of sockets whose backend is gone.
//!
//! A datagram socket that names its receivers asks again for each of them. A connected one asks nobody any more, and
//! would go on sending to an address where nobody lives: such sockets are ended, so that their owners connect again.
//! The kernel programs alone write the map.

use std::{collections::BTreeSet, mem::offset_of, sync::atomic::Ordering};

use portolan_abi::{
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

/// Every way that has an owner.
fn owned(maps: &Maps) -> impl Iterator<Item = Owned> {
    let table = &maps.sockets;
    let ways = (0..table.len()).flat_map(|bucket| (0..WAYS as usize).map(move |way| (bucket, way)));
    ways.filter_map(|(bucket, way)| {
        let owner = || {
            table
                .word(bucket, way * size_of::<u64>())
                .load(Ordering::Acquire)
        };
        let cookie = owner();
        if cookie == 0 || cookie & WRITING != 0 {
            return None;
        }
        let at = offset_of!(SocketBucket, translations) + way * size_of::<Translation>();
        let half = |offset| table.half(bucket, at + offset).load(Ordering::Acquire);
        let backend = half(offset_of!(Translation, id));
        let kind = half(offset_of!(Translation, kind));
        (owner() == cookie).then_some(Owned {
            cookie,
            backend,
            kind,
        })
    })
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
        kind::CONNECTED_DATAGRAM => state != state::LIVE,
        _ => false,
    }
}
