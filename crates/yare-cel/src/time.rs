//! Timestamps and durations: arithmetic with bounds, notations, calendar fields in time zones.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::OnceLock,
};

use crate::{error::EvalError, number::overflow};

/// Nanoseconds; what CEL calls `duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub i64);

/// A point in time between the years 1 and 9999; what CEL calls `timestamp`. It is shown, and has its calendar
/// fields, at the distance from UTC at which it was written; that is no part of what it is.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
    /// How far east of UTC it was written.
    offset_s: i32,
}

impl PartialEq for Timestamp {
    fn eq(&self, other: &Self) -> bool {
        (self.seconds, self.nanos) == (other.seconds, other.nanos)
    }
}

impl Eq for Timestamp {}

impl PartialOrd for Timestamp {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timestamp {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.seconds, self.nanos).cmp(&(other.seconds, other.nanos))
    }
}

impl Hash for Timestamp {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.seconds, self.nanos).hash(state);
    }
}

const MIN_SECONDS: i64 = -62_135_596_800;
const MAX_SECONDS: i64 = 253_402_300_799;
const NANOS: i64 = 1_000_000_000;

impl Duration {
    pub(crate) fn seconds(self) -> f64 {
        (self.0 / NANOS) as f64 + (self.0 % NANOS) as f64 / 1e9
    }

    pub(crate) fn checked_add(self, other: Duration) -> Result<Duration, EvalError> {
        self.0.checked_add(other.0).map(Duration).ok_or_else(|| overflow("duration"))
    }

    pub(crate) fn checked_sub(self, other: Duration) -> Result<Duration, EvalError> {
        self.0.checked_sub(other.0).map(Duration).ok_or_else(|| overflow("duration"))
    }

    pub(crate) fn checked_neg(self) -> Result<Duration, EvalError> {
        self.0.checked_neg().map(Duration).ok_or_else(|| overflow("duration"))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.seconds())
    }
}

impl Timestamp {
    /// A time in UTC, if it lies between the years 1 and 9999.
    pub fn new(seconds: i64, nanos: u32) -> Option<Timestamp> {
        ((MIN_SECONDS..=MAX_SECONDS).contains(&seconds) && i64::from(nanos) < NANOS).then_some(Timestamp {
            seconds,
            nanos,
            offset_s: 0,
        })
    }

    /// `local_s` as it was read at `offset_s` east of UTC.
    fn written(local_s: i64, nanos: u32, offset_s: i32) -> Option<Timestamp> {
        Some(Timestamp { offset_s, ..Timestamp::new(local_s - i64::from(offset_s), nanos)? })
    }

    /// Calendar fields where the time was written.
    pub(crate) fn civil(self) -> Civil {
        Civil::of(self.seconds + i64::from(self.offset_s))
    }

    pub(crate) fn is_zero(self) -> bool {
        self.seconds == MIN_SECONDS && self.nanos == 0
    }

    pub(crate) fn checked_add(self, duration: Duration) -> Result<Timestamp, EvalError> {
        let nanos =
            i128::from(self.seconds) * i128::from(NANOS) + i128::from(self.nanos) + i128::from(duration.0);
        let seconds = nanos.div_euclid(i128::from(NANOS));
        // The remainder of a division by a billion fits, and sums of two 64-bit numbers of seconds do too.
        Timestamp::new(seconds as i64, nanos.rem_euclid(i128::from(NANOS)) as u32)
            .map(|time| Timestamp { offset_s: self.offset_s, ..time })
            .ok_or_else(|| overflow("timestamp"))
    }

    pub(crate) fn since(self, other: Timestamp) -> Result<Duration, EvalError> {
        let seconds = self.seconds - other.seconds;
        let nanos = i64::from(self.nanos) - i64::from(other.nanos);
        seconds
            .checked_mul(NANOS)
            .and_then(|total| total.checked_add(nanos))
            .map(Duration)
            .ok_or_else(|| overflow("duration"))
    }
}

/// RFC 3339 where the time was written, with as many decimals as there are.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let civil = self.civil();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year, civil.month, civil.day, civil.hour, civil.minute, civil.second
        )?;
        if self.nanos != 0 {
            let decimals = format!("{:09}", self.nanos);
            write!(f, ".{}", decimals.trim_end_matches('0'))?;
        }
        match self.offset_s / 60 {
            0 => f.write_str("Z"),
            minutes => {
                let sign = if minutes < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
        }
    }
}

/// A calendar date and time of day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Civil {
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
    /// From 0, Sunday.
    pub weekday: i64,
    /// From 0.
    pub day_of_year: i64,
}

fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl Civil {
    pub(crate) fn of(seconds: i64) -> Civil {
        let days = seconds.div_euclid(86_400);
        let time = seconds.rem_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Civil {
            year,
            month,
            day,
            hour: time / 3_600,
            minute: time / 60 % 60,
            second: time % 60,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: days - days_before(year, 1, 1),
        }
    }
}

/// The fields of a time in a zone: a name of the IANA database, or `±HH:MM`.
pub(crate) fn in_zone(time: Timestamp, zone: &str) -> Result<Civil, EvalError> {
    Ok(Civil::of(time.seconds + offset_s(time, zone)?))
}

fn offset_s(time: Timestamp, zone: &str) -> Result<i64, EvalError> {
    if let Some((hours, minutes)) = zone.split_once(':') {
        let number = |text: &str| {
            text.parse::<i32>()
                .map(i64::from)
                .map_err(|_| EvalError::failed(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))
        };
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        let sign = if zone.starts_with('-') { -1 } else { 1 };
        return Ok((hours * 60 + sign * minutes) * 60);
    }
    if matches!(zone, "" | "UTC") {
        return Ok(0);
    }
    static ZONES: OnceLock<jiff::tz::TimeZoneDatabase> = OnceLock::new();
    let unknown = || EvalError::failed(format!("unknown time zone {zone}"));
    let zone_rules =
        ZONES.get_or_init(jiff::tz::TimeZoneDatabase::bundled).get(zone).map_err(|_| unknown())?;
    let at = jiff::Timestamp::from_second(time.seconds).map_err(|_| unknown())?;
    Ok(i64::from(zone_rules.to_offset(at).seconds()))
}

fn digits(text: &str, range: std::ops::Range<usize>) -> Option<i64> {
    let part = text.get(range)?;
    part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
}

struct Parsed<'t> {
    seconds: i64,
    nanos: u32,
    /// What follows the time of day.
    zone: &'t str,
    with_seconds: bool,
}

fn parse_local<'t>(text: &'t str, separators: &str) -> Option<Parsed<'t>> {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied();
    if at(4) != Some(b'-')
        || at(7) != Some(b'-')
        || !separators.contains(char::from(at(10)?))
        || at(13) != Some(b':')
    {
        return None;
    }
    let (year, month, day) = (digits(text, 0..4)?, digits(text, 5..7)?, digits(text, 8..10)?);
    let (hour, minute) = (digits(text, 11..13)?, digits(text, 14..16)?);
    let mut rest = &text[16..];
    let (mut second, mut nanos, mut with_seconds) = (0, 0, false);
    if rest.starts_with(':') {
        with_seconds = true;
        second = digits(rest, 1..3)?;
        rest = &rest[3..];
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if length == 0 {
                return None;
            }
            let kept = &fraction[..length.min(9)];
            nanos = kept.parse::<u32>().ok()? * 10_u32.pow(9 - kept.len() as u32);
            rest = &fraction[length..];
        }
    }
    if !(1..=12).contains(&month)
        || !(1..=month_length(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let seconds = days_before(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(Parsed { seconds, nanos, zone: rest, with_seconds })
}

fn zone_offset(zone: &str, colon: bool) -> Option<i32> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let minutes_at = match zone.len() {
        6 if zone.as_bytes()[3] == b':' => 4,
        5 if !colon => 3,
        _ => return None,
    };
    let (hours, minutes) = (digits(zone, 1..3)?, digits(zone, minutes_at..minutes_at + 2)?);
    (hours <= 24 && minutes < 60).then(|| i32::try_from(sign * (hours * 3_600 + minutes * 60)).ok())?
}

/// RFC 3339, as the function `timestamp` reads it.
pub(crate) fn parse_timestamp(text: &str) -> Result<Timestamp, EvalError> {
    let invalid = || EvalError::failed("type conversion error from 'string' to 'google.protobuf.Timestamp'");
    // Go takes an hour of one digit.
    let padded = (text.as_bytes().get(12) == Some(&b':') && text.is_char_boundary(11))
        .then(|| format!("{}0{}", &text[..11], &text[11..]));
    let text = padded.as_deref().unwrap_or(text);
    let parsed = parse_local(text, "T").filter(|parsed| parsed.with_seconds).ok_or_else(invalid)?;
    let offset = zone_offset(parsed.zone, true).ok_or_else(invalid)?;
    Timestamp::written(parsed.seconds, parsed.nanos, offset).ok_or_else(|| overflow("timestamp"))
}

/// Format `date-time` as Kubernetes takes it: RFC 3339 and what ISO 8601 allows besides.
pub(crate) fn parse_date_time(text: &str) -> Option<Timestamp> {
    if text.is_empty() {
        return Timestamp::new(0, 0);
    }
    let parsed = parse_local(text, "T ")?;
    let offset = if parsed.zone.is_empty() { 0 } else { zone_offset(parsed.zone, false)? };
    Timestamp::written(parsed.seconds, parsed.nanos, offset)
}

/// Format `date`.
pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let (year, month, day) = (digits(text, 0..4)?, digits(text, 5..7)?, digits(text, 8..10)?);
    ((1..=12).contains(&month) && (1..=month_length(year, month)).contains(&day))
        .then(|| Timestamp::new(days_before(year, month, day) * 86_400, 0))?
}

fn go_unit(unit: &str) -> Option<i64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS,
        "m" => 60 * NANOS,
        "h" => 3_600 * NANOS,
        _ => return None,
    })
}

/// Go's notation: `1h30m`, `-1.5s`, `0`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, EvalError> {
    go_duration(text)
        .ok_or_else(|| EvalError::failed("type conversion error from 'string' to 'google.protobuf.Duration'"))
}

fn go_duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(Duration(0));
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(whole);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => {
                let length = after.bytes().take_while(u8::is_ascii_digit).count();
                after.split_at(length)
            }
            None => ("", after),
        };
        if number.is_empty() && fraction.is_empty() || number.len() > 19 {
            return None;
        }
        let unit_length = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let unit = i128::from(go_unit(unit)?);
        if !number.is_empty() {
            total += number.parse::<i128>().ok()? * unit;
        }
        // Twelve decimals of an hour are below a nanosecond.
        let kept = &fraction[..fraction.len().min(18)];
        if !kept.is_empty() {
            total += kept.parse::<i128>().ok()? * unit / 10_i128.pow(kept.len() as u32);
        }
        if total > i128::from(i64::MAX) + i128::from(negative) {
            return None;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok().map(Duration)
}

/// Format `duration`: Go's notation, or numbers with units up to weeks, in words too.
pub(crate) fn parse_format_duration(text: &str) -> Option<Duration> {
    if let Some(duration) = go_duration(text) {
        return Some(duration);
    }
    let mut total: i64 = 0;
    let mut found = false;
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(length);
        let after = after.trim_start();
        let unit_length = after.find(|c: char| !(c.is_ascii_alphabetic() || c == 'µ')).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let unit = match unit.to_lowercase().as_str() {
            "ns" | "nano" | "nanosecond" | "nanoseconds" | "nanos" => 1,
            "us" | "µs" | "micro" | "microsecond" | "microseconds" | "micros" => 1_000,
            "ms" | "milli" | "millisecond" | "milliseconds" | "millis" => 1_000_000,
            "s" | "sec" | "secs" | "second" | "seconds" => NANOS,
            "m" | "min" | "mins" | "minute" | "minutes" => 60 * NANOS,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600 * NANOS,
            "d" | "day" | "days" => 86_400 * NANOS,
            "w" | "wk" | "wks" | "week" | "weeks" => 7 * 86_400 * NANOS,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        found = true;
        rest = after;
    }
    found.then_some(Duration(total))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_and_written() {
        for (text, written) in [
            ("2009-02-13T23:31:30Z", "2009-02-13T23:31:30Z"),
            ("2009-02-13T23:31:30.05+01:30", "2009-02-13T23:31:30.05+01:30"),
            ("2009-02-13T23:31:30-00:30", "2009-02-13T23:31:30-00:30"),
            ("2009-02-13T23:31:30+00:00", "2009-02-13T23:31:30Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
        ] {
            assert_eq!(parse_timestamp(text).unwrap().to_string(), written);
        }
        let (east, utc) = ("2009-02-13T23:31:30+01:30", "2009-02-13T22:01:30Z");
        let [east, utc] = [east, utc].map(|text| parse_timestamp(text).unwrap());
        assert_eq!(east, utc);
        assert_eq!(east.cmp(&utc), Ordering::Equal);
        assert_eq!((east.civil().hour, utc.civil().hour), (23, 22));
        let later = east.checked_add(Duration(NANOS)).unwrap();
        assert_eq!(later.to_string(), "2009-02-13T23:31:31+01:30");
        for bad in
            ["2009-02-13", "2009-02-13 23:31:30Z", "2023-02-29T00:00:00Z", "2009-02-13T24:00:00Z", "x", ""]
        {
            assert!(parse_timestamp(bad).is_err(), "{bad}");
        }
        assert!(parse_date_time("2009-02-13 23:31:30").is_some());
        assert!(parse_date_time("2009-02-13T23:31:30.000+0100").is_some());
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, nanos, written) in [
            ("1h30m", 5_400 * NANOS, "5400s"),
            ("-1.5s", -1_500_000_000, "-1.5s"),
            ("0", 0, "0s"),
            ("1ms2us3ns", 1_002_003, "0.001002003s"),
            (".5h", 1_800 * NANOS, "1800s"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.0, nanos, "{text}");
            assert_eq!(duration.to_string(), written);
        }
        for bad in ["", "1", "s", "1d", "1h-2m", "99999999999h", "-", "."] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_format_duration("2 days").unwrap().0, 2 * 86_400 * NANOS);
        assert_eq!(parse_format_duration("1w").unwrap().0, 7 * 86_400 * NANOS);
        assert!(parse_format_duration("2 moons").is_none());
    }

    #[test]
    fn zones_have_rules() {
        let time = parse_timestamp("2009-02-13T23:31:30Z").unwrap();
        assert_eq!(in_zone(time, "America/Los_Angeles").unwrap().hour, 15);
        assert_eq!(in_zone(time, "+02:30").unwrap().hour, 2);
        assert_eq!(in_zone(time, "-02:30").unwrap().minute, 1);
        let civil = in_zone(time, "UTC").unwrap();
        assert_eq!((civil.weekday, civil.day_of_year), (5, 43));
        assert!(in_zone(time, "Middle/Earth").is_err());
    }
}
