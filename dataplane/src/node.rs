//! What a dataplane finds and writes of its node: pins, configuration, what the uplink can do.

use std::{fs, io, net::IpAddr, path::Path};

use portolan_abi::{
    ABI_VERSION,
    address::{V4, V6},
    config::flags,
};

use crate::{
    Config, Error, Transmit,
    maps::{Maps, failed, names},
    sys::{self, Map},
};

/// Whether XDP may send on an interface.
pub fn transmits(wish: Transmit, interface: &str, index: u32) -> bool {
    match wish {
        Transmit::Always => true,
        Transmit::Never => false,
        // A driver that does not say what it is, is none whose peer could drop what XDP sends.
        Transmit::Auto => match sys::driver(interface) {
            Ok(driver) if driver == "veth" => sys::peer_runs_xdp(index).unwrap_or_else(|error| {
                tracing::debug!(interface, %error, "the veth's peer cannot be looked at");
                false
            }),
            _ => true,
        },
    }
}

/// Refuses pins that cannot be ours: not on a bpffs, or of another layout.
pub fn check_pins(pins: &Path) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotPermitted);
    }
    fs::create_dir_all(pins).map_err(|error| failed("make folder", pins, error))?;
    let kind = nix::sys::statfs::statfs(pins)
        .map_err(|error| failed("look at", pins, error.into()))?
        .filesystem_type();
    if kind != nix::sys::statfs::BPF_FS_MAGIC {
        let error = io::Error::new(
            io::ErrorKind::InvalidInput,
            "the folder is not on a bpf file system",
        );
        return Err(failed("pin maps in", pins, error));
    }
    let path = pins.join(names::CONFIG);
    if !path.exists() {
        return Ok(());
    }
    let version = Map::open(&path)
        .and_then(|map| map.first_word())
        .map_err(|error| failed("adopt map", &path, error))?;
    match version {
        // Zero: whoever made the maps ended before it had configured them.
        0 | ABI_VERSION => Ok(()),
        found => Err(Error::AbiMismatch {
            path: pins.to_owned(),
            found,
            expected: ABI_VERSION,
        }),
    }
}

/// Writes what programs must know of the node. What others have written stays: the seed above all.
pub fn configure(maps: &Maps, config: &Config) -> Result<(), Error> {
    let mut node = maps.config.get(0);
    if node.seed == 0 {
        let mut seed = [0; 8];
        fs::File::open("/dev/urandom")
            .and_then(|mut source| io::Read::read_exact(&mut source, &mut seed))
            .map_err(|error| failed("read", Path::new("/dev/urandom"), error))?;
        node.seed = u64::from_ne_bytes(seed) | 1;
    }
    node.abi_version = ABI_VERSION;
    node.flags &= !flags::MASQUERADE;
    if config.masquerade {
        node.flags |= flags::MASQUERADE;
    }
    node.netns = sys::netns_cookie();
    node.socket_mask = maps.sockets.len() - 1;
    node.flow_mask_v4 = maps.flows_v4.len() - 1;
    node.flow_mask_v6 = maps.flows_v6.len() - 1;
    node.node_v4 = V4::default();
    node.node_v6 = V6::default();
    for address in config.node_addresses.iter().rev() {
        match address {
            IpAddr::V4(address) => node.node_v4 = V4::from_octets(address.octets()),
            IpAddr::V6(address) => node.node_v6 = V6::from_octets(address.octets()),
        }
    }
    if node != maps.config.get(0) {
        maps.config.set(0, node);
    }
    Ok(())
}

/// Lets the stack take packets at the loopback interface whose source is an address of the node's: replies of services
/// to the node's own processes come in there. Nothing from beyond the node ever does, so that it opens no way in.
pub fn accept_own_addresses() {
    for knob in ["accept_local", "route_localnet"] {
        let path = Path::new("/proc/sys/net/ipv4/conf/lo").join(knob);
        let is_set = || fs::read(&path).is_ok_and(|value| value.starts_with(b"1"));
        if !is_set()
            && let Err(error) = fs::write(&path, "1")
        {
            tracing::warn!(
                knob = %path.display(),
                %error,
                "processes of this node cannot reach node ports at its own addresses but by socket hooks"
            );
        }
    }
}
