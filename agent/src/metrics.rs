//! What Prometheus reads of the node, in OpenMetrics text at `/metrics`.
//!
//! Services whose class has never been used say nothing of it, so that a page grows with the traffic, not with the
//! cluster. Labels are the words of the command line: reasons and events derive from the dataplane's enums.

#![forbid(unsafe_code)]

use std::{fmt, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use portolan_dataplane::model::{DropCount, EventCount, Service, ServiceCounters, TableUse};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::net::TcpListener;

/// The media type of what is served.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is measured of a node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Services with their counters.
    pub services: Vec<(Service, ServiceCounters)>,
    /// Dropped packets.
    pub drops: Vec<DropCount>,
    /// Events.
    pub events: Vec<EventCount>,
    /// The generation of routes that the maps hold.
    pub generation: u64,
    /// Whether the control plane's routes are being followed.
    pub connected: bool,
    /// Services whose newest version the maps refused.
    pub failed_services: usize,
    /// Pods on the node.
    pub pods: usize,
    /// How full the dataplane's tables are.
    pub tables: Vec<TableUse>,
}

/// Where measurements come from.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Measures, or says why that can't be.
    async fn snapshot(&self) -> Result<Snapshot, String>;
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, source: Arc<dyn Source>) {
    let router = Router::new()
        .route("/metrics", get(answer))
        .with_state(source);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are served no more");
    }
}

/// Listens where metrics are to be read.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn answer(State(source): State<Arc<dyn Source>>) -> Response {
    let page = match source.snapshot().await {
        Ok(snapshot) => page(&snapshot).map_err(|error| error.to_string()),
        Err(message) => Err(message),
    };
    match page {
        Ok(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(message) => (StatusCode::INTERNAL_SERVER_ERROR, message).into_response(),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    service: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    event: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    table: String,
}

/// The page of a snapshot.
pub fn page(snapshot: &Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("portolan");
    register_services(&mut registry, snapshot);
    register_counts(&mut registry, snapshot);
    register_tables(&mut registry, snapshot);
    register_state(&mut registry, snapshot);
    let mut page = String::new();
    encode(&mut page, &registry)?;
    Ok(page)
}

fn register_services(registry: &mut Registry, snapshot: &Snapshot) {
    let [flows, packets, bytes, resets] = [
        (
            "service_flows",
            "New flows, by how far away their backends are",
        ),
        ("service_packets", "Packets forwarded, both directions"),
        (
            "service_bytes",
            "Bytes forwarded from the IP header on, both directions",
        ),
        ("service_resets", "TCP resets forwarded, both directions"),
    ]
    .map(|(name, help)| {
        let family = Family::<ClassLabels, Counter>::default();
        registry.register(name, help, family.clone());
        family
    });
    let refused = Family::<ServiceLabels, Counter>::default();
    registry.register(
        "service_refused",
        "New flows refused because no backend could take them",
        refused.clone(),
    );
    for (service, counters) in &snapshot.services {
        let service = &service.name.0;
        for (class, count) in counters.classes() {
            if count.flows == 0 && count.packets == 0 {
                continue;
            }
            let labels = ClassLabels {
                service: service.clone(),
                class,
            };
            flows.get_or_create(&labels).inc_by(count.flows);
            packets.get_or_create(&labels).inc_by(count.packets);
            bytes.get_or_create(&labels).inc_by(count.bytes);
            resets.get_or_create(&labels).inc_by(count.resets);
        }
        let labels = ServiceLabels {
            service: service.clone(),
        };
        if counters.refused > 0 {
            refused.get_or_create(&labels).inc_by(counters.refused);
        }
    }
}

fn register_counts(registry: &mut Registry, snapshot: &Snapshot) {
    let drops = Family::<ReasonLabels, Counter>::default();
    registry.register("drops", "Packets dropped or refused", drops.clone());
    for drop in &snapshot.drops {
        let reason = drop.reason.clone();
        drops
            .get_or_create(&ReasonLabels { reason })
            .inc_by(drop.packets);
    }
    let events = Family::<EventLabels, Counter>::default();
    registry.register("events", "What happened in the flow tables", events.clone());
    for count in &snapshot.events {
        let event = count.event.clone();
        events
            .get_or_create(&EventLabels { event })
            .inc_by(count.count);
    }
}

fn register_tables(registry: &mut Registry, snapshot: &Snapshot) {
    let [used, capacity] = [
        ("table_entries", "Entries of the dataplane's tables"),
        (
            "table_capacity",
            "How many entries the dataplane's tables can hold",
        ),
    ]
    .map(|(name, help)| {
        let family = Family::<TableLabels, Gauge>::default();
        registry.register(name, help, family.clone());
        family
    });
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    for table in &snapshot.tables {
        let labels = TableLabels {
            table: table.table.clone(),
        };
        used.get_or_create(&labels).set(number(table.used));
        capacity.get_or_create(&labels).set(number(table.capacity));
    }
}

fn register_state(registry: &mut Registry, snapshot: &Snapshot) {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    for (name, help, value) in [
        (
            "routes_generation",
            "The generation of routes that the maps hold",
            i64::try_from(snapshot.generation).unwrap_or(i64::MAX),
        ),
        (
            "routes_connected",
            "1 while the control plane's routes are being followed",
            i64::from(snapshot.connected),
        ),
        (
            "services",
            "Service ports in the maps",
            number(snapshot.services.len()),
        ),
        (
            "services_failed",
            "Service ports whose newest version the maps refused",
            number(snapshot.failed_services),
        ),
        ("pods", "Pods on the node", number(snapshot.pods)),
    ] {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

#[cfg(test)]
mod tests {
    use portolan_dataplane::model::{ClassCounters, Protocol, ServiceName};

    use super::*;

    #[test]
    fn a_page_says_what_was_counted_and_nothing_of_what_was_not() {
        let service = Service::new(ServiceName("default/web:80/TCP".to_owned()), Protocol::Tcp);
        let counters = ServiceCounters {
            local: ClassCounters {
                flows: 3,
                packets: 30,
                bytes: 1_800,
                resets: 1,
            },
            ..ServiceCounters::default()
        };
        let snapshot = Snapshot {
            services: vec![(service, counters)],
            drops: vec![DropCount {
                reason: "no_backend".to_owned(),
                description: String::new(),
                packets: 7,
            }],
            events: vec![EventCount {
                event: "xdp_forwarded".to_owned(),
                description: String::new(),
                count: 9,
            }],
            generation: 42,
            connected: true,
            tables: vec![TableUse {
                table: "flows_v4".to_owned(),
                used: 17,
                capacity: 1_024,
                configured: None,
            }],
            ..Snapshot::default()
        };
        let page = page(&snapshot).expect("a page");
        for line in [
            r#"portolan_service_flows_total{service="default/web:80/TCP",class="local"} 3"#,
            r#"portolan_service_resets_total{service="default/web:80/TCP",class="local"} 1"#,
            r#"portolan_drops_total{reason="no_backend"} 7"#,
            r#"portolan_events_total{event="xdp_forwarded"} 9"#,
            r#"portolan_table_entries{table="flows_v4"} 17"#,
            r#"portolan_table_capacity{table="flows_v4"} 1024"#,
            "portolan_routes_generation 42",
            "portolan_routes_connected 1",
            "# EOF",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in\n{page}");
        }
        assert!(!page.contains("remote"), "{page}");
        assert!(!page.contains("service_refused_total{"), "{page}");
    }
}
