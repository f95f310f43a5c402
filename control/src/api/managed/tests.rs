//! Ownership by cases: who owns what after which writes.

use super::*;
use crate::resource::Table;

/// A deployment with its owners, written to by one after the other.
struct Case {
    table: Table,
    object: Value,
    managers: Managers,
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "what json! makes is passed on"
)]
fn deployment(replicas: Value, containers: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": containers}}},
    })
}

impl Case {
    fn new() -> Self {
        Self {
            table: Table::built_in(),
            object: json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}),
            managers: Managers::default(),
        }
    }

    fn writer<'a>(&'a self, name: &'a str) -> Writer<'a> {
        let row = self.table.find("apps", "v1", "deployments").expect("a row");
        Writer::new(self.table.schema(), row, name, None, "now".to_owned()).expect("a type")
    }

    fn update(&mut self, name: &str, object: Value) {
        let mut managers = self.managers.clone();
        self.writer(name)
            .update(&mut managers, Some(&self.object), &object);
        (self.object, self.managers) = (object, managers);
    }

    fn apply(&mut self, name: &str, config: &Value, force: bool) -> Result<(), Status> {
        let mut live = self.object.clone();
        self.managers.write(&mut live);
        let (mut object, managers) = self.writer(name).apply(&live, config, force)?;
        meta::set_metadata(&mut object, "managedFields", None);
        (self.object, self.managers) = (object, managers);
        Ok(())
    }

    fn paths(&self, name: &str) -> Vec<String> {
        let of = self.managers.0.iter();
        of.filter(|(manager, _)| manager.name == name)
            .flat_map(|(_, owned)| owned.set.paths())
            .collect()
    }
}

#[test]
fn an_apply_owns_what_it_says_and_takes_back_what_it_says_no_more() {
    let mut case = Case::new();
    let two = json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]);
    case.apply("me", &deployment(json!(2), two), false)
        .expect("no conflict");
    assert_eq!(
        case.paths("me"),
        [
            ".metadata.labels.app",
            ".spec.replicas",
            ".spec.template.spec.containers[name=\"a\"]",
            ".spec.template.spec.containers[name=\"a\"].image",
            ".spec.template.spec.containers[name=\"a\"].name",
            ".spec.template.spec.containers[name=\"b\"]",
            ".spec.template.spec.containers[name=\"b\"].image",
            ".spec.template.spec.containers[name=\"b\"].name",
        ]
    );
    let mut one = deployment(json!(2), json!([{"name": "b", "image": "1"}]));
    one["metadata"] = json!({"name": "web"});
    case.apply("me", &one, false).expect("no conflict");
    assert_eq!(case.object, one);
}

#[test]
fn another_managers_field_is_a_conflict_unless_it_is_the_same_or_forced() {
    let mut case = Case::new();
    let containers = json!([{"name": "a", "image": "1"}]);
    let config = deployment(json!(2), containers);
    case.apply("me", &config, false).expect("no conflict");
    let mut scaled = case.object.clone();
    scaled["spec"]["replicas"] = json!(5);
    case.update("scaler", scaled);
    assert_eq!(case.paths("scaler"), [".spec.replicas"]);
    assert!(!case.paths("me").contains(&".spec.replicas".to_owned()));
    let refused = case.apply("me", &config, false).expect_err("a conflict");
    assert_eq!(refused.code, 409);
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
    let mut same = config.clone();
    same["spec"]["replicas"] = json!(5);
    case.apply("me", &same, false).expect("shared");
    assert_eq!(case.paths("scaler"), [".spec.replicas"]);
    case.apply("me", &config, true).expect("forced");
    assert_eq!(case.object["spec"]["replicas"], 2);
    assert!(case.paths("scaler").is_empty());
}

#[test]
fn what_others_own_stays_when_an_applier_lets_go_of_it() {
    let mut case = Case::new();
    let containers = json!([{"name": "a", "image": "1"}]);
    let config = deployment(json!(2), containers);
    case.apply("me", &config, false).expect("no conflict");
    case.apply("you", &config, false).expect("shared");
    let mut less = config.clone();
    less["spec"] = json!({"template": config["spec"]["template"]});
    case.apply("me", &less, false).expect("no conflict");
    assert_eq!(case.object["spec"]["replicas"], 2);
    case.apply("you", &less, false).expect("no conflict");
    assert_eq!(case.object["spec"].get("replicas"), None);
}

#[test]
fn elements_are_told_apart_by_all_their_keys() {
    let mut case = Case::new();
    let ports = |ports: Value| json!([{"name": "a", "image": "1", "ports": ports}]);
    let mine = json!([{"containerPort": 53}]);
    case.apply("me", &deployment(json!(1), ports(mine)), false)
        .expect("no conflict");
    let yours = json!([{"containerPort": 53, "protocol": "UDP"}]);
    let mut config = deployment(json!(1), ports(yours));
    config["spec"]["template"]["spec"]["containers"][0] = json!({
        "name": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}],
    });
    case.apply("you", &config, false).expect("no conflict");
    let found = &case.object["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(found.as_array().map(Vec::len), Some(2), "{found}");
}

#[test]
fn updates_own_what_they_change_and_lose_what_others_do() {
    let mut case = Case::new();
    let containers = json!([{"name": "a", "image": "1"}]);
    case.update("first", deployment(json!(1), containers.clone()));
    assert!(case.paths("first").contains(&".metadata.labels".to_owned()));
    let mut less = deployment(json!(1), containers);
    less["metadata"]["labels"] = json!({"tier": "x"});
    case.update("second", less);
    assert_eq!(case.paths("second"), [".metadata.labels.tier"]);
    assert!(
        !case
            .paths("first")
            .contains(&".metadata.labels.app".to_owned())
    );
}

#[test]
fn duplicate_elements_are_refused() {
    let case = Case::new();
    let twice = json!([{"name": "a", "image": "1"}, {"name": "a", "image": "2"}]);
    let refused = case.writer("me").check(&deployment(json!(1), twice));
    let refused = refused.expect_err("two of one name");
    assert!(
        refused.message.contains("duplicate entries for key"),
        "{refused}"
    );
}

#[test]
fn trees_are_texts_inside_and_trees_for_clients() {
    let mut case = Case::new();
    let config = deployment(json!(1), json!([{"name": "a", "image": "1"}]));
    case.apply("me", &config, false).expect("no conflict");
    let mut object = case.object.clone();
    case.managers.write(&mut object);
    assert!(object["metadata"]["managedFields"][0]["fieldsV1"].is_string());
    let shown = shown(&object);
    let replicas = &shown["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:replicas"];
    assert_eq!(*replicas, json!({}));
    assert_eq!(Managers::of(&shown), Some(case.managers));
}

#[test]
fn what_is_always_there_is_owned_by_nobody() {
    let mut case = Case::new();
    let one = json!([{"name": "a", "image": "1", "resources": {"limits": {"cpu": "1"}}}]);
    case.update("me", deployment(json!(2), one));
    let container = ".spec.template.spec.containers[name=\"a\"]";
    let below = ["", ".image", ".name", ".resources", ".resources.limits"];
    let mut expected: Vec<String> = [".metadata.labels", ".metadata.labels.app", ".spec.replicas"]
        .map(str::to_owned)
        .to_vec();
    expected.extend(below.map(|field| format!("{container}{field}")));
    expected.push(format!("{container}.resources.limits.cpu"));
    assert_eq!(case.paths("me"), expected);
    let mut made = case.object.clone();
    case.managers.write(&mut made);
    let fields = meta::text(&made["metadata"]["managedFields"][0], &["fieldsV1"]);
    assert!(fields.starts_with("{\"f:metadata\""), "{fields}");
}
