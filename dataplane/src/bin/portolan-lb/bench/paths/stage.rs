//! A client, a node and backends with one forwarding path between them.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    group::{self, Group},
    ours::Ours,
    plan::{Path, Plan, Variant},
    rules,
    topology::Topology,
};
use crate::space::Space;

/// A loaded path. What is loaded goes before the namespaces that it is in.
pub struct Stage {
    pub path: Path,
    pub plan: Plan,
    pub table: Table,
    pub topology: Topology,
    group: Option<Group>,
}

/// What forwards, and can be changed while clients and servers use their ends of the stage.
pub struct Table {
    path: Path,
    plan: Plan,
    /// How long it took to load.
    pub loading: Duration,
    /// The most memory that the tool which loaded it had, in bytes; 0 if there was none.
    pub tool_memory: u64,
    ours: Option<Ours>,
    /// Which variant of each service is loaded, other than the first.
    variants: Vec<(u32, Variant)>,
}

/// Why a path cannot run on this host.
pub fn obstacle(path: Path) -> Option<String> {
    let program = match path {
        Path::Conntrack | Path::Nftables => "nft",
        Path::IptablesLegacy => "iptables-legacy-restore",
        Path::IptablesNft => "iptables-nft-restore",
        Path::Ipvs => "ipvsadm",
        Path::Socket | Path::SocketTcx => return group::obstacle(),
        _ => return None,
    };
    if path == Path::Ipvs && !std::path::Path::new("/proc/net/ip_vs").exists() {
        return Some("this kernel has no IPVS, or its module ip_vs is not loaded".into());
    }
    match Command::new(program).arg("--version").output() {
        Ok(_) => None,
        Err(error) => Some(format!("{program} cannot be run: {error}")),
    }
}

impl Stage {
    /// Makes the namespaces and loads the path.
    pub fn new(path: Path, plan: Plan) -> Result<Self> {
        let topology = Topology::new(path, &plan)?;
        let group = path.has_sockets().then(Group::new).transpose()?;
        let table = Table::load(path, plan, &topology, group.as_ref())
            .with_context(|| format!("load {}", path.name()))?;
        Ok(Self {
            path,
            plan,
            table,
            topology,
            group,
        })
    }

    /// The client's side, apart from what may be changed meanwhile.
    pub fn split(&mut self) -> (Client<'_>, &Topology, &mut Table) {
        let client = Client {
            path: self.path,
            plan: self.plan,
            space: &self.topology.client,
            group: self.group.as_ref(),
        };
        (client, &self.topology, &mut self.table)
    }
}

/// Where clients are.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub path: Path,
    pub plan: Plan,
    space: &'a Space,
    group: Option<&'a Group>,
}

impl Client<'_> {
    /// Runs a function on a client's thread.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        self.space
            .enter(|| self.group.map_or(Ok(()), Group::join).map(|()| function()))?
    }
}

impl Table {
    fn load(path: Path, plan: Plan, topology: &Topology, group: Option<&Group>) -> Result<Self> {
        let mut table = Self {
            path,
            plan,
            loading: Duration::ZERO,
            tool_memory: 0,
            ours: None,
            variants: Vec::new(),
        };
        if path.is_ours() {
            let ours = Ours::new(path, &plan, topology, group)?;
            table.loading = ours.loading;
            table.ours = Some(ours);
            return Ok(table);
        }
        let (text, arguments): (String, &[&str]) = match path {
            // An empty NAT chain alone tracks nothing: a rule has to ask for a connection's state.
            Path::Conntrack => (
                "table ip empty {\nchain pre { type nat hook prerouting priority dstnat\n}\n\
                 chain post { type nat hook postrouting priority srcnat\n}\n\
                 chain track { type filter hook forward priority 0\nct state invalid drop\n}\n}\n"
                    .into(),
                &["-f", "-"],
            ),
            Path::IptablesLegacy | Path::IptablesNft => (rules::iptables(&plan), &[]),
            Path::Nftables => (rules::nftables(&plan), &["-f", "-"]),
            Path::Ipvs => (rules::ipvs(&plan), &["-R"]),
            _ => return Ok(table),
        };
        if path == Path::Ipvs {
            topology.node.ip(&rules::ipvs_device(&plan))?;
            // As kube-proxy sets it: masquerading asks conntrack.
            topology.node.knob("ipv4/vs/conntrack", "1")?;
        }
        let began = Instant::now();
        let ran = topology.node.ran(tool(path), arguments, text.as_bytes())?;
        table.loading = began.elapsed();
        table.tool_memory = ran.peak;
        Ok(table)
    }

    /// Gives a service other endpoints; how long that took.
    pub fn update(
        &mut self,
        topology: &Topology,
        service: u32,
        variant: Variant,
    ) -> Result<Duration> {
        let plan = self.plan;
        let known = self
            .variants
            .iter()
            .position(|(number, _)| *number == service);
        let before = known.map_or(Variant::Loaded, |known| self.variants.swap_remove(known).1);
        self.variants.push((service, variant));
        if let Some(ours) = &mut self.ours {
            return ours.update(&plan, service, variant);
        }
        let (arguments, text): (&[&str], _) = match self.path {
            Path::Nftables => (
                &["-f", "-"],
                rules::nftables_update(&plan, service, variant),
            ),
            Path::Ipvs => (
                &["-R"],
                rules::ipvs_update(&plan, service, (before, variant)),
            ),
            _ => (
                &["--noflush"],
                rules::iptables_update(&plan, service, variant),
            ),
        };
        let began = Instant::now();
        topology
            .node
            .run(tool(self.path), arguments, text.as_bytes())?;
        Ok(began.elapsed())
    }

    /// Before a run: what is done about once a second wherever the dataplane runs, and what the run's client needs.
    pub fn prepare(&mut self, topology: &Topology, turn: u32) -> Result<()> {
        match &mut self.ours {
            Some(ours) => ours.prepare(topology, turn),
            None => Ok(()),
        }
    }

    /// New flows that the dataplane has counted; none where it does not forward.
    pub fn new_flows(&self) -> Result<Option<u64>> {
        self.ours.as_ref().map(Ours::new_flows).transpose()
    }
}

fn tool(path: Path) -> &'static str {
    match path {
        Path::IptablesLegacy => "iptables-legacy-restore",
        Path::IptablesNft => "iptables-nft-restore",
        Path::Ipvs => "ipvsadm",
        _ => "nft",
    }
}
