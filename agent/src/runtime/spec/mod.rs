//! A container as the agent describes it, and the OCI runtime configuration that libcontainer reads.
//!
//! Defaults are containerd's: its capabilities, its masked and read-only paths, its mounts.
#![forbid(unsafe_code)]

mod capabilities;
mod seccomp;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What a container is to run, and in what.
#[derive(Clone, Debug, Default)]
pub struct ContainerConfig {
    /// The command and its arguments; the first is looked up in PATH.
    pub args: Vec<String>,
    /// "NAME=value", in order.
    pub env: Vec<String>,
    /// Where it starts; made when the image lacks it.
    pub working_dir: String,
    /// Who runs in it.
    pub user: User,
    /// Namespaces that it shares.
    pub namespaces: Namespaces,
    /// Relative to each cgroup hierarchy's mount.
    pub cgroup: PathBuf,
    /// Limits of its cgroup.
    pub resources: Resources,
    /// What is bound into it, in order.
    pub mounts: Vec<Mount>,
    /// What it may do.
    pub security: Security,
}

/// Numeric identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The namespaces that a container does not get for itself: files of nsfs, or the node's own.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// The pod's network; `None` is the agent's own.
    pub network: Option<PathBuf>,
    /// The pod's System V IPC and message queues; `None` is the node's.
    pub ipc: Option<PathBuf>,
    /// The pod's host name; `None` is the node's.
    pub uts: Option<PathBuf>,
    /// Process ids.
    pub pid: PidNamespace,
}

/// Whose processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Own,
    /// The node's.
    Node,
}

/// Limits of a container's cgroup; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Weight against others, 1024 a core.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU in every 100 ms.
    pub cpu_quota: Option<i64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// -1000 (never killed for want of memory) to 1000 (killed first).
    pub oom_score_adj: i32,
}

/// The length of a CPU accounting period in microseconds.
pub const CPU_PERIOD: u64 = 100_000;

/// A folder or file of the node that is seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// Which way later mounts pass: "rprivate", "rslave", "rshared".
    pub propagation: &'static str,
}

impl Mount {
    /// A private mount.
    pub fn new(source: PathBuf, destination: impl Into<PathBuf>, read_only: bool) -> Mount {
        Mount {
            source,
            destination: destination.into(),
            read_only,
            propagation: "rprivate",
        }
    }
}

/// What a container may do.
#[derive(Clone, Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in a pod's securityContext"
)]
pub struct Security {
    /// Everything: all capabilities, all devices, no masks, no filter.
    pub privileged: bool,
    /// Whether setuid programs and file capabilities have no effect.
    pub no_new_privileges: bool,
    /// Whether the image's files can't be changed.
    pub read_only_root: bool,
    /// Added to containerd's default set: "NET_ADMIN" or "ALL".
    pub capabilities_add: Vec<String>,
    /// Taken from it.
    pub capabilities_drop: Vec<String>,
    /// Which system calls are answered with an error.
    pub seccomp: Seccomp,
    /// Whether /proc is shown whole.
    pub unmasked_proc: bool,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
}

/// The system call filter.
#[derive(Clone, Debug, Default)]
pub enum Seccomp {
    /// `RuntimeDefault`.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in OCI's form, from the node's disk.
    Profile(Value),
}

/// The OCI runtime configuration of `config` over the root file system `rootfs`.
pub fn document(config: &ContainerConfig, rootfs: &Path) -> Value {
    let security = &config.security;
    let capabilities = capabilities::effective(security);
    let mut linux = json!({
        "cgroupsPath": Path::new("/").join(&config.cgroup),
        "namespaces": namespaces(&config.namespaces),
        "resources": resources(config),
        "rootfsPropagation": "slave",
    });
    if !security.privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
    }
    if !security.sysctls.is_empty() {
        let sysctls = security.sysctls.iter().cloned();
        linux["sysctl"] = sysctls
            .map(|(name, value)| (name, Value::String(value)))
            .collect();
    }
    if let Some(filter) = seccomp::filter(security, &capabilities) {
        linux["seccomp"] = filter;
    }
    let mut process = json!({
        "terminal": false,
        "args": config.args,
        "env": config.env,
        "cwd": config.working_dir,
        "user": {
            "uid": config.user.uid,
            "gid": config.user.gid,
            "additionalGids": config.user.groups,
        },
        "capabilities": {
            "bounding": capabilities,
            "effective": if config.user.uid == 0 { json!(capabilities) } else { json!([]) },
            "permitted": if config.user.uid == 0 { json!(capabilities) } else { json!([]) },
            "inheritable": [],
            "ambient": [],
        },
        "oomScoreAdj": permitted_oom_score(config.resources.oom_score_adj),
    });
    // Present only when true: libcontainer takes its mere presence for a reason to install the filter late, when the
    // capability that this would need without no_new_privs is gone.
    if security.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": rootfs, "readonly": security.read_only_root },
        "mounts": mounts(config),
        "linux": linux,
    })
}

/// Only who has `CAP_SYS_RESOURCE` may protect a process better than itself is.
fn permitted_oom_score(wanted: i32) -> i32 {
    if caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    )
    .unwrap_or(false)
    {
        return wanted;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    wanted.max(own)
}

fn namespaces(namespaces: &Namespaces) -> Value {
    let mut all = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    if namespaces.pid == PidNamespace::Own {
        all.push(json!({ "type": "pid" }));
    }
    let shared = [
        ("network", &namespaces.network),
        ("ipc", &namespaces.ipc),
        ("uts", &namespaces.uts),
    ];
    for (kind, path) in shared {
        if let Some(path) = path {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    Value::Array(all)
}

fn resources(config: &ContainerConfig) -> Value {
    let limits = &config.resources;
    let mut resources = json!({
        // libcontainer adds the devices that every container has.
        "devices": [{ "allow": config.security.privileged, "access": "rwm" }],
    });
    let mut cpu = json!({});
    if let Some(shares) = limits.cpu_shares {
        cpu["shares"] = json!(shares);
    }
    if let Some(quota) = limits.cpu_quota {
        cpu["quota"] = json!(quota);
        cpu["period"] = json!(CPU_PERIOD);
    }
    resources["cpu"] = cpu;
    if let Some(memory) = limits.memory {
        resources["memory"] = json!({ "limit": memory });
        if swap_is_counted() {
            // Memory and swap together: none of it may be swap.
            resources["memory"]["swap"] = json!(memory);
        }
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

/// Version 1 counts swap only when the kernel was told to at boot.
fn swap_is_counted() -> bool {
    let root = Path::new("/sys/fs/cgroup");
    root.join("cgroup.controllers").exists()
        || root.join("memory/memory.memsw.limit_in_bytes").exists()
}

fn mounts(config: &ContainerConfig) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let sys_access = if config.security.privileged {
        "rw"
    } else {
        "ro"
    };
    let mut all = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys_access]),
    ];
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // Not with version 1: libcontainer mounts each of its hierarchies writable, own limits included.
        all.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", sys_access],
        ));
    }
    all.extend(config.mounts.iter().map(|mount| {
        json!({
            "destination": mount.destination,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", mount.propagation, if mount.read_only { "ro" } else { "rw" }],
        })
    }));
    Value::Array(all)
}

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::Spec;

    use super::*;

    fn parsed(config: &ContainerConfig) -> Spec {
        serde_json::from_value(document(config, Path::new("/rootfs")))
            .expect("libcontainer must understand it")
    }

    #[test]
    fn default_container_is_confined() {
        let spec = parsed(&ContainerConfig {
            args: vec!["sh".into()],
            ..ContainerConfig::default()
        });
        let linux = spec.linux().as_ref().expect("a Linux section");
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.masked_paths().as_ref().map(Vec::len), Some(11));
        let process = spec.process().as_ref().expect("a process");
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert_eq!(capabilities.bounding().as_ref().map(HashSet::len), Some(14));
        assert_eq!(process.no_new_privileges(), None);
    }

    #[test]
    fn other_users_start_without_effective_capabilities() {
        let spec = parsed(&ContainerConfig {
            user: User {
                uid: 1000,
                gid: 1000,
                groups: vec![],
            },
            ..ContainerConfig::default()
        });
        let process = spec.process().as_ref().expect("a process");
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert_eq!(capabilities.effective().as_ref().map(HashSet::len), Some(0));
    }

    #[test]
    fn privileged_container_has_no_filter_and_no_masks() {
        let spec = parsed(&ContainerConfig {
            security: Security {
                privileged: true,
                ..Security::default()
            },
            ..ContainerConfig::default()
        });
        let linux = spec.linux().as_ref().expect("a Linux section");
        assert!(linux.seccomp().is_none());
        assert!(linux.masked_paths().as_ref().is_none_or(Vec::is_empty));
    }
}
