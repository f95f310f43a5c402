//! Transcripts: commands with what each version of kubectl says to them, in a text that people read and edit.
//!
//! ```text
//! Prose stands at the left edge, as many lines as it likes.
//!
//!   $ kubectl get configmap a        a command for sh; $NS is a namespace that only this version of kubectl uses
//!   > more of it                     its further lines
//!   @ 1.20-1.31                      which versions say what follows; without such a line all of them
//!   NAME   DATA   AGE                what it prints
//!   ! a line on standard error
//!   ? 1                              its exit code, if that is not 0
//!   @ 1.32-1.36
//!   ...
//! ```
//!
//! An empty line of the output is written `~`.

use std::fmt::Write as _;

/// The versions of kubectl that the transcripts tell of, by their second number.
pub const VERSIONS: [u32; 11] = [20, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36];

/// What a command said and how it ended, masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

/// A command and who says what to it.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The prose before it.
    pub prose: Vec<String>,
    /// For sh.
    pub command: String,
    /// Versions and their answer; each version is in one of them.
    pub answers: Vec<(Vec<u32>, Said)>,
}

impl Step {
    /// What a version is expected to say.
    pub fn expected(&self, version: u32) -> Option<&Said> {
        let mut answers = self.answers.iter();
        answers
            .find(|(versions, _)| versions.contains(&version))
            .map(|(_, said)| said)
    }

    /// Puts versions that say the same together, in the order of their first.
    pub fn record(&mut self, heard: &[(u32, Said)]) {
        self.answers.clear();
        for (version, said) in heard {
            match self.answers.iter_mut().find(|(_, known)| known == said) {
                Some((versions, _)) => versions.push(*version),
                None => self.answers.push((vec![*version], said.clone())),
            }
        }
    }
}

/// Reads a transcript; fails with the line that makes no sense.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut prose: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some(content) = line.strip_prefix("  ") else {
            if !line.is_empty() || !prose.is_empty() {
                prose.push(line.to_owned());
            }
            continue;
        };
        if let Some(command) = content.strip_prefix("$ ") {
            while prose.last().is_some_and(String::is_empty) {
                prose.pop();
            }
            steps.push(Step {
                prose: std::mem::take(&mut prose),
                command: command.to_owned(),
                answers: Vec::new(),
            });
            continue;
        }
        let step = steps.last_mut().ok_or_else(|| line.to_owned())?;
        read_line(step, content).ok_or_else(|| line.to_owned())?;
    }
    Ok(steps)
}

/// Takes in a line below a command.
fn read_line(step: &mut Step, content: &str) -> Option<()> {
    if let (Some(more), true) = (content.strip_prefix('>'), step.answers.is_empty()) {
        step.command.push('\n');
        step.command
            .push_str(more.strip_prefix(' ').unwrap_or(more));
        return Some(());
    }
    if let Some(versions) = content.strip_prefix("@ ") {
        step.answers
            .push((read_versions(versions)?, Said::default()));
        return Some(());
    }
    if step.answers.is_empty() {
        step.answers.push((VERSIONS.to_vec(), Said::default()));
    }
    let (_, said) = step.answers.last_mut()?;
    if let Some(code) = content.strip_prefix("? ") {
        said.code = code.parse().ok()?;
    } else if let Some(error) = content.strip_prefix('!') {
        said.err.push_str(error.strip_prefix(' ').unwrap_or(error));
        said.err.push('\n');
    } else {
        said.out.push_str(if content == "~" { "" } else { content });
        said.out.push('\n');
    }
    Some(())
}

/// "1.20 1.27-1.31".
fn read_versions(text: &str) -> Option<Vec<u32>> {
    let minor = |word: &str| word.strip_prefix("1.")?.parse::<u32>().ok();
    let mut versions = Vec::new();
    for word in text.split_whitespace() {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (first, last) = (minor(first)?, minor(last)?);
        versions.extend(VERSIONS.into_iter().filter(|v| (first..=last).contains(v)));
    }
    Some(versions)
}

/// Neighbours in the list become a range.
fn write_versions(versions: &[u32]) -> String {
    let place = |version: u32| VERSIONS.iter().position(|known| *known == version);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for version in versions {
        match ranges.last_mut() {
            Some((_, last)) if place(*last).map(|at| at + 1) == place(*version) => *last = *version,
            _ => ranges.push((*version, *version)),
        }
    }
    let words = ranges.iter().map(|(first, last)| {
        if first == last {
            format!("1.{first}")
        } else {
            format!("1.{first}-1.{last}")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Writes a transcript.
pub fn render(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        if !text.is_empty() {
            text.push('\n');
        }
        for line in &step.prose {
            text.push_str(line);
            text.push('\n');
        }
        if !step.prose.is_empty() {
            text.push('\n');
        }
        for (at, line) in step.command.lines().enumerate() {
            let mark = if at == 0 { '$' } else { '>' };
            push_line(&mut text, &format!("{mark} {line}"));
        }
        for (versions, said) in &step.answers {
            if step.answers.len() > 1 || *versions != VERSIONS {
                push_line(&mut text, &format!("@ {}", write_versions(versions)));
            }
            for line in said.out.lines() {
                push_line(&mut text, if line.is_empty() { "~" } else { line });
            }
            for line in said.err.lines() {
                push_line(&mut text, &format!("! {line}"));
            }
            if said.code != 0 {
                push_line(&mut text, &format!("? {}", said.code));
            }
        }
    }
    text
}

fn push_line(text: &mut String, line: &str) {
    writeln!(text, "  {}", line.trim_end()).expect("a string takes all");
}

#[test]
fn a_transcript_is_written_as_it_was_read() {
    let text = "Prose.\n\n  $ one <<END\n  > input\n  > END\n  printed\n  ~\n  ! error\n  ? 3\n\n  $ two\n  @ 1.20 1.28-1.36\n  a\n  @ 1.27\n  ? 1\n";
    let steps = parse(text).expect("a transcript");
    assert_eq!(render(&steps), text);
    assert_eq!(steps[0].command, "one <<END\ninput\nEND");
    let said = steps[0].expected(31).expect("an answer for all");
    assert_eq!(
        (said.out.as_str(), said.err.as_str()),
        ("printed\n\n", "error\n")
    );
    assert_eq!(said.code, 3);
    assert_eq!(steps[1].expected(27).map(|said| said.code), Some(1));
    assert_eq!(
        steps[1].expected(30).map(|said| said.out.as_str()),
        Some("a\n")
    );
}
