//! What a load came to, and its JSON.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// Who answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pod: String,
    node: String,
    client: String,
}

impl Answer {
    /// Reads "POD NODE CLIENT".
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let answer = Self {
            pod: words.next()?,
            node: words.next()?,
            client: words.next()?,
        };
        words.next().is_none().then_some(answer)
    }
}

/// Why there was no answer.
#[derive(Debug)]
pub enum Failure {
    /// Turned away at once.
    Refused,
    /// No answer within the timeout.
    Hung,
    /// The connection was broken off.
    Reset,
    /// Anything else.
    Other(String),
}

/// Counts.
#[derive(Default)]
pub struct Report {
    /// Requests made.
    pub requests: u64,
    /// Requests answered.
    pub ok: u64,
    /// See [`Failure::Refused`].
    pub refused: u64,
    /// See [`Failure::Hung`].
    pub hung: u64,
    /// See [`Failure::Reset`].
    pub reset: u64,
    /// Other failures, by their words.
    pub errors: BTreeMap<String, u64>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Answers by node.
    pub by_node: BTreeMap<String, u64>,
    /// Answers by the address that the server saw as its client's.
    pub by_client: BTreeMap<String, u64>,
    /// When the first request failed, from the beginning on.
    pub first_failure: Option<Duration>,
    /// From the first request to the last answer.
    pub took: Duration,
    latencies: Vec<Duration>,
}

impl Report {
    /// Counts one request, which was sent so long after the beginning.
    pub fn count(&mut self, outcome: Result<Answer, Failure>, latency: Duration, sent: Duration) {
        self.requests += 1;
        if outcome.is_err() && self.first_failure.is_none_or(|first| sent < first) {
            self.first_failure = Some(sent);
        }
        self.latencies.push(latency);
        match outcome {
            Ok(answer) => {
                self.ok += 1;
                *self.by_pod.entry(answer.pod).or_default() += 1;
                *self.by_node.entry(answer.node).or_default() += 1;
                *self.by_client.entry(answer.client).or_default() += 1;
            }
            Err(Failure::Refused) => self.refused += 1,
            Err(Failure::Hung) => self.hung += 1,
            Err(Failure::Reset) => self.reset += 1,
            Err(Failure::Other(words)) => *self.errors.entry(words).or_default() += 1,
        }
    }

    /// Takes another worker's counts in.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.refused += other.refused;
        self.hung += other.hung;
        self.reset += other.reset;
        let failures = [self.first_failure, other.first_failure];
        self.first_failure = failures.into_iter().flatten().min();
        for (into, from) in [
            (&mut self.errors, other.errors),
            (&mut self.by_pod, other.by_pod),
            (&mut self.by_node, other.by_node),
            (&mut self.by_client, other.by_client),
        ] {
            for (key, count) in from {
                *into.entry(key).or_default() += count;
            }
        }
        self.latencies.extend(other.latencies);
    }

    /// Whether every request was answered.
    pub fn is_clean(&self) -> bool {
        self.ok == self.requests && self.requests > 0
    }

    /// The counts as one line of JSON.
    pub fn to_json(&self) -> String {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let quantile = |percent: usize| {
            let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(place).map_or(0, Duration::as_micros)
        };
        format!(
            "{{\"requests\":{},\"ok\":{},\"refused\":{},\"hung\":{},\"reset\":{},\"errors\":{},\"by_pod\":{},\"by_node\":{},\"by_client\":{},\"first_failure_s\":{},\"seconds\":{:.3},\"p50_us\":{},\"p99_us\":{},\"max_us\":{}}}",
            self.requests,
            self.ok,
            self.refused,
            self.hung,
            self.reset,
            object(&self.errors),
            object(&self.by_pod),
            object(&self.by_node),
            object(&self.by_client),
            self.first_failure
                .map_or("null".to_owned(), |at| format!("{:.3}", at.as_secs_f64())),
            self.took.as_secs_f64(),
            quantile(50),
            quantile(99),
            quantile(100),
        )
    }
}

fn object(counts: &BTreeMap<String, u64>) -> String {
    let mut text = "{".to_owned();
    for (place, (key, count)) in counts.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(text, "{comma}\"{}\":{count}", escape(key)).expect("writing to a string");
    }
    text.push('}');
    text
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            control if control.is_control() => format!("\\u{:04x}", u32::from(control)),
            other => other.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_three_words() {
        let answer = Answer::parse("web-1 n1 10.0.0.1\n").expect("three words");
        assert_eq!((answer.pod.as_str(), answer.node.as_str()), ("web-1", "n1"));
        assert_eq!(Answer::parse("web-1 n1"), None);
        assert_eq!(Answer::parse("a b c d"), None);
    }

    #[test]
    fn json_is_escaped_and_counts_add_up() {
        let mut report = Report::default();
        report.count(
            Err(Failure::Other("a \"b\"\n".to_owned())),
            Duration::from_micros(5),
            Duration::from_millis(1500),
        );
        let mut other = Report::default();
        other.count(
            Ok(Answer::parse("p n c").expect("three words")),
            Duration::from_micros(7),
            Duration::from_millis(200),
        );
        report.add(other);
        let json = report.to_json();
        assert!(json.contains(r#""errors":{"a \"b\"\u000a":1}"#), "{json}");
        assert!(json.contains(r#""requests":2,"ok":1"#), "{json}");
        assert!(json.contains(r#""by_pod":{"p":1}"#), "{json}");
        assert!(json.contains(r#""max_us":7"#), "{json}");
        assert!(json.contains(r#""first_failure_s":1.500"#), "{json}");
    }
}
