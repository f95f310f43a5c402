//! What the socket hooks do: put the backend's name in place of the frontend's, and back.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};
use portolan_abi::{
    address::{Address, V4, V6},
    bytes::{Be16, Be32},
    outcome::{Action, Outcome},
    protocol,
    socket::{self, Wish},
    socket_table::{self, End},
    tables::Tables,
};

use crate::{
    count::shared as count,
    maps::{self, Family, Maps},
    socket_bucket::MapSockets,
    watch::{self, Watched},
};

/// The system call goes on.
const ALLOW: i32 = 1;
/// The system call ends with the error that was set.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The address in a system call: of which sockets it is, and which of its fields hold it.
#[derive(Clone, Copy)]
struct Name {
    context: *mut bpf_sock_addr,
    is_v6: bool,
}

impl Name {
    #[inline(always)]
    fn new(context: &SockAddrContext, is_v6: bool) -> Self {
        Self {
            context: context.sock_addr,
            is_v6,
        }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_socket_cookie(self.context.cast()) }
    }

    #[inline(always)]
    fn netns(self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_netns_cookie(self.context.cast()) }
    }

    #[inline(always)]
    fn protocol(self) -> u8 {
        // SAFETY: the field lies in the context. No transport that is told apart here has a number above 255.
        let protocol = unsafe { (&raw const (*self.context).protocol).read_volatile() };
        if protocol == u32::from(protocol::TCP) || protocol == u32::from(protocol::UDP) {
            protocol as u8
        } else {
            0
        }
    }

    #[inline(always)]
    fn port(self) -> Be16 {
        // SAFETY: the field lies in the context.
        Be16(unsafe { (&raw const (*self.context).user_port).read_volatile() } as u16)
    }

    #[inline(always)]
    fn v4(self) -> V4 {
        // SAFETY: the field lies in the context.
        V4(Be32(unsafe {
            (&raw const (*self.context).user_ip4).read_volatile()
        }))
    }

    #[inline(always)]
    fn v6(self) -> V6 {
        let [a, b, c, d] = [self.word(0), self.word(1), self.word(2), self.word(3)].map(u64::from);
        V6([a | b << 32, c | d << 32])
    }

    #[inline(always)]
    fn word(self, index: usize) -> u32 {
        // SAFETY: the field lies in the context; callers pass constants below four.
        unsafe { (&raw const (*self.context).user_ip6[index]).read_volatile() }
    }

    #[inline(always)]
    fn set_word(self, index: usize, word: u32) {
        // SAFETY: as for `word`.
        unsafe { (&raw mut (*self.context).user_ip6[index]).write_volatile(word) };
    }

    /// Puts another address in. An IPv4 address in an IPv6 socket's name is IPv4-mapped.
    #[inline(always)]
    fn set(self, address: V6, port: Be16) {
        let [a, b] = address.0;
        if self.is_v6 {
            self.set_word(0, a as u32);
            self.set_word(1, (a >> 32) as u32);
            self.set_word(2, b as u32);
            self.set_word(3, (b >> 32) as u32);
        } else {
            // SAFETY: the field lies in the context.
            unsafe { (&raw mut (*self.context).user_ip4).write_volatile((b >> 32) as u32) };
        }
        // SAFETY: the field lies in the context.
        unsafe { (&raw mut (*self.context).user_port).write_volatile(u32::from(port.0)) };
    }
}

/// The bucket of a socket.
#[inline(always)]
fn sockets(maps: Maps, cookie: u64) -> Option<MapSockets> {
    maps::sockets(cookie as u32 & maps.config.socket_mask)
}

/// What a hook asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// connect(2).
    Connect,
    /// sendto(2) and sendmsg(2) with a receiver's address.
    Send,
}

/// A socket of IPv4 names a receiver.
#[inline(always)]
pub fn call_v4(context: &SockAddrContext, call: Call) -> i32 {
    let name = Name::new(context, false);
    translate(name, name.v4(), call)
}

/// A socket of IPv6 names a receiver, which may have an IPv4 address.
#[inline(always)]
pub fn call_v6(context: &SockAddrContext, call: Call) -> i32 {
    let name = Name::new(context, true);
    let address = name.v6();
    match address.unmapped() {
        Some(address) => translate(name, address, call),
        None => translate(name, address, call),
    }
}

#[inline(always)]
fn translate<A: Family + Watched>(name: Name, address: A, call: Call) -> i32
where
    Maps: Tables<A>,
{
    let protocol = name.protocol();
    let Some(config) = maps::config() else {
        return ALLOW;
    };
    if protocol == 0 {
        return ALLOW;
    }
    let maps = Maps { config };
    let wish = Wish {
        cookie: name.cookie(),
        address,
        port: name.port(),
        protocol,
        netns: name.netns(),
    };
    let Some(sockets) = sockets(maps, wish.cookie) else {
        return ALLOW;
    };
    let outcome = match call {
        Call::Connect => socket::connect(&wish, &sockets, &maps),
        Call::Send => socket::send(&wish, &sockets, &maps),
    };
    let verdict = settle::<A>(name, outcome);
    watch::socket(config, &wish, &maps, outcome, verdict);
    verdict
}

#[inline(always)]
fn settle<A: Family>(name: Name, outcome: Outcome) -> i32 {
    match outcome.action() {
        Action::Forward => {
            let Some(backend) = maps::backend(outcome.number()) else {
                return ALLOW;
            };
            if outcome.is_opened() {
                count::opened(backend);
            }
            name.set(A::from_words(backend.address).mapped(), backend.port);
            ALLOW
        }
        Action::Refuse => {
            count::refused(outcome.number());
            count::dropped(outcome.reason());
            refuse()
        }
        Action::Drop => {
            count::dropped(outcome.reason());
            refuse()
        }
        _ => {
            if outcome.event() != 0 {
                count::event(outcome.event() - 1);
            }
            ALLOW
        }
    }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: the helper takes a number.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// A socket of IPv4 is told an address: whom it is connected to, or who has sent.
#[inline(always)]
pub fn tell_v4(context: &SockAddrContext, is_peer: bool) -> i32 {
    let name = Name::new(context, false);
    tell(name, name.v4().mapped(), is_peer)
}

/// A socket of IPv6 is told an address.
#[inline(always)]
pub fn tell_v6(context: &SockAddrContext, is_peer: bool) -> i32 {
    let name = Name::new(context, true);
    tell(name, name.v6(), is_peer)
}

#[inline(always)]
fn tell(name: Name, address: V6, is_peer: bool) -> i32 {
    let Some(config) = maps::config() else {
        return ALLOW;
    };
    let cookie = name.cookie();
    let Some(sockets) = sockets(Maps { config }, cookie) else {
        return ALLOW;
    };
    let backend = End {
        address,
        port: name.port(),
    };
    if let Some(frontend) = socket::known_as(cookie, backend, is_peer, &sockets) {
        name.set(frontend.address, frontend.port);
    }
    ALLOW
}

/// A socket is closed.
#[inline(always)]
pub fn release(context: &SockContext) -> i32 {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if let Some(config) = maps::config()
        && let Some(sockets) = sockets(Maps { config }, cookie)
    {
        socket_table::release(&sockets, cookie);
    }
    ALLOW
}
