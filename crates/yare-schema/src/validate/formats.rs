//! The `format`s of strings that schemas can demand.

use std::{net::Ipv6Addr, sync::LazyLock};

use base64::Engine;
use regex::Regex;

use crate::content;

/// Checks a string.
type Check = fn(&str) -> bool;

/// Names without dashes, which do not count, and how each is checked. Formats that are not listed are not
/// checked.
const FORMATS: [(&str, Check); 26] = [
    ("bsonobjectid", |s| s.len() == 24 && s.bytes().all(|b| b.is_ascii_hexdigit())),
    ("byte", |s| !s.is_empty() && base64::engine::general_purpose::STANDARD.decode(s).is_ok()),
    ("cidr", is_cidr),
    ("creditcard", is_credit_card),
    ("date", is_date),
    ("datetime", is_date_time),
    ("duration", is_duration),
    ("email", is_email),
    ("hexcolor", |s| {
        let digits = s.strip_prefix('#').unwrap_or(s);
        matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
    }),
    ("hostname", is_hostname),
    ("ipv4", |s| is_ipv4(s) || (s.contains('.') && s.parse::<Ipv6Addr>().is_ok())),
    ("ipv6", |s| s.contains(':') && s.parse::<Ipv6Addr>().is_ok()),
    ("isbn", |s| is_isbn10(s) || is_isbn13(s)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("k8slongname", |s| content::dns1123_subdomain(s).is_empty()),
    ("k8sshortname", |s| content::dns1123_label(s).is_empty()),
    ("mac", is_mac),
    ("password", |_| true),
    ("rgbcolor", is_rgb_color),
    ("ssn", is_ssn),
    ("uri", is_uri),
    ("uuid", |s| is_uuid(s, None)),
    ("uuid3", |s| is_uuid(s, Some(b'3'))),
    ("uuid4", |s| is_uuid(s, Some(b'4'))),
    ("uuid5", |s| is_uuid(s, Some(b'5'))),
];

fn find(format: &str) -> Option<Check> {
    let normal: String = format.chars().filter(|c| *c != '-').collect();
    FORMATS.iter().find(|(name, _)| *name == normal).map(|(_, check)| *check)
}

/// Whether strings of this format are checked.
pub(crate) fn is_known(format: &str) -> bool {
    find(format).is_some()
}

/// Whether `text` has the format; unknown formats allow anything.
pub(crate) fn matches(format: &str, text: &str) -> bool {
    find(format).is_none_or(|check| check(text))
}

fn is_cidr(s: &str) -> bool {
    let Some((address, length)) = s.split_once('/') else { return false };
    let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    match length.parse::<u8>() {
        Ok(n) if is_ipv4(address) => plain && n <= 32,
        Ok(n) if address.parse::<Ipv6Addr>().is_ok() => plain && n <= 128,
        _ => false,
    }
}

/// Numbers with leading zeros count, as Go took them before 1.17.
fn is_ipv4(s: &str) -> bool {
    let number = |n: &str| {
        let digits = n.trim_start_matches('0');
        !n.is_empty()
            && n.bytes().all(|b| b.is_ascii_digit())
            && (digits.is_empty() || digits.parse::<u8>().is_ok())
    };
    s.split('.').count() == 4 && s.split('.').all(number)
}

fn is_credit_card(s: &str) -> bool {
    let digits: Vec<u32> = s.chars().filter_map(|c| c.to_digit(10)).collect();
    if !(13..=16).contains(&digits.len()) {
        return false;
    }
    // Luhn's check digit.
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &d)| match (i % 2, d * 2) {
            (0, _) => d,
            (_, twice) if twice > 9 => twice - 9,
            (_, twice) => twice,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_date(s: &str) -> bool {
    s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(s: &str) -> bool {
    let lower = s.to_ascii_lowercase();
    let Some((date, time)) = lower.split_once('t') else { return false };
    static TIME: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new("^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$").ok()
    });
    let Some(parts) = TIME.as_ref().and_then(|re| re.captures(time)) else { return false };
    let part = |i| parts.get(i).map_or("", |m| m.as_str());
    is_date(date) && part(1) <= "23" && part(2) <= "59" && part(3) <= "59"
}

fn is_duration(s: &str) -> bool {
    const UNITS: [&str; 19] = [
        "ns", "nano", "us", "µs", "micro", "ms", "milli", "s", "sec", "m", "min", "h", "hr", "hour", "d",
        "day", "w", "wk", "week",
    ];
    const LONG: [&str; 8] = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    let known = |unit: &str| {
        let unit = unit.to_lowercase();
        UNITS.contains(&unit.as_str()) || LONG.iter().any(|long| unit.starts_with(long))
    };
    // Go's own form, which may have a sign and fractions.
    let mut rest = s.strip_prefix(['-', '+']).unwrap_or(s);
    if rest == "0" {
        return true;
    }
    // Elsewhere: any number with a unit in the text.
    let mut found = false;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_digit());
        let after = rest.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len());
        found |= end > 0 && known(&after[..end]);
        rest = &after[end..];
    }
    found
}

fn is_email(s: &str) -> bool {
    let address = match s.rsplit_once('<') {
        Some((_, rest)) => match rest.strip_suffix('>') {
            Some(address) => address,
            None => return false,
        },
        None => s,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii())
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (quoted || local.split('.').all(atom)) && domain.split('.').all(atom)
}

fn is_hostname(s: &str) -> bool {
    static SIGNS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[a-zA-Z0-9\p{S}\p{L}\-]+$").ok());
    let label = |l: &&str| {
        (1..=63).contains(&l.len())
            && SIGNS.as_ref().is_some_and(|signs| signs.is_match(l))
            && !l.starts_with('-')
    };
    let labels: Vec<&str> = s.split('.').collect();
    if s.len() > 255 || !labels.iter().all(label) {
        return false;
    }
    match labels.as_slice() {
        // Upstream's expression takes a dash in such a name as its second sign, and there alone.
        [one] => {
            one.char_indices().all(|(i, c)| c != '-' || i == one.chars().next().map_or(0, char::len_utf8))
        }
        // The last of several is a domain of letters.
        [names @ .., top] => {
            names.iter().all(|name| !name.ends_with('-'))
                && top.chars().count() >= 2
                && top.chars().all(char::is_alphabetic)
        }
        [] => false,
    }
}

fn isbn_digits(s: &str) -> String {
    s.chars().filter(|c| *c != '-' && *c != ' ').collect()
}

fn is_isbn10(s: &str) -> bool {
    let text = isbn_digits(s);
    if text.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (i, c) in text.chars().enumerate() {
        let digit = match c {
            'X' if i == 9 => 10,
            c => match c.to_digit(10) {
                Some(d) => d,
                None => return false,
            },
        };
        sum += (i as u32 + 1) * digit;
    }
    sum % 11 == 0
}

fn is_isbn13(s: &str) -> bool {
    let text = isbn_digits(s);
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    if digits.len() != 13 || text.len() != 13 {
        return false;
    }
    digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { 3 * d }).sum::<u32>() % 10 == 0
}

fn is_mac(s: &str) -> bool {
    let groups = |separator: char, width: usize, counts: &[usize]| {
        let parts: Vec<&str> = s.split(separator).collect();
        counts.contains(&parts.len())
            && parts.iter().all(|p| p.len() == width && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2, &[6, 8, 20]) || groups('-', 2, &[6, 8, 20]) || groups('.', 4, &[3, 4, 10])
}

fn is_rgb_color(s: &str) -> bool {
    let Some(inner) = s.strip_prefix("rgb(").and_then(|s| s.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u8>().is_ok())
}

fn is_ssn(s: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let [a, b, c] = [s.get(..3), s.get(4..6), s.get(7..)].map(Option::unwrap_or_default);
    let between = |at: usize| matches!(s.as_bytes().get(at), Some(b'-' | b' '));
    s.len() == 11 && digits(a) && between(3) && digits(b) && between(6) && digits(c)
}

fn is_uri(s: &str) -> bool {
    if s.is_empty() || s.contains(|c: char| c.is_control()) {
        return false;
    }
    if s.starts_with('/') || s == "*" {
        return true;
    }
    let Some((scheme, rest)) = s.split_once(':') else { return false };
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let host = rest.strip_prefix("//").map(|r| r.split(['/', '?', '#']).next().unwrap_or_default());
    // An address in brackets ends with one.
    let closed = |h: &str| !h.contains('[') || h.contains(']');
    named && !rest.is_empty() && host.is_none_or(|h| !h.contains([' ', '<', '>', '"']) && closed(h))
}

fn is_uuid(s: &str, version: Option<u8>) -> bool {
    let mut digits = Vec::with_capacity(32);
    for (i, b) in s.bytes().enumerate() {
        match b {
            // Each dash may be left out.
            b'-' if matches!(digits.len(), 8 | 12 | 16 | 20) && s.as_bytes().get(i + 1) != Some(&b'-') => {}
            b if b.is_ascii_hexdigit() => digits.push(b.to_ascii_lowercase()),
            _ => return false,
        }
    }
    let variant = matches!(version, None | Some(b'3'))
        || digits.get(16).is_some_and(|b| matches!(b, b'8' | b'9' | b'a' | b'b'));
    digits.len() == 32 && !s.ends_with('-') && variant && version.is_none_or(|v| digits[12] == v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        #[rustfmt::skip]
        let cases = [
            ("ipv4", "1.2.3.4", true), ("ipv4", "1.2.3", false), ("ipv6", "::1", true), ("ipv6", "1.2.3.4", false),
            ("cidr", "10.0.0.0/8", true), ("cidr", "10.0.0.0/33", false), ("cidr", "fd00::/64", true), ("cidr", "10.0.0.0", false),
            ("date-time", "2026-01-02T03:04:05Z", true), ("date-time", "2026-01-02T03:04:05.123+01:00", true),
            ("datetime", "2026-01-02", false), ("date-time", "2026-13-02T03:04:05Z", false), ("date-time", "2026-01-02T24:04:05Z", false),
            ("date", "2026-02-28", true), ("date", "2026-02-30", false),
            ("duration", "1h30m", true), ("duration", "22 ns", true), ("duration", "3 days", true), ("duration", "x", false), ("duration", "-1.5h", true), ("duration", "5", false),
            ("email", "a@b.c", true), ("email", "a", false), ("email", "a@@b", false),
            ("hostname", "example.com", true), ("hostname", "a..b", false), ("hostname", "-a", false), ("hostname", "localhost", true),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", true), ("uuid", "123e4567", false),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", true), ("uuid4", "123e4567-e89b-12d3-a456-426614174000", false),
            ("uri", "https://example.com/x", true), ("uri", "/x", true), ("uri", "x", false), ("uri", "mailto:a@b", true),
            ("byte", "aGk=", true), ("byte", "%", false), ("mac", "00:00:5e:00:53:01", true), ("mac", "00:00", false),
            ("hexcolor", "#fff", true), ("hexcolor", "#ff", false), ("rgbcolor", "rgb(1,2,255)", true), ("rgbcolor", "rgb(1,2,256)", false),
            ("isbn10", "0321751043", true), ("isbn", "978-0321751041", true), ("isbn13", "978-0321751042", false),
            ("ssn", "111-22-3333", true), ("ssn", "1", false), ("ssn", "111223333", false), ("byte", "", false), ("uri", "http://[::1", false),
            ("ipv4", "01.2.3.4", true), ("ipv4", "1.2.3.256", false), ("cidr", "01.0.0.0/8", true), ("ipv4", "::ffff:1.2.3.4", true),
            ("hostname", "2020-01-01", false), ("hostname", "a-", true), ("hostname", "a.", false), ("hostname", "xn--a", false), ("hostname", "a-b", true), ("hostname", "a-b.c", false), ("hostname", "a-b-c.com", true), ("hostname", "1.2.3.4", false), ("creditcard", "4111 1111 1111 1111", true), ("creditcard", "4111 1111 1111 1112", false),
            ("bsonobjectid", "507f1f77bcf86cd799439011", true), ("bsonobjectid", "x", false), ("password", "", true),
            ("k8s-short-name", "a-b", true), ("k8s-short-name", "a.b", false), ("k8s-long-name", "a.b", true), ("whatever", "x", true),
        ];
        for (format, text, expect) in cases {
            assert_eq!(matches(format, text), expect, "{format} {text}");
        }
    }
}
