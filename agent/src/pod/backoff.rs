//! How long to wait before the next try, as Kubernetes counts it: nothing before the first, then 10 s, doubled to 5 min.
#![forbid(unsafe_code)]

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// Good conduct for this long is forgiven all.
const FORGET: SignedDuration = SignedDuration::from_secs(600);

/// The waits of one thing that keeps failing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

/// A wait that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The whole of it.
    pub delay: SignedDuration,
    /// When it is over.
    pub until: Timestamp,
}

impl Backoff {
    /// Whether a try at `now` is too early after the failure at `failed`.
    pub fn wait(&self, failed: Timestamp, now: Timestamp) -> Option<Wait> {
        let entry = self.entry.filter(|entry| !entry.is_forgotten(failed))?;
        let until = failed.saturating_add(entry.delay).unwrap_or(Timestamp::MAX);
        (now < until).then_some(Wait {
            delay: entry.delay,
            until,
        })
    }

    /// Another try is made, after the failure at `failed`: the next wait is longer.
    pub fn advance(&mut self, failed: Timestamp, now: Timestamp) {
        let delay = match self.entry {
            Some(entry) if !entry.is_forgotten(failed) => (entry.delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entry = Some(Entry {
            delay,
            updated: now,
        });
    }
}

impl Entry {
    fn is_forgotten(&self, failed: Timestamp) -> bool {
        failed.duration_since(self.updated) > FORGET
    }
}

/// As Go prints durations: "10s", "1m20s", "5m0s".
pub fn in_go(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a time in range")
    }

    #[test]
    fn first_restart_is_immediate_and_waits_double_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let delay = backoff
                .wait(at(now), at(now))
                .map_or(0, |wait| wait.delay.as_secs());
            waits.push(delay);
            let failed = now;
            now += delay;
            backoff.advance(at(failed), at(now));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_quiet_minutes_are_forgiven_all() {
        let mut backoff = Backoff::default();
        backoff.advance(at(0), at(0));
        assert!(backoff.wait(at(600), at(600)).is_some());
        assert!(backoff.wait(at(601), at(601)).is_none());
    }

    #[test]
    fn durations_print_as_in_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3605, "1h0m5s")] {
            assert_eq!(in_go(SignedDuration::from_secs(seconds)), text);
        }
    }
}
