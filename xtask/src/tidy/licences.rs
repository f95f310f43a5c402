//! The licences of everything that is linked in: our own check always, cargo-deny's where it is installed.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use super::packages::Metadata;
use crate::{command, workspace::Workspace};

/// Our own packages' licence.
const OURS: &str = "MIT OR Apache-2.0";

/// What deny.toml says of licences.
struct Policy {
    allowed: Vec<String>,
    clarified: Vec<(String, String)>,
}

/// Packages whose licence is not allowed.
pub fn check(workspace: &Workspace, metadata: &Metadata) -> Result<Vec<String>> {
    let policy = Policy::read(workspace)?;
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let name = format!("{} {}", package.name, package.version);
        if metadata.is_ours(package) {
            if package.license.as_deref() != Some(OURS) {
                faults.push(format!("{name}: our packages are {OURS}"));
            }
            continue;
        }
        let clarified = policy
            .clarified
            .iter()
            .find(|(clarified, _)| *clarified == package.name)
            .map(|(_, expression)| expression);
        match package.license.as_ref().or(clarified) {
            None => faults.push(format!("{name}: names no licence")),
            Some(expression) => match allows(&policy.allowed, expression) {
                Ok(true) => {}
                Ok(false) => faults.push(format!("{name}: {expression} is not allowed")),
                Err(error) => faults.push(format!("{name}: {error:#}")),
            },
        }
    }
    if workspace.find_program("cargo-deny").is_some() {
        let mut deny = Command::new("cargo");
        deny.current_dir(workspace.root()).args([
            "deny",
            "--offline",
            "check",
            "licenses",
            "bans",
            "sources",
        ]);
        if let Err(error) = command::output(&mut deny) {
            faults.push(format!("{error:#}"));
        }
    }
    Ok(faults)
}

impl Policy {
    /// Reads the two lists out of deny.toml, which is ours and simple: one entry a line.
    fn read(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root().join("deny.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("understand {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let allowed: Vec<String> = text
            .lines()
            .skip_while(|line| *line != "allow = [")
            .skip(1)
            .take_while(|line| *line != "]")
            .filter_map(quoted)
            .collect();
        if allowed.is_empty() {
            bail!("there is no list of allowed licences");
        }
        let of = |key: &str| -> Vec<String> {
            let prefix = format!("{key} = ");
            text.lines()
                .filter_map(|line| quoted(line.strip_prefix(&prefix)?))
                .collect()
        };
        let clarified = of("crate").into_iter().zip(of("expression")).collect();
        Ok(Self { allowed, clarified })
    }
}

fn quoted(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    line.split('"').nth(1).map(str::to_owned)
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn allows(allowed: &[String], expression: &str) -> Result<bool> {
    // Old crates write "/" for OR.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        allowed,
    };
    let verdict = parser.any_of()?;
    if let Some(word) = parser.words.first() {
        bail!("{expression:?}: {word:?} is not understood");
    }
    Ok(verdict)
}

/// Reads an expression from left to right: OR binds weakest, WITH strongest.
struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    fn any_of(&mut self) -> Result<bool> {
        let mut verdict = self.all_of()?;
        while self.takes("OR") {
            verdict |= self.all_of()?;
        }
        Ok(verdict)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut verdict = self.one()?;
        while self.takes("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool> {
        if self.takes("(") {
            let verdict = self.any_of()?;
            if !self.takes(")") {
                bail!("a bracket is not closed");
            }
            return Ok(verdict);
        }
        let mut licence = self.next()?.to_owned();
        if self.takes("WITH") {
            licence = format!("{licence} WITH {}", self.next()?);
        }
        Ok(self.allowed.contains(&licence))
    }

    fn next(&mut self) -> Result<&str> {
        let (word, rest) = self.words.split_first().context("a licence is missing")?;
        self.words = rest;
        Ok(word)
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.words.first() == Some(&word);
        if is_next {
            self.words = &self.words[1..];
        }
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_weighed() {
        let allowed = [
            "MIT".to_owned(),
            "Apache-2.0 WITH LLVM-exception".to_owned(),
        ];
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("(GPL-3.0 OR MIT) AND MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
        ] {
            let verdict = allows(&allowed, expression).expect("it is an expression");
            assert_eq!(verdict, expected, "{expression}");
        }
        assert!(allows(&allowed, "(MIT").is_err());
        assert!(allows(&allowed, "MIT MIT").is_err());
    }

    #[test]
    fn the_policy_is_read_from_our_own_file() {
        let policy = Policy::parse(include_str!("../../../deny.toml")).expect("it is ours");
        assert!(policy.allowed.iter().any(|licence| licence == "MIT"));
        assert!(
            !policy
                .allowed
                .iter()
                .any(|licence| licence.starts_with("GPL"))
        );
        assert_eq!(
            policy.clarified,
            [("rust-criu".to_owned(), "MIT".to_owned())]
        );
    }
}
