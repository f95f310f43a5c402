//! A client, a node and backends, each a network namespace, with one forwarding path between them.
//!
//! ```text
//!   client eth0 ---- client0 node server0 ---- eth0 server (an address for each endpoint)
//! ```

use std::{
    fmt::Write,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use portolan_dataplane::{Config, Dataplane, PodInterface, Transmit, model::XdpMode};

use super::{
    plan::{CLIENTS, Path, Plan, SPARE},
    rules,
};
use crate::{
    pins::Pins,
    space::{Space, wire},
};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// A loaded path.
pub struct Stage {
    pub path: Path,
    pub plan: Plan,
    /// How long the table took to load.
    pub loading: Duration,
    pub client: Space,
    pub server: Space,
    node: Space,
    dataplane: Option<(Dataplane, Pins)>,
}

/// Why a path cannot run on this host.
pub fn obstacle(path: Path) -> Option<String> {
    let program = match path {
        Path::Conntrack | Path::Nftables => "nft",
        Path::IptablesLegacy => "iptables-legacy-restore",
        Path::IptablesNft => "iptables-nft-restore",
        Path::Ipvs => "ipvsadm",
        Path::Socket | Path::Dsr => return Some("this benchmark does not measure it yet".into()),
        _ => return None,
    };
    if path == Path::Ipvs && !std::path::Path::new("/proc/net/ip_vs").exists() {
        return Some("this kernel has no IPVS, or its module ip_vs is not loaded".into());
    }
    if path == Path::Ipvs {
        return Some("this benchmark does not measure it yet".into());
    }
    match Command::new(program).arg("--version").output() {
        Ok(_) => None,
        Err(error) => Some(format!("{program} cannot be run: {error}")),
    }
}

impl Stage {
    /// Makes the namespaces and loads the path.
    pub fn new(path: Path, plan: Plan) -> Result<Self> {
        let (client, node, server) = (Space::new()?, Space::new()?, Space::new()?);
        wire((&node, "client0"), (&client, "eth0"))?;
        wire((&node, "server0"), (&server, "eth0"))?;
        address(&client, CLIENT_MAC, (0..CLIENTS).map(Plan::client))?;
        address(
            &server,
            SERVER_MAC,
            (0..plan.endpoints + SPARE).map(Plan::backend),
        )?;
        node.ip(
            "address add 169.254.1.1/32 dev client0\naddress add 169.254.1.1/32 dev server0\n\
             route add 10.244.0.0/16 dev client0\nroute add 10.245.0.0/16 dev server0",
        )?;
        // No TIME_WAIT: what is measured is not how many ports the client has.
        for space in [&client, &server] {
            space.knob("ipv4/tcp_max_tw_buckets", "0")?;
            space.knob("ipv4/ip_local_port_range", "1024 65535")?;
            space.knob("ipv4/tcp_no_metrics_save", "1")?;
        }
        let mut stage = Self {
            path,
            plan,
            loading: Duration::ZERO,
            client,
            server,
            node,
            dataplane: None,
        };
        stage
            .load()
            .with_context(|| format!("load {}", path.name()))?;
        Ok(stage)
    }

    fn load(&mut self) -> Result<()> {
        let text = match self.path {
            Path::IptablesLegacy | Path::IptablesNft => rules::iptables(&self.plan),
            Path::Nftables => rules::nftables(&self.plan),
            _ => String::new(),
        };
        let began = Instant::now();
        match self.path {
            Path::Direct => {}
            // An empty NAT chain alone tracks nothing: a rule has to ask for a connection's state.
            Path::Conntrack => self.node.run(
                "nft",
                &["-f", "-"],
                b"table ip empty {\nchain pre { type nat hook prerouting priority dstnat\n}\n\
                  chain post { type nat hook postrouting priority srcnat\n}\n\
                  chain track { type filter hook forward priority 0\nct state invalid drop\n}\n}\n",
            )?,
            Path::IptablesLegacy | Path::IptablesNft => {
                self.node.run(self.restore(), &[], text.as_bytes())?;
            }
            Path::Nftables => self.node.run("nft", &["-f", "-"], text.as_bytes())?,
            Path::Tcx | Path::TcxUplink | Path::XdpNative | Path::XdpGeneric => {
                return self.load_ours();
            }
            Path::Ipvs | Path::Socket | Path::Dsr => bail!("not measured yet"),
        }
        self.loading = began.elapsed();
        Ok(())
    }

    fn restore(&self) -> &'static str {
        if self.path == Path::IptablesLegacy {
            "iptables-legacy-restore"
        } else {
            "iptables-nft-restore"
        }
    }

    fn load_ours(&mut self) -> Result<()> {
        let pins = Pins::temporary()?;
        let (path, plan) = (self.path, self.plan);
        let mut config = Config::new(None, pins.folder(), vec![IpAddr::from([169, 254, 1, 1])]);
        let room = plan.services.next_power_of_two().max(1_024);
        config.capacity.services = room;
        config.capacity.frontends = room;
        config.capacity.backends = (plan.services * plan.endpoints * 2).clamp(1_024, 1 << 20);
        config.capacity.choice_lines =
            (plan.services * plan.endpoints.next_power_of_two()).max(1_024) * 2;
        config.transmit = Transmit::Auto;
        config.xdp = match path {
            Path::XdpNative => Some(XdpMode::Native),
            Path::XdpGeneric => Some(XdpMode::Generic),
            _ => Some(XdpMode::Absent),
        };
        let (dataplane, loading) = self.node.enter(|| {
            let mut dataplane = Dataplane::open(config)?;
            attach(&mut dataplane, path, plan)?;
            let began = Instant::now();
            for number in 0..plan.services {
                dataplane.upsert(&plan.model(number, 0))?;
            }
            anyhow::Ok((dataplane, began.elapsed()))
        })??;
        self.loading = loading;
        self.dataplane = Some((dataplane, pins));
        Ok(())
    }

    /// Changes one endpoint of a service; how long that took.
    pub fn update(&mut self, service: u32, variant: u32) -> Result<Duration> {
        let plan = self.plan;
        if let Some((dataplane, _)) = &mut self.dataplane {
            let changed = plan.model(service, variant);
            let began = Instant::now();
            dataplane.upsert(&changed)?;
            return Ok(began.elapsed());
        }
        let (program, arguments, text): (_, &[&str], _) = match self.path {
            Path::Nftables => (
                "nft",
                &["-f", "-"],
                rules::nftables_update(&plan, service, variant),
            ),
            _ => (
                self.restore(),
                &["--noflush"],
                rules::iptables_update(&plan, service, variant),
            ),
        };
        let began = Instant::now();
        self.node.run(program, arguments, text.as_bytes())?;
        Ok(began.elapsed())
    }

    /// What the dataplane's maps take of the kernel's memory.
    pub fn map_memory(&self) -> Result<Option<u64>> {
        let Some((dataplane, _)) = &self.dataplane else {
            return Ok(None);
        };
        Ok(Some(
            dataplane.map_memory()?.iter().map(|(_, bytes)| bytes).sum(),
        ))
    }
}

fn attach(dataplane: &mut Dataplane, path: Path, plan: Plan) -> Result<()> {
    dataplane.attach_pod(&PodInterface {
        host_interface: "server0".into(),
        addresses: (0..plan.endpoints + SPARE)
            .map(|number| Plan::backend(number).into())
            .collect(),
        pod_mac: SERVER_MAC,
    })?;
    if path == Path::Tcx {
        dataplane.attach_pod(&PodInterface {
            host_interface: "client0".into(),
            addresses: (0..CLIENTS)
                .map(|number| Plan::client(number).into())
                .collect(),
            pod_mac: CLIENT_MAC,
        })?;
        return Ok(());
    }
    let mode = dataplane.attach_uplink("client0")?;
    let wished = match path {
        Path::XdpNative => XdpMode::Native,
        Path::XdpGeneric => XdpMode::Generic,
        _ => XdpMode::Absent,
    };
    if mode != wished {
        bail!("XDP cannot be attached in this mode here");
    }
    Ok(())
}

fn address(
    space: &Space,
    mac: [u8; 6],
    addresses: impl Iterator<Item = std::net::Ipv4Addr>,
) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut lines = format!("link set eth0 address {mac}\n");
    for address in addresses {
        let _ = writeln!(lines, "address add {address}/32 dev eth0");
    }
    lines.push_str("route add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1\n");
    space.ip(&lines)
}
