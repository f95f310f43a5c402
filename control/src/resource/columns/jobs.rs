//! The tables of jobs and cron jobs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workloads::{CONTAINERS, IMAGES, SELECTOR, template};
use super::{AGE, Column, NAME, NONE, age, column, human, name, since};
use crate::api::meta;

/// The columns of jobs.
pub const JOBS: &[Column] = &[
    NAME,
    column("Status", "string", "Status of the job."),
    column(
        "Completions",
        "string",
        "How many pods have succeeded, of how many.",
    ),
    column("Duration", "string", "Time required to complete the job."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of cron jobs.
pub const CRON_JOBS: &[Column] = &[
    NAME,
    column("Schedule", "string", "The schedule in Cron format."),
    column("Timezone", "string", "The time zone of the schedule."),
    column("Suspend", "boolean", "Whether no more jobs are made."),
    column("Active", "integer", "The number of running jobs."),
    column("Last Schedule", "string", "When a job was last made."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn has(object: &Value, kind: &str) -> bool {
    let conditions = meta::list(object, &["status", "conditions"]);
    conditions
        .iter()
        .any(|one| one["type"] == kind && one["status"] == "True")
}

/// The cells of a job.
pub fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let terminating = meta::is_terminating(object);
    let status = [
        "Complete",
        "Failed",
        "Suspended",
        "FailureTarget",
        "SuccessCriteriaMet",
    ]
    .into_iter()
    .find(|kind| has(object, kind));
    let status = match status {
        _ if terminating => "Terminating",
        Some(kind) => kind,
        None => "Running",
    };
    let succeeded = meta::number(object, &["status", "succeeded"]).unwrap_or(0);
    let parallelism = meta::number(object, &["spec", "parallelism"]).unwrap_or(0);
    let completions = match meta::number(object, &["spec", "completions"]) {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let time =
        |field: &str| -> Option<Timestamp> { meta::text(object, &["status", field]).parse().ok() };
    let duration = time("startTime").map_or(String::new(), |start| {
        let end = time("completionTime").unwrap_or(now);
        human(end.as_second() - start.as_second())
    });
    let mut cells = vec![
        name(object),
        json!(status),
        json!(completions),
        json!(duration),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

/// The cells of a cron job.
pub fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let text = |path: &[&str]| meta::text(object, path).to_owned();
    let zone = text(&["spec", "timeZone"]);
    let last = text(&["status", "lastScheduleTime"]);
    let mut cells = vec![
        name(object),
        json!(text(&["spec", "schedule"])),
        json!(if zone.is_empty() { NONE } else { &zone }),
        json!(object["spec"]["suspend"] == true),
        json!(meta::list(object, &["status", "active"]).len()),
        if last.is_empty() {
            json!(NONE)
        } else {
            since(&last, now)
        },
        age(object, now),
    ];
    cells.extend(template(&object["spec"]["jobTemplate"]));
    cells
}
