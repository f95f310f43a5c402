//! Names of Services, asked from inside of pods.

use anyhow::{Context, Result, ensure};
use portolan_tests::Cluster;

use crate::{inside::with_shell, life::Stage};

/// A command in the pod that asks.
fn ask(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let command = [&["exec", "asker", "--", "/tools/busybox"], words].concat();
    let answer = cluster.try_kubectl(&command, "")?;
    Ok(answer.stdout + &answer.stderr)
}

/// A Service's name and address, a headless one's pods, and names that are not there; on the pod's own node.
pub fn pods_find_services_by_name(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    with_shell(&cluster, "asker", &["sleep", "600"])?;
    let conf = ask(&cluster, &["cat", "/etc/resolv.conf"])?;
    let expected = "nameserver 10.96.0.10\n";
    ensure!(
        conf.starts_with(expected) && conf.contains("search default.svc.cluster.local "),
        "{conf}"
    );
    let service = cluster.get("service", "web")?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("an address")?;
    let found = ask(&cluster, &["nslookup", "web.default.svc.cluster.local"])?;
    ensure!(found.contains(address), "{found}");
    let name = ask(&cluster, &["nslookup", address])?;
    ensure!(name.contains("web.default.svc.cluster.local"), "{name}");
    let missing = ask(&cluster, &["nslookup", "nothing.default.svc.cluster.local"])?;
    ensure!(missing.contains("NXDOMAIN"), "{missing}");
    let variables = ask(&cluster, &["env"])?;
    ensure!(
        variables.contains(&format!("WEB_SERVICE_HOST={address}\n")),
        "{variables}"
    );
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let namespace = ask(&cluster, &["cat", &format!("{account}/namespace")])?;
    ensure!(namespace == "default", "{namespace}");
    let token = ask(&cluster, &["cat", &format!("{account}/token")])?;
    ensure!(token.split('.').count() == 3, "{token}");
    let root = ask(&cluster, &["cat", &format!("{account}/ca.crt")])?;
    ensure!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    let count = |which: &str| cluster.counter(&["n1"], "kube-system/kube-dns:53/UDP", which);
    let (local, remote) = (count("/local/flows")?, count("/remote/flows")?);
    ensure!(local > 0 && remote == 0, "{local} local, {remote} remote");
    cluster.kubectl(&["delete", "pod", "asker", "--grace-period=0", "--force"])?;
    Ok(())
}
