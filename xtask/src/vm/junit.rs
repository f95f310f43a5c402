//! Results as JUnit XML, the format that continuous integration reads: a test suite for each kernel and program.

use super::libtest::{Case, Outcome, Program};

/// The file for some kernels' results: the kernel's release with its programs.
pub fn document(kernels: &[(String, Vec<Program>)]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for (release, programs) in kernels {
        for program in programs {
            text.push_str(&suite(release, program));
        }
    }
    text.push_str("</testsuites>\n");
    text
}

fn suite(release: &str, program: &Program) -> String {
    let count = |is: fn(&Case) -> bool| program.cases.iter().filter(|case| is(case)).count();
    let mut text = format!(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.2}\">\n",
        escape(&format!("{release} {}", program.name)),
        program.cases.len(),
        count(Case::has_failed),
        count(|case| case.outcome == Outcome::Ignored),
        program.seconds.unwrap_or(0.0),
    );
    for case in &program.cases {
        let head = format!(
            "    <testcase classname=\"{}\" name=\"{}\"",
            escape(&format!("{release}.{}", case.program)),
            escape(&case.name)
        );
        let rest = match &case.outcome {
            Outcome::Passed => "/>\n".to_owned(),
            Outcome::Ignored => "><skipped/></testcase>\n".to_owned(),
            Outcome::Failed(said) => format!(
                "><failure message=\"{}\">{}</failure></testcase>\n",
                escape(said.lines().last().unwrap_or_default()),
                escape(said)
            ),
        };
        text.push_str(&head);
        text.push_str(&rest);
    }
    text.push_str("  </testsuite>\n");
    text
}

/// Text as XML 1.0 takes it: what is no character of it is left out.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => {}
            _ if character.is_control() => {}
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_and_escaped() {
        let case = |name: &str, outcome| Case {
            program: "sockets".to_owned(),
            name: name.to_owned(),
            outcome,
        };
        let program = Program {
            name: "sockets".to_owned(),
            cases: vec![
                case("a", Outcome::Passed),
                case("b", Outcome::Ignored),
                case(
                    "c",
                    Outcome::Failed("left: \"<1>\" & \u{1b}[0m\nlast".to_owned()),
                ),
            ],
            seconds: Some(1.5),
        };
        assert_eq!(
            document(&[("6.12.1".to_owned(), vec![program])]),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuites>\n\
             \x20 <testsuite name=\"6.12.1 sockets\" tests=\"3\" failures=\"1\" skipped=\"1\" time=\"1.50\">\n\
             \x20   <testcase classname=\"6.12.1.sockets\" name=\"a\"/>\n\
             \x20   <testcase classname=\"6.12.1.sockets\" name=\"b\"><skipped/></testcase>\n\
             \x20   <testcase classname=\"6.12.1.sockets\" name=\"c\"><failure message=\"last\">left: &quot;&lt;1&gt;&quot; &amp; [0m\nlast</failure></testcase>\n\
             \x20 </testsuite>\n\
             </testsuites>\n"
        );
    }
}
