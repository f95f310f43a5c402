//! Rules for names, labels, keys and ports, with Kubernetes' words for what breaks them. Each rule returns its faults.

const LABEL_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// Which rule a kind's metadata.name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// Most kinds: an RFC 1123 subdomain.
    Subdomain,
    /// Namespaces: an RFC 1123 label.
    Label,
    /// Services: an RFC 1035 label.
    Label1035,
    /// Roles and their bindings: whatever can stand in a path.
    Path,
}

impl NameRule {
    /// What is wrong with a name; a prefix for generateName may end in a dash.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked;
        let name = if prefix && name.ends_with('-') && name.len() > 1 {
            masked = format!("{}a", &name[..name.len() - 1]);
            &masked
        } else {
            name
        };
        match self {
            Self::Subdomain => subdomain(name),
            Self::Label => label_1123(name),
            Self::Label1035 => label_1035(name),
            Self::Path => path_segment(name),
        }
    }
}

/// What is wrong with a name that stands in a path.
pub fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let bad = ['/', '%'].into_iter().filter(|bad| text.contains(*bad));
    bad.map(|bad| format!("may not contain '{bad}'")).collect()
}

fn example(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|one| format!("'{one}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Non-empty, its ends satisfy `end`, and all of it `end` or `middle`.
fn shaped(text: &str, end: fn(u8) -> bool, middle: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    end(first) && end(last) && bytes.iter().all(|&b| end(b) || middle.contains(&b))
}

fn is_label_1123(text: &str) -> bool {
    shaped(text, lower_alnum, b"-")
}

/// An RFC 1123 label: a namespace, a container, a volume.
pub fn label_1123(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    if !is_label_1123(text) {
        faults.push(example(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character",
            LABEL_1123,
            &["my-name", "123-abc"],
        ));
    }
    faults
}

/// An RFC 1035 label: a service.
pub fn label_1035(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    let begins_with_letter = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if !is_label_1123(text) || !begins_with_letter {
        faults.push(example(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            LABEL_1035,
            &["my-name", "abc-123"],
        ));
    }
    faults
}

/// An RFC 1123 subdomain: the name of most objects.
pub fn subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 253 {
        faults.push(too_long(253));
    }
    if !text.split('.').all(is_label_1123) {
        faults.push(example(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            &format!("{LABEL_1123}(\\.{LABEL_1123})*"),
            &["example.com"],
        ));
    }
    faults
}

fn alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// A label's or annotation's key: "name" or "prefix/name".
pub fn qualified_name(text: &str) -> Vec<String> {
    let shape = || {
        example(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
             character",
            QUALIFIED,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                let found = subdomain(prefix);
                faults.extend(
                    found
                        .into_iter()
                        .map(|fault| format!("prefix part {fault}")),
                );
            }
            *name
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape()
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_long(63)));
    }
    if !shaped(name, alnum, b"-_.") {
        faults.push(format!("name part {}", shape()));
    }
    faults
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    if !text.is_empty() && !shaped(text, alnum, b"-_.") {
        faults.push(example(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            &format!("({QUALIFIED})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    faults
}

/// A key of a `ConfigMap` or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 253 {
        faults.push(too_long(253));
    }
    let allowed = |byte: u8| alnum(byte) || b"-._".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        faults.push(example(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if text == "." {
        faults.push("must not be '.'".to_owned());
    } else if text == ".." {
        faults.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        faults.push("must not start with '..'".to_owned());
    }
    faults
}

/// The name of an environment variable.
pub fn environment_variable(text: &str) -> Vec<String> {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    if text.is_empty() || !text.bytes().all(printable) {
        return vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ];
    }
    Vec::new()
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// A port's name, as IANA names services.
pub fn port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |broken: bool, words: &str| {
        if broken {
            faults.push(words.to_owned());
        }
    };
    fault(text.len() > 15, "must be no more than 15 characters");
    fault(
        text.is_empty() || !text.bytes().all(|b| lower_alnum(b) || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    fault(
        !text.bytes().any(|b| b.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    fault(text.contains("--"), "must not contain consecutive hyphens");
    fault(
        text.starts_with('-') || text.ends_with('-'),
        "must not begin or end with a hyphen",
    );
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "web-1", "0"] {
            assert!(label_1123(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a.b", "a_b"] {
            assert!(!label_1123(bad).is_empty(), "{bad}");
        }
        assert!(subdomain("a.b-c.d").is_empty());
        assert!(!subdomain("a..b").is_empty());
        assert!(!label_1035("1a").is_empty());
        assert_eq!(
            label_1123("Web"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn keys_values_and_ports() {
        assert!(qualified_name("app.kubernetes.io/name").is_empty());
        assert!(!qualified_name("a/b/c").is_empty());
        assert!(!qualified_name("/b").is_empty());
        assert!(label_value("").is_empty());
        assert!(!label_value("a b").is_empty());
        assert!(config_key("game.properties").is_empty());
        assert!(!config_key("..x").is_empty());
        assert!(port_name("http-alt").is_empty());
        assert!(!port_name("8080").is_empty());
        assert!(!port_name("a--b").is_empty());
        assert!(!port_number(0).is_empty());
        assert!(NameRule::Subdomain.check("web-", true).is_empty());
        assert!(!NameRule::Subdomain.check("web-", false).is_empty());
    }
}
