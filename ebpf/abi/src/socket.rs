//! The decisions on sockets: a process of this node names a frontend, and its socket is given a backend.
//!
//! ```text
//!   connect -> choose -> note the translation -> the kernel connects to the backend; no packet costs anything
//!   send    -> known translation, else as above; recvmsg, getpeername -> the frontend in the backend's place
//! ```
//!
//! What a socket cannot be given here goes on to the frontend's address, and the hooks that see packets serve it.

use crate::{
    address::Address,
    backend::{offers, state},
    bytes::Be16,
    drop_reason::Event,
    hash, open,
    outcome::Outcome,
    protocol,
    service::ServiceKey,
    socket_table::{self, End, NONE, Sockets, Translation, kind},
    tables::{Origin, Tables},
};

/// Whom a socket wants to speak to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish<A> {
    /// The socket's cookie.
    pub cookie: u64,
    /// The address.
    pub address: A,
    /// The port.
    pub port: Be16,
    /// The IANA number.
    pub protocol: u8,
    /// The cookie of the network namespace that the socket is in.
    pub netns: u64,
}

impl<A: Address> Wish<A> {
    #[inline(always)]
    fn frontend(&self) -> End {
        End {
            address: self.address.mapped(),
            port: self.port,
        }
    }

    /// The address that the socket speaks from: the node's, or that of the pod whose namespace it is in. Zero for one
    /// that is neither's.
    #[inline(always)]
    pub fn client<T: Tables<A>>(&self, tables: &T) -> A {
        if self.netns == tables.node_netns() {
            tables.node_address()
        } else {
            tables.client(self.netns)
        }
    }
}

/// A socket connects: [`Outcome::forward`] with the backend, [`Outcome::refuse`], or [`Outcome::PASS`].
#[inline(always)]
pub fn connect<A: Address, T: Tables<A>, S: Sockets>(
    wish: &Wish<A>,
    sockets: &S,
    tables: &T,
) -> Outcome {
    let (chosen, client) = choose(wish, tables);
    // It may have been connected before: a datagram socket at any time, another after it was refused.
    let own = socket_table::find(sockets, wish.cookie, |way| sockets.kind(way) != kind::NAMED);
    if chosen.is_settled() {
        if own != NONE {
            sockets.exchange(own, wish.cookie, 0);
        }
        return chosen;
    }
    let kind = if wish.protocol == protocol::UDP {
        kind::CONNECTED_DATAGRAM
    } else {
        kind::CONNECTED
    };
    give(
        (wish, client),
        sockets,
        tables,
        chosen.number(),
        (own, kind),
    )
}

/// A socket sends one datagram to a receiver that it names. Later ones go where the first one went, for as long as
/// that backend takes any.
#[inline(always)]
pub fn send<A: Address, T: Tables<A>, S: Sockets>(
    wish: &Wish<A>,
    sockets: &S,
    tables: &T,
) -> Outcome {
    let frontend = wish.frontend();
    let is_live = |way| {
        let backend = tables.backend(sockets.id(way));
        backend.is_some_and(|backend| backend.state == state::LIVE)
    };
    // What a connection was given serves a datagram too, but is not changed for its sake.
    let own = socket_table::find(sockets, wish.cookie, |way| {
        sockets.frontend(way) == frontend && (sockets.kind(way) == kind::NAMED || is_live(way))
    });
    if own != NONE && is_live(own) {
        return Outcome::forward(sockets.id(own), Be16(0));
    }
    let (chosen, client) = choose(wish, tables);
    if chosen.is_settled() {
        return chosen;
    }
    give(
        (wish, client),
        sockets,
        tables,
        chosen.number(),
        (own, kind::NAMED),
    )
}

/// The frontend that a socket knows a backend by. A peer is what the socket is connected to; without, it is a sender.
#[inline(always)]
pub fn known_as<S: Sockets>(cookie: u64, backend: End, is_peer: bool, sockets: &S) -> Option<End> {
    let way = socket_table::find(sockets, cookie, |way| {
        sockets.backend(way) == backend && (!is_peer || sockets.kind(way) != kind::NAMED)
    });
    (way != NONE).then(|| sockets.frontend(way))
}

/// Whether a service is concerned, and if so a backend: [`Outcome::rechoose`] with its id; and the client's address.
#[inline(always)]
fn choose<A: Address, T: Tables<A>>(wish: &Wish<A>, tables: &T) -> (Outcome, A) {
    let nobody = A::default();
    let mut key = ServiceKey::new(wish.address, wish.port, wish.protocol);
    if wish.address.has_node_ports() {
        // A node port belongs to the node's loopback addresses too, as kube-proxy has it.
        if wish.netns != tables.node_netns() {
            return (Outcome::PASS, nobody);
        }
        key.address = tables.node_address();
    }
    let Some(service) = tables.service(&key) else {
        return (Outcome::PASS, nobody);
    };
    if !open::is_concerned(service, wish.address) {
        return (Outcome::PASS, nobody);
    }
    let client = wish.client(tables);
    if client.is_unspecified() {
        return (Outcome::PASS.with(Event::SocketLeftToPackets), nobody);
    }
    // The kernel has not given the socket a port yet; its cookie tells it from every other.
    let hash = hash::mix(hash::mix(tables.seed(), wish.cookie), tables.seed());
    let chosen = open::choose_of(service, client, &key, hash, Origin::Pod, tables);
    (chosen, client)
}

/// Notes the translation, in a way of the socket's own if it has one to give up. Without a place for it the socket could
/// not be told the frontend again, so it is left to the hooks that see packets.
#[inline(always)]
fn give<A: Address, T: Tables<A>, S: Sockets>(
    (wish, client): (&Wish<A>, A),
    sockets: &S,
    tables: &T,
    id: u32,
    (own, kind): (u32, u32),
) -> Outcome {
    let Some(backend) = tables.backend(id) else {
        return Outcome::PASS;
    };
    let frontend = wish.frontend();
    let end = End {
        address: A::from_words(backend.address).mapped(),
        port: backend.port,
    };
    // Two frontends that lead to one backend: the replies would not say which of them is meant.
    let rival = socket_table::find(sockets, wish.cookie, |way| {
        way != own && sockets.backend(way) == end && sockets.frontend(way) != frontend
    });
    let translation = Translation {
        frontend: frontend.address,
        backend: end.address,
        client: client.mapped(),
        frontend_port: frontend.port,
        backend_port: end.port,
        id,
        kind,
        protocol: u32::from(wish.protocol),
    };
    if rival != NONE || !socket_table::put(sockets, wish.cookie, own, &translation) {
        return Outcome::PASS.with(Event::SocketLeftToPackets);
    }
    if backend.offers & offers::COUNTED != 0 {
        tables.add_connection(id);
    }
    Outcome::forward(id, Be16(0)).opened()
}
