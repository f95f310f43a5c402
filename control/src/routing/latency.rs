//! How long it takes from a change of an endpoint until the last node has it in its maps.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The upper ends of the histogram's buckets, in milliseconds; what is slower counts in the last, open one.
const BUCKETS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000];
/// Generations whose acks are waited for; a node that is away for longer no longer counts for the oldest.
const PENDING: usize = 1024;

/// Follows acks. A follower that leaves is not waited for.
#[derive(Debug, Default)]
pub struct Programming(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The generation that each follower has acked.
    followers: HashMap<u64, Follower>,
    next_follower: u64,
    /// Generations that not everyone has yet, and when their first change was seen.
    pending: VecDeque<(u64, Instant)>,
    histogram: [u64; BUCKETS.len() + 1],
    total: Duration,
    slowest: Duration,
}

#[derive(Debug)]
struct Follower {
    node: String,
    acked: u64,
}

/// What has been measured so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// How many generations reached every node within so many milliseconds, not counting faster ones. `None`: longer.
    pub buckets: Vec<(Option<u64>, u64)>,
    /// The sum of all, for the mean.
    pub total: Duration,
    /// The longest.
    pub slowest: Duration,
    /// The generation that each connected node has.
    pub nodes: BTreeMap<String, u64>,
}

impl Programming {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation is on its way.
    pub(super) fn published(&self, generation: u64, since: Instant, now: Instant) {
        let mut state = self.state();
        state.pending.push_back((generation, since));
        if state.pending.len() > PENDING {
            state.pending.pop_front();
        }
        state.settle(now);
    }

    /// A node follows from now on; the number names its stream.
    pub fn joined(&self, node: &str) -> u64 {
        let mut state = self.state();
        state.next_follower += 1;
        let id = state.next_follower;
        let node = node.to_owned();
        state.followers.insert(id, Follower { node, acked: 0 });
        id
    }

    /// A node has a generation in its maps.
    pub fn acked(&self, id: u64, generation: u64, now: Instant) {
        let mut state = self.state();
        if let Some(follower) = state.followers.get_mut(&id) {
            follower.acked = follower.acked.max(generation);
        }
        state.settle(now);
    }

    /// A node's stream has ended.
    pub fn left(&self, id: u64, now: Instant) {
        let mut state = self.state();
        state.followers.remove(&id);
        state.settle(now);
    }

    /// What has been measured so far.
    pub fn latency(&self) -> Latency {
        let state = self.state();
        let ends = BUCKETS.iter().copied().map(Some).chain([None]);
        let nodes = state.followers.values();
        Latency {
            buckets: ends.zip(state.histogram).collect(),
            total: state.total,
            slowest: state.slowest,
            nodes: nodes
                .map(|follower| (follower.node.clone(), follower.acked))
                .collect(),
        }
    }
}

impl State {
    /// Takes note of every generation that the slowest follower now has.
    fn settle(&mut self, now: Instant) {
        let Some(everywhere) = self.followers.values().map(|follower| follower.acked).min() else {
            // Nobody to wait for, and nothing to measure.
            self.pending.clear();
            return;
        };
        while let Some((generation, since)) = self.pending.front().copied() {
            if generation > everywhere {
                return;
            }
            self.pending.pop_front();
            self.record(generation, now.saturating_duration_since(since));
        }
    }

    fn record(&mut self, generation: u64, latency: Duration) {
        let slot = BUCKETS
            .iter()
            .position(|end| latency <= Duration::from_millis(*end));
        self.histogram[slot.unwrap_or(BUCKETS.len())] += 1;
        self.total += latency;
        self.slowest = self.slowest.max(latency);
        tracing::info!(
            generation,
            latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            nodes = self.followers.len(),
            "every node has the routing table"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(programming: &Programming) -> u64 {
        let latency = programming.latency();
        latency.buckets.iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn the_last_ack_counts() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let programming = Programming::default();
        let (first, second) = (programming.joined("n1"), programming.joined("n2"));
        programming.published(1, start, after(1));
        programming.acked(first, 1, after(15));
        assert_eq!(counted(&programming), 0);
        programming.acked(second, 1, after(30));
        assert_eq!(programming.latency().slowest, Duration::from_millis(30));
        assert!(programming.latency().buckets.contains(&(Some(50), 1)));
    }

    #[test]
    fn one_who_leaves_is_not_waited_for() {
        let now = Instant::now();
        let programming = Programming::default();
        let (first, second) = (programming.joined("n1"), programming.joined("n2"));
        programming.published(1, now, now);
        programming.published(2, now, now);
        programming.acked(first, 2, now);
        assert_eq!(counted(&programming), 0);
        programming.left(second, now);
        assert_eq!(counted(&programming), 2);
    }
}
