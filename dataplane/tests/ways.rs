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
    model::{Backend, Frontend, Locality, Scope, Service},
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

/// A lab that only one way leads into.
struct Alone {
    lab: Lab,
    way: Way,
    cgroup: Cgroup,
}

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
        for addresses in [EXTERNAL, BALANCER] {
            for address in addresses {
                lab.outside.ip(&format!(
                    "route add {address} via {}",
                    NODE[usize::from(address.contains(':'))]
                ));
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
        self.enter(self.client(), || Client::open(style, to))
    }

    /// Whom this way serves.
    fn client(&self) -> &Netns {
        match self.way {
            Way::Sockets | Way::Tcx => &self.lab.client,
            Way::Xdp => &self.lab.outside,
        }
    }

    /// Backends that this way reaches: XDP sends on what leaves the node again.
    fn backends(&self) -> Vec<Backend> {
        let local = lab::LOCAL.map(|at| backend(at, Locality::Node));
        let remote = lab::REMOTE.map(|at| backend(at, Locality::Elsewhere));
        if self.way == Way::Xdp {
            remote.to_vec()
        } else {
            [local, remote].concat()
        }
    }

    fn upsert(&mut self, style: Style, backends: Vec<Backend>) {
        let service = everywhere(style, backends);
        self.lab
            .dataplane
            .upsert(&service)
            .expect("a valid service");
    }

    /// Every frontend that this way's client may knock at.
    fn frontends(&self) -> Vec<SocketAddr> {
        let node_ports = NODE.map(|at| SocketAddr::from((address(at), NODE_PORT)));
        let others = [EXTERNAL, BALANCER].concat();
        let others = others
            .iter()
            .map(|at| SocketAddr::from((address(at), PORT)));
        let mut frontends: Vec<SocketAddr> = node_ports.into_iter().chain(others).collect();
        if self.way != Way::Xdp {
            frontends.extend(CLUSTER.map(|at| SocketAddr::from((address(at), PORT))));
            let mapped: Vec<SocketAddr> = frontends.iter().filter_map(mapped).collect();
            frontends.extend(mapped);
        }
        frontends
    }

    fn talk(&self, style: Style, to: SocketAddr) -> Talk {
        let talk = self.enter(self.client(), || Client::open(style, to)?.talk());
        talk.unwrap_or_else(|error| panic!("{:?}: {style:?} to {to}: {error}", self.way))
    }
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

fn every_frontend_leads_to_a_backend_and_keeps_its_name(way: Way) {
    let mut alone = Alone::new(way);
    for style in Style::ALL {
        alone.upsert(style, alone.backends());
        for to in alone.frontends() {
            let talk = alone.talk(style, to);
            let (server, seen) = match way {
                Way::Sockets | Way::Tcx => ("local", lab::CLIENT),
                Way::Xdp => ("remote", lab::NODE),
            };
            let v4 = to.ip().to_canonical().is_ipv4();
            let expected = Talk {
                server: server.to_owned(),
                seen: address(seen[usize::from(!v4)]),
                partner: to,
            };
            assert_eq!(talk, expected, "{way:?}: {style:?} to {to}");
        }
    }
    let services = alone
        .lab
        .dataplane
        .services()
        .expect("the maps can be read");
    for (service, counters) in services {
        let expected = alone.frontends().len() as u64;
        let styles = Style::ALL
            .iter()
            .filter(|style| style.protocol() == service.protocol);
        let flows: u64 = counters
            .classes()
            .iter()
            .map(|(_, class)| class.flows)
            .sum();
        assert_eq!(
            flows,
            expected * styles.count() as u64,
            "{way:?}: {}",
            service.name.0
        );
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
        for to in alone.frontends() {
            let began = Instant::now();
            let talk = alone.enter(alone.client(), || {
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
                "{way:?}: {style:?} to {to}: {error}"
            );
            assert!(began.elapsed() < PATIENCE / 2, "{way:?}: {style:?} to {to}");
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
                    assert_eq!(alone.talk(style, to).server, "remote");
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
        every_frontend_leads_to_a_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
        datagrams_leave_a_backend_that_is_gone_at_once,
        a_connection_outlives_its_backends_removal_but_not_its_pod,
        a_pod_reaches_itself_through_its_service,
    ];
    tcx = Way::Tcx => [
        every_frontend_leads_to_a_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
        datagrams_leave_a_backend_that_is_gone_at_once,
        a_connection_outlives_its_backends_removal_but_not_its_pod,
        a_pod_reaches_itself_through_its_service,
    ];
    xdp = Way::Xdp => [
        every_frontend_leads_to_a_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
    ];
}
