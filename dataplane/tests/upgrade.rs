//! Programs are replaced and the dataplane is opened anew while each way in is in use: nothing is lost or reset.
//!
//! `PORTOLAN_REPLACEMENTS=100` replaces the programs so often; in the ordinary run it is a few times.

mod support;

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use portolan_dataplane::{
    Dataplane, Transmit, Ways,
    model::{Locality, Protocol},
};
use support::{
    cgroup::Cgroup,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    servers::serve,
    talk::{Client, Style},
};

/// How often programs are replaced in the ordinary run.
const REPLACEMENTS: u32 = 5;

/// Clients leave each other, and whoever replaces programs, some time.
const PAUSE: Duration = Duration::from_micros(300);

/// A new datagram flow lasts two minutes in the tables. More of them than this would fill the tables, and a full table
/// is not what is tested here.
const PAUSE_OF_NEW_DATAGRAMS: Duration = Duration::from_millis(20);

/// A closed connection waits a minute in the tables, and its port at the server: the same goes for new connections.
const PAUSE_OF_NEW_STREAMS: Duration = Duration::from_millis(2);

/// Exchanges that every kind of client must have had between two replacements.
const BETWEEN: u64 = 3;

/// What one client keeps doing.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// A new socket for every exchange.
    Anew(Style),
    /// One socket for all.
    Lasting(Style),
}

const USES: [Use; 5] = [
    Use::Anew(Style::Stream),
    Use::Anew(Style::Named),
    Use::Lasting(Style::Stream),
    Use::Lasting(Style::Connected),
    Use::Lasting(Style::Named),
];

/// Talks until it is told to end, and counts.
fn keep_talking(
    what: Use,
    to: SocketAddr,
    ended: &AtomicBool,
    count: &AtomicU64,
) -> io::Result<()> {
    let (Use::Anew(style) | Use::Lasting(style)) = what;
    let mut client = Client::open(style, to)?;
    while !ended.load(Ordering::Relaxed) {
        if matches!(what, Use::Anew(_)) {
            client = Client::open(style, to)?;
        }
        let talk = client.talk()?;
        if talk.partner != to {
            return Err(io::Error::other(format!(
                "{} answered for {to}",
                talk.partner
            )));
        }
        count.fetch_add(1, Ordering::Relaxed);
        thread::sleep(match what {
            Use::Anew(Style::Named) => PAUSE_OF_NEW_DATAGRAMS,
            Use::Anew(_) => PAUSE_OF_NEW_STREAMS,
            Use::Lasting(_) => PAUSE,
        });
    }
    Ok(())
}

fn replacements() -> u32 {
    std::env::var("PORTOLAN_REPLACEMENTS").map_or(REPLACEMENTS, |text| {
        text.parse().expect("PORTOLAN_REPLACEMENTS is a number")
    })
}

/// One kind of client and how often it was answered.
struct Kind {
    what: Use,
    to: SocketAddr,
    answers: AtomicU64,
}

impl Kind {
    fn count(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// A lab that one way leads into, and every kind of client with the frontends that it knocks at.
fn lab(ways: Ways, transmit: Transmit) -> (Lab, Vec<Kind>) {
    let mut lab = Lab::with(transmit, |config| config.ways = ways);
    serve(&lab.local, "local", TARGET);
    serve(&lab.remote, "remote", TARGET);
    let at_uplink = transmit != Transmit::Never;
    let (backends, frontends) = if at_uplink {
        (
            lab::REMOTE.map(|at| backend(at, Locality::Elsewhere)),
            NODE.map(|at| SocketAddr::from((address(at), NODE_PORT))),
        )
    } else {
        (
            lab::LOCAL.map(|at| backend(at, Locality::Node)),
            CLUSTER.map(|at| SocketAddr::from((address(at), PORT))),
        )
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        lab.dataplane
            .upsert(&service(protocol, backends.to_vec()))
            .expect("a valid service");
    }
    let kinds = frontends.iter().flat_map(|to| {
        USES.map(|what| Kind {
            what,
            to: *to,
            answers: AtomicU64::new(0),
        })
    });
    (lab, kinds.collect())
}

/// Replaces programs under all uses of a way.
fn nothing_is_lost(ways: Ways, transmit: Transmit, sockets: bool) {
    let (mut lab, kinds) = lab(ways, transmit);
    let cgroup = Cgroup::new();
    if sockets {
        lab.dataplane
            .attach_sockets(cgroup.path())
            .expect("this kernel has socket hooks");
    }
    let client = if transmit == Transmit::Never {
        &lab.client
    } else {
        &lab.outside
    };
    let (node, dataplane) = (&lab.node, &mut lab.dataplane);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let (cgroup, ended) = (&cgroup, &ended);
                scope.spawn(move || {
                    client.enter(|| {
                        cgroup.join();
                        keep_talking(kind.what, kind.to, ended, &kind.answers)
                    })
                })
            })
            .collect();
        let talk_on = || {
            let before: Vec<u64> = kinds.iter().map(Kind::count).collect();
            let went_on = || {
                let mut counts = kinds.iter().zip(&before);
                counts.all(|(kind, before)| kind.count() >= before + BETWEEN)
            };
            // A client that has failed tells why when it is joined.
            while !went_on() && !clients.iter().any(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(PAUSE);
            }
        };
        for _ in 0..replacements() {
            talk_on();
            let config = dataplane.config().clone();
            *dataplane = node.enter(|| Dataplane::open(config).expect("the dataplane opens again"));
        }
        talk_on();
        ended.store(true, Ordering::Relaxed);
        for (client, kind) in clients.into_iter().zip(&kinds) {
            match client.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => panic!(
                    "{:?} to {}: {error}; the flow tables' events: {:?}",
                    kind.what,
                    kind.to,
                    dataplane.events()
                ),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let total: u64 = kinds.iter().map(Kind::count).sum();
    println!("{total} exchanges over {} replacements", replacements());
}

#[test]
fn nothing_is_lost_by_socket_hooks() {
    let ways = Ways {
        tcx: false,
        xdp: false,
    };
    nothing_is_lost(ways, Transmit::Never, true);
}

#[test]
fn nothing_is_lost_by_tcx() {
    let ways = Ways {
        tcx: true,
        xdp: false,
    };
    nothing_is_lost(ways, Transmit::Never, false);
}

#[test]
fn nothing_is_lost_by_xdp() {
    nothing_is_lost(Ways::default(), Transmit::Auto, false);
}
