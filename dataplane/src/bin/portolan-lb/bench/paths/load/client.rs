//! The clients.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::{
    socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, sockopt},
    time::TimeVal,
};
use portolan_dataplane::model::Protocol;

use super::{Figure, PATIENCE, STREAM_CHUNK};
use crate::bench::{
    paths::{
        plan::{BACKEND_PORT, Path, Plan, SERVICE_PORT},
        stage::Client,
    },
    row::quantile,
};

/// Packets of a burst of the flood, each received before the next burst is sent.
const BURST: usize = 64;
/// Requests a second where latency is quoted: of new connections and flows, and on standing ones.
const NEW_RATE: u32 = 2_000;
const STANDING_RATE: u32 = 10_000;

/// Where a client knocks, by turns.
pub struct Targets {
    path: Path,
    plan: Plan,
    source: Ipv4Addr,
    random: RefCell<fastrand::Rng>,
}

impl Targets {
    pub fn new(client: Client<'_>, turn: u32) -> Self {
        Self {
            path: client.path,
            plan: client.plan,
            source: Plan::client(turn),
            random: fastrand::Rng::with_seed(u64::from(turn)).into(),
        }
    }

    /// The backends in rotation where there is no service, else one of the services at random.
    fn target(&self, turn: u32) -> SocketAddrV4 {
        if self.path.is_without_service() {
            return SocketAddrV4::new(Plan::backend(turn % self.plan.endpoints), BACKEND_PORT);
        }
        let service = self.random.borrow_mut().u32(..self.plan.services);
        SocketAddrV4::new(Plan::service(service), SERVICE_PORT)
    }

    /// A new connection from the client's address of this run.
    pub fn connect(&self, turn: u32) -> io::Result<OwnedFd> {
        self.connect_to(self.target(turn), PATIENCE)
    }

    /// The same to a service.
    pub fn connect_to_service(&self, service: u32, patience: Duration) -> io::Result<OwnedFd> {
        let to = SocketAddrV4::new(Plan::service(service), SERVICE_PORT);
        self.connect_to(to, patience)
    }

    fn connect_to(&self, to: SocketAddrV4, patience: Duration) -> io::Result<OwnedFd> {
        let kind = if self.plan.protocol == Protocol::Udp {
            SockType::Datagram
        } else {
            SockType::Stream
        };
        let fd = socket::socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
        let patience = TimeVal::new(seconds, patience.subsec_micros().into());
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        // connect() waits as long as sending may.
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        let source = SocketAddrV4::new(self.source, 0);
        socket::bind(fd.as_raw_fd(), &SockaddrIn::from(source))?;
        connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(fd)
    }
}

/// One byte there and back.
pub fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// New connections a second: connect, request, response, close.
pub fn connect_rate(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    let busy = busy_time()?;
    let began = Instant::now();
    let mut connections = 0_u32;
    while began.elapsed() < time {
        for _ in 0..16 {
            let mut stream = TcpStream::from(targets.connect(connections)?);
            ask(&mut stream)?;
            connections += 1;
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    let busy = busy_time()? - busy;
    let count = f64::from(connections);
    Ok(vec![
        Figure::new("connections_per_second", "1/s", count / elapsed),
        Figure::new("cpu_us_per_connection", "us", busy * 1e6 / count),
    ])
}

/// The time until a connection stands.
pub fn connect_latency(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    open_loop(NEW_RATE, time, |turn| targets.connect(turn))
}

/// Request and response on a standing connection.
pub fn tcp_requests(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    let mut stream = TcpStream::from(targets.connect(0)?);
    stream.set_nodelay(true)?;
    open_loop(STANDING_RATE, time, |_| ask(&mut stream))
}

/// The same on a standing flow of datagrams.
pub fn udp_requests(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    let socket = UdpSocket::from(targets.connect(0)?);
    open_loop(STANDING_RATE, time, |_| ask_datagram(&socket))
}

/// Request and response on a new flow of datagrams.
pub fn udp_new_flows(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    open_loop(NEW_RATE, time, |turn| {
        let socket = UdpSocket::from(targets.connect(turn)?);
        ask_datagram(&socket)?;
        Ok(socket)
    })
}

fn ask_datagram(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"x")?;
    socket.recv(&mut [0]).map(drop)
}

/// Requests at fixed times, whatever became of those before. What a request leaves behind is closed after it was timed.
#[expect(clippy::cast_precision_loss, reason = "latencies are short")]
fn open_loop<T>(
    rate: u32,
    time: Duration,
    mut request: impl FnMut(u32) -> io::Result<T>,
) -> Result<Vec<Figure>> {
    let gap = Duration::from_secs(1) / rate;
    // The first ones find caches and neighbours.
    for turn in 0..20 {
        request(turn)?;
    }
    let began = Instant::now();
    let mut latencies = Vec::new();
    for turn in 0.. {
        let due = gap * turn;
        if due >= time {
            break;
        }
        while began.elapsed() < due {
            // The server may have work left, on the same CPU.
            thread::yield_now();
        }
        let left = request(turn)?;
        latencies.push(began.elapsed().saturating_sub(due).as_nanos() as f64 / 1e3);
        drop(left);
    }
    latencies.sort_by(f64::total_cmp);
    let figure = |metric, share| {
        Figure::new(
            metric,
            "us",
            quantile(&latencies, share).unwrap_or(f64::NAN),
        )
    };
    Ok(vec![
        figure("p50", 0.5),
        figure("p99", 0.99),
        figure("p99.9", 0.999),
    ])
}

/// One stream as fast as it goes.
#[expect(clippy::cast_precision_loss, reason = "a chunk is short")]
pub fn stream(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
    let mut stream = TcpStream::from(targets.connect(0)?);
    let chunk = vec![0; STREAM_CHUNK];
    let began = Instant::now();
    let mut chunks = 0_u32;
    while began.elapsed() < time {
        stream.write_all(&chunk)?;
        chunks += 1;
    }
    // All of it has arrived when the server has seen the end and closes its side.
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0])?;
    let bits = f64::from(chunks) * STREAM_CHUNK as f64 * 8.0;
    let rate = bits / began.elapsed().as_secs_f64() / 1e9;
    Ok(vec![Figure::new("throughput", "Gbit/s", rate)])
}

/// One flow as fast as packets go through, each burst received before the next is sent.
pub fn flood(
    at: Client<'_>,
    servers: &[UdpSocket],
    turn: u32,
    time: Duration,
) -> Result<Vec<Figure>> {
    let client = at.enter(|| Targets::new(at, turn).connect(0).map(UdpSocket::from))??;
    client.send(b"first")?;
    let server = first_to_receive(servers)?;
    let busy = busy_time()?;
    let began = Instant::now();
    let mut received = 0_u32;
    let mut lost = 0_u32;
    let payload = [0; 64];
    let mut buffer = [0; 128];
    while began.elapsed() < time {
        for _ in 0..BURST {
            client.send(&payload)?;
        }
        for _ in 0..BURST {
            match server.recv(&mut buffer) {
                Ok(_) => received += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => lost += 1,
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    let busy = busy_time()? - busy;
    if lost > received / 100 {
        bail!("{lost} packets were lost, {received} arrived");
    }
    let count = f64::from(received);
    Ok(vec![
        Figure::new("packets_per_second", "1/s", count / elapsed),
        Figure::new("cpu_ns_per_packet", "ns", busy * 1e9 / count),
    ])
}

fn first_to_receive(servers: &[UdpSocket]) -> Result<&UdpSocket> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        for server in servers {
            if server.recv(&mut [0; 16]).is_ok() {
                return Ok(server);
            }
        }
        thread::yield_now();
    }
    bail!("the first packet did not arrive")
}

/// How long this thread's CPU has been busy, in seconds.
fn busy_time() -> Result<f64> {
    let cpu = nix::sched::sched_getcpu().context("which CPU is this")?;
    let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))
        .context("the CPU in /proc/stat")?;
    let ticks: Vec<f64> = line
        .split(' ')
        .filter_map(|tick| tick.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; a tick is a hundredth of a second in every Linux.
    let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum();
    Ok(busy / 100.0)
}
