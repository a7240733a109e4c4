//! When a CronJob is due next. In: a schedule as [`yare_kinds::cron`] reads it, times. Out: times.

use jiff::{Timestamp, ToSpan, Zoned, civil, tz::TimeZone};
use yare_kinds::cron::{self, Times, When};

/// A schedule that can never be met ends the search after this many years.
const SEARCH_YEARS: i16 = 5;

/// When something is to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule(cron::Schedule);

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Self, String> {
        cron::parse(text.trim()).map(Self)
    }

    /// The first time after `after`; `None` if there is none in the next years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let zone = self.0.zone.as_ref().unwrap_or(zone);
        match &self.0.when {
            When::Every(every) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*every).ok(),
            When::Times(times) => next_match(times, after.to_zoned(zone.clone())),
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

fn matches_day(times: &Times, date: civil::Date) -> bool {
    let day = times.day >> date.day() & 1 == 1;
    let weekday = times.weekday >> date.weekday().to_sunday_zero_offset() & 1 == 1;
    if times.any_day || times.any_weekday { day && weekday } else { day || weekday }
}

fn next_match(times: &Times, after: Zoned) -> Option<Timestamp> {
    let start = after.timestamp();
    let mut date = after.date();
    let last = date.year() + SEARCH_YEARS;
    let mut from = (after.hour(), after.minute());
    while date.year() <= last {
        if times.month >> date.month() & 1 == 0 {
            date = date.first_of_month().checked_add(1.month()).ok()?;
            from = (0, 0);
            continue;
        }
        if matches_day(times, date) {
            for hour in from.0..24 {
                if times.hour >> hour & 1 == 0 {
                    continue;
                }
                let minute = if hour == from.0 { from.1 } else { 0 };
                for minute in (minute..60).filter(|m| times.minute >> m & 1 == 1) {
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
            ("0 0 */9 * fri", "2026-01-01T00:00:00Z", "UTC", Some("2026-01-02T00:00:00Z")),
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
