//! A dataplane with services and flows in it, and a generator aimed at its programs.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use portolan_abi::{
    drive::{Drive, FRAME_BYTES},
    protocol,
};
use portolan_dataplane::{
    Config, Dataplane, Driver, PodInterface, Target, Transmit,
    model::{Backend, Frontend, Locality, Protocol, ReturnPath, Scope, Service, ServiceName},
};

use super::{
    STRAYS, What,
    packet::{self, BACKEND_PORT, Kind, OPENING, SERVICE_PORT, WITHIN},
};
use crate::{
    bench::row::Row,
    pins::Pins,
    space::{Space, wire},
};

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const XDP_TX: i32 = 3;
const TC_ACT_REDIRECT: i32 = 7;
/// Packets in a run: long enough for the kernel's average of whole nanoseconds, short enough not to be interrupted much.
const PACKETS: u32 = 200_000;

/// Which program is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `xdp_uplink`, to a backend behind the uplink.
    Xdp,
    /// `uplink_ingress`, to a backend in a pod of the node.
    Tcx,
    /// `pod_egress`, from one pod to another.
    Pod,
}

impl Hook {
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Tcx, Self::Pod];

    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Pod => "tcx_pod",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_uplink",
            Self::Tcx => "uplink_ingress",
            Self::Pod => "pod_egress",
        }
    }

    /// A pod has one address, so that its flows differ by ports alone.
    fn address_bits(self) -> u32 {
        if self == Self::Pod { 0 } else { 22 }
    }

    fn verdict(self) -> i32 {
        match self {
            Self::Xdp => XDP_TX,
            Self::Tcx | Self::Pod => TC_ACT_REDIRECT,
        }
    }
}

/// What one run says.
pub struct Timed {
    /// Of the generator and the program together, on average.
    pub nanoseconds: f64,
    /// Why the run may not have timed what it should.
    pub doubt: Option<String>,
}

/// The dataplane under test.
pub struct Rig {
    pub flows: u32,
    pub services: u32,
    hook: Hook,
    dataplane: Dataplane,
    driver: Driver,
    interface: u32,
    next_new: u32,
    space: Space,
    _far: Space,
    _pins: Pins,
}

impl Rig {
    pub fn new(hook: Hook, v6: bool, flows: u32, services: u32) -> Result<Self> {
        let space = Space::new()?;
        let far = Space::new()?;
        wire((&space, "eth0"), (&far, "wire"))?;
        wire((&space, "pod0"), (&far, "pod"))?;
        wire((&space, "client0"), (&far, "client"))?;
        space.ip(
            "address add 10.0.0.1/24 dev eth0\naddress add fd00::1/64 dev eth0 nodad\n\
             neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent\n\
             neighbour replace fd00::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent\n\
             route add default via 10.0.0.2\nroute add default via fd00::2 dev eth0",
        )?;
        let pins = Pins::temporary();
        let mut config = Config::new(
            None,
            pins.folder(),
            vec![
                IpAddr::from([10, 0, 0, 1]),
                "fd00::1".parse().context("an address")?,
            ],
        );
        config.transmit = Transmit::Always;
        let slots = flows.saturating_mul(4).max(64);
        config.capacity.flows_v4 = if v6 { 64 } else { slots };
        config.capacity.flows_v6 = if v6 { slots } else { 64 };
        config.capacity.services = (2 * services).max(16);
        config.capacity.frontends = (2 * services).max(16);
        config.capacity.backends = (2 * services).max(16);
        config.capacity.choice_lines = (2 * services).max(16);
        let (dataplane, interface) = space.enter(|| {
            let mut dataplane = Dataplane::open(config)?;
            dataplane.attach_uplink("eth0")?;
            let device = if hook == Hook::Pod { "client0" } else { "eth0" };
            let interface =
                nix::net::if_::if_nametoindex(device).context("find the device under test")?;
            load(&mut dataplane, hook, v6, services)?;
            anyhow::Ok((dataplane, interface))
        })??;
        let driver = Driver::load((slots / 8).next_power_of_two(), slots)?;
        Ok(Self {
            flows,
            services,
            hook,
            dataplane,
            driver,
            interface,
            next_new: 0,
            _far: far,
            space,
            _pins: pins,
        })
    }

    /// Makes the flows that packets are to meet.
    pub fn prepare(&mut self, kind: Kind, what: What) -> Result<()> {
        self.dataplane.forget_flows();
        if matches!(what, What::Hit) {
            let mut drive = self.packets(kind, OPENING);
            drive.in_order = 1;
            self.driver
                .aim(Target::Dataplane(self.hook.program()), &self.dataplane)?;
            self.driver.prepare(drive)?;
            self.drive(kind, self.flows)?;
            self.dataplane.establish_flows();
        }
        if what == What::NewFlow {
            // Twice what the table holds, so that it is as full as it gets.
            self.next_new = self.flows;
            self.aim(kind, what)?;
            self.drive(kind, self.flows.saturating_mul(8))?;
            self.next_new = self.next_new.wrapping_add(self.flows.saturating_mul(8));
        }
        // Everything that the run will touch is touched once.
        self.run(kind, what).map(drop)
    }

    fn aim(&mut self, kind: Kind, what: What) -> Result<()> {
        let target = match what {
            What::Hit | What::NewFlow => Target::Dataplane(self.hook.program()),
            What::Floor => Target::Bench("floor"),
            What::LruHash => Target::Bench("lru_hash"),
            What::Empty => Target::Bench(self.empty_program()),
        };
        self.driver.aim(target, &self.dataplane)?;
        let is_new = what == What::NewFlow;
        let flags = if is_new { OPENING } else { WITHIN };
        let mut drive = self.packets(kind, flags);
        if is_new {
            drive.in_order = 1;
            drive.next = self.next_new;
            drive.flow_mask = u32::MAX;
        }
        Ok(self.driver.prepare(drive)?)
    }

    fn packets(&self, kind: Kind, flags: u8) -> Drive {
        let bits = self.hook.address_bits();
        packet::drive(kind, flags, self.services, self.flows, bits)
    }

    fn empty_program(&self) -> &'static str {
        match self.hook {
            Hook::Xdp => "xdp_empty",
            Hook::Tcx | Hook::Pod => "tc_empty",
        }
    }

    fn drive(&self, kind: Kind, packets: u32) -> Result<portolan_dataplane::Run> {
        let family = if kind.v6 { "v6" } else { "v4" };
        let hook = if self.hook == Hook::Xdp { "xdp" } else { "tc" };
        self.test_run(&format!("{hook}_{family}"), packets)
    }

    fn test_run(&self, program: &str, packets: u32) -> Result<portolan_dataplane::Run> {
        let frame = [0; FRAME_BYTES];
        Ok(self
            .space
            .enter(|| self.driver.run(program, &frame, self.interface, packets))??)
    }

    /// What the empty program takes without a generator.
    pub fn empty(&self, runs: usize) -> Result<Vec<f64>> {
        (0..runs)
            .map(|_| {
                Ok(nanoseconds(
                    &self.test_run(self.empty_program(), 5 * PACKETS)?,
                ))
            })
            .collect()
    }

    /// What the generator and the empty program take.
    pub fn generator(&mut self, kind: Kind) -> Result<f64> {
        self.aim(kind, What::Empty)?;
        Ok(nanoseconds(&self.drive(kind, PACKETS)?))
    }

    /// Times a program, and says whether it was what it should be.
    pub fn run(&mut self, kind: Kind, what: What) -> Result<Timed> {
        self.aim(kind, what)?;
        // Every flow in about one run of them.
        let packets = PACKETS.max(self.flows);
        let before = self.counted()?;
        let run = self.drive(kind, packets)?;
        let after = self.counted()?;
        if what == What::NewFlow {
            self.next_new = self.next_new.wrapping_add(packets);
        }
        let (forwarded, opened) = (after.0 - before.0, after.1 - before.1);
        let doubt = match what {
            What::Hit | What::NewFlow => {
                let wanted = if what == What::Hit {
                    0
                } else {
                    u64::from(packets)
                };
                // One complete checksum in 65,536 looks like one that a device is to complete: XDP leaves it to tcx.
                if forwarded.abs_diff(u64::from(packets)) > u64::from(packets) / STRAYS {
                    Some(format!(
                        "{forwarded} of {packets} packets were forwarded; the last verdict was {}",
                        run.verdict
                    ))
                } else if opened.abs_diff(wanted) > u64::from(packets) / STRAYS {
                    Some(format!("{opened} of {packets} packets began a flow"))
                } else {
                    self.check(kind, &run)
                }
            }
            What::Floor | What::LruHash => {
                (run.verdict != XDP_TX).then(|| format!("the verdict was {}", run.verdict))
            }
            What::Empty => None,
        };
        Ok(Timed {
            nanoseconds: nanoseconds(&run),
            doubt,
        })
    }

    fn check(&self, kind: Kind, run: &portolan_dataplane::Run) -> Option<String> {
        if run.verdict != self.hook.verdict() {
            return Some(format!("the verdict was {}", run.verdict));
        }
        let to = if self.hook == Hook::Xdp {
            GATEWAY_MAC
        } else {
            POD_MAC
        };
        packet::check(kind, &self.packets(kind, 0), &run.packet, to).err()
    }

    /// Packets forwarded and flows begun so far.
    fn counted(&self) -> Result<(u64, u64)> {
        let services = self.dataplane.services()?;
        let classes = services.iter().flat_map(|(_, count)| count.classes());
        Ok(classes.fold((0, 0), |(packets, flows), (_, class)| {
            (packets + class.packets, flows + class.flows)
        }))
    }

    /// What the verifier and the compiler made of the programs, and what the maps take.
    pub fn programs(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for program in self.dataplane.programs_info()? {
            let name = format!("program/{}", program.name);
            let row = Row::new(&name, "verified_instructions", "instructions");
            rows.push(row.with(&[f64::from(program.instructions)]));
            rows.push(Row::new(&name, "code", "bytes").with(&[f64::from(program.bytes)]));
        }
        Ok(rows)
    }
}

/// The kernel's own figure, in whole nanoseconds.
fn nanoseconds(run: &portolan_dataplane::Run) -> f64 {
    run.duration.as_secs_f64() * 1e9
}

fn load(dataplane: &mut Dataplane, hook: Hook, v6: bool, services: u32) -> Result<()> {
    let kind = |protocol| Kind { v6, protocol };
    if hook == Hook::Pod {
        dataplane.attach_pod(&PodInterface {
            host_interface: "client0".into(),
            addresses: vec![packet::client(v6)],
            pod_mac: POD_MAC,
            netns: 0,
        })?;
    }
    if hook != Hook::Xdp {
        dataplane.attach_pod(&PodInterface {
            host_interface: "pod0".into(),
            addresses: packet::hosts(kind(protocol::TCP)).collect(),
            pod_mac: POD_MAC,
            netns: 0,
        })?;
    }
    let locality = if hook == Hook::Xdp {
        Locality::Elsewhere
    } else {
        Locality::Node
    };
    for number in 0..services {
        for (transport, protocol) in [
            (Protocol::Tcp, protocol::TCP),
            (Protocol::Udp, protocol::UDP),
        ] {
            let kind = kind(protocol);
            let name = ServiceName(format!("bench/{number}/{transport:?}"));
            dataplane.upsert(&Service {
                frontends: vec![Frontend::Address {
                    address: packet::service(kind, number),
                    port: SERVICE_PORT,
                    scope: Scope::External,
                }],
                backends: vec![Backend::new(
                    packet::backend(kind, number),
                    BACKEND_PORT,
                    locality,
                )],
                return_path: ReturnPath::Gateway,
                ..Service::new(name, transport)
            })?;
        }
    }
    if dataplane.services()?.len() != 2 * services as usize {
        bail!("not every service is there");
    }
    Ok(())
}
