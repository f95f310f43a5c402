//! When each lease ends.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Error, LeaseId};

/// How long to wait before an expired lease is tried again that could not be ended.
const RETRY: Duration = Duration::from_secs(1);

/// The leases' deadlines. They are only in memory: after a restart every lease has its whole time again, so that its
/// keeper has a chance to come back, as etcd gives it after a change of leader.
#[derive(Default)]
pub(super) struct Leases {
    by_id: HashMap<LeaseId, (Duration, Instant)>,
    by_time: BTreeSet<(Instant, LeaseId)>,
}

impl Leases {
    pub fn start(&mut self, lease: LeaseId, ttl: Duration) {
        self.schedule(lease, ttl, Instant::now() + ttl);
    }

    pub fn end(&mut self, lease: LeaseId) {
        if let Some((_, deadline)) = self.by_id.remove(&lease) {
            self.by_time.remove(&(deadline, lease));
        }
    }

    pub fn keep_alive(&mut self, lease: LeaseId) -> Result<(), Error> {
        let (ttl, _) = *self.by_id.get(&lease).ok_or(Error::NoSuchLease(lease))?;
        self.start(lease, ttl);
        Ok(())
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_time.first().map(|(deadline, _)| *deadline)
    }

    pub fn expired(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let due = self
            .by_time
            .iter()
            .take_while(|(deadline, _)| *deadline <= now);
        due.map(|(_, lease)| *lease).collect()
    }

    pub fn postpone(&mut self, lease: LeaseId) {
        if let Some((ttl, _)) = self.by_id.get(&lease).copied() {
            self.schedule(lease, ttl, Instant::now() + RETRY);
        }
    }

    fn schedule(&mut self, lease: LeaseId, ttl: Duration, deadline: Instant) {
        self.end(lease);
        self.by_id.insert(lease, (ttl, deadline));
        self.by_time.insert((deadline, lease));
    }
}
