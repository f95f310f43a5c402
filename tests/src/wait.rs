//! Waiting for conditions, never for time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Waits until `look` finds something; what it says when it finds nothing ends up in the error.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let seen = match look()? {
            Ok(found) => return Ok(found),
            Err(seen) => seen,
        };
        if Instant::now() >= deadline {
            bail!(
                "waited {:.1} s for {what}; last seen: {seen}",
                patience.as_secs_f64()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sight_is_told() {
        let error = wait_for("rain", Duration::ZERO, || {
            Ok(Err::<(), _>("sunshine".to_owned()))
        })
        .expect_err("it never rains");
        assert_eq!(
            error.to_string(),
            "waited 0.0 s for rain; last seen: sunshine"
        );
    }
}
