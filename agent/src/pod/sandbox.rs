//! What the containers of a pod share: namespaces, network, shared memory, and the files that name the pod.
#![forbid(unsafe_code)]

use std::{fmt::Write as _, fs, io, net::IpAddr, path::Path};

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSpec};

use super::{record::PodDir, status::is_host_network};
use crate::{
    names::{DOMAIN, ResolvConf},
    runtime::{bundle::replace_file, mount},
};

/// Linux gives host names no more.
const LONGEST_HOST_NAME: usize = 63;
/// What other runtimes give.
const SHM_SIZE: &str = "64m";
/// C libraries ask no more.
const MOST_SERVERS: usize = 3;

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
///
/// `servers` are the cluster's name servers, `node` the node's resolv.conf(5).
pub fn create(
    dir: &PodDir,
    pod: &Pod,
    addresses: &[IpAddr],
    servers: &[IpAddr],
    node: &Path,
) -> io::Result<()> {
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
    let conf = resolv_conf(pod, spec, servers, &ResolvConf::read(node)?);
    replace_file(&dir.etc("resolv.conf"), conf.as_bytes())
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

/// Where names are asked for: the cluster's server, the node's resolvers, or what the pod says.
fn resolv_conf(pod: &Pod, spec: &PodSpec, servers: &[IpAddr], node: &ResolvConf) -> String {
    let asks_cluster = match spec.dns_policy.as_deref() {
        Some("None" | "Default") => false,
        Some("ClusterFirstWithHostNet") => !servers.is_empty(),
        _ => !servers.is_empty() && !is_host_network(spec),
    };
    let mut conf = if spec.dns_policy.as_deref() == Some("None") {
        ResolvConf::default()
    } else if asks_cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut searches = vec![
            format!("{namespace}.svc.{DOMAIN}"),
            format!("svc.{DOMAIN}"),
            DOMAIN.to_owned(),
        ];
        searches.extend(node.searches.clone());
        ResolvConf {
            servers: servers.to_vec(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        node.clone()
    };
    if let Some(own) = &spec.dns_config {
        add(&mut conf, own);
    }
    let mut text = String::new();
    for server in conf.servers.iter().take(MOST_SERVERS) {
        text.extend(["nameserver ", &server.to_string(), "\n"]);
    }
    for (kind, words) in [("search ", &conf.searches), ("options ", &conf.options)] {
        if !words.is_empty() {
            text.extend([kind, &words.join(" "), "\n"]);
        }
    }
    text
}

/// What the pod says beside its policy: servers and searches are added, options replace those of their name.
fn add(conf: &mut ResolvConf, own: &PodDNSConfig) {
    let servers = own.nameservers.iter().flatten();
    for server in servers.filter_map(|text| text.parse().ok()) {
        if !conf.servers.contains(&server) {
            conf.servers.push(server);
        }
    }
    for search in own.searches.iter().flatten() {
        if !conf.searches.contains(search) {
            conf.searches.push(search.clone());
        }
    }
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let known = |text: &String| text.split(':').next() == Some(name.as_str());
        conf.options.retain(|text| !known(text));
        conf.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_asked_for_as_the_policy_says() {
        let node = ResolvConf::parse("nameserver 192.0.2.1\nsearch corp\noptions edns0\n");
        let cluster: [IpAddr; 1] = [[10, 96, 0, 10].into()];
        let told = |mut spec: serde_json::Value, servers: &[IpAddr]| {
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(
                json!({ "metadata": { "namespace": "shop" }, "spec": spec }),
            )
            .expect("a pod");
            resolv_conf(&pod, pod.spec.as_ref().expect("a spec"), servers, &node)
        };
        let first = "nameserver 10.96.0.10\n\
                     search shop.svc.cluster.local svc.cluster.local cluster.local corp\noptions ndots:5\n";
        let of_node = "nameserver 192.0.2.1\nsearch corp\noptions edns0\n";
        assert_eq!(told(json!({}), &cluster), first);
        assert_eq!(told(json!({ "dnsPolicy": "ClusterFirst" }), &[]), of_node);
        assert_eq!(told(json!({ "dnsPolicy": "Default" }), &cluster), of_node);
        assert_eq!(
            told(
                json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirst" }),
                &cluster
            ),
            of_node
        );
        let with_host = json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" });
        assert_eq!(told(with_host, &cluster), first);
        let own = json!({
            "nameservers": ["192.0.2.9"], "searches": ["own"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "rotate" }],
        });
        assert_eq!(
            told(
                json!({ "dnsPolicy": "None", "dnsConfig": own.clone() }),
                &cluster
            ),
            "nameserver 192.0.2.9\nsearch own\noptions ndots:2 rotate\n"
        );
        let added = told(json!({ "dnsConfig": own }), &cluster);
        assert!(
            added.starts_with("nameserver 10.96.0.10\nnameserver 192.0.2.9\n"),
            "{added}"
        );
        assert!(
            added.ends_with(" corp own\noptions ndots:2 rotate\n"),
            "{added}"
        );
    }
}
