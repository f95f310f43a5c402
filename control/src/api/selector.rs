//! Label and field selectors: the text that clients send, parsed, and matched against objects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::meta;
use super::status::Status;
use crate::resource::{Resource, names};

/// What one requirement of a label selector asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    ask: Ask,
}

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses Kubernetes' text: `app=web,tier in (a, b),!old,version>3`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            requirements.push(requirement(part).map_err(|why| {
                Status::bad_request(format!("unable to parse requirement: {why}"))
            })?);
        }
        Ok(Self(requirements))
    }

    /// The selector of a workload's spec (`matchLabels`, `matchExpressions`); what is malformed matches nothing.
    pub fn from_spec(selector: &Value) -> Self {
        let mut requirements = Vec::new();
        if let Some(Value::Object(labels)) = selector.get("matchLabels") {
            requirements.extend(labels.iter().map(|(key, value)| Requirement {
                key: key.clone(),
                ask: Ask::In(vec![value.as_str().unwrap_or("").to_owned()]),
            }));
        }
        for expression in meta::list(selector, &["matchExpressions"]) {
            let values: Vec<String> = meta::list(expression, &["values"])
                .iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect();
            let ask = match meta::text(expression, &["operator"]) {
                "In" => Ask::In(values),
                "NotIn" => Ask::NotIn(values),
                "Exists" => Ask::Exists,
                "DoesNotExist" => Ask::Absent,
                _ => Ask::In(Vec::new()),
            };
            requirements.push(Requirement {
                key: meta::text(expression, &["key"]).to_owned(),
                ask,
            });
        }
        Self(requirements)
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's labels satisfy it.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(meta::at(object, &["metadata", "labels"]))
    }

    /// Whether a map of labels satisfies it.
    pub fn matches_labels(&self, labels: Option<&Value>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels
                .and_then(|labels| labels.get(&requirement.key))
                .and_then(Value::as_str);
            match &requirement.ask {
                Ask::Exists => value.is_some(),
                Ask::Absent => value.is_none(),
                Ask::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Ask::NotIn(values) => !value.is_some_and(|value| values.iter().any(|v| v == value)),
                Ask::Above(bound) => numeric(value).is_some_and(|value| value > *bound),
                Ask::Below(bound) => numeric(value).is_some_and(|value| value < *bound),
            }
        })
    }

    /// The text of a selector, as a Scale's status carries it.
    pub fn text(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(requirement_text).collect();
        parts.join(",")
    }
}

fn requirement_text(requirement: &Requirement) -> String {
    let key = &requirement.key;
    match &requirement.ask {
        Ask::Exists => key.clone(),
        Ask::Absent => format!("!{key}"),
        Ask::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
        Ask::In(values) => format!("{key} in ({})", values.join(",")),
        Ask::NotIn(values) => format!("{key} notin ({})", values.join(",")),
        Ask::Above(bound) => format!("{key}>{bound}"),
        Ask::Below(bound) => format!("{key}<{bound}"),
    }
}

fn numeric(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return checked(key.trim(), Ask::Absent);
    }
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(operator) {
            let values = vec![value.trim().to_owned()];
            let ask = if negated {
                Ask::NotIn(values)
            } else {
                Ask::In(values)
            };
            return checked(key.trim(), ask);
        }
    }
    for (operator, above) in [('>', true), ('<', false)] {
        if let Some((key, value)) = part.split_once(operator) {
            let bound: i64 = value
                .trim()
                .parse()
                .map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer".to_owned())?;
            let ask = if above {
                Ask::Above(bound)
            } else {
                Ask::Below(bound)
            };
            return checked(key.trim(), ask);
        }
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else {
        return checked(part, Ask::Exists);
    };
    let rest = rest.trim();
    let (negated, list) = if let Some(list) = rest.strip_prefix("notin") {
        (true, list)
    } else if let Some(list) = rest.strip_prefix("in") {
        (false, list)
    } else {
        return Err(format!(
            "found '{rest}', expected: in, notin, =, ==, !=, gt, lt"
        ));
    };
    let inner = list
        .trim()
        .strip_prefix('(')
        .and_then(|list| list.strip_suffix(')'))
        .ok_or_else(|| format!("found '{}' expected: '('", list.trim()))?;
    let values = inner.split(',').map(|one| one.trim().to_owned()).collect();
    let ask = if negated {
        Ask::NotIn(values)
    } else {
        Ask::In(values)
    };
    checked(key.trim(), ask)
}

fn checked(key: &str, ask: Ask) -> Result<Requirement, String> {
    if let Some(fault) = names::qualified_name(key).first() {
        return Err(format!("key: Invalid value: {key:?}: {fault}"));
    }
    if let Ask::In(values) | Ask::NotIn(values) = &ask {
        for (at, value) in values.iter().enumerate() {
            if let Some(fault) = names::label_value(value).first() {
                return Err(format!(
                    "values[{at}][{key}]: Invalid value: {value:?}: {fault}"
                ));
            }
        }
    }
    Ok(Requirement {
        key: key.to_owned(),
        ask,
    })
}

/// A parsed field selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldRequirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    path: Vec<String>,
    /// The text that stands for the field's absence.
    absent: &'static str,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses `metadata.name=x,status.phase!=Running` for a kind that knows which fields can be asked for.
    pub fn parse(text: &str, row: &Resource) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==") {
                (field, value, true)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, value, true)
            } else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{part}'; can't understand '{part}'"
                )));
            };
            let field = field.trim();
            requirements.push(FieldRequirement {
                path: field.split('.').map(str::to_owned).collect(),
                absent: absent_text(field, row)?,
                value: value.trim().to_owned(),
                equal,
            });
        }
        Ok(Self(requirements))
    }

    /// Whether an object satisfies it.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let found = requirement
                .path
                .iter()
                .try_fold(object, |value, key| value.get(key));
            let same = match found {
                Some(Value::String(text)) => *text == requirement.value,
                Some(Value::Null) | None => requirement.absent == requirement.value,
                Some(Value::Bool(flag)) => {
                    requirement.value == if *flag { "true" } else { "false" }
                }
                Some(other) => serde_json::from_str(&requirement.value)
                    .is_ok_and(|wanted: Value| wanted == *other),
            };
            same == requirement.equal
        })
    }

    /// The one name that it asks for, where it does.
    pub fn name(&self) -> Option<&str> {
        self.value_of("metadata.name")
    }

    /// The value that it asks a field to have, where it does.
    pub fn value_of(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|requirement| {
                requirement.equal
                    && requirement
                        .path
                        .iter()
                        .map(String::as_str)
                        .eq(field.split('.'))
            })
            .map(|requirement| requirement.value.as_str())
    }
}

fn absent_text(field: &str, row: &Resource) -> Result<&'static str, Status> {
    if field == "metadata.name" || (field == "metadata.namespace" && row.namespaced) {
        return Ok("");
    }
    let known = row.selectable.iter().find(|(path, _)| *path == field);
    known.map(|(_, absent)| *absent).ok_or_else(|| {
        Status::bad_request(if row.selectable.is_empty() {
            format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        } else {
            format!("field label not supported: {field}")
        })
    })
}

/// Both selectors of a request.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
}

impl Selection {
    /// Parses both.
    pub fn parse(
        labels: Option<&str>,
        fields: Option<&str>,
        row: &Resource,
    ) -> Result<Self, Status> {
        Ok(Self {
            labels: LabelSelector::parse(labels.unwrap_or(""))?,
            fields: FieldSelector::parse(fields.unwrap_or(""), row)?,
        })
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.0.is_empty() && self.fields.0.is_empty()
    }
}

/// Labels as a sorted map, for callers that compare them.
pub fn labels_of(object: &Value) -> BTreeMap<&str, &str> {
    match meta::at(object, &["metadata", "labels"]) {
        Some(Value::Object(labels)) => labels
            .iter()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_match_as_kubernetes_does() {
        let object = json!({"metadata": {"labels": {"app": "web", "n": "5"}}});
        for (text, matches) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (api, web)", true),
            ("app in (api,db),app", false),
            ("app notin (api,db)", true),
            ("other notin (x)", true),
            ("app=web,!other", true),
            ("n>4", true),
            ("n<5", false),
            ("app=", false),
        ] {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(&object), matches, "{text}");
        }
        for text in ["a b c", "=x", "a in x", "a=b c", "n>x"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn selectors_of_workloads_print_as_text() {
        let selector = LabelSelector::from_spec(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
        }));
        assert_eq!(selector.text(), "app=web,tier in (a,b)");
    }
}
