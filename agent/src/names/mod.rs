//! Names on every node: the cluster's Services, asked of the node itself, and everything else, asked of the node's own
//! resolvers and kept for a while.
//!
//! ```text
//!   API --watch--> Directory (on disk, too) --zone--> server on NODE:10053  <--dataplane-- kube-system/kube-dns
//!                        |                              `--upstream--> the node's resolvers
//!                        `--> variables of new containers (WEB_SERVICE_HOST)
//! ```
//!
//! Pods ask at the address of the Service kube-system/kube-dns. The control plane makes it without endpoints; each node's
//! routes put the node's own server behind it, so a question never leaves the node, and answers go on while the control
//! plane is away. Whoever gives that Service a selector has it answered by pods instead.

#![forbid(unsafe_code)]

mod directory;
mod follow;
mod message;
mod reply;
mod server;
mod upstream;
mod zone;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::runtime::bundle::Document;

pub use directory::{Directory, Endpoint, Port, Service};
pub use follow::follow;
pub use server::{NameServer, PORT};
pub use upstream::{ResolvConf, Upstream};
pub use zone::DOMAIN;

/// The Service at whose address pods ask.
pub const NAMESPACE: &str = "kube-system";
/// Its name.
pub const SERVICE: &str = "kube-dns";
/// Where the world's resolvers listen.
pub const UPSTREAM_PORT: u16 = 53;
/// Between two times that the directory is written to disk.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Whether a port of the routing table ("NAMESPACE/NAME:PORT/PROTOCOL") is the name server's.
pub fn is_name_server(port: &str) -> bool {
    let own = port
        .strip_prefix(NAMESPACE)
        .and_then(|rest| rest.strip_prefix('/'));
    own.and_then(|rest| rest.strip_prefix(SERVICE))
        .is_some_and(|rest| rest.starts_with(':'))
}

/// The cluster's Services, shared by all who need them.
#[derive(Clone, Debug)]
pub struct Names {
    directory: Arc<RwLock<Directory>>,
    changed: Arc<Notify>,
    known: watch::Sender<bool>,
}

impl Names {
    /// A directory that is whole as it is.
    pub fn of(directory: Directory) -> Names {
        Names {
            directory: Arc::new(RwLock::new(directory)),
            changed: Arc::default(),
            known: watch::Sender::new(true),
        }
    }

    /// What an earlier agent knew, until the API has been heard.
    pub fn load(state_dir: &Path) -> Names {
        let kept = kept(state_dir).read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the names of Services can't be read: they will be asked for");
            None
        });
        let names = Names::of(Directory::default());
        names.known.send_replace(kept.is_some());
        if let Some(directory) = kept {
            let mut own = names.write();
            *own = directory;
            own.index();
        }
        names
    }

    /// Keeps what is known on disk.
    pub async fn keep(self, state_dir: PathBuf) {
        let kept = kept(&state_dir);
        loop {
            self.changed.notified().await;
            tokio::time::sleep(SAVE_EVERY).await;
            if !*self.known.borrow() {
                continue;
            }
            let directory = self.read().clone();
            let kept = kept.clone();
            let written = tokio::task::spawn_blocking(move || kept.write(&directory)).await;
            if let Err(error) = written.map_err(io::Error::other).and_then(|result| result) {
                tracing::warn!(%error, "the names of Services can't be kept on disk");
            }
        }
    }

    /// Waits until the Services are known, but not for ever.
    pub async fn wait(&self, limit: Duration) {
        let mut known = self.known.subscribe();
        if tokio::time::timeout(limit, known.wait_for(|known| *known))
            .await
            .is_err()
        {
            tracing::warn!("the names of Services are not known yet");
        }
    }

    /// Where pods ask: the addresses of kube-system/kube-dns.
    pub fn servers(&self) -> Vec<IpAddr> {
        let directory = self.read();
        let service = directory.service(NAMESPACE, SERVICE);
        service.map(|own| own.addresses.clone()).unwrap_or_default()
    }

    /// The variables that tell a container of a namespace where Services are; `all` of that namespace, or only where the
    /// API is.
    pub fn variables(&self, namespace: &str, all: bool) -> Vec<(String, String)> {
        let directory = self.read();
        let own = directory.namespace(namespace).filter(|_| all);
        let mut variables = Vec::new();
        if (namespace, all) != ("default", true)
            && let Some(api) = directory.service("default", "kubernetes")
        {
            describe("kubernetes", api, &mut variables);
        }
        for (name, service) in own.into_iter().flatten() {
            describe(name, service, &mut variables);
        }
        variables
    }

    fn read(&self) -> RwLockReadGuard<'_, Directory> {
        // Changes are made of whole insertions: a panic leaves nothing half-done.
        self.directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Directory)) {
        change(&mut self.write());
        self.changed.notify_one();
    }
}

fn kept(state_dir: &Path) -> Document<Directory> {
    Document::new(state_dir.join("names.json"))
}

/// As kubelet's environment has it, with the variables of Docker's old links.
fn describe(name: &str, service: &Service, variables: &mut Vec<(String, String)>) {
    let (Some(address), Some(first)) = (service.addresses.first(), service.ports.first()) else {
        return;
    };
    let upper = |text: &str| text.to_ascii_uppercase().replace(['-', '.'], "_");
    let name = upper(name);
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let mut set = |key: String, value: String| variables.push((key, value));
    set(format!("{name}_SERVICE_HOST"), address.to_string());
    set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        let key = format!("{name}_SERVICE_PORT_{}", upper(&port.name));
        set(key, port.port.to_string());
    }
    let url = |port: &Port| format!("{}://{host}:{}", port.protocol.to_lowercase(), port.port);
    set(format!("{name}_PORT"), url(first));
    for port in &service.ports {
        let key = format!("{name}_PORT_{}_{}", port.port, port.protocol);
        set(key.clone(), url(port));
        set(format!("{key}_PROTO"), port.protocol.to_lowercase());
        set(format!("{key}_PORT"), port.port.to_string());
        set(format!("{key}_ADDR"), address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_kubelets() {
        let mut directory = Directory::default();
        let service = |last: u8, port: u16, name: &str| Service {
            addresses: vec![[10, 96, 0, last].into()],
            ports: vec![Port {
                name: name.into(),
                protocol: "TCP".into(),
                port,
            }],
            ..Service::default()
        };
        directory.set_service("default", "kubernetes", Some(service(1, 443, "https")));
        directory.set_service("shop", "my-web", Some(service(7, 80, "")));
        directory.set_service("shop", "headless", Some(Service::default()));
        let names = Names::of(directory);
        let lines = |all| {
            let variables = names.variables("shop", all).into_iter();
            variables
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        let api = [
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        ];
        let web = [
            "MY_WEB_SERVICE_HOST=10.96.0.7",
            "MY_WEB_SERVICE_PORT=80",
            "MY_WEB_PORT=tcp://10.96.0.7:80",
            "MY_WEB_PORT_80_TCP=tcp://10.96.0.7:80",
            "MY_WEB_PORT_80_TCP_PROTO=tcp",
            "MY_WEB_PORT_80_TCP_PORT=80",
            "MY_WEB_PORT_80_TCP_ADDR=10.96.0.7",
        ];
        assert_eq!(lines(false), api);
        assert_eq!(lines(true), [&api[..], &web[..]].concat());
    }
}
