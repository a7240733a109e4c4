//! Schedules of CronJobs: crontab(5) with names, ranges and steps, or `@daily` and its like. In: text. Out: the
//! times as sets, for the controller, or upstream's words for what is wrong, for validation.

use std::time::Duration;

use jiff::tz::TimeZone;
use yare_schema::gotime;

/// When something is to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The time zone that the text itself names (`TZ=UTC …`).
    pub zone: Option<TimeZone>,
    /// When, in that zone or another.
    pub when: When,
}

/// At which times.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// At those that match.
    Times(Box<Times>),
    /// Again and again after a fixed time of whole seconds.
    Every(Duration),
}

/// The five fields as sets of bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 23.
    pub hour: u64,
    /// 1 to 31.
    pub day: u64,
    /// 1 to 12.
    pub month: u64,
    /// 0 (Sunday) to 6.
    pub weekday: u64,
    /// `*` (every day) in a day field means that only the other one counts; otherwise either may match.
    pub any_day: bool,
    /// As for days.
    pub any_weekday: bool,
}

/// One field of a schedule.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[] },
    Bounds { min: 0, max: 23, names: &[] },
    Bounds { min: 1, max: 31, names: &[] },
    Bounds { min: 1, max: 12, names: MONTHS },
    Bounds { min: 0, max: 6, names: DAYS },
];
/// Words for whole schedules.
const DESCRIPTORS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Reads a schedule, or says what is wrong with it.
pub fn parse(schedule: &str) -> Result<Schedule, String> {
    let mut schedule = schedule;
    let mut own_zone = None;
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
        let Some((zone, rest)) = schedule.split_once(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        own_zone = Some(time_zone(zone).map_err(|e| format!("provided bad location {zone}: {e}"))?);
        schedule = rest.trim();
    }
    if let Some(every) = schedule.strip_prefix("@every ") {
        let nanos =
            gotime::parse_duration(every).map_err(|e| format!("failed to parse duration {schedule}: {e}"))?;
        // Whole seconds, at least one.
        let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(0).max(1);
        return Ok(Schedule { zone: own_zone, when: When::Every(Duration::from_secs(seconds)) });
    }
    if schedule.starts_with('@') {
        schedule = DESCRIPTORS
            .iter()
            .find(|(word, _)| *word == schedule)
            .map(|(_, fields)| *fields)
            .ok_or_else(|| format!("unrecognized descriptor: {schedule}"))?;
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly {} fields, found {}: [{}]",
            FIELDS.len(),
            fields.len(),
            fields.join(" ")
        ));
    }
    let mut sets = [0; FIELDS.len()];
    for ((field, bounds), set) in fields.iter().zip(&FIELDS).zip(&mut sets) {
        for range in field.split(',').filter(|r| !r.is_empty()) {
            *set |= read_range(range, bounds)?;
        }
    }
    // `*/2` is a choice of days like any other, unlike `*/1`.
    let starred = |field: &str| {
        field.split(',').any(|range| {
            range.starts_with(['*', '?'])
                && range.split_once('/').is_none_or(|(_, step)| step.parse() == Ok(1))
        })
    };
    let [minute, hour, day, month, weekday] = sets;
    let (any_day, any_weekday) = (starred(fields[2]), starred(fields[4]));
    let times = Times { minute, hour, day, month, weekday, any_day, any_weekday };
    Ok(Schedule { zone: own_zone, when: When::Times(Box::new(times)) })
}

/// The time zone of this name.
pub fn time_zone(zone: &str) -> Result<TimeZone, String> {
    match zone {
        "" | "UTC" => return Ok(TimeZone::UTC),
        "Local" => return Ok(TimeZone::system()),
        _ => {}
    }
    // The database ignores case; Go, which reads files, does not.
    match TimeZone::get(zone) {
        Ok(found) if found.iana_name() == Some(zone) => Ok(found),
        _ => Err(format!("unknown time zone {zone}")),
    }
}

/// One range as a set of bits: `*`, `5`, `1-5`, `*/15`, `mon-fri`.
fn read_range(range: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts: Vec<&str> = range.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end) = match ends[..] {
        ["*" | "?", ..] => (bounds.min, bounds.max),
        [one] => {
            let one = number(one, bounds)?;
            (one, one)
        }
        [start, end] => (number(start, bounds)?, number(end, bounds)?),
        _ => {
            number(ends[0], bounds)?;
            return Err(format!("too many hyphens: {range}"));
        }
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = bounds.max;
            }
            plain_number(step)?
        }
        _ => return Err(format!("too many slashes: {range}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {range}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {range}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {range}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {range}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((start..=end).step_by(step).fold(0, |set, n| set | 1 << n))
}

fn number(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let name = text.to_lowercase();
    match bounds.names.iter().position(|n| *n == name) {
        Some(at) => Ok(bounds.min + at as u64),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let why = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        "invalid syntax"
    } else {
        match text.parse::<i64>() {
            Ok(n) if n < 0 => return Err(format!("negative number ({n}) not allowed: {text}")),
            Ok(n) => return Ok(n.unsigned_abs()),
            Err(_) => "value out of range",
        }
    };
    Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-6/2 1,15 jan-MAR sun",
            "? ? ? ? ?",
            "59 23 31 12 6",
            "@daily",
            "@every 1h30m",
            "TZ=UTC 0 0 * * *",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@often", "unrecognized descriptor: @often"),
            ("TZ=0", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
        ] {
            assert_eq!(parse(bad), Err(why.to_owned()), "{bad}");
        }
        // Only every day is any day.
        for (days, any) in [
            ("*", true),
            ("?", true),
            ("*/1", true),
            ("2,*", true),
            ("*/2", false),
            ("?/5", false),
            ("3", false),
        ] {
            let Ok(Schedule { when: When::Times(times), .. }) = parse(&format!("0 0 {days} * *")) else {
                panic!("{days}")
            };
            assert_eq!(times.any_day, any, "{days}");
        }
    }
}
