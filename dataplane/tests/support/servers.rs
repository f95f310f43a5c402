//! Echo servers that say who they are and whom they see, and clients that ask them.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use portolan_dataplane::model::Protocol;

use super::netns::Netns;

/// How long a client waits. Nothing here takes a tenth of it; a lost packet must not pass for a slow one.
pub const PATIENCE: Duration = Duration::from_millis(900);

/// Starts servers for both protocols and families on a port. They end with the test process.
///
/// # Panics
/// If the port cannot be bound.
pub fn serve(netns: &Netns, name: &'static str, port: u16) {
    netns.enter(|| {
        // A socket of IPv6 that is bound to "any" serves IPv4 as well.
        let any = SocketAddr::from(([0_u16; 8], port));
        let listener = TcpListener::bind(any).expect("the port is free");
        let socket = UdpSocket::bind(any).expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream, name));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = answer(name, from, &buffer[..length]);
                if socket.send_to(&answer, from).is_err() {
                    eprintln!("{name} cannot answer {from}");
                }
            }
        });
    });
}

fn answer(name: &str, from: SocketAddr, said: &[u8]) -> Vec<u8> {
    let mut answer = format!("{name} {} ", from.ip().to_canonical()).into_bytes();
    answer.extend_from_slice(said);
    answer
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let from = stream.peer_addr()?;
    let mut buffer = vec![0; 64 * 1_024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&answer(name, from, &buffer[..length]))?;
    }
}

/// Who answered, and whom they saw as the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: IpAddr,
}

/// Asks once, from the thread's own namespace.
pub fn ask(protocol: Protocol, to: SocketAddr) -> io::Result<Answer> {
    let mut buffer = [0; 2_048];
    let length = if protocol == Protocol::Udp {
        let any: SocketAddr = if to.is_ipv4() {
            ([0_u8; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        socket.recv(&mut buffer)?
    } else {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"hello")?;
        let length = stream.read(&mut buffer)?;
        // Until the server has closed its end too, whoever comes from the same port is none of its new clients.
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        length
    };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut words = text.split(' ');
    let (Some(server), Some(Ok(seen))) = (words.next(), words.next().map(str::parse)) else {
        return Err(io::Error::other(format!("an odd answer: {text:?}")));
    };
    Ok(Answer {
        server: server.to_owned(),
        seen,
    })
}

/// Asks once from a namespace, and insists on an answer.
///
/// # Panics
/// If there is none.
pub fn ask_from(netns: &Netns, protocol: Protocol, to: (IpAddr, u16)) -> Answer {
    let to = SocketAddr::from(to);
    match netns.enter(|| ask(protocol, to)) {
        Ok(answer) => answer,
        Err(error) => panic!("{protocol:?} from {} to {to}: {error}", netns.name()),
    }
}

/// Asks once from a namespace, and insists on a refusal that comes at once.
///
/// # Panics
/// If it is answered or times out.
pub fn refused_from(netns: &Netns, protocol: Protocol, to: (IpAddr, u16)) {
    let to = SocketAddr::from(to);
    let began = Instant::now();
    let answer = netns.enter(|| ask(protocol, to));
    let error = answer.expect_err("nobody is there to answer");
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "{protocol:?} to {to}: {error}"
    );
    assert!(
        began.elapsed() < PATIENCE / 2,
        "refused after {:?}",
        began.elapsed()
    );
}
