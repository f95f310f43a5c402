//! Which capabilities a container has: containerd's default set, what the pod adds, less what it drops.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::Security;

const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// OCI names, sorted. What the agent itself may not do, no container of it may: a node that is a container has less.
pub fn effective(security: &Security) -> Vec<String> {
    let mut set = wanted(security);
    match caps::read(None, caps::CapSet::Bounding) {
        Ok(own) => set.retain(|name| own.iter().any(|capability| capability.to_string() == *name)),
        Err(error) => tracing::warn!(%error, "cannot read the agent's own capabilities"),
    }
    set
}

fn wanted(security: &Security) -> Vec<String> {
    let all = || {
        caps::all()
            .into_iter()
            .map(|capability| capability.to_string())
    };
    if security.privileged {
        return all().collect::<BTreeSet<_>>().into_iter().collect();
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set: BTreeSet<String> = if security.capabilities_add.iter().any(is_all) {
        all().collect()
    } else if security.capabilities_drop.iter().any(is_all) {
        BTreeSet::new()
    } else {
        DEFAULT.iter().map(|name| full_name(name)).collect()
    };
    for name in security
        .capabilities_drop
        .iter()
        .filter(|name| !is_all(name))
    {
        set.remove(&full_name(name));
    }
    for name in security
        .capabilities_add
        .iter()
        .filter(|name| !is_all(name))
    {
        set.insert(full_name(name));
    }
    set.into_iter().collect()
}

/// Kubernetes writes "NET_ADMIN", OCI "CAP_NET_ADMIN".
fn full_name(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with("CAP_") {
        name
    } else {
        format!("CAP_{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped() {
        let own = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let cases: [(&[&str], &[&str], &[&str]); 3] = [
            (&["NET_ADMIN"], &["ALL"], &["CAP_NET_ADMIN"]),
            (&[], &["all"], &[]),
            (&["CAP_SYS_TIME"], &["ALL", "KILL"], &["CAP_SYS_TIME"]),
        ];
        for (add, drop, expected) in cases {
            let security = Security {
                capabilities_add: own(add),
                capabilities_drop: own(drop),
                ..Security::default()
            };
            assert_eq!(wanted(&security), own(expected), "{add:?} {drop:?}");
        }
    }
}
