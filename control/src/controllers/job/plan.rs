//! What a Job needs done, from what the cache shows; no IO.
//!
//! A finished pod is counted exactly once, whatever dies in between: its uid goes into status.uncountedTerminatedPods,
//! then its finalizer goes, then the uid becomes a count. Source: KEP-2307.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::indexes::{Indexes, index_of};
use crate::controllers::{clock, meta, pods};

/// What keeps a pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The shortest and the longest time between a failure and the next try.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(6);
/// The most pods made or deleted in one round.
const BURST: usize = 500;

/// What there is to do for a Job.
#[derive(Debug, Default)]
pub struct Plan {
    /// The status to write.
    pub status: JobStatus,
    /// Pods that the status to write counts: their finalizer goes after it is written.
    pub counted: Vec<Arc<Pod>>,
    /// Pods to make: one an entry, with its completion index if the Job is indexed.
    pub create: Vec<Option<u32>>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// When something is due though nothing changes.
    pub look_again: Option<Duration>,
    /// What to tell: reason and message of a new condition.
    pub news: Option<(&'static str, String)>,
}

/// A finished pod's outcome; a pod that is taken away unfinished has failed.
fn outcome(pod: &Pod) -> Option<bool> {
    match pods::phase(pod) {
        "Succeeded" => Some(true),
        "Failed" => Some(false),
        _ if meta::is_terminating(&pod.metadata) => Some(false),
        _ => None,
    }
}

fn is_held(pod: &Pod) -> bool {
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|name| name == FINALIZER)
}

fn number(value: Option<i32>) -> usize {
    usize::try_from(value.unwrap_or(0)).unwrap_or(0)
}

fn as_i32(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Whether a Job has a condition.
pub fn has(status: &JobStatus, kind: &str) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Whether a Job has ended.
pub fn is_finished(status: &JobStatus) -> bool {
    has(status, "Complete") || has(status, "Failed")
}

fn set(status: &mut JobStatus, kind: &str, holds: bool, words: (&str, &str), now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let condition = JobCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(words.0.to_owned()),
        message: Some(words.1.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match conditions.iter_mut().find(|one| one.type_ == kind) {
        Some(old) if old.status == condition.status => {}
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// Plans a round. `own` are all the pods that the Job controls.
pub fn plan(job: &Job, own: &[Arc<Pod>], now: Timestamp) -> Plan {
    let default = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&default);
    let mut plan = Plan {
        status: job.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    count(spec, own, &mut plan);
    let active: Vec<Arc<Pod>> = own
        .iter()
        .filter(|pod| outcome(pod).is_none())
        .cloned()
        .collect();
    if is_finished(&plan.status) {
        plan.delete.clone_from(&active);
    } else {
        let round = Round {
            spec,
            own,
            active: &active,
            now,
        };
        round.go_on(&mut plan);
    }
    plan.delete.truncate(BURST);
    let left = active.len() - plan.delete.len();
    let kept = |pod: &&Arc<Pod>| !plan.delete.iter().any(|gone| Arc::ptr_eq(gone, pod));
    let ready = active.iter().filter(kept).filter(|pod| pods::is_ready(pod));
    plan.status.ready = Some(as_i32(ready.count()));
    plan.status.active = Some(as_i32(left + plan.create.len())).filter(|active| *active > 0);
    let terminating = own
        .iter()
        .filter(|pod| meta::is_terminating(&pod.metadata) && !pods::is_finished(pod));
    plan.status.terminating = Some(as_i32(terminating.count()));
    plan
}

/// Moves finished pods through the two steps of counting.
fn count(spec: &JobSpec, own: &[Arc<Pod>], plan: &mut Plan) {
    let status = &mut plan.status;
    let uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut lists = [
        uncounted.failed.unwrap_or_default(),
        uncounted.succeeded.unwrap_or_default(),
    ];
    let mut done = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""));
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    // What no pod holds any longer has been seen to the end.
    let held: BTreeSet<&str> = own
        .iter()
        .filter(|pod| is_held(pod))
        .map(|pod| meta::uid(&pod.metadata))
        .collect();
    for (succeeded, list) in lists.iter_mut().enumerate() {
        let before = list.len();
        list.retain(|uid| held.contains(uid.as_str()));
        let gone = before - list.len();
        match succeeded {
            0 => status.failed = Some(as_i32(number(status.failed) + gone)),
            _ if !is_indexed => {
                status.succeeded = Some(as_i32(number(status.succeeded) + gone));
            }
            _ => {}
        }
    }
    for pod in own.iter().filter(|pod| is_held(pod)) {
        let Some(succeeded) = outcome(pod) else {
            continue;
        };
        if let (true, Some(index)) = (succeeded && is_indexed, index_of(pod)) {
            done.insert(index);
        }
        let list = &mut lists[usize::from(succeeded)];
        let uid = meta::uid(&pod.metadata);
        if !list.iter().any(|listed| listed == uid) {
            list.push(uid.to_owned());
        }
        plan.counted.push(Arc::clone(pod));
    }
    if is_indexed {
        status.succeeded = Some(as_i32(done.len()));
        status.completed_indexes = Some(done.text()).filter(|text| !text.is_empty());
    }
    for counter in [&mut status.failed, &mut status.succeeded] {
        *counter = counter.filter(|count| *count > 0);
    }
    let [failed, succeeded] = lists.map(|list| Some(list).filter(|list| !list.is_empty()));
    status.uncounted_terminated_pods = (failed.is_some() || succeeded.is_some())
        .then_some(UncountedTerminatedPods { failed, succeeded });
}

/// What a Job that has not ended is decided by.
struct Round<'a> {
    spec: &'a JobSpec,
    own: &'a [Arc<Pod>],
    active: &'a [Arc<Pod>],
    now: Timestamp,
}

impl Round<'_> {
    fn go_on(&self, plan: &mut Plan) {
        let spec = self.spec;
        if spec.suspend == Some(true) {
            plan.delete = self.active.to_vec();
            plan.status.start_time = None;
            if !has(&plan.status, "Suspended") {
                let words = ("JobSuspended", "Job suspended");
                set(&mut plan.status, "Suspended", true, words, self.now);
                plan.news = Some(("Suspended", words.1.to_owned()));
            }
            return;
        }
        if has(&plan.status, "Suspended") {
            let words = ("JobResumed", "Job resumed");
            set(&mut plan.status, "Suspended", false, words, self.now);
            plan.news = Some(("Resumed", words.1.to_owned()));
        }
        let started = plan.status.start_time.get_or_insert(Time(self.now)).0;
        let (failed, succeeded) = self.counts(&plan.status);
        if let Some((reason, message)) = self.failure(failed, started) {
            plan.delete = self.active.to_vec();
            return self.fail(plan, reason, message);
        }
        let waits = self.spec.active_deadline_seconds.map(|seconds| {
            let end = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            end.saturating_sub(clock::elapsed(started, self.now))
        });
        plan.look_again = waits;
        let complete = match spec.completions {
            Some(wanted) => succeeded >= number(Some(wanted)),
            None => succeeded > 0 && self.active.is_empty(),
        };
        if complete {
            plan.delete = self.active.to_vec();
            return self.complete(plan);
        }
        self.scale(plan, succeeded);
    }

    /// Failures and successes, those that are still to be counted included.
    fn counts(&self, status: &JobStatus) -> (usize, usize) {
        let uncounted = status.uncounted_terminated_pods.as_ref();
        let length = |list: Option<&Vec<String>>| list.map_or(0, Vec::len);
        let failed = length(uncounted.and_then(|lists| lists.failed.as_ref()));
        let succeeded = match self.spec.completion_mode.as_deref() {
            Some("Indexed") => 0,
            _ => length(uncounted.and_then(|lists| lists.succeeded.as_ref())),
        };
        (
            number(status.failed) + failed,
            number(status.succeeded) + succeeded,
        )
    }

    fn failure(&self, failed: usize, started: Timestamp) -> Option<(&'static str, &'static str)> {
        let limit = usize::try_from(self.spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
        let restarts = self.own.iter().map(|pod| number(Some(pods::restarts(pod))));
        let template = self.spec.template.spec.as_ref();
        let in_place =
            template.is_some_and(|spec| spec.restart_policy.as_deref() == Some("OnFailure"));
        let restarts: usize = if in_place { restarts.sum() } else { 0 };
        let deadline = self.spec.active_deadline_seconds;
        let late = deadline
            .and_then(|seconds| u64::try_from(seconds).ok())
            .is_some_and(|seconds| {
                clock::elapsed(started, self.now) >= Duration::from_secs(seconds)
            });
        if failed > limit || (in_place && restarts > 0 && restarts >= limit) {
            return Some((
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ));
        }
        late.then_some((
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ))
    }

    fn fail(&self, plan: &mut Plan, reason: &'static str, message: &str) {
        plan.look_again = None;
        set(
            &mut plan.status,
            "FailureTarget",
            true,
            (reason, message),
            self.now,
        );
        // The end is told when all pods have ended.
        if self.active.is_empty() {
            set(
                &mut plan.status,
                "Failed",
                true,
                (reason, message),
                self.now,
            );
            plan.news = Some((reason, message.to_owned()));
        }
    }

    fn complete(&self, plan: &mut Plan) {
        plan.look_again = None;
        let words = (
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        );
        set(
            &mut plan.status,
            "SuccessCriteriaMet",
            true,
            words,
            self.now,
        );
        if self.active.is_empty() {
            set(&mut plan.status, "Complete", true, words, self.now);
            plan.status.completion_time = Some(Time(self.now));
            plan.news = Some(("Completed", "Job completed".to_owned()));
        }
    }

    /// Pods to make or to give up.
    fn scale(&self, plan: &mut Plan, succeeded: usize) {
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let wanted = match self.spec.completions {
            Some(completions) => number(Some(completions))
                .saturating_sub(succeeded)
                .min(parallelism),
            // A queue of work: once one has found it empty, no more are made.
            None if succeeded > 0 => self.active.len().min(parallelism),
            None => parallelism,
        };
        let active = self.active.len();
        if active > wanted {
            let mut youngest = self.active.to_vec();
            youngest.sort_by_key(|pod| {
                (
                    pods::is_ready(pod),
                    std::cmp::Reverse(pod.metadata.creation_timestamp.clone()),
                )
            });
            youngest.truncate(active - wanted);
            plan.delete = youngest;
            return;
        }
        let pause = self.pause();
        if !pause.is_zero() {
            let sooner = plan.look_again.map_or(pause, |other| other.min(pause));
            plan.look_again = Some(sooner);
            return;
        }
        let missing = (wanted - active).min(BURST);
        plan.create = match self.spec.completion_mode.as_deref() {
            Some("Indexed") => {
                let mut taken =
                    Indexes::parse(plan.status.completed_indexes.as_deref().unwrap_or(""));
                for index in self.active.iter().filter_map(|pod| index_of(pod)) {
                    taken.insert(index);
                }
                let all = 0..u32::try_from(number(self.spec.completions)).unwrap_or(u32::MAX);
                let free = all.filter(|index| !taken.contains(*index));
                free.take(missing).map(Some).collect()
            }
            _ => vec![None; missing],
        };
    }

    /// How long to wait after the failures since the last success.
    fn pause(&self) -> Duration {
        let ended = |wanted: bool| {
            let finished = self
                .own
                .iter()
                .filter(move |pod| outcome(pod) == Some(wanted));
            finished.filter_map(|pod| ended_at(pod))
        };
        let success = ended(true).max();
        let failures: Vec<Timestamp> = ended(false).filter(|at| Some(*at) > success).collect();
        let Some(last) = failures.iter().max() else {
            return Duration::ZERO;
        };
        let doublings = u32::try_from(failures.len() - 1)
            .unwrap_or(u32::MAX)
            .min(10);
        let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        pause.saturating_sub(clock::elapsed(*last, self.now))
    }
}

/// When the last of a pod's containers ended, or when it was told to go.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref();
    let ends = statuses.unwrap_or_default().iter().filter_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        Some(ended.finished_at.as_ref()?.0)
    });
    let told = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ends.max().or(told)
}
