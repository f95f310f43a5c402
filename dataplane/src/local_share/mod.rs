//! How much of a load-aware service's new flows stays on the node: everything while the local backends can take it,
//! less while they are hot, and everything again when they have cooled.
//!
//! ```text
//!   heat of the busiest local backend     share that leaves
//!   >= 1                                  grows by up to OUT a second, to MOST_AWAY at most
//!   COOL .. 1                             stays as it is
//!   < COOL, for `hold`                    shrinks by BACK a second, unless three quarters of the connections that made
//!                                         it hot are there
//! ```
//!
//! Only new flows move, so that the load follows with a delay, and a share that came back too soon would swing. Therefore
//! the way back is slower than the way out, there is room between hot and cool, and each time that coming back makes
//! the node hot again `hold` doubles, up to [`LONGEST_HOLD`], and the way back is half as fast; a calm time ends that.
//!
//! [`State::step`] is a pure function of state, signals and time: tests and [`simulate`] run it as the agent does.

pub mod simulate;

use std::time::Duration;

use portolan_abi::choice::ALL;

/// The largest part of new flows that leaves: what stays tells how the node is.
pub const MOST_AWAY: f64 = 0.9;
/// By how much the part that leaves grows in a second, for each unit of heat above a half.
const OUT: f64 = 0.25;
/// By how much it shrinks in a second, at first and at least.
const BACK: f64 = 0.05;
const LEAST_BACK: f64 = 0.0125;
/// Below this heat a node is cool.
const COOL: f64 = 0.75;
/// How long a node must have been cool before flows come back, at first.
const HOLD: Duration = Duration::from_secs(3);
/// The longest that it must have been cool.
pub const LONGEST_HOLD: Duration = Duration::from_secs(48);
/// How long after coming back it must stay cool for that to have gone well, and for an old measure to be forgotten.
const CALM: Duration = Duration::from_mins(2);
/// What the newest heat weighs in the average.
const NEWEST: f64 = 0.6;
/// The part of a CPU that a busy backend may use before it is hot.
const HOT_CPU: f64 = 0.9;
/// The part of the time for which a hot backend's tasks wait for a CPU.
const HOT_PRESSURE: f64 = 0.25;

/// How one local backend is, over about a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackendLoad {
    /// The CPU that it used, as a part of what it may use: 1 is all.
    pub cpu: f64,
    /// The part of the time for which its tasks waited for a CPU, or were throttled.
    pub pressure: f64,
    /// Connections that its listeners had no room for.
    pub overflows: u64,
}

impl BackendLoad {
    /// One number for all of it: 1 and more is hot.
    pub fn heat(&self) -> f64 {
        let overflow = if self.overflows > 0 { 2.0 } else { 0.0 };
        (self.cpu / HOT_CPU)
            .max(self.pressure / HOT_PRESSURE)
            .max(overflow)
            .min(2.0)
    }
}

/// What a step is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// [`BackendLoad::heat`] of the busiest local backend.
    pub heat: f64,
    /// Connections to the local backends that are open now.
    pub connections: u64,
}

/// What the controller of one service remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// The part of new flows that leaves.
    away: f64,
    heat: f64,
    cool_since: Option<Duration>,
    hold: Duration,
    came_back: Option<Duration>,
    /// With how many connections the node became hot, and when.
    ceiling: Option<(u64, Duration)>,
    was_hot: bool,
}

impl State {
    /// All new flows stay.
    pub const fn new() -> Self {
        Self {
            away: 0.0,
            heat: 0.0,
            cool_since: None,
            hold: HOLD,
            came_back: None,
            ceiling: None,
            was_hot: false,
        }
    }

    /// Goes on from a share that an earlier process has set.
    pub fn resume(away: u32) -> Self {
        Self {
            away: (f64::from(away) / f64::from(ALL)).min(MOST_AWAY),
            ..Self::new()
        }
    }

    /// Of [`ALL`] new flows, how many are to leave.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of ALL"
    )]
    pub fn away(&self) -> u32 {
        (self.away * f64::from(ALL)) as u32
    }

    /// Whether there is nothing to remember.
    pub fn is_at_rest(&self) -> bool {
        self.away == 0.0 && self.hold == HOLD && self.heat < COOL
    }

    /// The state about a second later, at `now` of a clock that never goes back.
    #[must_use]
    pub fn step(self, signals: Signals, now: Duration) -> Self {
        let mut next = self;
        next.heat += (signals.heat.clamp(0.0, 2.0) - self.heat) * NEWEST;
        if next.heat >= 1.0 {
            next.heat_up(signals, now);
        } else if next.heat >= COOL {
            next.cool_since = None;
        } else {
            next.cool_down(signals, now);
        }
        next.was_hot = next.heat >= 1.0;
        next
    }

    fn heat_up(&mut self, signals: Signals, now: Duration) {
        self.cool_since = None;
        if !self.was_hot {
            self.ceiling = Some((signals.connections, now));
            if self.came_back.take().is_some() {
                self.hold = (self.hold * 2).min(LONGEST_HOLD);
            }
        }
        self.away = (self.away + OUT * (self.heat - 0.5)).min(MOST_AWAY);
    }

    fn cool_down(&mut self, signals: Signals, now: Duration) {
        let since = *self.cool_since.get_or_insert(now);
        let cool_for = now.saturating_sub(since);
        if self
            .ceiling
            .is_some_and(|(_, when)| now.saturating_sub(when) >= CALM)
        {
            self.ceiling = None;
        }
        if self.away > 0.0 {
            let is_full = self
                .ceiling
                .is_some_and(|(most, _)| most > 0 && signals.connections * 4 >= most * 3);
            if cool_for >= self.hold && !is_full {
                let slower = HOLD.as_secs_f64() / self.hold.as_secs_f64();
                self.away = (self.away - (BACK * slower).max(LEAST_BACK)).max(0.0);
                self.came_back = Some(now);
            }
        } else if self
            .came_back
            .is_none_or(|when| now.saturating_sub(when) >= CALM)
        {
            self.hold = HOLD;
            self.came_back = None;
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether two parts are the same, but for rounding.
    fn same(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    /// Steps once a second through heats, and says the part that leaves after each.
    fn run(state: &mut State, from: u64, heats: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let step = |(second, heat)| {
            let signals = Signals {
                heat,
                connections: 0,
            };
            *state = state.step(signals, Duration::from_secs(from + second));
            state.away
        };
        (0..).zip(heats).map(step).collect()
    }

    #[test]
    fn all_stay_as_long_as_the_node_is_not_hot() {
        let mut state = State::new();
        assert!(
            run(&mut state, 0, [0.95; 600])
                .iter()
                .all(|away| same(*away, 0.0))
        );
        assert_eq!(state.away(), 0);
    }

    #[test]
    fn a_hot_node_sheds_most_within_five_seconds_and_never_all() {
        let mut state = State::new();
        let away = run(&mut state, 0, [1.6; 60]);
        assert!(away[4] >= 0.5, "{away:?}");
        assert!(same(away[59], MOST_AWAY));
        assert!(state.away() < ALL);
    }

    #[test]
    fn what_left_comes_back_when_the_node_has_cooled() {
        let mut state = State::new();
        run(&mut state, 0, [2.0; 10]);
        let away = run(&mut state, 10, [0.2; 40]);
        assert!(same(away[39], 0.0), "{away:?}");
        let steps: Vec<f64> = away.windows(2).map(|two| two[0] - two[1]).collect();
        assert!(
            steps.iter().all(|step| *step <= BACK + 1e-9),
            "in small steps"
        );
    }

    #[test]
    fn a_single_spike_moves_little() {
        let mut state = State::new();
        let away = run(&mut state, 0, [0.3, 2.0, 0.3, 0.3]);
        assert!(away.iter().all(|away| *away < 0.25), "{away:?}");
    }

    #[test]
    fn coming_back_waits_longer_after_each_time_that_it_went_wrong() {
        let mut state = State::new();
        let mut waits = Vec::new();
        let mut second = 0;
        for _ in 0..6 {
            run(&mut state, second, [2.0; 5]);
            second += 5;
            let away = run(&mut state, second, [0.1; 60]);
            let first = away.iter().position(|share| *share < away[0] - 1e-9);
            waits.push(first.expect("it comes back"));
            second += 60;
        }
        assert!(waits.is_sorted(), "{waits:?}");
        assert!(waits[5] >= 45, "{waits:?}");
    }

    #[test]
    fn as_many_connections_as_made_it_hot_are_not_brought_back() {
        let signals = |heat, connections| Signals { heat, connections };
        let mut state = State::new();
        let mut now = Duration::ZERO;
        let mut step = |state: &mut State, signals| {
            now += Duration::from_secs(1);
            *state = state.step(signals, now);
        };
        for _ in 0..6 {
            step(&mut state, signals(2.0, 1_000));
        }
        let away = state.away;
        for _ in 0..30 {
            step(&mut state, signals(0.3, 950));
        }
        assert!(
            same(state.away, away),
            "the old connections are still there"
        );
        for _ in 0..10 {
            step(&mut state, signals(0.3, 500));
        }
        assert!(state.away < away);
    }

    proptest! {
        #[test]
        fn every_step_is_bounded(heats in proptest::collection::vec(-1.0..10.0_f64, 1..300), connections in 0..5_000_u64) {
            let mut state = State::new();
            for (second, heat) in (0..).zip(heats) {
                let next = state.step(Signals { heat, connections }, Duration::from_secs(second));
                prop_assert!((0.0..=MOST_AWAY).contains(&next.away));
                prop_assert!(next.away - state.away <= OUT * 1.5 + 1e-9);
                prop_assert!(state.away - next.away <= BACK + 1e-9);
                state = next;
            }
        }
    }
}
