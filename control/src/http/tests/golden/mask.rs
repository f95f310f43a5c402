//! What differs from run to run, replaced by a word that says what stood there.

use regex::Regex;

/// The masks, in the order in which they are put on.
pub struct Masks(Vec<(Regex, &'static str)>);

/// What is replaced by what.
const MASKS: &[(&str, &str)] = &[
    // Where the server and the test's files are.
    (r"https://127\.0\.0\.1:\d+", "SERVER"),
    (r"127\.0\.0\.1:\d+", "SERVER"),
    (
        r"/tmp/(kubectl-edit-|LIVE-|MERGED-)\d+(\.yaml|\.json)?",
        "/tmp/${1}N",
    ),
    // The head of what kubectl's own log writes.
    (
        r"(?m)^([IWE])\d{4} [\d:.]+ +\d+ ([a-z_]+\.go):\d+\]",
        "$1 $2]",
    ),
    // Credentials.
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "TOKEN"),
    // Identity, version, time.
    (
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "UID",
    ),
    (r#"(?i)(resource ?version"?: *)"?\d+"?"#, "${1}VERSION"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (
        r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} [\d:]+ [+-]\d{4}",
        "TIME",
    ),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [+-]\d{4}", "TIME"),
    // Ages stand alone in a column; a hundred m are no minutes, but a tenth of a CPU.
    (
        r"(?m)(^|  +)(\d{1,3}s|\d{1,2}m(\d{1,2}s)?)( ago)?(  |$)",
        "${1}AGE$4$5",
    ),
    (
        r"\((x\d+ over )?(\d{1,3}s|\d{1,2}m(\d{1,2}s)?)( ago)?\)",
        "(${1}AGE$4)",
    ),
    // Names that end in random letters, or in a hash.
    (
        r"-[bcdfghjklmnpqrstvwxz2456789]{8,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b",
        "-HASH-RANDOM",
    ),
    (r"([-=])[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "${1}HASH"),
    (
        r"(pod-template-hash|controller-revision-hash)(=|: |: \\*)[bcdfghjklmnpqrstvwxz2456789]+\b",
        "$1${2}HASH",
    ),
    (r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-RANDOM"),
    (r"\.[0-9a-f]{16}\b", ".NUMBER"),
    (r"=[0-9a-f]{64}\b", "=DIGEST"),
    // What is given out.
    (r"\b10\.96\.\d+\.\d+\b", "ADDRESS"),
    (r"\b10\.244\.\d+\.0/24", "RANGE"),
    (r"\bfd00:10:244:[0-9a-f:]*/64", "RANGE6"),
    (r"\bfd00:10:96::[0-9a-f:]+\b", "ADDRESS6"),
    (r"(:|nodePort: |NodePort: .*)3[0-2]\d{3}\b", "${1}PORT"),
    // Columns are as wide as what was masked.
    (r"(\S)  +", "$1  "),
    (r"(?m) +$", ""),
];

impl Masks {
    pub fn new() -> Self {
        let compile = |(pattern, word): &(&str, &'static str)| {
            (Regex::new(pattern).expect("a pattern"), *word)
        };
        Self(MASKS.iter().map(compile).collect())
    }

    /// Puts all masks on a text, whose namespace and folder are known.
    pub fn put_on(&self, text: &str, namespace: &str, folder: &str) -> String {
        let mut text = text.replace(folder, "$HOME").replace(namespace, "$NS");
        for (pattern, word) in &self.0 {
            text = pattern.replace_all(&text, *word).into_owned();
        }
        text
    }
}

#[test]
fn what_varies_is_masked_and_nothing_else() {
    let masks = Masks::new();
    for (text, masked) in [
        (
            "web-5cdd47bdcf-gfn94   1/1   0     4s",
            "web-HASH-RANDOM  1/1  0  AGE",
        ),
        ("  uid: 0c1d8f6e-58a8-4a50-8d5c-70de1d6bd2e3", "  uid: UID"),
        ("resourceVersion: \"12\"", "resourceVersion: VERSION"),
        (
            "delay=0s timeout=1s period=10s",
            "delay=0s timeout=1s period=10s",
        ),
        (
            "Warning  Failed  5s (x2 over 1m2s)  kubelet",
            "Warning  Failed  5s (x2 over AGE)  kubelet",
        ),
        ("in team-1-20 of /tmp/x/f", "in $NS of $HOME/f"),
        ("80:30123/TCP", "80:PORT/TCP"),
    ] {
        assert_eq!(masks.put_on(text, "team-1-20", "/tmp/x"), masked);
    }
}
