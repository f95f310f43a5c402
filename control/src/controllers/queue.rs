//! The work queue of a controller: a key waits in it once however often it is added, is never worked on twice at the
//! same time, and comes back after a jittered exponential delay when its work failed.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Debug,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::clock;

/// What a key must be able to do.
pub trait Key: Clone + Debug + Eq + Hash + Ord + Send + Sync + 'static {}
impl<K: Clone + Debug + Eq + Hash + Ord + Send + Sync + 'static> Key for K {}

/// How failed keys are delayed: doubled from `first` up to `most`, each time somewhere in the upper half.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            most: Duration::from_mins(1),
        }
    }
}

impl Backoff {
    /// The delay after this many failures in a row (1 is the first).
    pub fn delay(&self, failures: u32, random: &mut fastrand::Rng) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self
            .first
            .saturating_mul(1 << doublings)
            .min(self.most)
            .max(Duration::from_millis(1));
        whole.mul_f64(0.5 + random.f64() / 2.0)
    }
}

struct State<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    again: HashSet<K>,
    due: BTreeSet<(Timestamp, K)>,
    due_of: HashMap<K, Timestamp>,
    failures: HashMap<K, u32>,
    random: fastrand::Rng,
}

/// See the file's front page.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
}

impl<K: Key> Queue<K> {
    /// An empty queue; `seed` decides the jitter.
    pub fn new(backoff: Backoff, seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                working: HashSet::new(),
                again: HashSet::new(),
                due: BTreeSet::new(),
                due_of: HashMap::new(),
                failures: HashMap::new(),
                random: fastrand::Rng::with_seed(seed),
            }),
            changed: Notify::new(),
            backoff,
        }
    }

    /// Asks for work on a key.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if state.working.contains(&key) {
            state.again.insert(key);
            return;
        }
        if state.waiting.insert(key.clone()) {
            state.ready.push_back(key);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Asks for work on a key at a time; the earliest asked for counts.
    pub fn add_at(&self, key: K, when: Timestamp) {
        let mut state = self.lock();
        if let Some(earlier) = state.due_of.get(&key).copied() {
            if earlier <= when {
                return;
            }
            state.due.remove(&(earlier, key.clone()));
        }
        state.due_of.insert(key.clone(), when);
        state.due.insert((when, key));
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next key to work on; [`Queue::done`] must follow.
    pub fn take(&self, now: Timestamp) -> Option<K> {
        let mut state = self.lock();
        state.ripen(now);
        let key = state.ready.pop_front()?;
        state.waiting.remove(&key);
        state.working.insert(key.clone());
        Some(key)
    }

    /// Ends the work on a key that went well.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        state.failures.remove(key);
        state.finish(key);
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the work on a key that failed; it comes back after the delay returned, with the failures counted.
    pub fn failed(&self, key: &K, now: Timestamp) -> (Duration, u32) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        let failures = *failures;
        let delay = self.backoff.delay(failures, &mut state.random);
        state.finish(key);
        drop(state);
        self.add_at(key.clone(), clock::after(now, delay));
        (delay, failures)
    }

    /// When the next delayed key is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.lock().due.first().map(|(when, _)| *when)
    }

    /// Completes when the queue changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Keys that wait or are worked on, delayed ones apart.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.working.len()
    }

    /// Whether nothing waits and nothing is worked on.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Every critical section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Key> State<K> {
    /// Moves what is due to the ready keys.
    fn ripen(&mut self, now: Timestamp) {
        while self.due.first().is_some_and(|(when, _)| *when <= now) {
            let Some((_, key)) = self.due.pop_first() else {
                return;
            };
            self.due_of.remove(&key);
            if self.working.contains(&key) {
                self.again.insert(key);
            } else if self.waiting.insert(key.clone()) {
                self.ready.push_back(key);
            }
        }
    }

    fn finish(&mut self, key: &K) {
        self.working.remove(key);
        if self.again.remove(key) && self.waiting.insert(key.clone()) {
            self.ready.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<&'static str> {
        Queue::new(Backoff::default(), 1)
    }

    #[test]
    fn a_key_waits_once_and_is_worked_on_by_one() {
        let queue = queue();
        let now = Timestamp::UNIX_EPOCH;
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.take(now), Some("a"));
        queue.add("a");
        assert_eq!(queue.take(now), Some("b"));
        assert_eq!(queue.take(now), None, "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.take(now), Some("a"), "it changed while worked on");
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_empty());
    }

    #[test]
    fn a_failed_key_comes_back_later_and_later_until_it_succeeds() {
        let queue = queue();
        let mut now = Timestamp::UNIX_EPOCH;
        queue.add("a");
        for failure in 1..=8_u32 {
            assert_eq!(queue.take(now), Some("a"));
            let (delay, failures) = queue.failed(&"a", now);
            assert_eq!(failures, failure);
            let whole = Duration::from_millis(20) * (1 << (failure - 1));
            assert!(
                delay >= whole / 2 && delay <= whole,
                "{delay:?} of {whole:?}"
            );
            assert_eq!(queue.take(now), None);
            now = clock::after(now, delay);
        }
        assert_eq!(queue.take(now), Some("a"));
        queue.done(&"a");
        queue.add("a");
        assert_eq!(queue.take(now), Some("a"));
        assert_eq!(
            queue.failed(&"a", now).1,
            1,
            "success starts the count again"
        );
    }

    #[test]
    fn of_two_times_asked_for_the_earlier_counts() {
        let queue = queue();
        let later = clock::after(Timestamp::UNIX_EPOCH, Duration::from_secs(9));
        let sooner = clock::after(Timestamp::UNIX_EPOCH, Duration::from_secs(3));
        queue.add_at("a", later);
        queue.add_at("a", sooner);
        assert_eq!(queue.next_due(), Some(sooner));
        assert_eq!(queue.take(sooner), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.next_due(), None);
    }
}
