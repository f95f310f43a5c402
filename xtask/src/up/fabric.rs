//! The network between the nodes: a namespace with a bridge, and a veth pair from it to every member.

use std::{fmt::Write, fs, process::Command, thread};

use anyhow::{Context, Result, anyhow};

use crate::{
    cluster::{
        FABRIC, HOST_INTERFACE, NAMESPACES, Node, OUTSIDE, namespace_file, outside_addresses,
        server_addresses,
    },
    command,
};

/// Duplicate address detection would keep every new IPv6 address unusable for a second, and nobody else is here.
const PREPARE: &str = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
exec ip -batch -";

/// Makes the namespaces and joins them; the machine itself gets an address for each control server.
///
/// The bridge's ports run no XDP program, so an uplink's can't send frames back; it leaves that to tcx, which is the
/// faster of the two on a veth anyway.
pub fn create(nodes: &[Node], servers: u8) -> Result<()> {
    fs::create_dir_all(NAMESPACES).with_context(|| format!("make {NAMESPACES}"))?;
    let mut members: Vec<(String, [String; 2])> = nodes
        .iter()
        .map(|node| (node.namespace(), node.addresses()))
        .collect();
    members.push((OUTSIDE.to_owned(), outside_addresses()));

    thread::scope(|scope| {
        let created: Vec<_> = members
            .iter()
            .map(|(name, _)| scope.spawn(move || create_namespace(name, "link set lo up\n")))
            .collect();
        created.into_iter().try_for_each(joined)
    })?;
    create_namespace(FABRIC, &bridge(&members))?;
    thread::scope(|scope| {
        let configured: Vec<_> = members
            .iter()
            .map(|(name, addresses)| scope.spawn(move || configure_member(name, addresses)))
            .collect();
        configured.into_iter().try_for_each(joined)
    })?;
    let batch: String = (1..=servers)
        .map(|number| addresses_of(HOST_INTERFACE, &server_addresses(number)))
        .collect();
    command::output_with_input(Command::new("ip").args(["-batch", "-"]), batch.as_bytes())
        .map(drop)
        .context("give this machine its addresses on the fabric")
}

/// Makes a namespace that `ip netns` knows and runs a batch of `ip` commands in it.
///
/// `ip netns add` would also turn /run/netns into a mount of its own, which nothing ever takes away again.
fn create_namespace(name: &str, batch: &str) -> Result<()> {
    let file = namespace_file(name);
    fs::write(&file, "").with_context(|| format!("make {}", file.display()))?;
    let mut unshare = Command::new("unshare");
    unshare
        .arg(format!("--net={}", file.display()))
        .args(["sh", "-ec", PREPARE]);
    command::output_with_input(&mut unshare, batch.as_bytes())
        .map(drop)
        .with_context(|| format!("make the network namespace {name}"))
}

/// The `ip` commands that make the bridge and its ports. Ports are named after who is at the other end.
fn bridge(members: &[(String, [String; 2])]) -> String {
    let mut batch = "link set lo up\n\
        link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
        link set br0 up\n"
        .to_owned();
    let host = std::process::id().to_string();
    let ports = members
        .iter()
        .map(|(name, _)| (name.trim_start_matches("portolan-"), "eth0", name.as_str()))
        .chain([("host", HOST_INTERFACE, host.as_str())]);
    for (port, peer, namespace) in ports {
        writeln!(
            batch,
            "link add {port} type veth peer name {peer} netns {namespace}"
        )
        .expect("writing to a string");
        writeln!(batch, "link set {port} master br0 up").expect("writing to a string");
    }
    batch
}

fn configure_member(name: &str, addresses: &[String; 2]) -> Result<()> {
    let batch = addresses_of("eth0", addresses);
    command::output_with_input(
        Command::new("ip").args(["-n", name, "-batch", "-"]),
        batch.as_bytes(),
    )
    .map(drop)
    .with_context(|| format!("give {name} its addresses on the fabric"))
}

fn addresses_of(interface: &str, [v4, v6]: &[String; 2]) -> String {
    format!(
        "address add {v4}/24 dev {interface}\n\
         address add {v6}/64 dev {interface} nodad\n\
         link set {interface} up\n"
    )
}

fn joined(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of xtask panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_gets_a_port_and_the_host_too() {
        let members = [("portolan-n1".to_owned(), Node::first(1)[0].addresses())];
        let batch = bridge(&members);
        assert!(
            batch.contains("link add n1 type veth peer name eth0 netns portolan-n1\n"),
            "{batch}"
        );
        assert!(
            batch.contains("link add host type veth peer name portolan-host netns "),
            "{batch}"
        );
    }
}
