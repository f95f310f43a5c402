//! `portolan-lb bench` as its users run it: every path taken and proven, the report's form, Ctrl-C, bad input. What the
//! figures are is not tested.

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// The fields of a row, which other programs read.
const FIELDS: [&str; 13] = [
    "endpoints",
    "flows",
    "max",
    "median",
    "metric",
    "min",
    "name",
    "path",
    "ratio",
    "runs",
    "services",
    "unit",
    "valid",
];

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portolan-lb"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("portolan-lb runs")
}

fn succeed(arguments: &[&str]) -> String {
    let output = bench(arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn rows(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("rows were written");
    serde_json::from_str(&text).expect("an array of rows")
}

/// Checks a row's form: the fields, their kinds, and what depends on what.
fn check(row: &Value) {
    let fields = row.as_object().expect("a row is an object");
    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
    let is_valid = row["valid"].as_bool().expect("valid is a bool");
    if !is_valid {
        assert!(row["reason"].is_string(), "{row}");
        names.retain(|name| *name != "reason");
    }
    names.sort_unstable();
    assert_eq!(names, FIELDS, "{row}");
    for word in ["name", "metric", "unit"] {
        assert!(row[word].is_string(), "{row}");
    }
    assert!(row["runs"].is_u64(), "{row}");
    for count in ["services", "endpoints", "flows"] {
        assert!(row[count].is_u64() || row[count].is_null(), "{row}");
    }
    for figure in ["median", "min", "max"] {
        assert_eq!(row[figure].is_number(), row["runs"] != 0, "{row}");
    }
}

/// Whether a row says that this machine lacks what its path needs, or that it was noisy: both are the machine's.
fn is_the_machines(row: &Value) -> bool {
    let reason = row["reason"].as_str().unwrap_or_default();
    [
        "noisy",
        "IPVS",
        "cannot be run",
        "ended before its memory",
        "socket hooks that can refuse",
    ]
    .iter()
    .any(|excuse| reason.contains(excuse))
}

/// The paths on which there are rows of a benchmark.
fn paths<'a>(rows: &'a [Value], name: &str) -> BTreeSet<&'a str> {
    let of_name = rows.iter().filter(|row| row["name"] == name);
    of_name.filter_map(|row| row["path"].as_str()).collect()
}

const PATHS: [&str; 13] = [
    "direct",
    "conntrack",
    "iptables_legacy",
    "iptables_nft",
    "nftables",
    "ipvs",
    "socket",
    "socket_tcx",
    "tcx",
    "tcx_uplink",
    "xdp_native",
    "xdp_generic",
    "dsr",
];

#[test]
fn every_path_is_taken_or_listed_with_the_reason() {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let (json, page) = (folder.path().join("rows"), folder.path().join("page.html"));
    let names = [
        "paths/connect",
        "paths/connect_latency",
        "paths/tcp_rr",
        "paths/tcp_stream",
        "paths/churn",
    ];
    let options = [
        "--services=2",
        "--endpoints=2",
        "--repeat=1",
        "--seconds=0.02",
    ];
    let files = ["--json", text(&json), "--html", text(&page)];
    let table = succeed(&[&names[..], &options, &files].concat());
    let rows = rows(&json);
    for row in &rows {
        check(row);
        assert!(row["valid"] == true || is_the_machines(row), "{row}");
        let metric = row["metric"].as_str().unwrap_or_default();
        if metric.starts_with("lost") {
            assert_eq!(row["median"], 0.0, "{row}");
        }
    }
    for name in &names[..4] {
        assert_eq!(paths(&rows, name), PATHS.into_iter().collect(), "{name}");
        assert!(table.contains(name), "{name}");
    }
    assert_eq!(
        paths(&rows, "paths/churn"),
        PATHS.into_iter().skip(2).collect(),
        "what has services has endpoints that come and go"
    );
    let to_direct = |row: &&Value| row["path"] == "socket" && row["ratio"].is_number();
    assert!(rows.iter().any(|row| to_direct(&row)), "ratios to direct");
    let page = std::fs::read_to_string(&page).expect("the page was written");
    assert!(page.contains("<svg") && page.contains("always-local"));

    // The same rows again: nothing is measured, and nothing has changed.
    let again = succeed(&["--rows", text(&json), "--compare", text(&json)]);
    assert!(again.contains("+0.0 %"), "{again}");
}

#[test]
fn tables_are_loaded_and_changed_and_datagrams_go_the_same_ways() {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let json = folder.path().join("rows");
    let datagrams = ["paths/udp_rr", "paths/udp_new_flow", "paths/udp_flood"];
    let names = ["tables", "memory"];
    let options = [
        "--services=20",
        "--endpoints=2",
        "--repeat=1",
        "--seconds=0.02",
    ];
    let chosen = ["--paths=nftables,socket_tcx,tcx", "--json", text(&json)];
    succeed(&[&datagrams[..], &names, &options, &chosen].concat());
    let rows = rows(&json);
    for row in &rows {
        check(row);
        assert!(row["valid"] == true || is_the_machines(row), "{row}");
    }
    for name in datagrams {
        let all = ["direct", "nftables", "socket_tcx", "tcx"];
        assert_eq!(paths(&rows, name), all.into_iter().collect(), "{name}");
    }
    for name in [
        "tables/load",
        "tables/update_one",
        "memory/maps",
        "memory/agent",
    ] {
        assert_eq!(paths(&rows, name), ["nftables", "tcx"].into(), "{name}");
    }
}

/// IPVS is what other kernels have, so that virtual machines run this.
#[test]
fn ipvs_stands_beside_the_dataplane_where_the_kernel_has_it() {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let json = folder.path().join("rows");
    let names = ["paths/connect", "paths/churn", "tables/update_one"];
    let options = [
        "--services=2",
        "--endpoints=2",
        "--repeat=1",
        "--seconds=0.1",
    ];
    let chosen = ["--paths=ipvs,tcx", "--json", text(&json)];
    let table = succeed(&[&names[..], &options, &chosen].concat());
    let rows = rows(&json);
    for row in &rows {
        check(row);
        assert!(row["valid"] == true || is_the_machines(row), "{row}");
        let metric = row["metric"].as_str().unwrap_or_default();
        if metric.starts_with("lost") {
            assert_eq!(row["median"], 0.0, "{row}");
        }
    }
    let has_ipvs = Path::new("/proc/net/ip_vs").exists();
    let is_taken = |row: &Value| row["path"] == "ipvs" && row["valid"] == true;
    assert_eq!(rows.iter().any(is_taken), has_ipvs, "{table}");
    // What the figures of other kernels are is worth a look.
    print!("{table}");
}

/// A figure of a program counts only if the program did what is timed.
#[test]
fn programs_are_timed_with_the_empty_one_beside_them() {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let json = folder.path().join("rows");
    succeed(&[
        "xdp/hit",
        "tcx/hit/ipv4_tcp",
        "program/xdp_uplink",
        "--services=1",
        "--flows=1",
        "--json",
        text(&json),
    ]);
    let rows = rows(&json);
    rows.iter().for_each(check);
    for name in [
        "xdp/empty",
        "xdp/hit/ipv4_tcp",
        "xdp/hit/ipv6_udp",
        "tcx/empty",
        "tcx/hit/ipv4_tcp",
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        assert_eq!(row["valid"], true, "{row}");
        assert_eq!(row["metric"], "ns_per_packet");
        assert_eq!(row["path"], Value::Null);
    }
    let counts = rows.iter().find(|row| row["name"] == "program/xdp_uplink");
    assert!(counts.is_some(), "what the verifier looked at is told");
}

#[test]
fn ctrl_c_ends_it_and_nothing_is_left() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_portolan-lb"))
        .args(["bench", "paths/connect", "--paths", "socket,nftables,tcx"])
        .args(["--services", "10", "--repeat", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portolan-lb runs");
    let id = bench.id();
    let mut lines = BufReader::new(bench.stderr.take().expect("a pipe")).lines();
    let told = lines.find(|line| {
        let line = line.as_deref().unwrap_or_default();
        line.contains("paths/connect by socket")
    });
    assert!(told.is_some(), "it began to measure");
    let groups = || {
        let below = support::cgroup::own();
        let entries = std::fs::read_dir(below).expect("a group's folder can be listed");
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(&format!("portolan-bench-{id}-")))
            .count()
    };
    assert!(groups() > 0, "it made control groups");
    let process = Pid::from_raw(i32::try_from(id).expect("an id"));
    kill(process, Signal::SIGINT).expect("it runs");
    assert!(lines.all(|line| line.is_ok()), "its last words can be read");
    let status = bench.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert_eq!(groups(), 0);
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is() {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "[{}]").expect("the folder can be written");
    let missing = folder.path().join("missing/rows");
    for (arguments, words) in [
        (vec!["paths/conect"], "There are: "),
        (vec!["--paths", "ebtables"], "iptables_legacy"),
        (vec!["--services", "0"], "1..=100000"),
        (vec!["--endpoints", "2000"], "1..=1000"),
        (vec!["--seconds", "0"], "0.001 to 600"),
        (vec!["--json", text(&missing)], "missing/rows"),
        (vec!["--compare", text(&missing)], "missing/rows"),
        (vec!["--compare", text(&broken)], "holds no rows"),
        (vec!["--rows", text(&broken)], "holds no rows"),
        (vec!["xdp/hit", "--cpu", "1023"], "CPU 1023"),
    ] {
        let output = bench(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
