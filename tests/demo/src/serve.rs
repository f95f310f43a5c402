//! The server: "POD NODE CLIENT" to whoever asks, one answer a connection or datagram.

use std::{
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

/// A client that sends nothing is dropped after this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections are threads; they need little.
const STACK: usize = 128 * 1024;

/// Starts to listen on all addresses, TCP and UDP, and returns.
pub fn start(port: u16) -> Result<(), String> {
    let who = identity();
    // Without IPv6 in the kernel only the second address works.
    let addresses: [SocketAddr; 2] = [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ];
    let listener = TcpListener::bind(&addresses[..])
        .map_err(|error| format!("listen on TCP port {port}: {error}"))?;
    let socket = UdpSocket::bind(&addresses[..])
        .map_err(|error| format!("listen on UDP port {port}: {error}"))?;
    eprintln!("{who} serves TCP and UDP port {port}");

    let of_tcp = who.clone();
    thread::Builder::new()
        .spawn(move || accept(&listener, &of_tcp))
        .and(thread::Builder::new().spawn(move || answer_datagrams(&socket, &who)))
        .map(drop)
        .map_err(|error| format!("start a thread: {error}"))
}

/// "POD NODE": the host name is the pod's name, and the manifest hands the node's name in.
fn identity() -> String {
    let pod = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let node = env::var("NODE_NAME").unwrap_or_default();
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    format!("{} {}", or_dash(pod.trim()), or_dash(node.trim()))
}

fn accept(listener: &TcpListener, who: &str) {
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                let who = who.to_owned();
                let thread = thread::Builder::new()
                    .stack_size(STACK)
                    .spawn(move || log_failure(client, answer(stream, &who, client)));
                if let Err(error) = thread {
                    eprintln!("{client}: no thread: {error}");
                }
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

fn log_failure(client: SocketAddr, result: std::io::Result<()>) {
    if let Err(error) = result {
        eprintln!("{client}: {error}");
    }
}

/// Reads a request's head and answers it. A client that closes without a word, as a probe does, is no failure.
fn answer(mut stream: TcpStream, who: &str, client: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(256);
    let mut part = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 if head.is_empty() => return Ok(()),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => head.extend_from_slice(&part[..length]),
        }
        if head.len() > 16 * 1024 {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    let body = format!("{who} {}\n", client.ip().to_canonical());
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes())
}

/// Answers each datagram with its own first word, so that a client can tell answers apart.
fn answer_datagrams(socket: &UdpSocket, who: &str) {
    let mut datagram = [0; 2048];
    loop {
        let sent = socket
            .recv_from(&mut datagram)
            .and_then(|(length, client)| {
                let text = String::from_utf8_lossy(&datagram[..length]);
                let word = text.split_whitespace().next().unwrap_or("-");
                let answer = format!("{word} {who} {}\n", client.ip().to_canonical());
                socket.send_to(answer.as_bytes(), client)
            });
        if let Err(error) = sent {
            eprintln!("UDP: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_with_the_clients_address() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || accept(&listener, "pod node"));
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\npod node 127.0.0.1\n"), "{text}");
    }

    #[test]
    fn a_datagram_comes_back_with_its_word() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = server.local_addr().expect("it is bound");
        thread::spawn(move || answer_datagrams(&server, "pod node"));
        let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        client.send_to(b"42\n", address).expect("it is there");
        let mut answer = [0; 64];
        let length = client.recv(&mut answer).expect("it answers");
        assert_eq!(&answer[..length], b"42 pod node 127.0.0.1\n");
    }
}
