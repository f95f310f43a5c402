//! The instructions that each kernel's verifier walked through, as they are kept in the repository: a jump is a failure.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{libtest::Case, libtest::Outcome, suite::Report};
use crate::workspace::Workspace;

/// Where they are kept.
const FILE: &str = "dataplane/tests/instructions.txt";
/// What the file says of itself.
const HEAD: &str = "\
# Instructions that the verifier walks through before it accepts a program, by kernel: `cargo xtask test vm` fails when one
# grows by more than a tenth, `cargo xtask vm --record` writes them down anew.
";
/// By how many percent a count may grow.
const GROWTH: u64 = 10;

/// Counts by kernel and program.
#[derive(Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<(String, String), u64>);

impl Counts {
    /// Reads the file.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let path = path(workspace);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let entries = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [kernel, program, count] = words[..] else {
                    return None;
                };
                Some(((kernel.to_owned(), program.to_owned()), count.parse().ok()?))
            });
        Self(entries.collect())
    }

    /// A test of a kernel's counts. What is not written down is a fault only for a kernel of which anything is: Debian
    /// brings new ones while nobody looks.
    pub fn test(&self, report: &Report) -> Case {
        let series = report.series();
        let is_known = self.0.keys().any(|(kernel, _)| *kernel == series);
        let faults: Vec<String> = report
            .facts
            .instructions
            .iter()
            .filter_map(|(program, now)| self.fault(&series, program, *now))
            .collect();
        let outcome = if !is_known {
            Outcome::Ignored
        } else if faults.is_empty() {
            Outcome::Passed
        } else {
            Outcome::Failed(format!(
                "{}\nif that is meant: cargo xtask vm --kernel {} --record",
                faults.join("\n"),
                report.kernel
            ))
        };
        Case {
            program: "verifier".to_owned(),
            name: "no program has grown by a tenth".to_owned(),
            outcome,
        }
    }

    fn fault(&self, kernel: &str, program: &str, now: u64) -> Option<String> {
        let Some(before) = self.0.get(&(kernel.to_owned(), program.to_owned())) else {
            return Some(format!(
                "{program}: {now} instructions, and {FILE} has none"
            ));
        };
        (now * 100 > before * (100 + GROWTH))
            .then(|| format!("{program}: {now} instructions, {before} in {FILE}"))
    }

    /// Writes the counts of some kernels down; those of others stay.
    pub fn record(mut self, workspace: &Workspace, reports: &[Report]) -> Result<()> {
        for report in reports {
            let series = report.series();
            self.0.retain(|(kernel, _), _| *kernel != series);
            for (program, count) in &report.facts.instructions {
                self.0.insert((series.clone(), program.clone()), *count);
            }
        }
        let path = path(workspace);
        fs::write(&path, self.text()).with_context(|| format!("write {}", path.display()))
    }

    fn text(&self) -> String {
        let lines = self
            .0
            .iter()
            .map(|((kernel, program), count)| format!("{kernel:6} {program:24} {count:>7}\n"));
        HEAD.to_owned() + &lines.collect::<String>()
    }
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root().join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::facts::Facts;

    fn report(count: u64) -> Report {
        Report {
            kernel: "6.12".to_owned(),
            release: "6.12.1".to_owned(),
            programs: Vec::new(),
            facts: Facts {
                instructions: [("xdp_uplink".to_owned(), count)].into(),
                ..Facts::default()
            },
        }
    }

    #[test]
    fn a_jump_fails_with_the_numbers() {
        let counts = Counts::parse("# comment\n6.12 xdp_uplink 1000\n6.1 xdp_uplink 1\n");
        assert_eq!(counts.test(&report(1_100)).outcome, Outcome::Passed);
        assert_eq!(counts.test(&report(10)).outcome, Outcome::Passed);
        let Outcome::Failed(text) = counts.test(&report(1_101)).outcome else {
            panic!("it has grown");
        };
        assert!(
            text.contains("xdp_uplink: 1101 instructions, 1000 in"),
            "{text}"
        );
        let others = Counts::parse("6.12 uplink_ingress 1000\n");
        assert!(others.test(&report(1)).has_failed(), "not recorded");
        assert_eq!(
            Counts::default().test(&report(1)).outcome,
            Outcome::Ignored,
            "nobody has recorded this kernel"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let counts = Counts::parse("6.12 xdp_uplink 1000\n6.1 xdp_uplink 1\n");
        assert_eq!(Counts::parse(&counts.text()), counts);
    }
}
