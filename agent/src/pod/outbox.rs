//! Reports on their way out. Workers never wait for whoever reads them: when nobody does, of a pod's status only the
//! newest is kept, and of events only so many.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc};

use super::PodReport;

/// While nobody reads, only the newest status of a pod is kept. Up to here each is told: a death that a restart follows
/// at once must be seen by whoever withdraws backends.
const PATIENCE: usize = 256;
/// Reports beyond these push out the oldest events.
const LONGEST_QUEUE: usize = 4096;

/// Where workers put their reports.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Arc<Mutex<VecDeque<PodReport>>>,
    filled: Arc<Notify>,
}

impl Outbox {
    /// Takes a report. When many wait, a status replaces the pod's status that waits.
    pub fn put(&self, report: PodReport) {
        let mut queue = self.lock();
        if queue.len() >= PATIENCE
            && let PodReport::Status { pod, .. } = &report
        {
            queue.retain(
                |waiting| !matches!(waiting, PodReport::Status { pod: other, .. } if other == pod),
            );
        }
        if queue.len() >= LONGEST_QUEUE
            && let Some(oldest) = queue
                .iter()
                .position(|report| matches!(report, PodReport::Event { .. }))
        {
            queue.remove(oldest);
        }
        queue.push_back(report);
        drop(queue);
        self.filled.notify_one();
    }

    /// Hands reports on until nobody takes them.
    pub async fn pump(self, reports: mpsc::Sender<PodReport>) {
        loop {
            // A place first, so that what waits can still be replaced.
            let Ok(place) = reports.reserve().await else {
                return;
            };
            let report = loop {
                let next = self.lock().pop_front();
                if let Some(report) = next {
                    break report;
                }
                tokio::select! {
                    () = self.filled.notified() => {}
                    () = reports.closed() => return,
                }
            };
            place.send(report);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<PodReport>> {
        // Nothing that holds the lock can leave the queue half-changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
