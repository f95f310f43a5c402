//! One suite over the three ways in, each alone: socket hooks, tcx and XDP.

mod support;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Instant,
};

use nix::libc;
use portolan_dataplane::{
    Transmit, Ways,
    model::{Backend, Frontend, Locality, Protocol, Scope, Service},
};
use support::{
    cgroup::Cgroup,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
    servers::{PATIENCE, serve},
    talk::{Client, Style, Talk},
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sockets,
    Tcx,
    Xdp,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// A pod of the node.
    Pod,
    /// A process on the node itself, or in a pod that shares the node's network.
    Host,
    /// Somebody beyond the cluster, at the uplink.
    World,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// In a pod of the node.
    Local,
    /// In a pod of another node.
    Remote,
    /// On the node itself.
    Host,
}

impl Way {
    /// Whom it serves.
    fn callers(self) -> &'static [Who] {
        match self {
            Self::Sockets => &[Who::Pod, Who::Host],
            Self::Tcx => &[Who::Pod, Who::Host, Who::World],
            Self::Xdp => &[Who::World],
        }
    }

    /// The backends that it leads to: XDP sends on what leaves the node again.
    fn backends(self) -> &'static [Where] {
        match self {
            Self::Sockets | Self::Tcx => &[Where::Local, Where::Remote, Where::Host],
            Self::Xdp => &[Where::Remote],
        }
    }
}

impl Where {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Host => "host",
        }
    }

    /// A backend of each family there.
    fn backends(self) -> Vec<Backend> {
        let (at, locality, port) = match self {
            Self::Local => (lab::LOCAL, Locality::Node, TARGET),
            Self::Remote => (lab::REMOTE, Locality::Elsewhere, TARGET),
            Self::Host => (NODE, Locality::Node, HOST_TARGET),
        };
        at.map(|at| Backend {
            port,
            ..backend(at, locality)
        })
        .to_vec()
    }
}

impl Who {
    /// The client's address as a backend sees it.
    fn seen(self, backend: Where, family: usize) -> IpAddr {
        let addresses = match (self, backend) {
            (Self::Pod, _) => lab::CLIENT,
            (Self::Host, _) | (Self::World, Where::Remote) => NODE,
            (Self::World, _) => lab::OUTSIDE,
        };
        address(addresses[family])
    }
}

/// A lab that only one way leads into.
struct Alone {
    lab: Lab,
    way: Way,
    cgroup: Cgroup,
}

/// The port of the backend on the node itself.
const HOST_TARGET: u16 = 8_081;
/// Addresses that the world may knock at, beside those of [`service`]: an external one and a load balancer's.
const EXTERNAL: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
const BALANCER: [&str; 2] = ["203.0.113.1", "2001:db8:2::1"];

impl Alone {
    fn new(way: Way) -> Self {
        let ways = Ways {
            tcx: way == Way::Tcx,
            xdp: way == Way::Xdp,
        };
        let transmit = if way == Way::Xdp {
            Transmit::Auto
        } else {
            Transmit::Never
        };
        let mut lab = Lab::with(transmit, |config| config.ways = ways);
        let cgroup = Cgroup::new();
        if way == Way::Sockets {
            lab.dataplane
                .attach_sockets(cgroup.path())
                .expect("this kernel has socket hooks");
        }
        serve(&lab.local, "local", TARGET);
        serve(&lab.remote, "remote", TARGET);
        serve(&lab.node, "host", HOST_TARGET);
        for addresses in [EXTERNAL, BALANCER] {
            for address in addresses {
                let own = NODE[usize::from(address.contains(':'))];
                lab.outside.ip(&format!("route add {address} via {own}"));
            }
        }
        if way == Way::Xdp {
            // XDP sends only to neighbours that are known; without tcx, nobody else makes them known.
            for neighbour in [lab::OTHER, lab::OUTSIDE].as_flattened() {
                let closed = SocketAddr::from((address(neighbour), 9));
                let connected = lab
                    .node
                    .enter(|| TcpStream::connect_timeout(&closed, PATIENCE));
                let error = connected.expect_err("nobody listens there");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
            }
        }
        Self { lab, way, cgroup }
    }

    /// Runs a function in a namespace, as a process that the socket hooks see.
    fn enter<T: Send>(&self, netns: &Netns, function: impl FnOnce() -> T + Send) -> T {
        netns.enter(|| {
            self.cgroup.join();
            function()
        })
    }

    fn open(&self, style: Style, to: SocketAddr) -> io::Result<Client> {
        self.enter(self.netns(self.caller()), || Client::open(style, to))
    }

    /// One whom this way serves.
    fn caller(&self) -> Who {
        self.way.callers()[0]
    }

    fn netns(&self, who: Who) -> &Netns {
        match who {
            Who::Pod => &self.lab.client,
            Who::Host => &self.lab.node,
            Who::World => &self.lab.outside,
        }
    }

    fn upsert(&mut self, style: Style, backends: Vec<Backend>) {
        let service = everywhere(style, backends);
        self.lab
            .dataplane
            .upsert(&service)
            .expect("a valid service");
    }

    fn talk(&self, who: Who, style: Style, to: SocketAddr) -> Talk {
        let talk = self.enter(self.netns(who), || Client::open(style, to)?.talk());
        talk.unwrap_or_else(|error| panic!("{:?}: {who:?}, {style:?} to {to}: {error}", self.way))
    }
}

/// Every frontend that a client may knock at.
fn frontends(who: Who) -> Vec<SocketAddr> {
    let ports = NODE.map(|at| (at, NODE_PORT)).into_iter();
    let world = [EXTERNAL, BALANCER].concat();
    let at_port = |at| (at, PORT);
    let mut all: Vec<(&str, u16)> = ports.chain(world.into_iter().map(at_port)).collect();
    if who != Who::World {
        all.extend(CLUSTER.map(at_port));
    }
    if who == Who::Host {
        all.push(("127.0.0.1", NODE_PORT));
    }
    let all = all.into_iter();
    all.map(|(at, port)| SocketAddr::from((address(at), port)))
        .collect()
}

/// A service with every kind of frontend.
fn everywhere(style: Style, backends: Vec<Backend>) -> Service {
    let mut service = service(style.protocol(), backends);
    for (addresses, scope) in [(EXTERNAL, Scope::External), (BALANCER, Scope::LoadBalancer)] {
        service
            .frontends
            .extend(addresses.map(|at| Frontend::Address {
                address: address(at),
                port: PORT,
                scope,
            }));
    }
    service
}

/// An IPv4 address as a socket of IPv6 speaks to it.
fn mapped(to: &SocketAddr) -> Option<SocketAddr> {
    match to.ip() {
        IpAddr::V4(address) => Some(SocketAddr::from((address.to_ipv6_mapped(), to.port()))),
        IpAddr::V6(_) => None,
    }
}

fn every_frontend_leads_to_every_backend_and_keeps_its_name(way: Way) {
    let mut alone = Alone::new(way);
    let mut calls = [0, 0];
    for style in Style::ALL {
        for &backend in way.backends() {
            alone.upsert(style, backend.backends());
            for &who in way.callers() {
                let mut all = frontends(who);
                if who == Who::Pod {
                    let mapped: Vec<SocketAddr> = all.iter().filter_map(mapped).collect();
                    all.extend(mapped);
                }
                for to in all {
                    let family = usize::from(!to.ip().to_canonical().is_ipv4());
                    let expected = Talk {
                        server: backend.name().to_owned(),
                        seen: who.seen(backend, family),
                        partner: to,
                    };
                    let talk = alone.talk(who, style, to);
                    assert_eq!(talk, expected, "{way:?}: {who:?}, {style:?} to {to}");
                    calls[usize::from(style != Style::Stream)] += 1;
                }
            }
        }
    }
    let services = alone.lab.dataplane.services();
    for (service, counters) in services.expect("the maps can be read") {
        let flows: u64 = counters
            .classes()
            .iter()
            .map(|(_, class)| class.flows)
            .sum();
        let expected = calls[usize::from(service.protocol == Protocol::Udp)];
        assert_eq!(flows, expected, "{way:?}: {}", service.name.0);
    }
}

fn without_backends_every_call_is_refused_at_once(way: Way) {
    let mut alone = Alone::new(way);
    // An answer to a datagram is longer than it, and XDP leaves those to others whose frame has no room for that.
    let styles = if way == Way::Xdp {
        &Style::ALL[..1]
    } else {
        &Style::ALL
    };
    for &style in styles {
        alone.upsert(style, Vec::new());
        let calls = way.callers().iter();
        for (who, to) in calls.flat_map(|&who| frontends(who).into_iter().map(move |to| (who, to)))
        {
            let began = Instant::now();
            let talk = alone.enter(alone.netns(who), || {
                let mut client = Client::open(style, to)?;
                if let (Client::Named(socket, to), false) = (&client, way == Way::Sockets) {
                    // Errors that come as packets are told to connected sockets alone.
                    socket.connect(*to)?;
                    client = Client::Connected(socket.try_clone()?);
                }
                client.talk()
            });
            let error = talk.expect_err("nobody is there to answer");
            assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionRefused,
                "{way:?}: {who:?}, {style:?} to {to}: {error}"
            );
            assert!(
                began.elapsed() < PATIENCE / 2,
                "{way:?}: {who:?}, {style:?} to {to}"
            );
        }
    }
}

fn datagrams_leave_a_backend_that_is_gone_at_once(way: Way) {
    let mut alone = Alone::new(way);
    for style in [Style::Connected, Style::Named] {
        for v6 in [false, true] {
            let local = lab::LOCAL[usize::from(v6)];
            let remote = lab::REMOTE[usize::from(v6)];
            alone.upsert(style, vec![backend(local, Locality::Node)]);
            let to = SocketAddr::from((address(CLUSTER[usize::from(v6)]), PORT));
            let mut client = alone.open(style, to).expect("it can be opened");
            assert_eq!(client.talk().expect("it is answered").server, "local");
            alone.upsert(style, vec![backend(remote, Locality::Elsewhere)]);
            let began = Instant::now();
            match client.talk() {
                Ok(talk) => assert_eq!((talk.server.as_str(), talk.partner), ("remote", to)),
                // A connected socket asks nobody again, so it is told.
                Err(error) => {
                    assert_eq!((way, style), (Way::Sockets, Style::Connected), "{error}");
                    let told = [Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)];
                    assert!(told.contains(&error.raw_os_error()), "{error}");
                    assert_eq!(alone.talk(Who::Pod, style, to).server, "remote");
                }
            }
            assert!(began.elapsed() < PATIENCE / 2, "{way:?}: {style:?} to {to}");
        }
    }
}

fn a_connection_outlives_its_backends_removal_but_not_its_pod(way: Way) {
    let mut alone = Alone::new(way);
    let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
    let remote = lab::REMOTE
        .map(|at| backend(at, Locality::Elsewhere))
        .to_vec();
    alone.upsert(Style::Stream, local);
    let mut clients = CLUSTER.map(|at| {
        let to = SocketAddr::from((address(at), PORT));
        let mut client = alone.open(Style::Stream, to).expect("it is answered");
        client.talk().expect("it is answered");
        client
    });
    alone.upsert(Style::Stream, remote);
    for client in &mut clients {
        assert_eq!(client.talk().expect("it goes on").server, "local");
    }
    let Lab {
        node, dataplane, ..
    } = &mut alone.lab;
    node.enter(|| dataplane.detach_pod("ptllocal"))
        .expect("it can be detached");
    for client in &mut clients {
        let began = Instant::now();
        let error = client.talk().expect_err("its pod is gone");
        let told = [
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::ConnectionReset,
        ];
        assert!(told.contains(&error.kind()), "{way:?}: {error}");
        assert!(began.elapsed() < PATIENCE / 2, "{way:?}");
    }
}

fn a_pod_reaches_itself_through_its_service(way: Way) {
    let mut alone = Alone::new(way);
    let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
    for style in Style::ALL {
        alone.upsert(style, local.clone());
        for at in CLUSTER {
            let to = SocketAddr::from((address(at), PORT));
            let talk = alone.enter(&alone.lab.local, || Client::open(style, to)?.talk());
            let talk = talk.unwrap_or_else(|error| panic!("{way:?}: {style:?} to {to}: {error}"));
            assert_eq!((talk.server.as_str(), talk.partner), ("local", to));
        }
    }
}

macro_rules! suite {
    ($($module:ident = $way:expr => [$($test:ident),+ $(,)?];)+) => {
        $(
            mod $module {
                use super::Way;

                $(
                    #[test]
                    fn $test() {
                        super::$test($way);
                    }
                )+
            }
        )+
    };
}

suite! {
    sockets = Way::Sockets => [
        every_frontend_leads_to_every_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
        datagrams_leave_a_backend_that_is_gone_at_once,
        a_connection_outlives_its_backends_removal_but_not_its_pod,
        a_pod_reaches_itself_through_its_service,
    ];
    tcx = Way::Tcx => [
        every_frontend_leads_to_every_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
        datagrams_leave_a_backend_that_is_gone_at_once,
        a_connection_outlives_its_backends_removal_but_not_its_pod,
        a_pod_reaches_itself_through_its_service,
    ];
    xdp = Way::Xdp => [
        every_frontend_leads_to_every_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
    ];
}
