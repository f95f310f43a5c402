//! Time as an argument: controllers and scheduler read the clock that they are given, so tests can turn its hands.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// Completes when this much time has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// How long from `earlier` to `later`; zero when the order is the other way round.
pub fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

/// `time` moved forward; the end of time when it would lie beyond.
pub fn after(time: Timestamp, duration: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// A time as the API keeps it: without its fraction of a second.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A clock whose hands the test turns.
#[cfg(test)]
pub struct ManualClock {
    now: tokio::sync::watch::Sender<Timestamp>,
}

#[cfg(test)]
impl ManualClock {
    /// Stands at this time.
    pub fn at(now: Timestamp) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            now: tokio::sync::watch::Sender::new(now),
        })
    }

    /// Moves on, waking whoever slept until then.
    pub fn advance(&self, duration: Duration) {
        self.now.send_modify(|now| *now = after(*now, duration));
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let deadline = after(self.now(), duration);
        let mut now = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as the clock; without it time stands still for good.
            if now.wait_for(|now| *now >= deadline).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
