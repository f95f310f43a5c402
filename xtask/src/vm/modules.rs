//! Kernel modules: what is loaded in a VM before anything runs, in the order of their dependencies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::command;

/// What the tests use of a kernel; of these, a kernel has what it has. There is no modprobe in a VM: whatever the kernel
/// would ask it for must be here.
const WANTED: &[&str] = &[
    // the machine itself
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    // crc32c comes by name, not by dependency: nf_tables and ip_vs need it
    "crc32c_generic",
    "crc32c_cryptoapi",
    "crc32c_intel",
    // devices
    "veth",
    "bridge",
    "vxlan",
    "dummy",
    "tun",
    "macvlan",
    "8021q",
    "netkit",
    "ipip",
    "ip6_tunnel",
    // traffic control
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_fq",
    "sch_netem",
    // protocols and what tells of sockets
    "sctp",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    // file systems
    "overlay",
    // the other ways to forward
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_mh",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject_inet",
    "nft_numgen",
    "nft_hash",
    "nft_compat",
    "ip_tables",
    "ip6_tables",
    "iptable_nat",
    "ip6table_nat",
    "iptable_filter",
    "ip6table_filter",
    "xt_conntrack",
    "xt_comment",
    "xt_mark",
    "xt_nat",
    "xt_MASQUERADE",
    "xt_statistic",
    "xt_tcpudp",
    "xt_addrtype",
    "xt_multiport",
    "xt_recent",
    "ipt_REJECT",
    "ip6t_REJECT",
    "nf_conntrack_netlink",
];

/// The modules of one kernel.
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// All below a folder.
    pub fn list(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let read = || format!("read {}", folder.display());
            for entry in fs::read_dir(&folder).with_context(read)? {
                let path = entry.with_context(read)?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files })
    }

    /// Writes the wanted ones, and `extra`, into an archive, each after those that it needs. Their names.
    ///
    /// What the kernel does not have as a module is left out: it is built in, or it has none, as the tests will see. A
    /// module that a user asked for by name must exist.
    pub fn write(&self, archive: &mut Archive<Vec<u8>>, extra: &[String]) -> Result<Vec<String>> {
        if let Some(absent) = extra
            .iter()
            .find(|name| !self.files.contains_key(&name.replace('-', "_")))
        {
            anyhow::bail!("this kernel has no module {absent}");
        }
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        let wanted = WANTED
            .iter()
            .copied()
            .chain(extra.iter().map(String::as_str));
        for name in wanted {
            self.visit(name, &mut seen, &mut order)?;
        }
        archive.folder("modules", 0o755)?;
        for (number, (name, content)) in order.iter().enumerate() {
            archive.file(&format!("modules/{number:03}-{name}.ko"), 0o644, content)?;
        }
        Ok(order.into_iter().map(|(name, _)| name).collect())
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = self.files.get(&name) else {
            return Ok(());
        };
        if !seen.insert(name.clone()) {
            return Ok(());
        }
        let content = read(path)?;
        for needed in dependencies(&content) {
            self.visit(&needed, seen, order)?;
        }
        order.push((name, content));
        Ok(())
    }
}

/// What a person would have to change to change the archive of modules.
pub fn identity(extra: &[String]) -> String {
    let words: Vec<&str> = WANTED
        .iter()
        .copied()
        .chain(extra.iter().map(String::as_str))
        .collect();
    words.join(" ")
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    command::bytes(Command::new(program).args(["-d", "-c"]).arg(path))
}

/// The modules that a module says it needs: `depends=` and `softdep=pre:` of its .modinfo section.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for field in fields(module, b"\0depends=") {
        names.extend(field.split(',').map(str::to_owned));
    }
    for field in fields(module, b"\0softdep=pre:") {
        let before = field.split("post:").next().unwrap_or_default();
        names.extend(before.split_whitespace().map(str::to_owned));
    }
    names.retain(|name| !name.is_empty());
    names
}

fn fields(module: &[u8], key: &[u8]) -> Vec<String> {
    module
        .windows(key.len())
        .enumerate()
        .filter(|(_, window)| *window == key)
        .filter_map(|(at, _)| {
            let value = module[at + key.len()..].split(|byte| *byte == 0).next()?;
            String::from_utf8(value.to_vec()).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_those_it_needs() {
        let folder = std::env::temp_dir().join(format!("portolan-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("net")).expect("a folder");
        for (name, info) in [
            ("net/bridge.ko", "\0license=GPL\0depends=stp,llc\0"),
            ("stp.ko", "\0depends=llc\0"),
            (
                "llc.ko",
                "\0depends=\0softdep=pre: crc32c-generic post: x\0",
            ),
            ("crc32c-generic.ko", "\0depends=\0"),
            ("unwanted.ko", "\0depends=\0"),
        ] {
            fs::write(folder.join(name), info).expect("a file");
        }
        let modules = Modules::list(&folder).expect("a folder of modules");
        let mut archive = Archive::new(Vec::new());
        let order = modules.write(&mut archive, &[]).expect("all are there");
        assert_eq!(order, ["crc32c_generic", "llc", "stp", "bridge"]);
        let error = modules
            .write(&mut archive, &["wireguard".to_owned()])
            .expect_err("there is none");
        assert!(error.to_string().contains("wireguard"), "{error}");
        fs::remove_dir_all(&folder).expect("ours");
    }
}
