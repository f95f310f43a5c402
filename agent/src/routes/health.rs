//! Where load balancers ask a node whether it has endpoints of its own: spec.healthCheckNodePort, answered as kube-proxy
//! answers it (its pkg/proxy/healthcheck), so that balancers' probes need no change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout, timeout_at},
};

use super::{follow::RouteStatus, table::Table, view::Here};

/// No probe sends a longer request or takes longer to send it.
const LONGEST_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a port that was taken is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What is said of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    namespace: String,
    name: String,
    /// Its ready endpoints on this node, each address once.
    local_endpoints: usize,
    /// Whether the maps hold its newest version.
    is_routed: bool,
}

impl Report {
    fn response(&self) -> String {
        let status = if self.local_endpoints > 0 && self.is_routed {
            "200 OK"
        } else {
            "503 Service Unavailable"
        };
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {}\n}}",
            self.namespace, self.name, self.local_endpoints, self.is_routed
        );
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
             X-Load-Balancing-Endpoint-Weight: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.local_endpoints,
            body.len()
        )
    }
}

/// What is to be said at each port.
fn reports(table: &Table, status: &RouteStatus, here: &Here) -> BTreeMap<u16, Report> {
    let mut addresses: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut reports = BTreeMap::new();
    for service in table.services.values() {
        let Some(port) = service.health_check_port else {
            continue;
        };
        // "NAMESPACE/NAME:PORT/PROTOCOL"
        let Some((namespace, rest)) = service.name.0.split_once('/') else {
            continue;
        };
        let name = rest.split(':').next().unwrap_or_default();
        let local = addresses.entry(port).or_default();
        local.extend(
            service
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.node == here.node && !endpoint.terminating)
                .map(|endpoint| endpoint.address),
        );
        let report = reports.entry(port).or_insert_with(|| Report {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            local_endpoints: 0,
            is_routed: true,
        });
        report.local_endpoints = local.len();
        report.is_routed &= !status.failures.contains_key(&service.name);
    }
    reports
}

/// Listens at each Service's port until the table has no writer any more.
pub async fn answer_health_checks(
    here: Here,
    mut tables: watch::Receiver<Arc<Table>>,
    mut status: watch::Receiver<RouteStatus>,
) {
    let (sender, said) = watch::channel(Arc::new(BTreeMap::new()));
    let mut servers = JoinSet::new();
    let mut listening: HashMap<u16, AbortHandle> = HashMap::new();
    loop {
        let now = reports(
            &tables.borrow_and_update(),
            &status.borrow_and_update(),
            &here,
        );
        listening.retain(|port, server| {
            let stays = now.contains_key(port);
            if !stays {
                server.abort();
            }
            stays
        });
        let mut is_complete = true;
        for port in now.keys() {
            if listening.contains_key(port) {
                continue;
            }
            match listen(*port).await {
                Ok(listener) => {
                    let server = servers.spawn(serve(listener, *port, said.clone()));
                    listening.insert(*port, server);
                }
                Err(error) => {
                    is_complete = false;
                    let service = now.get(port);
                    tracing::error!(port, %error, ?service, "can't listen for health checks");
                }
            }
        }
        sender.send_replace(Arc::new(now));
        while servers.try_join_next().is_some() {}
        let due = Instant::now()
            + if is_complete {
                Duration::from_hours(1)
            } else {
                RETRY_AFTER
            };
        tokio::select! {
            changed = timeout_at(due, tables.changed()) => if let Ok(Err(_)) = changed {
                return;
            },
            changed = status.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// At every address of the node, of both families where the kernel has both.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
    }
}

async fn serve(
    listener: TcpListener,
    port: u16,
    said: watch::Receiver<Arc<BTreeMap<u16, Report>>>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let report = said.borrow().get(&port).cloned();
                if let Some(report) = report {
                    tokio::spawn(timeout(PATIENCE, answer(stream, report)));
                }
            }
            Err(error) => {
                tracing::debug!(%error, port, "a health check could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers one request, whatever it asks for.
async fn answer(mut stream: TcpStream, report: Report) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(report.response().as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use portolan_dataplane::model::ReturnPath;
    use portolan_wire::v1::{self as wire, route_update::Change};

    use super::*;

    fn here() -> Here {
        Here {
            node: "n1".to_owned(),
            zone: String::new(),
            return_path: ReturnPath::default(),
            name_server: Vec::new(),
        }
    }

    /// Two ports of one service, whose endpoints are "NODE" or "NODE!" for one that terminates.
    fn table(port: u16, endpoints: &[&str]) -> Table {
        let endpoint = |(number, text): (usize, &&str)| wire::Endpoint {
            address: vec![10, 244, 0, u8::try_from(number).expect("few")],
            port: 8080,
            node: text.trim_end_matches('!').to_owned(),
            ready: !text.ends_with('!'),
            serving: true,
            terminating: text.ends_with('!'),
            ..wire::Endpoint::default()
        };
        let service = |id: &str| wire::ServicePort {
            id: id.to_owned(),
            protocol: wire::Protocol::Tcp.into(),
            endpoints: endpoints.iter().enumerate().map(endpoint).collect(),
            health_check_node_port: port.into(),
            ..wire::ServicePort::default()
        };
        let snapshot = wire::Snapshot {
            services: vec![
                service("default/web:80/TCP"),
                service("default/web:443/TCP"),
            ],
            nodes: Vec::new(),
        };
        let mut table = Table::default();
        let update = wire::RouteUpdate {
            epoch: "e".to_owned(),
            generation: 1,
            change: Some(Change::Snapshot(snapshot)),
        };
        table.apply(update).expect("a snapshot");
        table
    }

    #[test]
    fn ready_endpoints_of_this_node_are_counted_once_for_all_ports() {
        let count = |endpoints: &[&str]| {
            let reports = reports(&table(32_000, endpoints), &RouteStatus::default(), &here());
            reports[&32_000].local_endpoints
        };
        assert_eq!(count(&["n1", "n2", "n1"]), 2);
        assert_eq!(count(&["n1!", "n2"]), 0);
        assert_eq!(count(&[]), 0);
    }

    #[test]
    fn the_answer_is_kube_proxys() {
        let table = table(32_000, &["n1"]);
        let status = RouteStatus::default();
        let response = reports(&table, &status, &here())[&32_000].response();
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("X-Load-Balancing-Endpoint-Weight: 1\r\n"),
            "{head}"
        );
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
        );
    }

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("somebody listens");
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n")
            .await
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn the_port_follows_the_table() {
        let spare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let port = spare.local_addr().expect("bound").port();
        drop(spare);
        let (tables, followed) = watch::channel(Arc::new(table(port, &["n1"])));
        let (_status, status) = watch::channel(RouteStatus::default());
        let task = tokio::spawn(answer_health_checks(here(), followed, status));
        let mut tries = 0;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_err()
        {
            tries += 1;
            assert!(tries < 1_000, "nobody listens");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ask(port).await, "HTTP/1.1 200 OK");
        tables.send_replace(Arc::new(table(port, &["n2"])));
        let mut tries = 0;
        while ask(port).await != "HTTP/1.1 503 Service Unavailable" {
            tries += 1;
            assert!(tries < 1_000, "the old answer stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tables.send_replace(Arc::new(Table::default()));
        let mut tries = 0;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tries += 1;
            assert!(tries < 1_000, "the port stays open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(tables);
        task.await.expect("it ends with the table's writer");
    }
}
