//! Times and durations as Go's `time` package reads and writes them.
//!
//! In: RFC 3339 text or `5m0s`. Out: seconds and nanoseconds since 1970 (UTC), and the text that
//! upstream would write back; errors read as Go's do.

use std::{fmt::Write as _, ops::RangeInclusive};

/// Seconds since 1970-01-01T00:00:00Z of Go's zero time, year 1. JSON writes it as `null`.
pub const ZERO_TIME_S: i64 = -62_135_596_800;

/// The years 0 to 9999, which are those that RFC 3339 can say, in seconds since 1970-01-01T00:00:00Z.
pub const YEARS_S: RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// An instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds of the second, below 1,000,000,000.
    pub nanos: u32,
}

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Reads RFC 3339 as `time.Parse(time.RFC3339, …)` does; a fraction of any length may stand there.
pub fn parse_time(text: &str) -> Result<Instant, String> {
    parse_layout(text, RFC3339)
}

/// Reads RFC 3339 with exactly six digits of fraction, as `metav1.MicroTime` does.
pub fn parse_micro_time(text: &str) -> Result<Instant, String> {
    parse_layout(text, RFC3339_MICRO)
}

fn parse_layout(text: &str, layout: &str) -> Result<Instant, String> {
    let micro = layout == RFC3339_MICRO;
    let cannot = |rest: &str, element: &str| {
        format!("parsing time {} as {layout:?}: cannot parse {} as {element:?}", quote(text), quote(rest))
    };
    let out_of_range = |what: &str| format!("parsing time {}: {what} out of range", quote(text));
    let mut rest = text;
    let year = digits(&mut rest, 4).ok_or_else(|| cannot(rest, "2006"))?;
    literal(&mut rest, '-').ok_or_else(|| cannot(rest, "-"))?;
    let month = digits(&mut rest, 2).ok_or_else(|| cannot(rest, "01"))?;
    if !(1..=12).contains(&month) {
        return Err(out_of_range("month"));
    }
    literal(&mut rest, '-').ok_or_else(|| cannot(rest, "-"))?;
    let day = digits(&mut rest, 2).ok_or_else(|| cannot(rest, "02"))?;
    literal(&mut rest, 'T').ok_or_else(|| cannot(rest, "T"))?;
    let hour = digits(&mut rest, 2).or_else(|| digits(&mut rest, 1)).ok_or_else(|| cannot(rest, "15"))?;
    if hour > 23 {
        return Err(out_of_range("hour"));
    }
    literal(&mut rest, ':').ok_or_else(|| cannot(rest, ":"))?;
    let minute = digits(&mut rest, 2).ok_or_else(|| cannot(rest, "04"))?;
    if minute > 59 {
        return Err(out_of_range("minute"));
    }
    literal(&mut rest, ':').ok_or_else(|| cannot(rest, ":"))?;
    let second = digits(&mut rest, 2).ok_or_else(|| cannot(rest, "05"))?;
    if second > 59 {
        return Err(out_of_range("second"));
    }
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let mut length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if length == 0 || (micro && length < 6) {
            return Err(cannot(rest, if micro { ".000000" } else { "Z07:00" }));
        }
        if micro {
            length = 6;
        }
        for (i, b) in fraction.bytes().take(length.min(9)).enumerate() {
            nanos += u32::from(b - b'0') * 10_u32.pow(8 - i as u32);
        }
        rest = &fraction[length..];
    } else if micro {
        return Err(cannot(rest, ".000000"));
    }
    let (hours, minutes) = zone(&mut rest).ok_or_else(|| cannot(rest, "Z07:00"))?;
    // Some people write a whole day or a whole hour.
    if minutes.abs() > 60 {
        return Err(out_of_range("time zone offset minute"));
    }
    if hours.abs() > 24 {
        return Err(out_of_range("time zone offset hour"));
    }
    let offset_s = hours * 3600 + minutes * 60;
    if !rest.is_empty() {
        return Err(format!("parsing time {}: extra text: {}", quote(text), quote(rest)));
    }
    if day < 1 || day > days_in(year, month) {
        return Err(out_of_range("day"));
    }
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    // An offset may lead out of the years that can be written, and then nobody could read it again.
    if !YEARS_S.contains(&seconds) {
        return Err(out_of_range("year"));
    }
    Ok(Instant { seconds, nanos })
}

fn digits(rest: &mut &str, count: usize) -> Option<i64> {
    let head = rest.get(..count).filter(|h| h.bytes().all(|b| b.is_ascii_digit()))?;
    *rest = &rest[count..];
    head.parse().ok()
}

fn literal(rest: &mut &str, wanted: char) -> Option<()> {
    *rest = rest.strip_prefix(wanted)?;
    Some(())
}

/// `Z`, `+01:00` or `-07:00`, in hours and minutes east of Greenwich.
fn zone(rest: &mut &str) -> Option<(i64, i64)> {
    if let Some(after) = rest.strip_prefix('Z') {
        *rest = after;
        return Some((0, 0));
    }
    let mut tail = *rest;
    let sign = match tail.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    tail = &tail[1..];
    let hours = digits(&mut tail, 2)?;
    literal(&mut tail, ':')?;
    let minutes = digits(&mut tail, 2)?;
    *rest = tail;
    Some((sign * hours, sign * minutes))
}

/// Text as the errors of Go's `time` quote it: byte by byte, where it is not plain ASCII.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=0x7f => out.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years are counted from March, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// `2006-01-02T15:04:05Z`: how `metav1.Time` is written.
pub fn format_time(seconds: i64) -> String {
    let mut out = String::with_capacity(20);
    write_seconds(&mut out, seconds);
    out.push('Z');
    out
}

/// `2006-01-02T15:04:05.000000Z`: how `metav1.MicroTime` is written.
pub fn format_micro_time(instant: Instant) -> String {
    let mut out = String::with_capacity(27);
    write_seconds(&mut out, instant.seconds);
    // Writing to a String cannot fail.
    let _ = write!(out, ".{:06}Z", instant.nanos / 1000);
    out
}

fn write_seconds(out: &mut String, seconds: i64) {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
}

/// Reads a Go duration (`1h15m30.918s`) into nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    const MOST: u64 = 1 << 63;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let whole = &rest[..whole_len];
        rest = &rest[whole_len..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            fraction = &after[..length];
            rest = &after[length..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let whole = if whole.is_empty() { Some(0) } else { whole.parse().ok() };
        let whole: u64 = whole.filter(|n| *n <= MOST).ok_or_else(invalid)?;
        let unit_len = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = &rest[..unit_len];
        rest = &rest[unit_len..];
        let scale: u64 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {} in duration {}", quote(unit), quote(text))),
        };
        total = whole
            .checked_mul(scale)
            .and_then(|whole| whole.checked_add(part_of(scale, fraction)))
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MOST)
            .ok_or_else(invalid)?;
    }
    let total = if negative { -i128::from(total) } else { i128::from(total) };
    i64::try_from(total).map_err(|_| invalid())
}

/// The decimals of a unit in nanoseconds, with the error of doubles that Go makes.
fn part_of(unit: u64, decimals: &str) -> u64 {
    let (mut number, mut scale) = (0u64, 1f64);
    for b in decimals.bytes() {
        // Further digits say nothing that matters.
        let next = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(b - b'0')));
        let Some(next) = next.filter(|n| *n <= 1 << 63) else { break };
        number = next;
        scale *= 10.0;
    }
    (number as f64 * (unit as f64 / scale)) as u64
}

/// Writes nanoseconds as Go's `Duration.String` does: `1h15m30.918s`, `1.5ms`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let text = match magnitude {
        0 => return "0s".to_owned(),
        1..=999 => format!("{magnitude}ns"),
        1000..=999_999 => format!("{}µs", fractional(magnitude, 1000)),
        1_000_000..=999_999_999 => format!("{}ms", fractional(magnitude, 1_000_000)),
        _ => {
            let minutes = magnitude / 60_000_000_000;
            let seconds = fractional(magnitude % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

fn fractional(value: u64, unit: u64) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{rest:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_back_and_forth() {
        for (text, seconds, canonical) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z"),
            ("2020-02-29T12:00:00.5+01:00", 1_582_974_000, "2020-02-29T11:00:00Z"),
            ("0001-01-01T00:00:00Z", ZERO_TIME_S, "0001-01-01T00:00:00Z"),
            ("1969-12-31T23:59:59-00:30", 1799, "1970-01-01T00:29:59Z"),
            ("1970-01-01T00:00:00,5Z", 0, "1970-01-01T00:00:00Z"),
            ("1970-01-01T5:00:00Z", 18_000, "1970-01-01T05:00:00Z"),
            ("1970-01-02T00:00:00+23:60", 0, "1970-01-01T00:00:00Z"),
        ] {
            let parsed = parse_time(text).unwrap();
            assert_eq!(parsed.seconds, seconds, "{text}");
            assert_eq!(format_time(parsed.seconds), canonical);
        }
        let micro = parse_micro_time("2020-01-01T00:00:00.000123Z").unwrap();
        assert_eq!(micro.nanos, 123_000);
        assert_eq!(format_micro_time(micro), "2020-01-01T00:00:00.000123Z");
        assert!(parse_micro_time("2020-01-01T00:00:00Z").is_err());
    }

    #[test]
    fn bad_times_read_as_in_go() {
        for (text, message) in [
            ("abc", r#"parsing time "abc" as "2006-01-02T15:04:05Z07:00": cannot parse "abc" as "2006""#),
            (
                "é\"",
                r#"parsing time "\xc3\xa9\"" as "2006-01-02T15:04:05Z07:00": cannot parse "\xc3\xa9\"" as "2006""#,
            ),
            (
                "2020-01-01T00:00:00+25:00",
                r#"parsing time "2020-01-01T00:00:00+25:00": time zone offset hour out of range"#,
            ),
            (
                "2020-01-01T00:00:00+01:61",
                r#"parsing time "2020-01-01T00:00:00+01:61": time zone offset minute out of range"#,
            ),
            ("2020-13-01T00:00:00Z", r#"parsing time "2020-13-01T00:00:00Z": month out of range"#),
            ("2020-02-30T00:00:00Z", r#"parsing time "2020-02-30T00:00:00Z": day out of range"#),
            ("9999-12-31T23:59:59-01:00", r#"parsing time "9999-12-31T23:59:59-01:00": year out of range"#),
            ("0000-01-01T00:00:00+01:00", r#"parsing time "0000-01-01T00:00:00+01:00": year out of range"#),
            (
                "2020-02-03",
                r#"parsing time "2020-02-03" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#,
            ),
        ] {
            assert_eq!(parse_time(text).unwrap_err(), message);
        }
    }

    #[test]
    fn durations_go_back_and_forth() {
        for (text, nanos, canonical) in [
            ("0", 0, "0s"),
            ("5m", 300_000_000_000, "5m0s"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("-1.5h", -5_400_000_000_000, "-1h30m0s"),
            ("1500us", 1_500_000, "1.5ms"),
            ("10ns", 10, "10ns"),
            (".5s", 500_000_000, "500ms"),
            ("0000000000000000000000001s", 1_000_000_000, "1s"),
            ("0.18446744073709551619s", 184_467_440, "184.46744ms"),
            // As near as doubles come.
            ("24.302400203086m", 1_458_144_012_185, "24m18.144012185s"),
        ] {
            assert_eq!(parse_duration(text).unwrap(), nanos, "{text}");
            assert_eq!(format_duration(nanos), canonical);
        }
        for bad in
            ["", "1", "s", "1x", ".s", "99999999999999999999h", "9223372036854775808ns9223372036854775808ns"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_duration("1é"),
            Err(r#"time: unknown unit "\xc3\xa9" in duration "1\xc3\xa9""#.to_owned())
        );
        let micro = parse_micro_time("2020-01-01T00:00:00.1234567Z").unwrap_err();
        assert!(micro.ends_with(r#"cannot parse "7Z" as "Z07:00""#), "{micro}");
    }
}
