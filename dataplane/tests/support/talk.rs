//! Clients that keep their socket, and what they are told of whom they speak to.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use portolan_dataplane::model::Protocol;

use super::servers::PATIENCE;

/// The next client's port, below those that the kernel gives. Two flows to one backend from one port, by two addresses of a
/// service, would be told apart by a port of the node's, and the backend would not see the client's address.
static PORT: AtomicU16 = AtomicU16::new(20_000);

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A stream.
    Stream,
    /// Datagrams, connected.
    Connected,
    /// Datagrams whose receiver is named each time.
    Named,
}

impl Style {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Connected, Self::Named];

    /// The protocol of its services.
    pub fn protocol(self) -> Protocol {
        if self == Self::Stream {
            Protocol::Tcp
        } else {
            Protocol::Udp
        }
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talk {
    /// The server's name.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: IpAddr,
    /// Whom the kernel says that the client speaks to.
    pub partner: SocketAddr,
}

/// A client's socket.
#[derive(Debug)]
pub enum Client {
    /// A connection.
    Stream(TcpStream),
    /// A connected socket.
    Connected(UdpSocket),
    /// One that is not, with its receiver.
    Named(UdpSocket, SocketAddr),
}

impl Client {
    /// Opens a socket to an address, from the thread's own namespace and control group.
    pub fn open(style: Style, to: SocketAddr) -> io::Result<Self> {
        if style == Style::Stream {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            return Ok(Self::Stream(stream));
        }
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, PORT.fetch_add(1, Ordering::Relaxed)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if style == Style::Named {
            return Ok(Self::Named(socket, to));
        }
        socket.connect(to)?;
        Ok(Self::Connected(socket))
    }

    /// Says something and hears who answers.
    pub fn talk(&mut self) -> io::Result<Talk> {
        let mut buffer = [0; 2_048];
        let (length, partner) = match self {
            Self::Stream(stream) => {
                stream.write_all(b"hello")?;
                (stream.read(&mut buffer)?, stream.peer_addr()?)
            }
            Self::Connected(socket) => {
                socket.send(b"hello")?;
                // Asked for the sender, the kernel names it also where there is but one.
                let (length, sender) = socket.recv_from(&mut buffer)?;
                let peer = socket.peer_addr()?;
                if peer != sender {
                    let what = format!("connected to {peer}, answered by {sender}");
                    return Err(io::Error::other(what));
                }
                (length, peer)
            }
            Self::Named(socket, to) => {
                socket.send_to(b"hello", *to)?;
                socket.recv_from(&mut buffer)?
            }
        };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let mut words = text.split(' ');
        let (Some(server), Some(Ok(seen))) = (words.next(), words.next().map(str::parse)) else {
            return Err(io::Error::other(format!("an odd answer: {text:?}")));
        };
        Ok(Talk {
            server: server.to_owned(),
            seen,
            partner,
        })
    }
}
