//! The load: clients and servers on one CPU, so that what differs between two paths is what they cost.
//!
//! Rates are taken in a closed loop; latencies in an open one: requests are due at fixed times whether or not the last
//! one has been answered, and each is timed from when it was due.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        self, AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, sockopt,
    },
};
use portolan_dataplane::model::Protocol;

use super::{
    plan::{BACKEND_PORT, Path, Plan, SERVICE_PORT},
    stage::Stage,
};
use crate::bench::row::quantile;

/// How long a client waits for anything before the run is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Packets of a burst of the flood, each received before the next burst is sent.
const BURST: usize = 64;
const STREAM_CHUNK: usize = 64 * 1_024;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    Connect,
    ConnectLatency,
    TcpRr,
    UdpNewFlow,
    UdpFlood,
    TcpStream,
}

/// A figure of one run.
pub struct Figure {
    pub metric: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

impl Measure {
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::ConnectLatency,
        Self::TcpRr,
        Self::UdpNewFlow,
        Self::UdpFlood,
        Self::TcpStream,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "paths/connect",
            Self::ConnectLatency => "paths/connect_latency",
            Self::TcpRr => "paths/tcp_rr",
            Self::UdpNewFlow => "paths/udp_new_flow",
            Self::UdpFlood => "paths/udp_flood",
            Self::TcpStream => "paths/tcp_stream",
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::UdpNewFlow | Self::UdpFlood => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    /// Requests a second where latency is quoted.
    fn rate(self) -> u32 {
        if self == Self::TcpRr { 10_000 } else { 2_000 }
    }

    /// Runs once on a stage. `turn` tells runs apart, so that no two use the same client ports.
    pub fn run(self, stage: &Stage, turn: u32, time: Duration) -> Result<Vec<Figure>> {
        if self == Self::UdpFlood {
            return flood(stage, turn, time);
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (ready, wait) = std::sync::mpsc::channel();
            let server = scope.spawn(|| serve(self, stage, &stop, ready));
            let started = wait.recv().context("the server starts");
            let client = scope.spawn(|| -> Result<Vec<Figure>> {
                stage.client.join()?;
                let figures = self.load(&Targets::new(stage, turn), time);
                stop.store(true, Ordering::Release);
                figures
            });
            let figures = client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            stop.store(true, Ordering::Release);
            let served = server
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            started.and(served).and(figures)
        })
    }

    fn load(self, targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
        match self {
            Self::Connect => connect_rate(targets, time),
            Self::ConnectLatency => {
                open_loop(self.rate(), time, |turn| targets.connect(turn).map(drop))
            }
            Self::TcpRr => {
                let mut stream = TcpStream::from(targets.connect(0)?);
                stream.set_nodelay(true)?;
                open_loop(self.rate(), time, |_| ask(&mut stream))
            }
            Self::UdpNewFlow => open_loop(self.rate(), time, |turn| {
                let socket = UdpSocket::from(targets.connect(turn)?);
                socket.send(b"x")?;
                socket.recv(&mut [0]).map(drop)
            }),
            Self::TcpStream => stream(targets, time),
            Self::UdpFlood => unreachable!("the flood needs no second thread"),
        }
    }
}

/// Where a client knocks, by turns.
struct Targets {
    path: Path,
    plan: Plan,
    source: Ipv4Addr,
    random: std::cell::RefCell<fastrand::Rng>,
}

impl Targets {
    fn new(stage: &Stage, turn: u32) -> Self {
        Self {
            path: stage.path,
            plan: stage.plan,
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
        SocketAddrV4::new(self.plan.service(service), SERVICE_PORT)
    }

    /// A new connection from the client's address of this run.
    fn connect(&self, turn: u32) -> io::Result<OwnedFd> {
        let kind = if self.plan.protocol == Protocol::Udp {
            SockType::Datagram
        } else {
            SockType::Stream
        };
        let fd = socket::socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        let patience = nix::sys::time::TimeVal::new(5, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        let source = SocketAddrV4::new(self.source, 0);
        socket::bind(fd.as_raw_fd(), &SockaddrIn::from(source))?;
        connect(fd.as_raw_fd(), &SockaddrIn::from(self.target(turn)))?;
        Ok(fd)
    }
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// New connections a second: connect, request, response, close.
fn connect_rate(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
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
    let figure = |metric, unit, value| Figure {
        metric,
        unit,
        value,
    };
    Ok(vec![
        figure(
            "connections_per_second",
            "1/s",
            f64::from(connections) / elapsed,
        ),
        figure(
            "cpu_us_per_connection",
            "us",
            busy * 1e6 / f64::from(connections),
        ),
    ])
}

/// Requests at fixed times.
#[expect(clippy::cast_precision_loss, reason = "latencies are short")]
fn open_loop(
    rate: u32,
    time: Duration,
    mut request: impl FnMut(u32) -> io::Result<()>,
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
        request(turn)?;
        latencies.push((began.elapsed() - due).as_nanos() as f64 / 1e3);
    }
    latencies.sort_by(f64::total_cmp);
    let figure = |metric, share| Figure {
        metric,
        unit: "us",
        value: quantile(&latencies, share).unwrap_or(f64::NAN),
    };
    Ok(vec![
        figure("p50", 0.5),
        figure("p99", 0.99),
        figure("p99.9", 0.999),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "a chunk is short")]
fn stream(targets: &Targets, time: Duration) -> Result<Vec<Figure>> {
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
    Ok(vec![Figure {
        metric: "throughput",
        unit: "Gbit/s",
        value: bits / began.elapsed().as_secs_f64() / 1e9,
    }])
}

/// The server of a run: says when it is there, and ends when it is told to.
fn serve(
    measure: Measure,
    stage: &Stage,
    stop: &AtomicBool,
    ready: std::sync::mpsc::Sender<()>,
) -> Result<()> {
    stage.server.join()?;
    let tell = |ready: std::sync::mpsc::Sender<()>| ready.send(()).context("the run goes on");
    if measure.protocol() == Protocol::Udp {
        let sockets = udp_sockets(&stage.plan)?;
        tell(ready)?;
        return echo_datagrams(&sockets, stop);
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT))?;
    tell(ready)?;
    while wait(&[&listener], stop)? {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if measure == Measure::TcpStream {
            let mut chunk = vec![0; STREAM_CHUNK];
            while stream.read(&mut chunk)? > 0 {}
        } else {
            stream.set_nodelay(true)?;
            answer(&mut stream)?;
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Waits until one of the sockets has something; false when it is time to stop.
fn wait(sockets: &[&dyn AsDescriptor], stop: &AtomicBool) -> Result<bool> {
    let mut waiting: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.descriptor(), PollFlags::POLLIN))
        .collect();
    loop {
        if poll(&mut waiting, PollTimeout::from(20_u8)).context("wait for clients")? > 0 {
            return Ok(true);
        }
        if stop.load(Ordering::Acquire) {
            return Ok(false);
        }
    }
}

/// What can be waited for.
trait AsDescriptor {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsDescriptor for T {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// A socket for each endpoint: one for all would answer from the wrong address.
fn udp_sockets(plan: &Plan) -> Result<Vec<UdpSocket>> {
    (0..plan.endpoints)
        .map(|endpoint| {
            let socket = UdpSocket::bind((Plan::backend(endpoint), BACKEND_PORT))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect()
}

fn echo_datagrams(sockets: &[UdpSocket], stop: &AtomicBool) -> Result<()> {
    let waiting: Vec<&dyn AsDescriptor> = sockets
        .iter()
        .map(|socket| socket as &dyn AsDescriptor)
        .collect();
    let mut byte = [0];
    while wait(&waiting, stop)? {
        for socket in sockets {
            match socket.recv_from(&mut byte) {
                Ok((_, from)) => drop(socket.send_to(&byte, from)?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
    Ok(())
}

/// One flow as fast as packets go through, each burst received before the next is sent.
fn flood(stage: &Stage, turn: u32, time: Duration) -> Result<Vec<Figure>> {
    let servers = stage.server.enter(|| udp_sockets(&stage.plan))??;
    let client = stage
        .client
        .enter(|| Targets::new(stage, turn).connect(0).map(UdpSocket::from))??;
    client.send(b"first")?;
    let server = first_to_receive(&servers)?;
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
    let figure = |metric, unit, value| Figure {
        metric,
        unit,
        value,
    };
    Ok(vec![
        figure("packets_per_second", "1/s", f64::from(received) / elapsed),
        figure("cpu_ns_per_packet", "ns", busy * 1e9 / f64::from(received)),
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

/// One request through a fresh path, to show that it leads anywhere.
pub fn probe(stage: &Stage) -> Result<()> {
    let measure = if stage.plan.protocol == Protocol::Udp {
        Measure::UdpNewFlow
    } else {
        Measure::Connect
    };
    measure.run(stage, 0, Duration::from_millis(1)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_a_name_of_its_own() {
        let mut names: Vec<_> = Measure::ALL.iter().map(|measure| measure.name()).collect();
        names.dedup();
        assert_eq!(names.len(), Measure::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("paths/")));
    }
}
