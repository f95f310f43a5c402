//! `portolan-lb` as its users run it: a host between a client and a backend.

mod support;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
};

use portolan_dataplane::model::Protocol;
use serde_json::Value;
use support::{
    netns::{BpfFs, Netns},
    servers::{ask_from, refused_from, serve},
};

const VIP: &str = "192.0.2.80";
const BACKEND: &str = "10.1.0.7";
const PORT_MAC: &str = "02:00:00:00:00:07";

/// A host with an uplink to a client and a port to a backend.
struct Host {
    client: Netns,
    netns: Netns,
    backend: Netns,
    pins: BpfFs,
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let [client, netns, backend] = ["client", "host", "backend"].map(Netns::new);
        netns.ip(&format!(
            "link add up0 type veth peer name eth0 netns {}",
            client.name()
        ));
        netns.ip(&format!(
            "link add port0 type veth peer name eth0 address {PORT_MAC} netns {}",
            backend.name()
        ));
        for device in ["up0", "port0"] {
            netns.ip(&format!("link set {device} up"));
        }
        netns.ip("address add 10.0.0.1/24 dev up0");
        netns.ip("address add 10.1.0.1/24 dev port0");
        for (space, address, gateway) in [
            (&client, "10.0.0.2/24", "10.0.0.1"),
            (&backend, "10.1.0.7/24", "10.1.0.1"),
        ] {
            space.ip("link set eth0 up");
            space.ip(&format!("address add {address} dev eth0"));
            space.ip(&format!("route add default via {gateway}"));
        }
        serve(&backend, "backend", 8_080);
        Self {
            client,
            netns,
            backend,
            pins: BpfFs::new(),
            folder: tempfile::tempdir().expect("there is room for a folder"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan-lb"));
        command
            .args(arguments)
            .env("PORTOLAN_LB_PINS", self.pins.pins());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        self.netns
            .enter(|| command.output().expect("portolan-lb runs"))
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (&output.stdout, &output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(err)
        );
        String::from_utf8_lossy(out).into_owned()
    }

    fn apply(&self, text: &str) -> Output {
        let file = self.folder.path().join("services.yaml");
        std::fs::write(&file, text).expect("the folder can be written");
        let object = support::object();
        let (file, object) = (path(&file), path(&object));
        self.run(&["apply", "-f", file, "--ebpf-object", object])
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn declared(backends: &str) -> String {
    format!(
        "addresses: [10.0.0.1]\n\
         devices:\n\
         \x20 - {{name: up0, role: uplink}}\n\
         \x20 - {{name: port0, role: port, addresses: [{BACKEND}], mac: '{PORT_MAC}'}}\n\
         services:\n\
         \x20 - name: web\n\
         \x20   protocol: TCP\n\
         \x20   listen: ['{VIP}:80']\n\
         \x20   backends: [{backends}]\n"
    )
}

#[test]
fn a_host_is_made_as_its_file_says_and_left_as_it_was() {
    let host = Host::new();
    let vip = (VIP.parse().expect("an address"), 80);
    let good = declared(&format!("{{address: '{BACKEND}:8080'}}"));
    let applied = host.apply(&good);
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(ask_from(&host.client, Protocol::Tcp, vip).server, "backend");

    // A bad file changes nothing, and says what is wrong where.
    let bad = host.apply(&good.replace(":8080'", ":99999'"));
    assert!(!bad.status.success());
    let words = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        words.contains("line 9: services[0].backends[0].address"),
        "{words}"
    );
    assert_eq!(ask_from(&host.client, Protocol::Tcp, vip).server, "backend");

    let status: Value = serde_json::from_str(&host.succeed(&["status", "--json"])).expect("JSON");
    assert_eq!(status["services"][0]["service"]["name"], "web");
    assert_eq!(status["services"][0]["counters"]["local"]["flows"], 2);
    let programs: Vec<&str> = status["devices"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|hook| hook["program"].as_str())
        .collect();
    assert!(programs.contains(&"pod_egress") && programs.contains(&"uplink_ingress"));
    let table = host.succeed(&["watch", "--count", "1"]);
    assert!(
        table.contains("web") && table.contains("192.0.2.80:80"),
        "{table}"
    );

    assert!(host.apply(&declared("")).status.success());
    refused_from(&host.client, Protocol::Tcp, vip);
    let none = host.apply("devices: []\n");
    assert!(none.status.success(), "{none:?}");
    let status: Value = serde_json::from_str(&host.succeed(&["status", "--json"])).expect("JSON");
    assert_eq!(status["services"], serde_json::json!([]));
    assert_eq!(status["devices"], serde_json::json!([]));

    host.succeed(&["detach"]);
    assert!(!host.pins.pins().exists(), "nothing is left");
    assert!(!host.run(&["status"]).status.success());
    drop(host.backend);
}

#[test]
fn a_trace_tells_what_is_decided_on_chosen_packets() {
    let host = Host::new();
    let good = declared(&format!("{{address: '{BACKEND}:8080'}}"));
    assert!(host.apply(&good).status.success());
    let mut trace = host.netns.enter(|| {
        host.command(&["trace", "--address", VIP, "--count", "1", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("portolan-lb runs")
    });
    let vip = SocketAddr::new(VIP.parse().expect("an address"), 80);
    // It watches as soon as one of these is seen.
    let lines = BufReader::new(trace.stdout.take().expect("a pipe")).lines();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).next());
    while !reader.is_finished() {
        ask_from(&host.client, Protocol::Tcp, (vip.ip(), vip.port()));
    }
    let line = reader.join().expect("no panic").expect("a line");
    let report: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(report["service"], "web");
    assert!(trace.wait().expect("it ends").success());
}
