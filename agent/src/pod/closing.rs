//! How a worker brings its pod to an end: by its deadline, with its work, or with its object.
#![forbid(unsafe_code)]

use std::io;

use jiff::{SignedDuration, Timestamp};

use super::{
    EventSeverity, PodReport,
    record::Failure,
    sandbox, status,
    worker::{Next, RETRY, Worker},
};

impl Worker {
    /// Ends a pod that has been active for longer than it may. When that will be.
    pub(super) fn pass_deadline(&mut self, now: Timestamp) -> Option<Timestamp> {
        let spec = self.pod.spec.as_ref()?;
        let limit = SignedDuration::from_secs(spec.active_deadline_seconds?);
        let due = self.record.since.checked_add(limit).ok()?;
        if now < due {
            return Some(due);
        }
        if !status::is_over(&self.pod, &self.record) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.fail("DeadlineExceeded", message.to_owned());
        }
        None
    }

    /// The pod is failed, whatever its containers do.
    pub(super) fn fail(&mut self, reason: &'static str, message: String) {
        let severity = if reason == "Evicted" {
            EventSeverity::Warning
        } else {
            EventSeverity::Normal
        };
        self.node.event(&self.me, severity, reason, message.clone());
        for own in self.record.containers.values_mut() {
            own.waiting = None;
        }
        self.record.failed = Some(Failure {
            reason: reason.to_owned(),
            message,
        });
    }

    /// Ends what still runs of a pod whose work is over, sidecars for example, and then releases what it held. When to
    /// look again.
    pub(super) async fn finish(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.stop_all(now, self.grace());
        let next = self.end_further(now);
        if !self.live.is_empty() {
            return next;
        }
        match self.release().await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(pod = self.me.name, %error, "cannot release what an ended pod held");
                now.checked_add(RETRY).ok()
            }
        }
    }

    /// An ended pod keeps its record and status, and nothing else.
    async fn release(&mut self) -> io::Result<()> {
        if !self.record.sandbox {
            return Ok(());
        }
        self.node
            .network
            .detach(&self.me.uid)
            .await
            .map_err(io::Error::other)?;
        let dir = self.dir.clone();
        super::node::blocking(move || sandbox::release(&dir)).await?;
        self.record.sandbox = false;
        Ok(())
    }

    /// Ends all containers within the grace period, then everything else.
    pub(super) async fn end_pod(&mut self) -> Next {
        let now = Timestamp::now();
        let since = *self.record.ending_since.get_or_insert(now);
        let grace = self.pod.metadata.deletion_grace_period_seconds;
        let grace = grace.unwrap_or_else(|| self.grace());
        let grace = if self.removed { 0 } else { grace.max(0) };
        self.stop_all(since, grace);
        let next = self.end_further(now);
        if !self.live.is_empty() {
            return Next::Sleep(next);
        }
        while self.clearing.join_next().await.is_some() {}
        if let Err(error) = self.remove_all().await {
            self.node.event(
                &self.me,
                EventSeverity::Warning,
                "FailedKillPod",
                format!("error killing pod: {error}"),
            );
            return Next::Sleep(now.checked_add(RETRY).ok());
        }
        self.record.sandbox = false;
        if self.pod.metadata.deletion_timestamp.is_some() && !self.removed {
            self.publish();
            self.node.outbox.put(PodReport::Terminated {
                pod: self.me.clone(),
            });
        }
        Next::Leave
    }

    async fn remove_all(&self) -> io::Result<()> {
        self.node
            .network
            .detach(&self.me.uid)
            .await
            .map_err(io::Error::other)?;
        let (dir, cgroup, logs) = (
            self.dir.clone(),
            self.node.pod_cgroup(&self.me.uid),
            self.logs_dir(),
        );
        super::node::blocking(move || {
            crate::runtime::cgroup::remove(&cgroup)?;
            crate::runtime::bundle::remove_tree(&logs)?;
            sandbox::remove(&dir)
        })
        .await
    }
}
