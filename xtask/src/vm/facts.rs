//! What tests found out of the kernel they ran on: lines in a file that they leave behind.
//!
//! `instructions PROGRAM COUNT` says how many instructions the verifier walked through; `feature NAME HOW` says how a feature
//! is had: `native`, by a `fallback`, or not at all (`absent`).

use std::{collections::BTreeMap, process::Command};

use anyhow::Result;

use crate::command;

/// The file's name among a job's results.
pub const FILE: &str = "facts";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Instructions that the verifier walked through, by program.
    pub instructions: BTreeMap<String, u64>,
    /// How features are had, by name.
    pub features: BTreeMap<String, String>,
}

impl Facts {
    /// Reads them from the tar of a job's results; there are none in that of a machine that was lost.
    pub fn read(results: &[u8]) -> Result<Self> {
        if results.is_empty() {
            return Ok(Self::default());
        }
        let member = format!("./{FILE}");
        let mut list = Command::new("tar");
        list.args(["-t"]);
        if !command::output_with_input(&mut list, results)?
            .lines()
            .any(|line| line == member)
        {
            return Ok(Self::default());
        }
        let mut extract = Command::new("tar");
        extract.args(["-x", "-O", &member]);
        Ok(Self::parse(&command::output_with_input(
            &mut extract,
            results,
        )?))
    }

    fn parse(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            match words[..] {
                ["instructions", program, count] => {
                    if let Ok(count) = count.parse() {
                        facts.instructions.insert(program.to_owned(), count);
                    }
                }
                ["feature", name, how] => {
                    facts.features.insert(name.to_owned(), how.to_owned());
                }
                _ => {}
            }
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_others_left() {
        let facts = Facts::parse(
            "instructions xdp_uplink 123\nfeature tc fallback by clsact\nnonsense\ninstructions x y\n",
        );
        assert_eq!(facts.instructions, [("xdp_uplink".to_owned(), 123)].into());
        assert_eq!(
            facts.features,
            [("tc".to_owned(), "fallback by clsact".to_owned())].into()
        );
    }
}
