//! What the containers of a pod share: namespaces, network, shared memory, and the files that name the pod.
#![forbid(unsafe_code)]

use std::{fmt::Write as _, fs, io, net::IpAddr, path::Path};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::{record::PodDir, status::is_host_network};
use crate::runtime::{bundle::replace_file, mount};

/// Linux gives host names no more.
const LONGEST_HOST_NAME: usize = 63;
/// What other runtimes give.
const SHM_SIZE: &str = "64m";

/// The pod's own host name.
pub fn host_name(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let wanted = spec
        .and_then(|spec| spec.hostname.clone())
        .or_else(|| pod.metadata.name.clone());
    let mut name = wanted.unwrap_or_default();
    name.truncate(LONGEST_HOST_NAME);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// Makes namespaces, shared memory and /etc files. What exists is kept; blocks.
pub fn create(dir: &PodDir, pod: &Pod, addresses: &[IpAddr]) -> io::Result<()> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    fs::create_dir_all(dir.containers())?;
    let (ipc, uts) = (dir.namespace("ipc"), dir.namespace("uts"));
    if !mount::is_mount_point(&ipc)? || !mount::is_mount_point(&uts)? {
        mount::keep_namespaces(&host_name(pod), &ipc, &uts)?;
    }
    if !mount::is_mount_point(&dir.shm())? {
        mount::mount_memory(&dir.shm(), Some(SHM_SIZE), "1777")?;
    }
    let hosts = dir.etc("hosts");
    if let Some(folder) = hosts.parent() {
        fs::create_dir_all(folder)?;
    }
    replace_file(
        &dir.etc("hostname"),
        format!("{}\n", own_name(pod, spec)).as_bytes(),
    )?;
    replace_file(&hosts, hosts_file(pod, spec, addresses).as_bytes())?;
    replace_file(&dir.etc("resolv.conf"), resolv_conf(spec)?.as_bytes())
}

/// Takes away all that [`create`] made, and the pod's folder with whatever is mounted in it; blocks.
pub fn remove(dir: &PodDir) -> io::Result<()> {
    mount::unmount_all(dir.root())?;
    crate::runtime::bundle::remove_tree(dir.root())
}

/// Takes away what only running containers need, and keeps what is remembered of the pod; blocks.
pub fn release(dir: &PodDir) -> io::Result<()> {
    for path in [dir.namespace("ipc"), dir.namespace("uts"), dir.shm()] {
        mount::unmount(&path)?;
    }
    Ok(())
}

fn own_name(pod: &Pod, spec: &PodSpec) -> String {
    if is_host_network(spec)
        && let Ok(name) = nix::unistd::gethostname()
    {
        return name.to_string_lossy().into_owned();
    }
    host_name(pod)
}

fn hosts_file(pod: &Pod, spec: &PodSpec, addresses: &[IpAddr]) -> String {
    let mut text = if is_host_network(spec) {
        match fs::read_to_string("/etc/hosts") {
            Ok(text) => format!("# Kubernetes-managed hosts file (host network).\n{text}"),
            Err(error) => {
                tracing::warn!(%error, "the node has no /etc/hosts: pods on its network get an empty one");
                String::new()
            }
        }
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let name = host_name(pod);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let full = spec
            .subdomain
            .as_ref()
            .map(|domain| format!("{name}.{domain}.{namespace}.svc.cluster.local\t"));
        for address in addresses {
            writeln!(
                text,
                "{address}\t{}{name}",
                full.as_deref().unwrap_or_default()
            )
            .expect("a String takes all that is written");
        }
        text
    };
    let aliases = spec.host_aliases.iter().flatten();
    for (number, alias) in aliases.enumerate() {
        if number == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let names = alias
            .hostnames
            .iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join("\t");
        writeln!(text, "{}\t{names}", alias.ip).expect("a String takes all that is written");
    }
    text
}

/// The node's, unless the pod says otherwise.
fn resolv_conf(spec: &PodSpec) -> io::Result<String> {
    let mut text = String::new();
    if spec.dns_policy.as_deref() != Some("None") {
        text = match fs::read_to_string(Path::new("/etc/resolv.conf")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    }
    if let Some(own) = &spec.dns_config {
        for server in own.nameservers.iter().flatten() {
            text.extend(["nameserver ", server, "\n"]);
        }
        let searches = own.searches.iter().flatten().cloned().collect::<Vec<_>>();
        if !searches.is_empty() {
            text.extend(["search ", searches.join(" ").as_str(), "\n"]);
        }
        let options: Vec<String> = own
            .options
            .iter()
            .flatten()
            .filter_map(|option| {
                let name = option.name.clone()?;
                Some(
                    option
                        .value
                        .as_ref()
                        .map_or(name.clone(), |value| format!("{name}:{value}")),
                )
            })
            .collect();
        if !options.is_empty() {
            text.extend(["options ", options.join(" ").as_str(), "\n"]);
        }
    }
    Ok(text)
}
