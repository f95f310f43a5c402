//! What every cluster has from the start: its namespaces, its roles, and the API server's own Service.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::rbac::policy;
use crate::api::{Api, Caller, ObjectKey, ResourceId, Status, WriteOptions};
use crate::cli::Serve;
use crate::resource::kinds::priorities::system_classes;
use crate::resource::rows::{NAMESPACES, PRIORITY_CLASSES, SERVICES};

const COMPONENT: &str = "apiserver";
const NAMES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The API server's own Service.
pub const SERVICE: &str = "kubernetes";
const SERVICE_PORT: u16 = 443;
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(250);

/// What the Services that every cluster has are like.
#[derive(Debug)]
pub struct Cluster {
    /// The address of the API server's Service, if the range has one to give.
    service_address: Option<IpAddr>,
    /// The name server's.
    names_address: Option<IpAddr>,
    port: u16,
}

impl Cluster {
    /// From what the server was started with, and the port that it listens on.
    pub fn new(options: &Serve, port: u16) -> Self {
        Self {
            service_address: first_addresses(options).next(),
            names_address: options.service_cidr.first().and_then(names_address),
            port,
        }
    }
}

/// The addresses of this server that pods can reach, of the family of the API server's Service.
pub fn reachable_addresses(options: &Serve) -> Vec<IpAddr> {
    let service = first_addresses(options).next();
    let family = service.is_none_or(|address| address.is_ipv4());
    let advertised = options
        .advertise
        .iter()
        .filter_map(|name| name.parse::<IpAddr>().ok());
    let reachable = advertised.filter(|address| {
        !address.is_loopback() && !address.is_unspecified() && address.is_ipv4() == family
    });
    reachable.collect()
}

/// The first address of each service range, which is the API server's.
fn first_addresses(options: &Serve) -> impl Iterator<Item = IpAddr> {
    options.service_cidr.iter().filter_map(|cidr| match cidr {
        IpNet::V4(cidr) => cidr.hosts().next().map(IpAddr::V4),
        // An IPv6 range counts its own first address as a host's; a Service does not get that one.
        IpNet::V6(cidr) => cidr.hosts().nth(1).map(IpAddr::V6),
    })
}

/// The tenth address of a service range, where installers of Kubernetes put the name server.
fn names_address(cidr: &IpNet) -> Option<IpAddr> {
    match cidr {
        IpNet::V4(cidr) => cidr.hosts().nth(9).map(IpAddr::V4),
        IpNet::V6(cidr) => cidr.hosts().nth(10).map(IpAddr::V6),
    }
}

/// Every name and address that the server's certificate has to be good for.
pub fn server_names(options: &Serve) -> Vec<String> {
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let service = ["", ".default", ".default.svc", ".default.svc.cluster.local"];
    let service = service.map(|domain| format!("{SERVICE}{domain}"));
    let addresses = first_addresses(options).map(|address| address.to_string());
    let mut names: Vec<String> = options.advertise.clone();
    names.extend(own.into_iter().chain(service).chain(addresses));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Makes what is missing, again for a while when that fails: an earlier server's crash may have left addresses taken
/// that are about to be freed, and the store may be just coming up.
pub async fn run_patiently(api: &dyn Api, cluster: &Cluster) -> Result<(), Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match run(api, cluster).await {
            Err(status) if Instant::now() + RETRY < deadline => {
                tracing::warn!(%status, "can't make what every cluster has; trying again");
                tokio::time::sleep(RETRY).await;
            }
            made => return made,
        }
    }
}

async fn run(api: &dyn Api, cluster: &Cluster) -> Result<(), Status> {
    for name in NAMES {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name },
        });
        create(api, NAMESPACES, None, namespace).await?;
    }
    for (resource, object) in policy::objects() {
        create(api, resource, None, object).await?;
    }
    for class in system_classes() {
        create(api, PRIORITY_CLASSES, None, class).await?;
    }
    create(api, SERVICES, Some("default"), service(cluster)).await?;
    create(api, SERVICES, Some("kube-system"), name_server(cluster)).await?;
    Ok(())
}

fn service(cluster: &Cluster) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": SERVICE,
            "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": "ClusterIP",
            "ports": [{
                "name": "https",
                "port": SERVICE_PORT,
                "protocol": "TCP",
                "targetPort": cluster.port,
            }],
        },
    });
    if let Some(address) = cluster.service_address {
        service["spec"]["clusterIP"] = address.to_string().into();
    }
    service
}

/// Where pods ask for names. It has no endpoints: every node answers by itself.
fn name_server(cluster: &Cluster) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true" },
        },
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            ],
        },
    });
    if let Some(address) = cluster.names_address {
        service["spec"]["clusterIP"] = address.to_string().into();
    }
    service
}

/// Creates an object; one that is there already stays as it is.
async fn create(
    api: &dyn Api,
    resource: ResourceId,
    namespace: Option<&str>,
    object: Value,
) -> Result<(), Status> {
    let caller = Caller::system(COMPONENT);
    let key = ObjectKey {
        namespace: namespace.map(str::to_owned),
        name: object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    };
    // Looked up first: to try would mean to ask for addresses that the object there already holds.
    match api.get(&caller, resource, &key).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code == 404 => {}
        Err(status) => return Err(status),
    }
    let options = WriteOptions::default();
    match api
        .create(&caller, resource, namespace, object, &options)
        .await
    {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(status),
    }
}
