//! Ending sockets by `sock_diag(7)`: those whose cookies are named, in whatever network namespace they are.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::PathBuf,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const HEADER: usize = 16;
/// `struct inet_diag_sockid`: both ports, both addresses, interface, cookie.
const ID: usize = 48;
/// Where in it the cookie stands.
const COOKIE: usize = 40;
const ANSWER: usize = 64 * 1_024;

/// Ends the sockets of a transport that have these cookies, in every network namespace that a process is in: their
/// calls fail with `ECONNABORTED`. The cookies of those that were ended.
pub fn end_sockets(protocol: u8, cookies: &BTreeSet<u64>) -> io::Result<BTreeSet<u64>> {
    // A thread of its own is in another namespace in the end.
    thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let mut ended = BTreeSet::new();
            let mut seen = BTreeSet::new();
            for path in namespaces()? {
                if ended.len() == cookies.len() {
                    break;
                }
                // Namespaces and processes may be gone by now, and a file stand where a namespace was mounted.
                let Ok(namespace) = File::open(&path) else {
                    continue;
                };
                if seen.insert(namespace.metadata()?.ino())
                    && setns(&namespace, CloneFlags::CLONE_NEWNET).is_ok()
                {
                    for family in [libc::AF_INET, libc::AF_INET6] {
                        end_here(family, protocol, cookies, &mut ended)?;
                    }
                }
            }
            Ok(ended)
        });
        ended
            .join()
            .map_err(|_| io::Error::other("the thread that ends sockets panicked"))?
    })
}

/// Network namespaces: the caller's own, those that are mounted somewhere, as those of pods are, and those that
/// processes are in. Some of them more than once.
fn namespaces() -> io::Result<impl Iterator<Item = PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let root = fields.next()?;
            let point = fields.next()?;
            root.starts_with("net:[").then(|| PathBuf::from(point))
        })
        .collect();
    let processes =
        fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path().join("ns/net")));
    Ok([PathBuf::from("/proc/thread-self/ns/net")]
        .into_iter()
        .chain(mounted)
        .chain(processes))
}

fn end_here(
    family: i32,
    protocol: u8,
    cookies: &BTreeSet<u64>,
    ended: &mut BTreeSet<u64>,
) -> io::Result<()> {
    let diag = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let family = u8::try_from(family).map_err(io::Error::other)?;
    let dump = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let all = request(SOCK_DIAG_BY_FAMILY, dump, family, protocol, &[0; ID])?;
    send(diag.as_raw_fd(), &all, MsgFlags::empty())?;
    let mut meant = Vec::new();
    let mut buffer = vec![0; ANSWER];
    loop {
        let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if collect(&buffer[..length], cookies, &mut meant)? {
            break;
        }
    }
    for id in meant {
        let acknowledged = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let end = request(SOCK_DESTROY, acknowledged, family, protocol, &id)?;
        send(diag.as_raw_fd(), &end, MsgFlags::empty())?;
        let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match error(&buffer[..length]) {
            // It was closed meanwhile.
            Some(0 | libc::ENOENT) => {
                ended.extend(cookie(&id));
            }
            code => return Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))),
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2` for sockets in any state.
fn request(kind: u16, flags: i32, family: u8, protocol: u8, id: &[u8; ID]) -> io::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    let length = u32::try_from(HEADER + 8 + ID).map_err(io::Error::other)?;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(
        u16::try_from(flags)
            .map_err(io::Error::other)?
            .to_ne_bytes(),
    );
    message.extend([0; 8]);
    message.extend([family, protocol, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(id);
    Ok(message)
}

/// Takes the ids of the sockets that are meant out of a part of the kernel's list; whether it is the last part.
fn collect(
    mut part: &[u8],
    cookies: &BTreeSet<u64>,
    meant: &mut Vec<[u8; ID]>,
) -> io::Result<bool> {
    let done = u16::try_from(libc::NLMSG_DONE).map_err(io::Error::other)?;
    while let Some(length) = part.first_chunk().copied().map(u32::from_ne_bytes) {
        let length = length as usize;
        let Some(kind) = number(part, 4) else { break };
        if kind == done {
            return Ok(true);
        }
        if let Some(code) = error(part) {
            // No such transport in this kernel: then it has no such sockets.
            return match code {
                0 | libc::ENOENT => Ok(true),
                code => Err(io::Error::from_raw_os_error(code)),
            };
        }
        // `struct inet_diag_msg`: family, state, timer, retransmissions, then the id.
        if let Some(id) = part
            .get(HEADER + 4..)
            .and_then(|rest| rest.first_chunk::<ID>())
            && cookie(id).is_some_and(|cookie| cookies.contains(&cookie))
        {
            meant.push(*id);
        }
        part = part
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn cookie(id: &[u8; ID]) -> Option<u64> {
    let bytes = id.get(COOKIE..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

/// The code in an answer that is an error or, with zero, an acknowledgement.
fn error(message: &[u8]) -> Option<i32> {
    if i32::from(number(message, 4)?) != libc::NLMSG_ERROR {
        return None;
    }
    let code = message.get(HEADER..)?.first_chunk()?;
    Some(-i32::from_ne_bytes(*code))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// `SO_COOKIE` of a socket.
    fn cookie_of(socket: &UdpSocket) -> u64 {
        let mut cookie = 0_u64;
        let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("eight");
        // SAFETY: the number is writable for its length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn the_socket_that_is_meant_is_ended_and_no_other() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let [meant, other] = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket
                .connect(server.local_addr().expect("bound"))
                .expect("it is there");
            socket
        });
        let cookies = BTreeSet::from([cookie_of(&meant), u64::MAX]);
        let ended = end_sockets(portolan_abi::protocol::UDP, &cookies)
            .expect("tests need root and a kernel that can end sockets");
        assert_eq!(ended, BTreeSet::from([cookie_of(&meant)]));
        let error = meant.recv(&mut [0; 8]).expect_err("it was ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        other.send(b"hello").expect("it goes on");
    }
}
