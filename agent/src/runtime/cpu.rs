//! How busy a control group is: its CPU time, its limit, throttling and pressure, in both versions of control groups.
#![forbid(unsafe_code)]

use std::{fs, io, path::Path, time::Duration};

use super::cgroup::{folders, is_gone, keyed};

/// What the kernel counts of a group, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuCount {
    /// CPU time.
    pub used: Duration,
    /// How many CPUs it may use at most; `None`: as many as there are.
    pub limit: Option<f64>,
    /// Periods in which it wanted to run, where it has a limit.
    pub periods: u64,
    /// Those of them in which it had used up its limit.
    pub throttled: u64,
    /// Time in which some of its tasks waited for a CPU; only version 2 counts that.
    pub stalled: Duration,
}

/// How busy a group was between two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// The CPU time that it used, as a part of what it may use.
    pub used: f64,
    /// The part of the time for which it was throttled or its tasks waited.
    pub pressure: f64,
}

/// Waiting counts only for groups that use more of a CPU than this: an idle one that waits a little waits for nothing.
const WORTH_WAITING: f64 = 0.2;

impl CpuCount {
    /// Reads a group, if it is there.
    pub fn read(group: &Path) -> io::Result<Option<Self>> {
        let mut count = Self::default();
        let mut found = false;
        for folder in folders(group)? {
            let file = |name: &str| match fs::read_to_string(folder.join(name)) {
                Ok(text) => Ok(Some(text)),
                Err(error) if is_gone(&error) => Ok(None),
                // Pressure may be switched off.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
                Err(error) => Err(error),
            };
            let stat = file("cpu.stat")?;
            let usage = file("cpuacct.usage")?;
            found |= stat.is_some() || usage.is_some();
            count.take_stat(stat.as_deref().unwrap_or_default());
            if let Some(nanoseconds) = usage.and_then(|text| text.trim().parse().ok()) {
                count.used = Duration::from_nanos(nanoseconds);
            }
            if let Some(text) = file("cpu.max")? {
                count.limit = limit(&text);
            } else if let (Some(quota), Some(period)) =
                (file("cpu.cfs_quota_us")?, file("cpu.cfs_period_us")?)
            {
                count.limit = limit(&format!("{} {}", quota.trim(), period.trim()));
            }
            if let Some(total) = file("cpu.pressure")?.as_deref().and_then(some_total) {
                count.stalled = Duration::from_micros(total);
            }
        }
        Ok(found.then_some(count))
    }

    fn take_stat(&mut self, text: &str) {
        if let Some(microseconds) = keyed(text, "usage_usec") {
            self.used = Duration::from_micros(microseconds);
        }
        self.periods = keyed(text, "nr_periods").unwrap_or(self.periods);
        self.throttled = keyed(text, "nr_throttled").unwrap_or(self.throttled);
    }

    /// How busy the group was since an earlier count, on a node with so many CPUs.
    pub fn since(&self, earlier: &Self, elapsed: Duration, cpus: f64) -> CpuUse {
        let elapsed = elapsed.as_secs_f64().max(0.001);
        let used = self.used.saturating_sub(earlier.used).as_secs_f64() / elapsed;
        let stalled = self.stalled.saturating_sub(earlier.stalled).as_secs_f64() / elapsed;
        let periods = self.periods.saturating_sub(earlier.periods);
        let throttled = self.throttled.saturating_sub(earlier.throttled);
        let throttled = ratio(throttled, periods);
        let limit = self.limit.unwrap_or(cpus).min(cpus).max(0.001);
        let stalled = if used >= WORTH_WAITING { stalled } else { 0.0 };
        CpuUse {
            used: used / limit,
            pressure: throttled.max(stalled).min(1.0),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful of periods")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// "QUOTA PERIOD" in microseconds as CPUs; "max" and -1 are no limit.
fn limit(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let quota: f64 = quota.parse().ok().filter(|quota| *quota > 0.0)?;
    let period: f64 = period.parse().ok().filter(|period| *period > 0.0)?;
    Some(quota / period)
}

/// The microseconds of the line "some" of a pressure file.
fn some_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.rsplit_once("total=")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn limits_are_read_in_both_versions() {
        assert_eq!(limit("50000 100000\n"), Some(0.5));
        assert_eq!(limit("max 100000\n"), None);
        assert_eq!(limit("-1 100000"), None);
    }

    #[test]
    fn pressure_is_read() {
        let text =
            "some avg10=1.00 avg60=0.50 avg300=0.10 total=1234567\nfull avg10=0.00 total=5\n";
        assert_eq!(some_total(text), Some(1_234_567));
    }

    #[test]
    fn a_group_at_its_limit_is_fully_used_and_throttled() {
        let second = Duration::from_secs(1);
        let before = CpuCount {
            limit: Some(0.5),
            ..CpuCount::default()
        };
        let after = CpuCount {
            used: Duration::from_millis(500),
            periods: 10,
            throttled: 8,
            ..before
        };
        let busy = after.since(&before, second, 4.0);
        assert!(same(busy.used, 1.0) && same(busy.pressure, 0.8), "{busy:?}");
        let unlimited = CpuCount {
            limit: None,
            ..after
        };
        assert!(same(unlimited.since(&before, second, 4.0).used, 0.125));
    }

    #[test]
    fn an_idle_group_that_waits_is_under_no_pressure() {
        let second = Duration::from_secs(1);
        let waiting = |used| CpuCount {
            used: Duration::from_millis(used),
            stalled: Duration::from_millis(400),
            ..CpuCount::default()
        };
        let none = CpuCount::default();
        assert!(same(waiting(10).since(&none, second, 2.0).pressure, 0.0));
        assert!(same(waiting(600).since(&none, second, 2.0).pressure, 0.4));
    }
}
