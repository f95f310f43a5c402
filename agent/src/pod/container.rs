//! From a container of a pod's spec to what the runtime runs.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements, SeccompProfile};
use nix::sys::signal::Signal;

use super::{
    Capacity, EnvironmentError, References,
    environment::{Facts, command_line, environment},
    quantity,
    record::PodDir,
    status::is_host_network,
    users::{self, UserError},
    volumes::{self, VolumeError},
};
use crate::{
    image::ProcessConfig,
    runtime::{
        bundle::Bundle,
        spec::{
            CPU_PERIOD, ContainerConfig, Mount, Namespaces, PidNamespace, Resources, Seccomp,
            Security,
        },
    },
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Why a container can't be described; a `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Its environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Its user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Neither the pod nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// A profile of the node's disk can't be read.
    #[error("cannot load seccomp profile \"{path}\": {reason}")]
    Seccomp {
        /// Below the agent's folder.
        path: String,
        /// Why.
        reason: String,
    },
}

/// What a container is made from.
pub struct Ingredients<'a> {
    /// The pod and the node.
    pub facts: Facts<'a>,
    /// The pod's files.
    pub dir: &'a PodDir,
    /// The container's own files; its root is mounted.
    pub bundle: &'a Bundle,
    /// What the image says.
    pub image: &'a ProcessConfig,
    /// The network namespace, unless the pod has the node's.
    pub netns: Option<PathBuf>,
    /// The container's control group.
    pub cgroup: PathBuf,
    /// Below it lie seccomp profiles.
    pub state_dir: &'a Path,
}

/// Describes a container to the runtime.
pub async fn describe(
    container: &Container,
    from: &Ingredients<'_>,
    references: &dyn References,
) -> Result<ContainerConfig, ConfigError> {
    let pod = from.facts.pod;
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let image = from.image;
    let image_user = image.user.as_deref().unwrap_or_default();
    let (user, home) = users::resolve(pod, container, image_user, &from.bundle.rootfs())?;
    let image_env = image.env.as_deref().unwrap_or_default();
    let mut env = environment(container, image_env, from.facts, references).await?;
    let has = |env: &[String], name: &str| env.iter().any(|variable| variable.starts_with(name));
    if !has(&env, "PATH=") {
        env.insert(0, DEFAULT_PATH.into());
    }
    if !has(&env, "HOSTNAME=") {
        env.push(format!("HOSTNAME={}", super::sandbox::host_name(pod)));
    }
    if container.tty.unwrap_or(false) && !has(&env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={home}"));
    }
    let entrypoint = image.entrypoint.as_deref().unwrap_or_default();
    let args = command_line(
        container,
        entrypoint,
        image.cmd.as_deref().unwrap_or_default(),
        &env,
    );
    if args.is_empty() {
        return Err(ConfigError::NoCommand);
    }
    let working_dir = container
        .working_dir
        .as_ref()
        .or(image.working_dir.as_ref())
        .filter(|dir| !dir.is_empty());
    let mut mounts = shared_files(container, spec, from);
    mounts.extend(volumes::mounts(from.dir, pod, container, &env)?);
    let of_pod = |kind: &str, is_nodes: Option<bool>| {
        (!is_nodes.unwrap_or(false)).then(|| from.dir.namespace(kind))
    };
    Ok(ContainerConfig {
        args,
        env,
        working_dir: working_dir.map_or("/", |dir| dir).to_owned(),
        user,
        namespaces: Namespaces {
            network: from.netns.clone(),
            ipc: of_pod("ipc", spec.host_ipc),
            uts: of_pod("uts", spec.host_network),
            pid: if spec.host_pid.unwrap_or(false) {
                PidNamespace::Node
            } else {
                PidNamespace::Own
            },
        },
        cgroup: from.cgroup.clone(),
        resources: resources(pod, container, from.facts.capacity),
        mounts,
        security: security(spec, container, from.state_dir)?,
    })
}

/// The files of /etc that name the pod, shared memory, and where the container leaves its last words. A volume that
/// the container mounts in the same place wins.
fn shared_files(container: &Container, spec: &PodSpec, from: &Ingredients<'_>) -> Vec<Mount> {
    let message = container
        .termination_message_path
        .as_deref()
        .unwrap_or(TERMINATION_LOG);
    let shm = if spec.host_ipc.unwrap_or(false) {
        PathBuf::from("/dev/shm")
    } else {
        from.dir.shm()
    };
    let all = [
        (from.dir.etc("hosts"), "/etc/hosts"),
        (from.dir.etc("hostname"), "/etc/hostname"),
        (from.dir.etc("resolv.conf"), "/etc/resolv.conf"),
        (shm, "/dev/shm"),
        (from.bundle.termination_message(), message),
    ];
    let taken = |path: &str| {
        container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.mount_path == path)
    };
    let free = all
        .into_iter()
        .filter(|(_, destination)| !taken(destination));
    free.map(|(source, destination)| Mount::new(source, destination, false))
        .collect()
}

fn resources(pod: &Pod, container: &Container, capacity: Capacity) -> Resources {
    let own = container.resources.as_ref();
    let cpu_limit = amount(own, true, "cpu", quantity::millis);
    let memory_limit = amount(own, true, "memory", quantity::units);
    let cpu_request = amount(own, false, "cpu", quantity::millis).or(cpu_limit);
    let memory_request = amount(own, false, "memory", quantity::units).or(memory_limit);
    // The kernel takes no weight below 2 and no quota below 1 ms.
    let shares = cpu_request.unwrap_or(0).saturating_mul(1024) / 1000;
    let quota = cpu_limit.map(|limit| (limit.saturating_mul(CPU_PERIOD) / 1000).max(1000));
    Resources {
        cpu_shares: Some(shares.clamp(2, 262_144)),
        cpu_quota: quota.and_then(|quota| i64::try_from(quota).ok()),
        memory: memory_limit
            .and_then(|limit| i64::try_from(limit).ok())
            .filter(|&limit| limit > 0),
        pids: Some(capacity.container_pids),
        oom_score_adj: oom_score(pod, memory_request, capacity),
    }
}

fn amount(
    resources: Option<&ResourceRequirements>,
    limit: bool,
    kind: &str,
    read: fn(&k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Option<u64>,
) -> Option<u64> {
    let resources = resources?;
    let map = if limit {
        &resources.limits
    } else {
        &resources.requests
    };
    read(map.as_ref()?.get(kind)?)
}

/// Who is killed first when the node runs out of memory: those who reserved none, last those who reserved all.
fn oom_score(pod: &Pod, request: Option<u64>, capacity: Capacity) -> i32 {
    let spec = pod.spec.as_ref();
    let all = || {
        spec.into_iter().flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        })
    };
    let is_set = |container: &Container, limit: bool| {
        ["cpu", "memory"]
            .map(|kind| amount(container.resources.as_ref(), limit, kind, quantity::millis))
    };
    let guaranteed = all().all(|container| {
        let limits = is_set(container, true);
        let requests = is_set(container, false);
        limits.iter().all(Option::is_some)
            && limits
                .iter()
                .zip(&requests)
                .all(|(limit, request)| request.is_none() || request == limit)
    });
    if guaranteed {
        return -997;
    }
    let best_effort = all().all(|container| {
        is_set(container, true)
            .iter()
            .chain(&is_set(container, false))
            .all(Option::is_none)
    });
    if best_effort {
        return 1000;
    }
    let share = request.unwrap_or(0).saturating_mul(1000) / capacity.memory_bytes.max(1);
    let score = 1000 - i32::try_from(share.min(1000)).unwrap_or(1000);
    score.clamp(3, 999)
}

fn security(
    spec: &PodSpec,
    container: &Container,
    state_dir: &Path,
) -> Result<Security, ConfigError> {
    let own = container.security_context.as_ref();
    let shared = spec.security_context.as_ref();
    let privileged = own.and_then(|own| own.privileged).unwrap_or(false);
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let profile = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or_else(|| shared.and_then(|shared| shared.seccomp_profile.as_ref()));
    let sysctls = shared.and_then(|shared| shared.sysctls.as_ref());
    Ok(Security {
        privileged,
        no_new_privileges: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        read_only_root: own
            .and_then(|own| own.read_only_root_filesystem)
            .unwrap_or(false),
        capabilities_add: capabilities
            .and_then(|set| set.add.clone())
            .unwrap_or_default(),
        capabilities_drop: capabilities
            .and_then(|set| set.drop.clone())
            .unwrap_or_default(),
        seccomp: seccomp(profile, state_dir)?,
        unmasked_proc: own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked"),
        sysctls: if is_host_network(spec) {
            Vec::new()
        } else {
            sysctls
                .into_iter()
                .flatten()
                .map(|own| (own.name.clone(), own.value.clone()))
                .collect()
        },
    })
}

fn seccomp(profile: Option<&SeccompProfile>, state_dir: &Path) -> Result<Seccomp, ConfigError> {
    let Some(profile) = profile else {
        return Ok(Seccomp::Default);
    };
    match profile.type_.as_str() {
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let path = profile.localhost_profile.clone().unwrap_or_default();
            let fail = |reason: String| ConfigError::Seccomp {
                path: path.clone(),
                reason,
            };
            let text = std::fs::read(state_dir.join("seccomp").join(&path))
                .map_err(|error| fail(error.to_string()))?;
            serde_json::from_slice(&text)
                .map(Seccomp::Profile)
                .map_err(|error| fail(error.to_string()))
        }
        _ => Ok(Seccomp::Default),
    }
}

/// What asks the container to end: the pod's word, else the image's, else SIGTERM.
pub fn stop_signal(container: &Container, image: &ProcessConfig) -> Signal {
    let own = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    own.or(image.stop_signal.as_deref())
        .and_then(signal)
        .unwrap_or(Signal::SIGTERM)
}

/// "SIGQUIT", "QUIT", "3".
fn signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let text = text.to_ascii_uppercase();
    let name = if text.starts_with("SIG") {
        text
    } else {
        format!("SIG{text}")
    };
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_all_notations() {
        for text in ["SIGQUIT", "QUIT", "quit", "3"] {
            assert_eq!(signal(text), Some(Signal::SIGQUIT), "{text}");
        }
        assert_eq!(signal("SIGNOTHING"), None);
    }
}
