//! Errors as people read them, and how long to wait after one.

#![forbid(unsafe_code)]

use std::{error::Error, io, time::Duration};

/// An error with its causes in one line: "add route 10.244.2.0/24: Network is unreachable (os error 101)".
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries print their cause themselves.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Looks for a cause of a type, also inside the I/O errors that wrap one.
pub fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Doubling pauses with jitter, so that the nodes of a cluster don't come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The pause before the next attempt: between half and all of the current length.
    pub fn pause(&mut self) -> Duration {
        let length = self.next;
        self.next = (length * 2).min(self.longest);
        length.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Outer(io::Error::from_raw_os_error(libc::ENETUNREACH));
        assert_eq!(
            chain(&error),
            "outer: Network is unreachable (os error 101)"
        );
    }

    #[test]
    fn causes_are_found_inside_io_errors() {
        let error = Outer(io::Error::other(Inner));
        assert!(find_cause::<Inner>(&error).is_some());
        assert!(find_cause::<std::fmt::Error>(&error).is_none());
    }

    #[test]
    fn pauses_grow_to_their_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause()).collect();
        for (pause, limit) in pauses.iter().zip([1, 2, 4, 4, 4]) {
            let limit = Duration::from_secs(limit);
            assert!(*pause >= limit / 2 && *pause <= limit, "{pauses:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_secs(1));
    }
}
