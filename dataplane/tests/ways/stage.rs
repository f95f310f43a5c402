//! A lab that one way alone leads into, and who calls whom there.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
};

use portolan_dataplane::{
    Transmit, Ways,
    model::{Backend, Frontend, Locality, Scope, Service},
};

use crate::support::{
    cgroup::Cgroup,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
    servers::{PATIENCE, serve},
    talk::{Client, Style, Talk},
};

/// One of the ways in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Sockets,
    Tcx,
    Xdp,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A pod of the node.
    Pod,
    /// A process on the node itself, or in a pod that shares the node's network.
    Host,
    /// Somebody beyond the cluster, at the uplink.
    World,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In a pod of the node.
    Local,
    /// In a pod of another node.
    Remote,
    /// On the node itself.
    Host,
    /// On another node itself.
    Other,
}

impl Way {
    /// Whom it serves.
    pub fn callers(self) -> &'static [Who] {
        match self {
            Self::Sockets => &[Who::Pod, Who::Host],
            Self::Tcx => &[Who::Pod, Who::Host, Who::World],
            Self::Xdp => &[Who::World],
        }
    }

    /// The backends that it leads to: XDP sends on what leaves the node again.
    pub fn backends(self) -> &'static [Where] {
        match self {
            Self::Sockets | Self::Tcx => &[Where::Local, Where::Remote, Where::Host, Where::Other],
            Self::Xdp => &[Where::Remote, Where::Other],
        }
    }

    /// Two of them, the nearer first.
    pub fn two(self) -> [Where; 2] {
        [self.backends()[0], self.backends()[1]]
    }
}

impl Where {
    /// What its server calls itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Host => "host",
            Self::Other => "other",
        }
    }

    /// A backend of each family there.
    pub fn backends(self) -> Vec<Backend> {
        let (at, locality, port) = match self {
            Self::Local => (lab::LOCAL, Locality::Node, TARGET),
            Self::Remote => (lab::REMOTE, Locality::Elsewhere, TARGET),
            Self::Host => (NODE, Locality::Node, HOST_TARGET),
            Self::Other => (lab::OTHER, Locality::Elsewhere, HOST_TARGET),
        };
        at.map(|at| Backend {
            port,
            ..backend(at, locality)
        })
        .to_vec()
    }
}

impl Who {
    /// The client's own addresses.
    pub fn own(self) -> [&'static str; 2] {
        match self {
            Self::Pod => lab::CLIENT,
            Self::Host => NODE,
            Self::World => lab::OUTSIDE,
        }
    }

    /// A frontend of [`everywhere`] that the client may knock at.
    pub fn frontend(self, family: usize) -> SocketAddr {
        match self {
            Self::World => (address(NODE[family]), NODE_PORT).into(),
            _ => (address(CLUSTER[family]), PORT).into(),
        }
    }

    /// The client's address as a backend sees it.
    pub fn seen(self, backend: Where, family: usize) -> IpAddr {
        let addresses = match (self, backend) {
            (Self::World, Where::Remote | Where::Other) => NODE,
            _ => self.own(),
        };
        address(addresses[family])
    }
}

/// A lab that only one way leads into.
pub struct Alone {
    pub lab: Lab,
    pub way: Way,
    cgroup: Cgroup,
}

/// The port of the backend on the node itself.
pub const HOST_TARGET: u16 = 8_081;
/// Addresses that the world may knock at, beside those of [`service`]: an external one and a load balancer's.
pub const EXTERNAL: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
pub const BALANCER: [&str; 2] = ["203.0.113.1", "2001:db8:2::1"];

impl Alone {
    /// With a server wherever a backend may be.
    pub fn new(way: Way) -> Self {
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
        serve(&lab.other, "other", HOST_TARGET);
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
    pub fn enter<T: Send>(&self, netns: &Netns, function: impl FnOnce() -> T + Send) -> T {
        netns.enter(|| {
            self.cgroup.join();
            function()
        })
    }

    /// Opens a socket of one whom this way serves.
    pub fn open(&self, style: Style, to: SocketAddr) -> io::Result<Client> {
        self.enter(self.netns(self.caller()), || Client::open(style, to))
    }

    /// One whom this way serves.
    pub fn caller(&self) -> Who {
        self.way.callers()[0]
    }

    /// Where a client is.
    pub fn netns(&self, who: Who) -> &Netns {
        match who {
            Who::Pod => &self.lab.client,
            Who::Host => &self.lab.node,
            Who::World => &self.lab.outside,
        }
    }

    /// Makes a service with every kind of frontend and backends at these places.
    pub fn upsert(&mut self, style: Style, places: &[Where]) {
        self.put(&everywhere(style, places));
    }

    /// Makes a service.
    pub fn put(&mut self, service: &Service) {
        let upserted = self.lab.dataplane.upsert(service);
        upserted.expect("a valid service");
    }

    /// Asks once.
    pub fn ask(&self, who: Who, style: Style, to: SocketAddr) -> io::Result<Talk> {
        self.enter(self.netns(who), || Client::open(style, to)?.talk())
    }

    /// Asks once, and insists on an answer.
    pub fn talk(&self, who: Who, style: Style, to: SocketAddr) -> Talk {
        let talk = self.ask(who, style, to);
        talk.unwrap_or_else(|error| panic!("{:?}: {who:?}, {style:?} to {to}: {error}", self.way))
    }
}

/// Every frontend that a client may knock at.
pub fn frontends(who: Who) -> Vec<SocketAddr> {
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
pub fn everywhere(style: Style, places: &[Where]) -> Service {
    let backends = places.iter().flat_map(|place| place.backends());
    let mut service = service(style.protocol(), backends.collect());
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
