//! What test programs say of themselves: the output of Rust's own test harness, between marks of the VM's job.

/// One test, as it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its program: "sockets".
    pub program: String,
    /// Its name in it.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
}

/// How a test went.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It was left out.
    Ignored,
    /// It failed, and said this.
    Failed(String),
}

/// A test program, as it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its tests.
    pub cases: Vec<Case>,
    /// How many seconds it took; `None` if it never ended.
    pub seconds: Option<f64>,
}

/// The line that a job writes before a program.
pub fn begins(name: &str) -> String {
    format!("=== begin {name}")
}

/// The line that a job writes after a program; code and time are the shell's.
pub fn ends(code: &str, seconds: &str) -> String {
    format!("=== end {code} {seconds}")
}

/// Reads what a job wrote. A program that did not end well without a failed test has a failed case of its own.
pub fn parse(output: &str) -> Vec<Program> {
    let mut programs: Vec<Program> = Vec::new();
    let mut said = Vec::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("=== begin ") {
            close(&mut programs, &said, "the machine ended before it did");
            said.clear();
            programs.push(Program {
                name: name.to_owned(),
                ..Program::default()
            });
        } else if let Some(end) = line.strip_prefix("=== end ") {
            let (code, seconds) = end.split_once(' ').unwrap_or((end, ""));
            if let Some(program) = programs.last_mut() {
                program.cases = cases(&program.name, &said);
                program.seconds = Some(seconds.parse().unwrap_or(0.0));
                let failed = program.cases.iter().any(Case::has_failed);
                let summary = said.iter().any(|line| line.starts_with("test result: "));
                if !failed && (code != "0" || !summary) {
                    let text = format!("it ended with {code}:\n{}", said.join("\n"));
                    program.cases.push(program.whole(text));
                }
            }
            said.clear();
        } else {
            said.push(line);
        }
    }
    close(&mut programs, &said, "the machine ended before it did");
    programs
}

/// Notes of a program that never ended that it failed.
fn close(programs: &mut [Program], said: &[&str], why: &str) {
    if let Some(program) = programs
        .last_mut()
        .filter(|program| program.seconds.is_none() && program.cases.is_empty())
    {
        program.cases = cases(&program.name, said);
        program.cases.push(program.whole(why.to_owned()));
    }
}

impl Program {
    fn whole(&self, why: String) -> Case {
        Case {
            program: self.name.clone(),
            name: "(the program)".to_owned(),
            outcome: Outcome::Failed(why),
        }
    }
}

impl Case {
    /// Whether it failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// The lines "test NAME ... ok", and what failed tests wrote under "---- NAME stdout ----".
fn cases(program: &str, said: &[&str]) -> Vec<Case> {
    said.iter()
        .filter_map(|line| {
            let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
            let outcome = match outcome {
                "ok" => Outcome::Passed,
                "FAILED" => Outcome::Failed(words(name, said)),
                _ if outcome.starts_with("ignored") => Outcome::Ignored,
                _ => return None,
            };
            Some(Case {
                program: program.to_owned(),
                name: name.to_owned(),
                outcome,
            })
        })
        .collect()
}

fn words(name: &str, said: &[&str]) -> String {
    let head = format!("---- {name} stdout ----");
    let lines: Vec<&str> = said
        .iter()
        .copied()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .collect();
    lines.join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
=== begin sockets

running 3 tests
test a ... ok
test b ... FAILED
test c ... ignored, not here

failures:

---- b stdout ----

thread 'b' panicked at x.rs:1:1:
no luck


failures:
    b

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s

=== end 101 2.50
=== begin verifier
test d ... ok
memory allocation failed
=== end 134 0.1
=== begin containers
test e ... ok
";

    #[test]
    fn every_test_is_accounted_for() {
        let programs = parse(OUTPUT);
        let names: Vec<&str> = programs
            .iter()
            .map(|program| program.name.as_str())
            .collect();
        assert_eq!(names, ["sockets", "verifier", "containers"]);
        let outcomes: Vec<&Outcome> = programs[0].cases.iter().map(|case| &case.outcome).collect();
        let failed = Outcome::Failed("thread 'b' panicked at x.rs:1:1:\nno luck".to_owned());
        assert_eq!(outcomes, [&Outcome::Passed, &failed, &Outcome::Ignored]);
        assert_eq!(programs[0].seconds, Some(2.5));
    }

    #[test]
    fn a_program_that_dies_or_never_ends_has_failed() {
        let programs = parse(OUTPUT);
        for (program, why) in [
            (&programs[1], "ended with 134"),
            (&programs[2], "ended before"),
        ] {
            let last = program.cases.last().expect("a case for the program");
            let Outcome::Failed(text) = &last.outcome else {
                panic!("{last:?} has not failed");
            };
            assert!(text.contains(why), "{text}");
            assert_eq!(program.cases[0].outcome, Outcome::Passed);
        }
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        let text = format!("{}\n{}\n", begins("x"), ends("1", "3"));
        let programs = parse(&text);
        assert_eq!(programs[0].name, "x");
        assert!(programs[0].cases[0].has_failed(), "it ran no test at all");
    }
}
