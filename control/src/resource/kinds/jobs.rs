//! Jobs and cron jobs.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::super::schedule::Schedule;
use super::super::{Behaviour, Column, Faults, Path, columns, metadata};
use super::{fill, map_mut, pod_defaults, pod_rules};
use crate::api::meta;

/// What jobs do.
pub struct Jobs;
/// What cron jobs do.
pub struct CronJobs;

/// The longest name of a cron job: the names of its jobs are eleven letters longer, and become labels.
const CRON_NAME_LIMIT: usize = 52;

fn job_defaults(spec: &mut Map<String, Value>) {
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    fill(spec, "backoffLimit", 6);
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "podReplacementPolicy", "TerminatingOrFailed");
    job_template(spec);
}

/// What a cron job's template has from the start too; the rest its jobs get when they are made.
fn job_template(spec: &mut Map<String, Value>) {
    if let Some(template) = map_mut(spec, "template") {
        fill(template, "metadata", json!({}));
        if let Some(pod) = template
            .entry("spec")
            .or_insert_with(|| json!({}))
            .as_object_mut()
        {
            pod_defaults::spec(pod);
        }
    }
}

fn job_rules(spec: &Value, path: &Path, faults: &mut Faults) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ] {
        if let Some(number) = meta::number(spec, &[field]).filter(|number| *number < 0) {
            let place = path.child(field);
            faults.invalid(&place, &json!(number), metadata::NOT_NEGATIVE);
        }
    }
    let mode = meta::text(spec, &["completionMode"]);
    if !matches!(mode, "" | "NonIndexed" | "Indexed") {
        let known = &["NonIndexed", "Indexed"];
        faults.unsupported(&path.child("completionMode"), mode, known);
    }
    if mode == "Indexed" && meta::number(spec, &["completions"]).is_none() {
        let why = "when completion mode is Indexed";
        faults.required(&path.child("completions"), why);
    }
    let place = path.child("template").child("spec");
    let Some(pod) = meta::at(spec, &["template", "spec"]) else {
        faults.required(&path.child("template"), "");
        return;
    };
    pod_rules::spec(pod, &place, faults);
    let policy = meta::text(pod, &["restartPolicy"]);
    if !matches!(policy, "OnFailure" | "Never") {
        let known = &["OnFailure", "Never"];
        faults.unsupported(&place.child("restartPolicy"), policy, known);
    }
}

impl Behaviour for Jobs {
    fn default(&self, object: &mut Value) {
        job_defaults(meta::child_mut(object, "spec"));
    }

    /// The selector is the job's own uid, unless the client sees to it.
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        if object["spec"]["manualSelector"] == true {
            return;
        }
        let (name, uid) = (meta::name(object).to_owned(), meta::uid(object).to_owned());
        let spec = meta::child_mut(object, "spec");
        let key = "batch.kubernetes.io/controller-uid";
        fill(spec, "selector", json!({"matchLabels": {key: uid}}));
        let Some(template) = map_mut(spec, "template") else {
            return;
        };
        fill(template, "metadata", json!({}));
        let Some(metadata) = map_mut(template, "metadata") else {
            return;
        };
        fill(metadata, "labels", json!({}));
        if let Some(labels) = map_mut(metadata, "labels") {
            for (key, value) in [
                ("batch.kubernetes.io/controller-uid", &uid),
                ("batch.kubernetes.io/job-name", &name),
                ("controller-uid", &uid),
                ("job-name", &name),
            ] {
                fill(labels, key, value.as_str());
            }
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let path = Path::new("spec");
        job_rules(&object["spec"], &path, faults);
        if object["spec"].get("selector").is_none() {
            faults.required(&path.child("selector"), "");
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        metadata::immutable(object, old, &["spec", "selector"], faults);
        metadata::immutable(object, old, &["spec", "completionMode"], faults);
        if old["spec"]["completionMode"] != "Indexed" {
            metadata::immutable(object, old, &["spec", "completions"], faults);
        }
        let waiting =
            old["spec"]["suspend"] == true && meta::at(old, &["status", "startTime"]).is_none();
        if !waiting {
            metadata::immutable(object, old, &["spec", "template"], faults);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::jobs::JOBS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::jobs::job(object, now)
    }
}

impl Behaviour for CronJobs {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = map_mut(spec, "jobTemplate") {
            fill(template, "metadata", json!({}));
            fill(template, "spec", json!({}));
            if let Some(job) = map_mut(template, "spec") {
                job_template(job);
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let (path, spec) = (Path::new("spec"), &object["spec"]);
        let text = |field: &str| meta::text(spec, &[field]);
        let name = meta::name(object);
        if name.len() > CRON_NAME_LIMIT {
            let why = "must be no more than 52 characters";
            faults.invalid_text(&Path::new("metadata.name"), name, why);
        }
        match text("schedule") {
            "" => faults.required(&path.child("schedule"), ""),
            schedule => {
                if let Err(why) = Schedule::parse(schedule) {
                    faults.invalid_text(&path.child("schedule"), schedule, &why);
                }
            }
        }
        let zone = text("timeZone");
        if spec.get("timeZone").is_some() && TimeZone::get(zone).is_err() {
            let why = format!("unknown time zone {zone}");
            faults.invalid_text(&path.child("timeZone"), zone, &why);
        }
        let policies = &["Allow", "Forbid", "Replace"];
        if !policies.contains(&text("concurrencyPolicy")) {
            let place = path.child("concurrencyPolicy");
            faults.unsupported(&place, text("concurrencyPolicy"), policies);
        }
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            metadata::not_negative(object, &["spec", field], faults);
        }
        let template = path.child("jobTemplate").child("spec");
        job_rules(&spec["jobTemplate"]["spec"], &template, faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::jobs::CRON_JOBS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::jobs::cron_job(object, now)
    }
}
