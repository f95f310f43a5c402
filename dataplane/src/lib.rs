//! The dataplane: loads and attaches the kernel programs, owns their maps and turns services into map contents.
//!
//! ```text
//!   model::Service --upsert--> services ----> CHOICES (tables of backend ids, written beside the old ones)
//!                                 |  '------> BACKENDS (one line an id)          ^
//!                                 '---------> SERVICES_V4/_V6: one write an entry flips what packets see
//!   PodInterface --attach_pod--> pods ------> PODS_V4/_V6, a pinned tcx link on the veth
//!   attach_sockets ---------------------------> pinned links on a control group; SOCKETS; NAMESPACES says whose they are
//!   sweep ------------------------ flows ---> FLOWS_*, SNAT_*: aged flows out, ids that nobody needs free
//!
//!   pin_dir/NAME                      the maps
//!   pin_dir/links/PROGRAM-INTERFACE   what keeps the programs attached when this process ends
//!   pin_dir/sockets/PROGRAM           the same for the socket hooks
//! ```
//!
//! It knows services, backends and devices; no Kubernetes type, no gRPC, no container. aya's types stay inside.
//!
//! # Invariants
//! - All state is in pinned maps. A new process reads its ids from them before it writes, and removes nothing until it
//!   is told what to keep ([`Dataplane::prune`]).
//! - Packets see a service as it was or as it is to be. What an old entry led to is not given out again before every
//!   program that could be reading it has ended, and a backend's id not before no flow refers to it.
//! - A sweep takes a flow out only by comparing and exchanging the word that it judged: never a live one.
//! - Every update is idempotent; removing what is absent succeeds; a table that is full leaves existing routes alone.
//!
//! # Three ways in
//! Each gives the same result alone, and can be switched off ([`Ways`], [`Dataplane::detach_sockets`]):
//! - socket hooks, on a control group: for the processes of this node. A socket is given its backend once, when it connects
//!   or first names a receiver; its packets cost nothing. Its client is the pod whose network namespace it is in
//!   ([`PodInterface::netns`]), or the node. What they cannot serve goes on to the other two: sockets of other namespaces,
//!   and those that speak to more services than there is room for.
//! - tcx, on pods' veths, the uplink and the loopback interface: for what comes out of pods, in from the world and from
//!   the node's own processes, packet by packet. A process's packet is seen where it leaves the node's stack: the node
//!   must have some route to a service's address (a default route does), and the process must speak from the node's
//!   address or a loopback one.
//! - XDP, on the uplink: for what leaves the node again.
//!
//! A datagram socket that is connected to a backend asks nobody again. When its backend leaves, the socket is ended by
//! `sock_diag(7)`, as are streams whose pod is gone: their owners are told at once, and connect anew. That needs a kernel
//! with `CONFIG_INET_DIAG_DESTROY`; without it, once per process a warning says so. Packets of socket-translated
//! connections are not counted, their flows are.
//!
//! # XDP on the uplink
//! [`Dataplane::attach_uplink`] runs XDP in the driver, else in the stack, and says which. XDP itself sends only what
//! leaves the node again (`NodePort` traffic for another node, its replies, refusals); what is for a pod of this node goes up
//! to tcx, which keeps GSO and offloaded checksums and puts it straight into the pod. A veth drops what XDP sends when its
//! peer runs no XDP program, so that by default ([`Transmit::Auto`]) XDP sends there only while the peer runs one: the
//! program `xdp_pass` of `portolan-xdp-pass.o` will do. XDP leaves packets to tcx whose checksum is not complete; on a
//! veth they are complete when the peer does not offload them ([`offload_checksums`]). Without either, everything works,
//! by tcx.
//!
//! # Straight return
//! With [`model::ReturnPath::Direct`], what clients beyond the cluster send to a backend of another node is encapsulated to
//! that node ([`model::Backend::node`]; IP in IP, IPv6 in IPv6), which takes it from nodes of [`Dataplane::set_networks`]
//! only, chooses among its own backends, and answers the client as the frontend. What the outer header makes too long for
//! the uplink is answered by "fragmentation needed" or "packet too big". The first node keeps a slot a flow, so that a flow
//! stays where it is when the tables change; a slot that was lost is made again by the same hash.
//!
//! # A tunnel between nodes
//! With [`Dataplane::set_tunnel`], what is for pods of other nodes leaves by that interface (a VXLAN device that the caller
//! makes and routes to), and what comes out of it is seen as what comes in at the uplink. Pods' addresses show nowhere else:
//! what pods send to other nodes themselves goes through it, too. Encapsulated packets are taken from nodes only.
//!
//! # Kernels without tcx
//! Where a kernel has no tcx (before 6.6), the same programs are filters of a clsact qdisc, replaced as atomically; the log
//! says so once, [`Dataplane::tc_mode`] always. Before 5.18, XDP takes no packets that lie in several buffers.
//!
//! # Hard packets
//! - An ICMP error about a packet of a flow goes to whoever sent the packet, about the packet as it was sent: path MTU
//!   discovery works through services. A router's own address is kept.
//! - Of a datagram in fragments the first is noted, and the others follow it. One that comes before its first is left to
//!   the node's stack and counted (`fragment_unknown`); so are fragments of SCTP, whose checksum covers what they lack.
//! - IPv4 options, and IPv6 hop-by-hop options, destination options and fragment headers (four of them, 56 bytes in all)
//!   make no difference; a packet with any other extension header is left to the stack.
//! - What is forwarded has one hop less to go, as behind any router; with none left its sender gets "time exceeded".
//! - SCTP is routed by address and port, as TCP is, and refused by an ABORT. Further addresses that its ends name to each
//!   other are theirs, not the service's: an association over several of them is for headless services.
//! - A frame with a VLAN's tag belongs to that VLAN's interface, not to the one that it is first seen at, and is left alone
//!   there. For services in a VLAN its interface is the uplink (`eth0.100`).
//! - What comes over a wire from or to a loopback address is dropped and counted (`martian`), whatever it is; so is what a
//!   process would send so by another interface than the loopback interface. To services it speaks as the node.
//! - XDP does all of that for what leaves the node again.
//!
//! The programs hand such packets over to slow programs, by a tail call: those have a stack and a budget of instructions
//! of their own, and what is common pays one branch.
//!
//! # How to inspect
//! `bpftool map dump pinned DIR/SERVICES_V4`, `bpftool link show`, `bpftool net`; [`Dataplane::services`],
//! [`Dataplane::flows`], [`Dataplane::drops`], [`Dataplane::events`].
//!
//! # How to test
//! `cargo xtask build-ebpf`, then `cargo test -p portolan-dataplane` as root. The tests make network namespaces and a bpf
//! file system each for itself, and may run side by side.

mod affinity;
mod allocation;
mod backends;
mod choice;
mod config;
mod dataplane;
mod driver;
mod error;
mod flows;
mod frontends;
pub mod local_share;
mod maps;
pub mod model;
mod networks;
mod node;
mod object;
mod pods;
mod programs;
mod ranges;
mod records;
pub mod report;
mod services;
mod sys;
mod translations;
mod view;
mod watch;

pub use config::{Capacity, Config, PodInterface, Swept, Transmit, Ways};
pub use dataplane::Dataplane;
pub use driver::{Driver, Target};
pub use error::Error;
pub use object::xdp_pass;
pub use programs::{ProgramInfo, Run};
pub use view::{Hook, View};
pub use watch::{Observed, Watcher};

/// Tries out what of the kernel everything else stands on, so that what is missing is told before anything is made.
pub fn check_kernel() -> Result<(), Error> {
    let judge = |result: std::io::Result<()>, feature, since| match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Error::NotPermitted)
        }
        Err(source) => Err(Error::FeatureMissing {
            feature,
            since,
            source: Some(source),
        }),
    };
    sys::lift_memory_limit();
    judge(
        sys::probe::shared_array(),
        "BPF arrays in shared memory",
        "5.5",
    )?;
    judge(
        sys::probe::newest_helper(),
        "BPF helper bpf_redirect_peer",
        "5.10",
    )
}

/// The cookie of the calling thread's network namespace, by which the socket hooks know whose a socket is; zero where the
/// kernel has none to tell (before 5.14).
pub fn netns_cookie() -> u64 {
    sys::netns_cookie()
}

/// Leaves the checksums of what an interface sends to the device, or has the stack complete them.
///
/// XDP sees packets as they were sent. Where veths stand for wires, a wire's far end must complete checksums, or the
/// uplink's XDP leaves its packets to tcx.
pub fn offload_checksums(interface: &str, offload: bool) -> Result<(), Error> {
    sys::offload_checksums(interface, offload).map_err(|source| Error::System {
        operation: "set checksum offload of",
        object: interface.to_owned(),
        source,
    })
}
