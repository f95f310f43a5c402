//! Query parameters, and the options of requests that they carry.

use serde_json::Value;

use crate::api::status::Cause;
use crate::api::{DeleteOptions, ListOptions, Status, WriteOptions, meta};
use crate::resource::{Faults, Path};

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// From the pairs of a URL.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(found, _)| found == name);
        named.map(|(_, value)| value.as_str())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    }

    /// Whether a parameter is set, as Kubernetes reads booleans.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"))
    }

    /// A whole number.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })
    }

    /// The options of a list or watch.
    pub fn list_options(&self) -> Result<ListOptions, Status> {
        let limit = self.number("limit")?;
        self.check_versions()?;
        Ok(ListOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            limit: limit.and_then(|limit| usize::try_from(limit).ok()),
            continue_token: self.text("continue"),
            resource_version: self.text("resourceVersion"),
            resource_version_match: self.text("resourceVersionMatch"),
            allow_bookmarks: self.flag("allowWatchBookmarks"),
            send_initial_events: self.flag("sendInitialEvents"),
        })
    }

    /// What a list or watch says of versions must go together (`ValidateListOptions`).
    fn check_versions(&self) -> Result<(), Status> {
        let (asked, from) = (self.text("resourceVersionMatch"), self.text("continue"));
        let version = self.text("resourceVersion");
        let (match_path, initial) = (
            Path::new("resourceVersionMatch"),
            self.get("sendInitialEvents").is_some(),
        );
        let newer = "NotOlderThan";
        let mut faults = Faults::new();
        if from.is_some() && version.as_ref().is_some_and(|version| version != "0") {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(why));
        }
        if asked.is_some() && from.is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            faults.forbidden(&match_path, why);
        }
        if self.flag("watch") {
            if initial && asked.as_deref() != Some(newer) {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                faults.forbidden(&match_path, why);
            } else if !initial && asked.is_some() {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                faults.forbidden(&match_path, why);
            }
        } else {
            if initial {
                let why = "sendInitialEvents is forbidden for list";
                faults.forbidden(&Path::new("sendInitialEvents"), why);
            }
            match (asked.as_deref(), version.as_deref()) {
                (Some("Exact"), Some("0")) => {
                    let why =
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                    faults.forbidden(&match_path, why);
                }
                (None, _) | (Some("Exact" | "NotOlderThan"), Some(_)) => {}
                (Some("Exact" | "NotOlderThan"), None) => {
                    let why =
                        "resourceVersionMatch is forbidden unless resourceVersion is provided";
                    faults.forbidden(&match_path, why);
                }
                (Some(other), _) => faults.unsupported(&match_path, other, &["Exact", newer, ""]),
            }
        }
        let causes = faults.into_causes();
        if causes.is_empty() {
            return Ok(());
        }
        Err(invalid_options("ListOptions", causes))
    }

    fn dry_run(&self, kind: &str) -> Result<bool, Status> {
        let asked = self.0.iter().filter(|(name, _)| name == "dryRun");
        let asked: Vec<&str> = asked.map(|(_, value)| value.as_str()).collect();
        all_dry(&asked, kind)
    }

    /// The options of a write.
    pub fn write_options(&self, duplicate_fields: Vec<String>) -> Result<WriteOptions, Status> {
        let field_validation = self.text("fieldValidation");
        if let Some(asked) = field_validation.as_deref()
            && !matches!(asked, "Strict" | "Warn" | "Ignore")
        {
            let mut faults = Faults::new();
            faults.unsupported(
                &Path::new("fieldValidation"),
                asked,
                &["Ignore", "Strict", "Warn"],
            );
            return Err(invalid_options("CreateOptions", faults.into_causes()));
        }
        Ok(WriteOptions {
            dry_run: self.dry_run("CreateOptions")?,
            field_validation,
            field_manager: self.text("fieldManager"),
            force: self.flag("force"),
            duplicate_fields,
        })
    }

    /// The options of a deletion, from its body and, where that is silent, from the URL.
    pub fn delete_options(&self, body: &Value) -> Result<DeleteOptions, Status> {
        let text = |path: &[&str]| {
            let found = meta::text(body, path);
            (!found.is_empty()).then(|| found.to_owned())
        };
        let in_body: Vec<&str> = meta::list(body, &["dryRun"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let in_url = self.text("gracePeriodSeconds");
        let in_url = in_url
            .map(|text| {
                text.parse::<i64>().map_err(|_| {
                    Status::bad_request(format!(
                        "strconv.ParseInt: parsing {text:?}: invalid syntax"
                    ))
                })
            })
            .transpose()?;
        let orphan = match body.get("orphanDependents") {
            Some(Value::Bool(orphan)) => Some(*orphan),
            _ => self
                .get("orphanDependents")
                .map(|_| self.flag("orphanDependents")),
        };
        let policy = text(&["propagationPolicy"]).or_else(|| self.text("propagationPolicy"));
        if let (Some(_), Some(policy)) = (orphan, &policy) {
            let mut faults = Faults::new();
            faults.invalid_text(
                &Path::new("propagationPolicy"),
                policy,
                "orphanDependents and deletionPropagation cannot be both set",
            );
            return Err(invalid_options("DeleteOptions", faults.into_causes()));
        }
        let orphan = orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned());
        Ok(DeleteOptions {
            grace_period_seconds: meta::number(body, &["gracePeriodSeconds"]).or(in_url),
            propagation_policy: policy.or(orphan),
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            dry_run: self.dry_run("DeleteOptions")? || all_dry(&in_body, "DeleteOptions")?,
        })
    }
}

/// Whether the values of `dryRun` ask for one; only "All" does.
fn all_dry(asked: &[&str], kind: &str) -> Result<bool, Status> {
    if let Some(other) = asked.iter().find(|one| **one != "All" && !one.is_empty()) {
        let mut faults = Faults::new();
        faults.unsupported(&Path::new("dryRun"), other, &["All"]);
        return Err(invalid_options(kind, faults.into_causes()));
    }
    Ok(asked.contains(&"All"))
}

fn invalid_options(kind: &str, causes: Vec<Cause>) -> Status {
    Status::invalid("meta.k8s.io", kind, "", causes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Parameters::new(pairs.iter().map(owned).collect())
    }

    #[test]
    fn unknown_dry_runs_and_validations_are_refused() {
        let options = parameters(&[("dryRun", "All"), ("fieldValidation", "Strict")]);
        assert!(options.write_options(Vec::new()).expect("known").dry_run);
        let error = parameters(&[("dryRun", "Some")])
            .write_options(Vec::new())
            .expect_err("unknown");
        assert_eq!(
            error.message,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\""
        );
    }

    #[test]
    fn versions_must_go_together() {
        for (pairs, said) in [
            (
                &[("resourceVersionMatch", "Exact"), ("resourceVersion", "5")][..],
                None,
            ),
            (&[("continue", "x"), ("resourceVersion", "0")], None),
            (
                &[("resourceVersionMatch", "Exact")],
                Some(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
                ),
            ),
            (
                &[("resourceVersionMatch", "Exact"), ("resourceVersion", "0")],
                Some(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ),
            ),
            (
                &[("continue", "x"), ("resourceVersion", "7")],
                Some("specifying resource version is not allowed when using continue"),
            ),
            (
                &[("watch", "1"), ("sendInitialEvents", "true")],
                Some("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
            ),
            (
                &[
                    ("watch", "1"),
                    ("sendInitialEvents", "true"),
                    ("resourceVersionMatch", "NotOlderThan"),
                ],
                None,
            ),
        ] {
            let answer = parameters(pairs).list_options();
            match said {
                None => drop(answer.expect("they do")),
                Some(said) => {
                    let error = answer.expect_err("they do not");
                    assert!(error.message.ends_with(said), "{}", error.message);
                }
            }
        }
    }

    #[test]
    fn deletions_read_body_and_url() {
        let body = json!({"gracePeriodSeconds": 3, "preconditions": {"uid": "u"}});
        let options = parameters(&[("gracePeriodSeconds", "9"), ("propagationPolicy", "Orphan")])
            .delete_options(&body)
            .expect("fine");
        assert_eq!(options.grace_period_seconds, Some(3));
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert_eq!(options.propagation_policy.as_deref(), Some("Orphan"));
    }
}
