//! Cron schedules: five fields, or a word such as `@daily`, in a time zone.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned, civil, tz::TimeZone};
use yare_schema::gotime::parse_duration;

/// A schedule that can never be met ends the search after this many years.
const SEARCH_YEARS: i16 = 5;

/// When something is to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// At the times that match.
    Times(Box<Times>),
    /// Again and again after a fixed time.
    Every(Duration),
}

/// The five fields as sets of bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// `*` in a day field means that only the other one counts; otherwise either may match.
    any_day: bool,
    any_weekday: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(word) = text.strip_prefix('@') {
            let fields = match word {
                "yearly" | "annually" => "0 0 1 1 *",
                "monthly" => "0 0 1 * *",
                "weekly" => "0 0 * * 0",
                "daily" | "midnight" => "0 0 * * *",
                "hourly" => "0 * * * *",
                _ => {
                    let every = word
                        .strip_prefix("every ")
                        .ok_or_else(|| format!("unrecognized descriptor: @{word}"))?;
                    let nanos = parse_duration(every)
                        .map_err(|e| format!("failed to parse duration @{word}: {e}"))?;
                    // Whole seconds, at least one.
                    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(0).max(1);
                    return Ok(Self::Every(Duration::from_secs(seconds)));
                }
            };
            return Self::parse(fields);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
        };
        let starred = |f: &str| f.split(',').any(|p| p.starts_with('*') || p.starts_with('?'));
        Ok(Self::Times(Box::new(Times {
            minute: bits(minute, 0, 59, &[])?,
            hour: bits(hour, 0, 23, &[])?,
            day: bits(day, 1, 31, &[])?,
            month: bits(month, 1, 12, &MONTHS)?,
            weekday: bits(weekday, 0, 6, &WEEKDAYS)?,
            any_day: starred(day),
            any_weekday: starred(weekday),
        })))
    }

    /// The first time after `after`; `None` if there is none in the next years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(every) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*every).ok(),
            Self::Times(times) => times.next(after.to_zoned(zone.clone())),
        }
    }

    /// The newest time in `(earliest, now]`, and whether many were missed before it.
    pub fn newest(&self, earliest: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<(Timestamp, bool)> {
        let first = self.next(earliest, zone)?;
        if now < first {
            return None;
        }
        let Some(second) = self.next(first, zone).filter(|s| *s <= now) else { return Some((first, false)) };
        // Long after: skip what regular times would have been, then look closely.
        let step = (second.as_second() - first.as_second()).max(1);
        let missed = (now.as_second() - first.as_second()) / step + 1;
        let skip = i64::max(missed - 2, 0) * step;
        let mut newest = first;
        let mut at = Timestamp::from_second(first.as_second() + skip).ok()?;
        while let Some(next) = self.next(at, zone).filter(|t| *t <= now) {
            newest = next;
            at = next;
        }
        Some((newest, missed > 100))
    }
}

impl Times {
    fn matches_day(&self, date: civil::Date) -> bool {
        let day = self.day >> date.day() & 1 == 1;
        let weekday = self.weekday >> date.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }

    fn next(&self, after: Zoned) -> Option<Timestamp> {
        let start = after.timestamp();
        let mut date = after.date();
        let last = date.year() + SEARCH_YEARS;
        let mut from = (after.hour(), after.minute());
        while date.year() <= last {
            if self.month >> date.month() & 1 == 0 {
                date = date.first_of_month().checked_add(1.month()).ok()?;
                from = (0, 0);
                continue;
            }
            if self.matches_day(date) {
                for hour in from.0..24 {
                    if self.hour >> hour & 1 == 0 {
                        continue;
                    }
                    let minute = if hour == from.0 { from.1 } else { 0 };
                    for minute in (minute..60).filter(|m| self.minute >> m & 1 == 1) {
                        let at = date.at(hour, minute, 0, 0).to_zoned(after.time_zone().clone()).ok()?;
                        // Clocks that are put forward skip times, and those put back repeat them.
                        let skipped = (at.hour(), at.minute()) != (hour, minute);
                        if at.timestamp() > start && !skipped {
                            return Some(at.timestamp());
                        }
                    }
                }
            }
            date = date.tomorrow().ok()?;
            from = (0, 0);
        }
        None
    }
}

/// One field: `*`, `5`, `1-5`, `*/15`, `mon-fri`, lists of these.
fn bits(field: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, String> {
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(i) = names.iter().position(|n| *n == lower) {
            return Ok(min + i as u32);
        }
        text.parse().map_err(|_| format!("failed to parse int from {text}"))
    };
    let mut set = 0;
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        let step =
            step.map_or(Ok(1), |s| s.parse::<u32>().map_err(|_| format!("failed to parse int from {s}")))?;
        if step == 0 {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        let (first, last) = match range {
            "*" | "?" => (min, max),
            range => match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None if part.contains('/') => (number(range)?, max),
                None => (number(range)?, number(range)?),
            },
        };
        if first < min {
            return Err(format!("beginning of range ({first}) below minimum ({min}): {part}"));
        }
        if last > max {
            return Err(format!("end of range ({last}) above maximum ({max}): {part}"));
        }
        if first > last {
            return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
        }
        for n in (first..=last).step_by(step as usize) {
            set |= 1 << n;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_times() {
        for (schedule, after, zone, expected) in [
            ("*/15 * * * *", "2026-01-01T00:07:30Z", "UTC", Some("2026-01-01T00:15:00Z")),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "UTC", Some("2027-01-01T00:00:00Z")),
            ("@hourly", "2026-01-01T00:59:59Z", "UTC", Some("2026-01-01T01:00:00Z")),
            ("30 8 * * mon-fri", "2026-01-02T09:00:00Z", "UTC", Some("2026-01-05T08:30:00Z")),
            // Either day field may match when both are restricted.
            ("0 0 13 * fri", "2026-01-01T00:00:00Z", "UTC", Some("2026-01-02T00:00:00Z")),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", "UTC", None),
            ("@every 90s", "2026-01-01T00:00:00Z", "UTC", Some("2026-01-01T00:01:30Z")),
            ("0 9 * * *", "2026-01-01T00:00:00Z", "+02", Some("2026-01-01T07:00:00Z")),
        ] {
            let zone = if zone == "UTC" { TimeZone::UTC } else { TimeZone::fixed(jiff::tz::offset(2)) };
            let next = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &zone);
            assert_eq!(next, expected.map(|e| e.parse().unwrap()), "{schedule} after {after}");
        }
    }

    #[test]
    fn the_newest_of_many() {
        let schedule = Schedule::parse("*/10 * * * *").unwrap();
        let newest = |from: &str, now: &str| {
            schedule
                .newest(from.parse().unwrap(), now.parse().unwrap(), &TimeZone::UTC)
                .map(|(t, m)| (t.to_string(), m))
        };
        assert_eq!(newest("2026-01-01T00:01:00Z", "2026-01-01T00:09:00Z"), None);
        assert_eq!(
            newest("2026-01-01T00:01:00Z", "2026-01-01T00:10:00Z"),
            Some(("2026-01-01T00:10:00Z".into(), false))
        );
        assert_eq!(
            newest("2026-01-01T00:01:00Z", "2026-01-01T01:05:00Z"),
            Some(("2026-01-01T01:00:00Z".into(), false))
        );
        assert_eq!(
            newest("2026-01-01T00:01:00Z", "2026-02-01T01:05:00Z"),
            Some(("2026-02-01T01:00:00Z".into(), true))
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("* * * *", "expected exactly 5 fields"),
            ("60 * * * *", "above maximum"),
            ("* * 0 * *", "below minimum"),
            ("*/0 * * * *", "positive number"),
            ("x * * * *", "failed to parse int from x"),
            ("@never", "unrecognized descriptor"),
        ] {
            let error = Schedule::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
