//! The table of kernels and features in the README, written from what the tests found.

use std::fs;

use anyhow::{Context, Result};

use super::suite::Report;
use crate::workspace::Workspace;

const BEGIN: &str = "<!-- kernels: `cargo xtask test vm --record` writes this table -->\n";
const END: &str = "<!-- end of kernels -->\n";

/// A row: what it is called, and how it is known.
struct Row {
    feature: &'static str,
    source: Source,
}

enum Source {
    /// Tests found out how it is had.
    Fact(&'static str),
    /// It is there if these tests pass, and absent otherwise.
    Tests(&'static str, &'static [&'static str]),
}

const ROWS: &[Row] = &[
    Row {
        feature: "all programs load",
        source: Source::Fact("programs"),
    },
    Row {
        feature: "flow table by compare-and-exchange",
        source: Source::Fact("atomics"),
    },
    Row {
        feature: "socket hooks (`--socket-hooks auto`)",
        source: Source::Fact("sockets"),
    },
    Row {
        feature: "pods and uplink by tcx, else clsact",
        source: Source::Fact("tc"),
    },
    Row {
        feature: "XDP in the driver, else generic (veth)",
        source: Source::Fact("xdp"),
    },
    Row {
        feature: "XDP on packets in fragments (jumbo frames)",
        source: Source::Fact("xdp-fragments"),
    },
    Row {
        feature: "pods by netkit, else veth",
        source: Source::Fact("netkit"),
    },
    Row {
        feature: "fragments, ICMP errors, SCTP and the like through Services",
        source: Source::Fact("hard-packets"),
    },
    Row {
        feature: "containers",
        source: Source::Tests("containers", &["image_command_runs_to_completion"]),
    },
    Row {
        feature: "container limits: memory, with OOM kill",
        source: Source::Tests("containers", &["memory_limit_ends_in_oom_killed"]),
    },
    Row {
        feature: "container limits: CPU",
        source: Source::Tests("containers", &["cpu_limit_is_the_kernels"]),
    },
    Row {
        feature: "container limits: devices (control groups of version 2)",
        source: Source::Tests("containers", &["devices_are_only_those_allowed"]),
    },
    Row {
        feature: "container limits: processes",
        source: Source::Tests("containers", &["pids_limit_is_enforced"]),
    },
    Row {
        feature: "exit code of a container whose shim was killed",
        source: Source::Fact("orphans"),
    },
    Row {
        feature: "IPVS, to compare with",
        source: Source::Fact("ipvs"),
    },
];

/// Puts the table of some kernels in place of the README's.
pub fn write(workspace: &Workspace, reports: &[Report]) -> Result<()> {
    let path = workspace.root().join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = replace(&text, &table(reports)).context("the README has no marks for the table")?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

fn table(reports: &[Report]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut head = vec!["feature".to_owned()];
    head.extend(reports.iter().map(|report| short(&report.release)));
    let mut text = line(head);
    text.push_str(&line(vec!["---".to_owned(); reports.len() + 1]));
    for row in ROWS {
        let mut cells = vec![row.feature.to_owned()];
        cells.extend(reports.iter().map(|report| row.source.look(report)));
        text.push_str(&line(cells));
    }
    let mut tests = vec!["kernel tests passed".to_owned()];
    tests.extend(reports.iter().map(|report| {
        let totals = report.totals();
        format!("{} of {}", totals.passed, totals.passed + totals.failed)
    }));
    text.push_str(&line(tests));
    text
}

impl Source {
    fn look(&self, report: &Report) -> String {
        match self {
            Self::Fact(name) => report
                .facts
                .features
                .get(*name)
                .map_or("unknown", String::as_str)
                .to_owned(),
            Self::Tests(program, names) => {
                let passed = names.iter().all(|name| {
                    report.cases().any(|case| {
                        case.program == *program && case.name == *name && !case.has_failed()
                    })
                });
                if passed { "native" } else { "absent" }.to_owned()
            }
        }
    }
}

/// "6.12.118+deb13-cloud-amd64" without what Debian calls its builds.
fn short(release: &str) -> String {
    release
        .split(['-', '+'])
        .next()
        .unwrap_or(release)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{
        facts::Facts,
        libtest::{Case, Outcome, Program},
    };

    #[test]
    fn the_table_says_what_the_tests_found() {
        let case = |name: &str, outcome| Case {
            program: "containers".to_owned(),
            name: name.to_owned(),
            outcome,
        };
        let report = Report {
            kernel: "6.1".to_owned(),
            release: "6.1.176-1-cloud-amd64".to_owned(),
            programs: vec![Program {
                cases: vec![
                    case("memory_limit_ends_in_oom_killed", Outcome::Passed),
                    case("cpu_limit_is_the_kernels", Outcome::Failed(String::new())),
                ],
                ..Program::default()
            }],
            facts: Facts {
                features: [("tc".to_owned(), "fallback: clsact".to_owned())].into(),
                ..Facts::default()
            },
        };
        let table = table(&[report]);
        for line in [
            "| feature | 6.1.176 |",
            "| pods and uplink by tcx, else clsact | fallback: clsact |",
            "| container limits: memory, with OOM kill | native |",
            "| container limits: CPU | absent |",
            "| IPVS, to compare with | unknown |",
            "| kernel tests passed | 1 of 2 |",
        ] {
            assert!(table.lines().any(|own| own == line), "{line} in {table}");
        }
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let replaced = replace(&text, "new\n").expect("there are marks");
        assert_eq!(replaced, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(replace("no marks", "new"), None);
    }
}
