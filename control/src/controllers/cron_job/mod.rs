//! `CronJob`s: a Job at each time of a schedule, none twice, and old ones taken away.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{
    Context,
    cache::key_of,
    client::Precondition,
    clock,
    events::{Regarding, Severity},
    informers::BY_CONTROLLER,
    job, meta, patch,
    pod_control::Owner,
    resources::{CRON_JOBS, JOBS},
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::{api::ObjectKey, resource::schedule::Schedule};

/// More missed times than this are not told apart.
const MISSED_LIMIT: usize = 100;

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let shared = Arc::clone(context);
    Controller::new("cronjob", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&context.informers.cron_jobs, own_key)
    .watch(&context.informers.jobs, controller_key("CronJob"))
}

fn owner(cron: &CronJob) -> Owner<'_> {
    Owner {
        resource: CRON_JOBS,
        api_version: "batch/v1",
        kind: "CronJob",
        metadata: &cron.metadata,
    }
}

/// Whether and how a Job has ended.
fn ended(job: &Job) -> Option<bool> {
    let status = job.status.as_ref()?;
    if job::has(status, "Complete") {
        return Some(true);
    }
    job::has(status, "Failed").then_some(false)
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let Some(cron) = context.informers.cron_jobs.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    if meta::is_terminating(&cron.metadata) {
        return Ok(Outcome::Done);
    }
    let spec = &cron.spec;
    let jobs = context.informers.jobs.cache();
    let own = jobs.find(BY_CONTROLLER, meta::uid(&cron.metadata));
    clear_history(context, spec, &own).await?;
    let now = context.clock.now();
    let before = cron.status.clone().unwrap_or_default();
    let mut status = observed(&before, &own);
    let outcome = match times(&cron, spec, &status, now) {
        Ok(times) => start(context, &cron, (&own, &mut status), &times).await?,
        Err(why) => {
            let regarding = Regarding::object(&*cron);
            context
                .events
                .record(regarding, Severity::Warning, "InvalidSchedule", why);
            Outcome::Done
        }
    };
    owner(&cron).write_status(context, &before, &status).await?;
    Ok(outcome)
}

/// The status without Jobs that are gone or have ended, and with the last success.
fn observed(before: &CronJobStatus, own: &[Arc<Job>]) -> CronJobStatus {
    let mut status = before.clone();
    let running = own.iter().filter(|job| ended(job).is_none());
    let active: Vec<_> = running
        .map(|job| k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some("batch/v1".to_owned()),
            kind: Some("Job".to_owned()),
            name: job.metadata.name.clone(),
            namespace: job.metadata.namespace.clone(),
            uid: job.metadata.uid.clone(),
            ..Default::default()
        })
        .collect();
    status.active = Some(active).filter(|active| !active.is_empty());
    let successes = own.iter().filter(|job| ended(job) == Some(true));
    let last = successes
        .filter_map(|job| job.status.as_ref()?.completion_time.clone())
        .max_by_key(|time| time.0);
    if last.is_some() {
        status.last_successful_time = last;
    }
    status
}

/// When a Job is due, and when next.
struct Times {
    /// The last time that has come and had no Job.
    due: Option<Timestamp>,
    missed: usize,
    next: Option<Timestamp>,
    now: Timestamp,
}

fn times(
    cron: &CronJob,
    spec: &CronJobSpec,
    status: &CronJobStatus,
    now: Timestamp,
) -> Result<Times, String> {
    let schedule = Schedule::parse(&spec.schedule)
        .map_err(|why| format!("unparseable schedule: {:?} : {why}", spec.schedule))?;
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|_| format!("invalid timeZone: {name:?}"))?,
    };
    let made = cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = status.last_schedule_time.as_ref().map(|time| time.0);
    let mut from = last.or(made).unwrap_or(now);
    if let Some(seconds) = spec.starting_deadline_seconds {
        let oldest = now.checked_sub(jiff::SignedDuration::from_secs(seconds));
        from = from.max(oldest.unwrap_or(from));
    }
    let (mut due, mut missed) = (None, 0);
    let mut next = schedule.next(from, &zone);
    while let Some(at) = next.filter(|at| *at <= now) {
        missed += 1;
        due = Some(at);
        // Far behind: what was missed long ago is not looked at one by one.
        let from = if missed > MISSED_LIMIT {
            at.max(now - jiff::SignedDuration::from_hours(1))
        } else {
            at
        };
        next = schedule.next(from, &zone);
    }
    Ok(Times {
        due,
        missed,
        next,
        now,
    })
}

/// Makes the Job that is due, as the concurrency policy allows.
async fn start(
    context: &Context,
    cron: &CronJob,
    (own, status): (&[Arc<Job>], &mut CronJobStatus),
    times: &Times,
) -> Result<Outcome, Error> {
    let later =
        |at: Timestamp| Outcome::After(clock::elapsed(times.now, at).max(Duration::from_millis(1)));
    let outcome = times.next.map_or(Outcome::Done, later);
    let spec = &cron.spec;
    let Some(due) = times.due.filter(|_| spec.suspend != Some(true)) else {
        return Ok(outcome);
    };
    let tell = |severity, reason, message: String| {
        context
            .events
            .record(Regarding::object(cron), severity, reason, message);
    };
    if times.missed > MISSED_LIMIT {
        let message = format!(
            "too many missed start times: {}. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            times.missed
        );
        tell(Severity::Warning, "TooManyMissedTimes", message);
    }
    let running: Vec<&Arc<Job>> = own.iter().filter(|job| ended(job).is_none()).collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            tell(Severity::Normal, "JobAlreadyActive", message.to_owned());
            return Ok(outcome);
        }
        Some("Replace") => {
            for job in running {
                delete(context, job).await?;
                tell(
                    Severity::Normal,
                    "SuccessfulDelete",
                    format!("Deleted job {}", meta::name(&job.metadata)),
                );
            }
        }
        _ => {}
    }
    let job = job_of(cron, due);
    let name = job["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let namespace = meta::namespace(&cron.metadata);
    match context.client.create(JOBS, Some(namespace), job).await {
        Ok(_) => tell(
            Severity::Normal,
            "SuccessfulCreate",
            format!("Created job {name}"),
        ),
        // Made by a predecessor that died before it could say so.
        Err(refused) if refused.is_already_exists() => {}
        Err(source) => {
            let message = format!("Error creating job: {}", source.message);
            tell(Severity::Warning, "FailedCreate", message);
            let action = format!("create job {namespace}/{name}");
            return Err(Error::Api { action, source });
        }
    }
    status.last_schedule_time = Some(Time(due));
    Ok(outcome)
}

/// The Job of a time: its name says which, so that there is one only.
fn job_of(cron: &CronJob, due: Timestamp) -> Value {
    let template = cron.spec.job_template.clone();
    let metadata = template.metadata.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(
        "batch.kubernetes.io/cronjob-scheduled-timestamp".to_owned(),
        crate::api::meta::time(due),
    );
    let reference = meta::controller_reference("batch/v1", "CronJob", &cron.metadata);
    patch::without_nulls(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": format!("{}-{}", meta::name(&cron.metadata), due.as_second() / 60),
            "namespace": cron.metadata.namespace,
            "labels": metadata.labels,
            "annotations": annotations,
            "ownerReferences": [reference],
        },
        "spec": template.spec,
    }))
}

/// Deletes finished Jobs beyond what is to be kept.
async fn clear_history(
    context: &Context,
    spec: &CronJobSpec,
    own: &[Arc<Job>],
) -> Result<(), Error> {
    for (wanted, limit, default) in [
        (true, spec.successful_jobs_history_limit, 3),
        (false, spec.failed_jobs_history_limit, 1),
    ] {
        let mut finished: Vec<&Arc<Job>> = own
            .iter()
            .filter(|job| ended(job) == Some(wanted))
            .collect();
        finished.sort_by_key(|job| {
            Reverse(
                job.status
                    .as_ref()
                    .and_then(|status| status.start_time.clone()),
            )
        });
        let kept = usize::try_from(limit.unwrap_or(default)).unwrap_or(0);
        for job in finished.into_iter().skip(kept) {
            delete(context, job).await?;
        }
    }
    Ok(())
}

async fn delete(context: &Context, job: &Job) -> Result<(), Error> {
    let precondition = Precondition {
        uid: job.metadata.uid.clone(),
        resource_version: None,
    };
    let key = key_of(&job.metadata);
    context
        .client
        .delete(JOBS, &key, precondition, None, Some("Background"))
        .await
}
