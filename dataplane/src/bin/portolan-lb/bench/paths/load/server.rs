//! The servers: one for all endpoints, on the CPU of the clients.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use portolan_dataplane::model::Protocol;

use super::{Measure, PATIENCE, STREAM_CHUNK};
use crate::{
    bench::paths::plan::{BACKEND_PORT, Plan},
    space::Space,
};

/// How often a server that waits looks whether it is to stop.
const LOOK_EVERY: u16 = 20;

/// When a server is there, and when it is to stop.
pub struct Life<'a> {
    pub ready: Sender<()>,
    pub stop: &'a AtomicBool,
}

impl Life<'_> {
    /// Says that clients may come.
    pub fn is_ready(&self) -> Result<()> {
        self.ready.send(()).context("the run goes on")
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The server of a run: says when it is there, and ends when it is told to.
pub fn serve(measure: Measure, pods: &[Space], plan: &Plan, life: &Life<'_>) -> Result<()> {
    if measure.protocol() == Protocol::Udp {
        return echo_datagrams(&udp_sockets(pods, plan)?, life);
    }
    let listeners = listeners(pods)?;
    let waiting = Waiting::new()?;
    for (number, listener) in (0..).zip(&listeners) {
        waiting.add(listener, number)?;
    }
    life.is_ready()?;
    while let Some(number) = waiting.next(life)? {
        let Some(listener) = listeners.get(number) else {
            continue;
        };
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

/// A listener in each of the backends' pods.
pub fn listeners(pods: &[Space]) -> Result<Vec<TcpListener>> {
    pods.iter()
        .map(|pod| {
            let bound = pod.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT)))?;
            bound.context("listen in a backend's pod")
        })
        .collect()
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Sockets that are waited for, at a cost that does not depend on how many they are.
pub struct Waiting(Epoll);

impl Waiting {
    pub fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("wait for sockets")?;
        Ok(Self(epoll))
    }

    /// Waits for a socket too.
    pub fn add(&self, socket: &impl std::os::fd::AsFd, number: usize) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
        self.0.add(socket, event).context("wait for a socket")
    }

    /// The number of a socket that has something; none when it is time to stop.
    pub fn next(&self, life: &Life<'_>) -> Result<Option<usize>> {
        let mut events = [EpollEvent::empty()];
        loop {
            match self.0.wait(&mut events, EpollTimeout::from(LOOK_EVERY)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(usize::try_from(events[0].data()).ok()),
                Err(error) => return Err(error).context("wait for clients"),
            }
            if life.is_over() {
                return Ok(None);
            }
        }
    }
}

/// A socket for each endpoint: one for all would answer from the wrong address.
pub fn udp_sockets(pods: &[Space], plan: &Plan) -> Result<Vec<UdpSocket>> {
    (0..plan.endpoints)
        .map(|endpoint| {
            let pod = pods.get(Plan::pod_of(endpoint)).context("a pod for each")?;
            let address = (Plan::backend(endpoint), BACKEND_PORT);
            let bound = pod.enter(|| UdpSocket::bind(address))?;
            let socket = bound.context("bind in a backend's pod")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect()
}

fn echo_datagrams(sockets: &[UdpSocket], life: &Life<'_>) -> Result<()> {
    let waiting = Waiting::new()?;
    for (number, socket) in (0..).zip(sockets) {
        waiting.add(socket, number)?;
    }
    life.is_ready()?;
    let mut byte = [0];
    while let Some(number) = waiting.next(life)? {
        let Some(socket) = sockets.get(number) else {
            continue;
        };
        match socket.recv_from(&mut byte) {
            Ok((_, from)) => drop(socket.send_to(&byte, from)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(())
}
