//! Cron schedules: minute, hour, day of the month, month, day of the week; lists, ranges, steps, names and `@daily` and
//! its kin. A day matches if either kind of day does where both are restricted, as in cron(8).

use jiff::{SignedDuration, Timestamp, civil::Weekday, tz::TimeZone};

/// How far ahead a schedule is looked for: 29 February may be eight years away.
const HORIZON: SignedDuration = SignedDuration::from_hours(24 * 366 * 9);

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether days of the month and of the week are both restricted.
    either_day: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!(
                "expected exactly 5 fields, found {}: [{}]",
                fields.len(),
                fields.join(" ")
            ));
        };
        let weekdays_of = field(weekdays, (0, 7), &WEEKDAYS, 0)?;
        let any = |field: &str| field == "*" || field == "?";
        Ok(Self {
            minutes: field(minutes, (0, 59), &[], 0)?,
            hours: field(hours, (0, 23), &[], 0)?,
            days: field(days, (1, 31), &[], 0)?,
            months: field(months, (1, 12), &MONTHS, 1)?,
            // 7 is Sunday too.
            weekdays: (weekdays_of | weekdays_of >> 7) & 0x7f,
            either_day: !any(days) && !any(weekdays),
        })
    }

    /// The first time after `after`, by the clocks of a time zone; `None`: never.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let last = after.checked_add(HORIZON).ok()?;
        let begin = after.checked_add(SignedDuration::from_mins(1)).ok()?;
        let mut at = begin.to_zoned(zone.clone()).datetime();
        at = at.with().second(0).subsec_nanosecond(0).build().ok()?;
        loop {
            let has = |set: u64, value: i8| set >> u32::try_from(value).unwrap_or(63) & 1 == 1;
            let date = at.date();
            if !has(self.months, date.month()) {
                at = date.last_of_month().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !self.is_day(date.day(), date.weekday()) {
                at = date.tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !has(self.hours, at.hour()) {
                at = at.date().at(at.hour(), 0, 0, 0);
                at = at.checked_add(SignedDuration::from_hours(1)).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(SignedDuration::from_mins(1)).ok()?;
            } else {
                // An hour that the clocks leave out does not come; one that comes twice counts once.
                let found = zone.to_ambiguous_zoned(at);
                let found = (!found.is_ambiguous() || !is_gap(&found)).then(|| found.compatible());
                match found {
                    Some(Ok(zoned)) if zoned.timestamp() > after => return Some(zoned.timestamp()),
                    _ => at = at.checked_add(SignedDuration::from_mins(1)).ok()?,
                }
            }
            if at.to_zoned(zone.clone()).ok()?.timestamp() > last {
                return None;
            }
        }
    }

    fn is_day(&self, day: i8, weekday: Weekday) -> bool {
        let of_month = self.days >> u32::try_from(day).unwrap_or(63) & 1 == 1;
        let number = weekday.to_sunday_zero_offset();
        let of_week = self.weekdays >> u32::try_from(number).unwrap_or(63) & 1 == 1;
        if self.either_day {
            of_month || of_week
        } else {
            of_month && of_week
        }
    }
}

fn is_gap(found: &jiff::tz::AmbiguousZoned) -> bool {
    matches!(found.offset(), jiff::tz::AmbiguousOffset::Gap { .. })
}

/// A field as a set of bits.
fn field(text: &str, (low, high): (u8, u8), names: &[&str], first: u8) -> Result<u64, String> {
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u8>().ok().filter(|step| *step > 0);
                (
                    range,
                    step.ok_or_else(|| format!("failed to parse int from {part}"))?,
                )
            }
            None => (part, 1),
        };
        let number = |word: &str| -> Result<u8, String> {
            let lower = word.to_lowercase();
            let found = names.iter().zip(first..).find(|(name, _)| **name == lower);
            if let Some((_, number)) = found {
                return Ok(number);
            }
            word.parse()
                .map_err(|_| format!("failed to parse int from {word}"))
        };
        let (from, to) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (low, high),
            Some((from, to)) => (number(from)?, number(to)?),
            None if step > 1 => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if from < low {
            return Err(format!(
                "beginning of range ({from}) below minimum ({low}): {part}"
            ));
        }
        if to > high {
            return Err(format!(
                "end of range ({to}) above maximum ({high}): {part}"
            ));
        }
        if from > to {
            return Err(format!(
                "beginning of range ({from}) beyond end of range ({to}): {part}"
            ));
        }
        for value in (from..=to).step_by(usize::from(step)) {
            set |= 1 << value;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).expect("a time zone");
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let after = after.parse().expect("a time");
        schedule
            .next(after, &zone)
            .map_or("never".to_owned(), |at| at.to_string())
    }

    #[test]
    fn schedules_come_when_they_say() {
        for (schedule, after, expected) in [
            (
                "*/15 * * * *",
                "2026-01-01T00:00:30Z",
                "2026-01-01T00:15:00Z",
            ),
            ("0 0 * * *", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            (
                "30 4 1,15 * 5",
                "2026-01-01T04:30:00Z",
                "2026-01-02T04:30:00Z",
            ),
            (
                "0 0 29 feb *",
                "2026-01-01T00:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
            (
                "0 12 * * mon-fri",
                "2026-01-02T12:00:00Z",
                "2026-01-05T12:00:00Z",
            ),
            ("0 12 * * 7", "2026-01-02T12:00:00Z", "2026-01-04T12:00:00Z"),
            ("@hourly", "2026-01-01T00:59:59Z", "2026-01-01T01:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
            (
                "5/20 * * * *",
                "2026-01-01T00:06:00Z",
                "2026-01-01T00:25:00Z",
            ),
        ] {
            assert_eq!(
                next(schedule, after, "UTC"),
                expected,
                "{schedule} after {after}"
            );
        }
    }

    #[test]
    fn time_zones_count_with_their_changes() {
        let berlin = |after| next("30 2 * * *", after, "Europe/Berlin");
        assert_eq!(berlin("2026-01-01T00:00:00Z"), "2026-01-01T01:30:00Z");
        assert_eq!(berlin("2026-07-01T00:00:00Z"), "2026-07-01T00:30:00Z");
        // 02:30 does not exist on 29 March, and comes twice on 25 October.
        assert_eq!(berlin("2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
        assert_eq!(berlin("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(berlin("2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            ("x * * * *", "failed to parse int from x"),
            ("*/0 * * * *", "failed to parse int from */0"),
        ] {
            assert_eq!(Schedule::parse(text), Err(why.to_owned()), "{text}");
        }
    }
}
