//! SCTP through services: packets between raw sockets on every kernel, associations where the kernel has SCTP.

mod support;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    thread,
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
        connect, listen, recvfrom, sendto, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use portolan_abi::crc32c;
use portolan_dataplane::{
    Transmit,
    model::{Backend, Locality, Protocol},
};
use support::{
    facts::note,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
};

const CLIENT_PORT: u16 = 41_000;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// A packet with one chunk.
fn packet(ports: [u16; 2], tag: u32, chunk: u8) -> Vec<u8> {
    let mut bytes = ports.map(u16::to_be_bytes).concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    // Its value begins with the tag that it asks for.
    bytes.extend([chunk, 0, 0, 20]);
    bytes.extend(0x0102_0304_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    let sum = crc32c::whole(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// What a packet is: its ports and its chunk. Its checksum must be right.
fn read(bytes: &[u8]) -> ([u16; 2], u8) {
    let mut zeroed = bytes.to_vec();
    zeroed[8..12].fill(0);
    let sum = crc32c::whole(&zeroed).to_le_bytes();
    assert_eq!(sum, bytes[8..12], "the checksum of {bytes:02x?}");
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    ([port(0), port(2)], bytes[12])
}

/// A socket that sends and gets packets as they are.
struct Raw {
    socket: OwnedFd,
    is_v4: bool,
}

impl Raw {
    fn new(netns: &Netns, is_v4: bool) -> Self {
        let family = if is_v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let socket = netns.enter(|| {
            let kind = SockType::Raw;
            socket(family, kind, SockFlag::empty(), SockProtocol::Sctp).expect("a raw socket")
        });
        let patience = TimeVal::new(2, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).expect("a timeout can be set");
        Self { socket, is_v4 }
    }

    fn send(&self, to: IpAddr, bytes: &[u8]) {
        let to = SockaddrStorage::from(SocketAddr::from((to, 0)));
        sendto(self.socket.as_raw_fd(), bytes, &to, MsgFlags::empty()).expect("it can be sent");
    }

    /// The next packet, and whom it is from.
    fn receive(&self) -> (IpAddr, Vec<u8>) {
        let mut buffer = [0; 2_048];
        let (length, from) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer)
            .expect("a packet comes");
        let from = from.expect("it is from somebody");
        let from = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(from), _) => IpAddr::V4(from.ip()),
            (_, Some(from)) => IpAddr::V6(from.ip()),
            _ => panic!("an address of another family"),
        };
        // Raw sockets of IPv4 get the IP header as well.
        let header = if self.is_v4 {
            usize::from(buffer[0] & 0xf) * 4
        } else {
            0
        };
        (from, buffer[header..length].to_vec())
    }
}

fn serve_sctp(lab: &mut Lab, backends: Vec<Backend>) {
    lab.dataplane
        .upsert(&service(Protocol::Sctp, backends))
        .expect("a valid service");
}

/// Whether the kernel speaks SCTP itself, and so answers what no socket of its own knows.
fn has_sctp() -> bool {
    let kind = SockType::Stream;
    let family = AddressFamily::Inet;
    socket(family, kind, SockFlag::empty(), SockProtocol::Sctp).is_ok()
}

#[test]
fn packets_find_their_backend_and_back_with_right_checksums() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut lab = Lab::new(transmit);
        for family in 0..2 {
            for (which, addresses, locality) in [
                ("local", lab::LOCAL, Locality::Node),
                ("remote", lab::REMOTE, Locality::Elsewhere),
            ] {
                serve_sctp(&mut lab, addresses.map(|at| backend(at, locality)).to_vec());
                let target = if which == "local" {
                    &lab.local
                } else {
                    &lab.remote
                };
                for (netns, to, port) in [
                    (&lab.client, CLUSTER[family], PORT),
                    (&lab.outside, NODE[family], NODE_PORT),
                ] {
                    exchange(
                        netns,
                        (address(to), port),
                        target,
                        address(addresses[family]),
                    );
                }
            }
        }
    }
}

/// An INIT from a client to a service, and the backend's answer.
fn exchange(netns: &Netns, (to, port): (IpAddr, u16), target: &Netns, at: IpAddr) {
    let [client, server] = [netns, target].map(|netns| Raw::new(netns, to.is_ipv4()));
    client.send(to, &packet([CLIENT_PORT, port], 0, INIT));
    let (from, got) = server.receive();
    let ([source, destination], chunk) = read(&got);
    assert_eq!((destination, chunk), (TARGET, INIT), "at {at}");
    server.send(from, &packet([TARGET, source], 0x0102_0304, INIT_ACK));
    // Where the kernel speaks SCTP, it aborts what no socket of its own knows: that comes beside the answer.
    let expected = (to, [port, CLIENT_PORT], INIT_ACK);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (from, got) = client.receive();
        let (ports, chunk) = read(&got);
        seen.push((from, ports, chunk));
        if seen.contains(&expected) {
            return;
        }
    }
    panic!("{expected:?} is not among {seen:?}");
}

#[test]
fn without_backends_a_client_is_aborted() {
    let mut lab = Lab::new(Transmit::Auto);
    serve_sctp(&mut lab, Vec::new());
    for family in 0..2 {
        for (netns, to, port) in [
            (&lab.client, CLUSTER[family], PORT),
            (&lab.outside, NODE[family], NODE_PORT),
        ] {
            let to = address(to);
            let client = Raw::new(netns, to.is_ipv4());
            client.send(to, &packet([CLIENT_PORT, port], 0, INIT));
            let (from, got) = client.receive();
            assert_eq!((from, read(&got)), (to, ([port, CLIENT_PORT], ABORT)));
            assert_eq!(got[4..8], [1, 2, 3, 4], "the tag that the INIT asked for");
        }
    }
}

/// A stream of the kernel's own SCTP, which behaves as TCP's do.
fn stream(family: AddressFamily) -> OwnedFd {
    let kind = SockType::Stream;
    socket(family, kind, SockFlag::empty(), SockProtocol::Sctp).expect("a socket")
}

fn echo(netns: &Netns, at: IpAddr) {
    let socket = netns.enter(|| {
        let family = if at.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let socket = stream(family);
        let at = SockaddrStorage::from(SocketAddr::from((at, TARGET)));
        bind(socket.as_raw_fd(), &at).expect("the port is free");
        listen(&socket, Backlog::new(8).expect("a short queue")).expect("it can listen");
        socket
    });
    let listener = TcpListener::from(socket);
    thread::spawn(move || -> io::Result<()> {
        for stream in listener.incoming() {
            let mut stream = stream?;
            let mut buffer = [0; 64];
            let length = stream.read(&mut buffer)?;
            stream.write_all(&buffer[..length])?;
        }
        Ok(())
    });
}

#[test]
fn associations_last() {
    if !has_sctp() {
        note("feature sctp absent");
        return;
    }
    note("feature sctp native");
    let mut lab = Lab::new(Transmit::Never);
    for family in 0..2 {
        for (addresses, locality) in [
            (lab::LOCAL, Locality::Node),
            (lab::REMOTE, Locality::Elsewhere),
        ] {
            let target = if locality == Locality::Node {
                &lab.local
            } else {
                &lab.remote
            };
            echo(target, address(addresses[family]));
            serve_sctp(&mut lab, addresses.map(|at| backend(at, locality)).to_vec());
            for (netns, to, port) in [
                (&lab.client, CLUSTER[family], PORT),
                (&lab.outside, NODE[family], NODE_PORT),
            ] {
                let to = SocketAddr::from((address(to), port));
                let said = netns.enter(|| -> io::Result<Vec<u8>> {
                    let socket = stream(if to.is_ipv4() {
                        AddressFamily::Inet
                    } else {
                        AddressFamily::Inet6
                    });
                    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
                    let mut stream = TcpStream::from(socket);
                    stream.write_all(b"portolan")?;
                    let mut buffer = [0; 64];
                    let length = stream.read(&mut buffer)?;
                    Ok(buffer[..length].to_vec())
                });
                assert_eq!(said.expect("it is answered"), b"portolan", "{to}");
            }
        }
    }
}
