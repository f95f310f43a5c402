//! The client: a bounded number of requests from a few workers, each over a connection or socket of its own, so that
//! each is a new flow.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    arguments::{Arguments, parse},
    report::{Answer, Failure, Report},
};

/// What to send where.
pub struct Plan {
    target: SocketAddr,
    protocol: Protocol,
    end: End,
    workers: usize,
    timeout: Duration,
    pause: Duration,
    /// UDP: the first request goes out from this port, the next from the next one.
    first_port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

enum End {
    Requests(u64),
    At(Duration),
}

impl Plan {
    /// Reads the options of `load`.
    pub fn from_arguments(arguments: &mut Arguments) -> Result<Self, String> {
        let target = arguments.text("--target")?.ok_or("--target is missing")?;
        let protocol = match arguments.text("--protocol")?.as_deref() {
            Some("tcp") | None => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some(other) => return Err(format!("--protocol: {other:?} is neither tcp nor udp")),
        };
        let end = match arguments.text("--seconds")? {
            Some(text) => End::At(Duration::from_secs(parse("--seconds", &text)?)),
            None => End::Requests(arguments.number("--requests", 1000)?),
        };
        let plan = Self {
            target: parse("--target", &target)?,
            protocol,
            end,
            workers: arguments.number("--workers", 8)?,
            timeout: Duration::from_millis(arguments.number("--timeout-ms", 3000)?),
            pause: Duration::from_micros(arguments.number("--pause-us", 0)?),
            first_port: arguments
                .text("--first-port")?
                .map(|text| parse("--first-port", &text))
                .transpose()?,
        };
        arguments.finish()?;
        Ok(plan)
    }
}

/// Sends the plan's requests and counts what came back.
pub fn run(plan: &Plan) -> Report {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let mut total = Report::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.workers)
            .map(|_| scope.spawn(|| work(plan, &next, begun)))
            .collect();
        for worker in workers {
            total.add(worker.join().expect("a worker panics on nothing"));
        }
    });
    total.took = begun.elapsed();
    total
}

fn work(plan: &Plan, next: &AtomicU64, begun: Instant) -> Report {
    let mut report = Report::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let is_over = match plan.end {
            End::Requests(count) => number >= count,
            End::At(duration) => begun.elapsed() >= duration,
        };
        if is_over {
            return report;
        }
        let sent = Instant::now();
        let outcome = match plan.protocol {
            Protocol::Tcp => request_http(plan),
            Protocol::Udp => request_udp(plan, number),
        };
        report.count(outcome, sent.elapsed(), sent - begun);
        if !plan.pause.is_zero() {
            thread::sleep(plan.pause);
        }
    }
}

fn request_http(plan: &Plan) -> Result<Answer, Failure> {
    let mut stream = TcpStream::connect_timeout(&plan.target, plan.timeout)
        .map_err(|error| failure("connect", &error))?;
    exchange_http(plan, &mut stream).map_err(|error| failure("exchange", &error))
}

fn exchange_http(plan: &Plan, stream: &mut TcpStream) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(plan.timeout))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n")?;
    let mut text = String::with_capacity(256);
    stream.read_to_string(&mut text)?;
    let body = text
        .strip_prefix("HTTP/1.1 200 ")
        .and_then(|rest| rest.split_once("\r\n\r\n"))
        .map(|(_, body)| body);
    body.and_then(Answer::parse)
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

/// A socket a request: a reused one would stay with its backend. Without a first port the kernel chooses one at random,
/// and 10,000 requests come from some 8,400 ports: the others go on with flows that there are.
fn request_udp(plan: &Plan, number: u64) -> Result<Answer, Failure> {
    let exchange = || -> std::io::Result<Answer> {
        let port = match plan.first_port {
            None => 0,
            Some(first) => u16::try_from(u64::from(first) + number)
                .map_err(|_| std::io::Error::from(ErrorKind::AddrNotAvailable))?,
        };
        let socket = match plan.target {
            SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)),
        }?;
        socket.connect(plan.target)?;
        socket.set_read_timeout(Some(plan.timeout))?;
        socket.send(format!("{number}\n").as_bytes())?;
        let mut datagram = [0; 2048];
        let length = socket.recv(&mut datagram)?;
        let text = String::from_utf8_lossy(&datagram[..length]);
        text.split_once(' ')
            .filter(|(word, _)| *word == number.to_string())
            .and_then(|(_, rest)| Answer::parse(rest))
            .ok_or_else(|| ErrorKind::InvalidData.into())
    };
    exchange().map_err(|error| failure("exchange", &error))
}

fn failure(stage: &'static str, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Hung,
        ErrorKind::ConnectionReset => Failure::Reset,
        _ => Failure::Other(format!("{stage}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn plan(target: SocketAddr, protocol: Protocol) -> Plan {
        Plan {
            target,
            protocol,
            end: End::Requests(10),
            workers: 2,
            timeout: Duration::from_millis(200),
            pause: Duration::ZERO,
            first_port: None,
        }
    }

    #[test]
    fn a_closed_port_refuses_and_a_mute_one_hangs() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let hung = run(&plan(address, Protocol::Tcp));
        assert_eq!((hung.requests, hung.hung), (10, 10), "{}", hung.to_json());
        drop(listener);
        let refused = run(&plan(address, Protocol::Tcp));
        assert_eq!(
            (refused.requests, refused.refused),
            (10, 10),
            "{}",
            refused.to_json()
        );
        assert!(!refused.is_clean());
    }

    #[test]
    fn every_request_is_counted_under_who_answered() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = server.local_addr().expect("it is bound");
        thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((length, client)) = server.recv_from(&mut datagram) {
                let word = String::from_utf8_lossy(&datagram[..length])
                    .trim()
                    .to_owned();
                let answer = format!("{word} web-1 n1 10.0.0.1\n");
                if server.send_to(answer.as_bytes(), client).is_err() {
                    return;
                }
            }
        });
        let report = run(&plan(address, Protocol::Udp));
        assert!(report.is_clean(), "{}", report.to_json());
        assert_eq!(report.by_pod.get("web-1"), Some(&10));
        assert_eq!(report.by_node.get("n1"), Some(&10));
    }
}
