//! What a node may meet with and cannot take: each is named, and routes that stand go on.

mod support;

use portolan_abi::ABI_VERSION;
use portolan_dataplane::{
    Dataplane, Error, Transmit,
    model::{Frontend, Locality, Protocol, Service, ServiceName, TableUse},
};
use support::{
    lab::{
        self, CLIENT, CLUSTER, LOCAL, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service,
    },
    servers::{ask_from, serve},
    tables::Tables,
};

fn local(protocol: Protocol) -> Service {
    let backends = LOCAL.map(|at| backend(at, Locality::Node));
    service(protocol, backends.to_vec())
}

/// A lab whose service answers, from a pod and from outside.
fn lab(change: impl FnOnce(&mut portolan_dataplane::Config) + Send) -> Lab {
    let mut lab = Lab::with(Transmit::Never, change);
    serve(&lab.local, "local", TARGET);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        lab.dataplane
            .upsert(&local(protocol))
            .expect("there is room");
    }
    answers(&lab);
    lab
}

/// Whether the service goes on, for everyone but the client pod.
fn answers_others(lab: &Lab) {
    for node in NODE {
        let port = (address(node), NODE_PORT);
        assert_eq!(ask_from(&lab.outside, Protocol::Tcp, port).server, "local");
        assert_eq!(ask_from(&lab.remote, Protocol::Tcp, port).server, "local");
    }
}

/// Whether the service goes on.
fn answers(lab: &Lab) {
    answers_others(lab);
    for vip in CLUSTER {
        let vip = (address(vip), PORT);
        assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, "local");
    }
}

#[test]
fn maps_of_another_layout_are_named_and_stay_as_they_are() {
    let lab = lab(|_| {});
    let pins = lab.pins.pins();
    let tables = Tables::open(&pins, &lab.dataplane.config().capacity);
    let first = &tables.config.words()[0];
    let before = first.load(std::sync::atomic::Ordering::Relaxed);
    let other = before & !0xffff_ffff | 0x4d;
    first.store(other, std::sync::atomic::Ordering::Relaxed);
    let config = lab.dataplane.config().clone();
    let refused = lab.node.enter(|| Dataplane::open(config));
    let error = refused.expect_err("another layout");
    assert!(
        matches!(&error, Error::AbiMismatch { path, found: 77, expected: ABI_VERSION } if *path == pins),
        "{error}"
    );
    assert!(error.to_string().contains("teardown"), "{error}");
    assert!(pins.join("SERVICES_V4").exists(), "nothing is removed");
    answers(&lab);
}

#[test]
fn devices_that_are_not_there_are_named_and_those_that_went_are_forgotten() {
    let mut lab = lab(|_| {});
    let missing = lab::pod("ptlnone", ["10.244.1.77", "fd00:244:1::77"]);
    let dataplane = &mut lab.dataplane;
    let errors = lab.node.enter(|| {
        [
            dataplane.attach_pod(&missing).expect_err("no such veth"),
            dataplane.set_tunnel(Some("vxlan7")).expect_err("no tunnel"),
            dataplane.attach_uplink("eth7").expect_err("no uplink"),
        ]
    });
    for (error, name) in errors.iter().zip(["ptlnone", "vxlan7", "eth7"]) {
        assert!(
            matches!(error, Error::InterfaceMissing(missing) if missing == name),
            "{error}"
        );
    }
    answers(&lab);

    lab.node.ip("link delete ptlclient");
    let pods = lab.node.enter(|| lab.dataplane.pods()).expect("listed");
    assert_eq!(pods.len(), 1, "{pods:?}");
    lab.reopen(Transmit::Never);
    let links = std::fs::read_dir(lab.pins.pins().join("links")).expect("the folder");
    let of_client = links
        .flatten()
        .filter(|link| link.file_name().to_string_lossy().contains("ptlclient"));
    assert_eq!(of_client.count(), 0);
    answers_others(&lab);
    let lost = lab.node.enter(|| lab.dataplane.pods()).expect("listed");
    let lost = lost
        .iter()
        .any(|pod| pod.addresses.contains(&address(CLIENT[0])));
    assert!(!lost, "nothing leads to what is gone");
}

fn table(lab: &Lab, name: &str) -> TableUse {
    let tables = lab.dataplane.tables();
    let found = tables.iter().find(|table| table.table == name);
    found.expect("there is such a table").clone()
}

#[test]
fn a_full_flow_table_takes_new_flows_and_counts_those_that_went() {
    let mut lab = lab(|config| config.capacity = config.capacity.with_flows(64));
    let evicted = |lab: &Lab| -> u64 {
        let events = lab.dataplane.events().expect("they can be read");
        events
            .iter()
            .filter(|count| count.event.starts_with("evicted") || count.event.contains("without"))
            .map(|count| count.count)
            .sum()
    };
    let before = evicted(&lab);
    for _ in 0..300 {
        let vip = (address(CLUSTER[0]), PORT);
        assert_eq!(ask_from(&lab.client, Protocol::Udp, vip).server, "local");
    }
    let gone = evicted(&lab) - before;
    assert!(gone >= 200, "300 flows in 64 places, {gone} went");
    let dataplane = &mut lab.dataplane;
    lab.node.enter(|| dataplane.sweep()).expect("swept");
    let flows = table(&lab, "flows_v4");
    assert_eq!((flows.capacity, flows.configured), (64, None));
    assert!((32..=64).contains(&flows.used), "{flows:?}");
    answers(&lab);
}

#[test]
fn full_tables_of_services_and_backends_are_named_with_their_sizes() {
    let mut lab = lab(|config| {
        config.capacity = config.capacity.with_services(2).with_backends(5);
    });
    assert_eq!(table(&lab, "services").used, 2);
    assert_eq!(table(&lab, "backends").used, 4);
    let third = Service {
        frontends: vec![Frontend::NodePort { port: 30_099 }],
        ..Service::new(ServiceName("default/third/TCP".to_owned()), Protocol::Tcp)
    };
    let error = lab.dataplane.upsert(&third).expect_err("no room");
    assert_eq!(
        error.to_string(),
        "the table of services is full (2 entries)"
    );
    let mut more = local(Protocol::Tcp);
    more.backends
        .extend([1, 2].map(|last| backend(&format!("10.244.1.{last}"), Locality::Node)));
    let error = lab.dataplane.upsert(&more).expect_err("no room");
    assert_eq!(
        error.to_string(),
        "the table of backends is full (5 entries)"
    );
    answers(&lab);

    // Another size is for tables that are made anew.
    let mut config = lab.dataplane.config().clone();
    config.capacity = config.capacity.with_services(9);
    let again = lab.node.enter(|| Dataplane::open(config));
    lab.dataplane = again.expect("the tables that there are will do");
    let services = table(&lab, "services");
    assert_eq!((services.capacity, services.configured), (2, Some(9)));
}
