//! How a text is written in YAML: whether it can stand without quotes, and with which if not (libyaml's analysis, and
//! go-yaml's of what reads as something else than a text).

use std::{fmt::Write as _, sync::LazyLock};

use regex::Regex;

/// How a text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    /// As it is.
    Plain,
    /// In single quotes, which are doubled inside.
    Single,
    /// In double quotes, with escapes.
    Double,
    /// Line by line behind a bar.
    Literal,
}

/// Which style a text has. `is_key`: in one line.
pub(super) fn style(text: &str, is_key: bool) -> Style {
    let allowed = Allowed::of(text);
    if text.contains('\n') {
        return if allowed.literal && !is_key { Style::Literal } else { Style::Double };
    }
    match () {
        () if !reads_as_text(text) => Style::Double,
        () if allowed.plain => Style::Plain,
        () if allowed.single => Style::Single,
        () => Style::Double,
    }
}

/// What a text can be written as.
struct Allowed {
    plain: bool,
    single: bool,
    literal: bool,
}

impl Allowed {
    fn of(text: &str) -> Self {
        // Signs that mean something in a block.
        let mut indicates = text.starts_with("---") || text.starts_with("...");
        // A space before a line's end, and one behind it.
        let (mut space_break, mut break_space) = (false, false);
        let mut special = false;
        let mut before: Option<char> = None;
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            let next = characters.peek().copied();
            let is_followed = next.is_none_or(is_blank);
            indicates |= match (before, c) {
                (None, '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"') => true,
                (None, '%' | '@' | '`') => true,
                (None, '?' | '-') | (_, ':') => is_followed,
                (Some(before), '#') => is_blank(before),
                _ => false,
            };
            special |= !is_printable(c);
            space_break |= before == Some(' ') && c == '\n';
            break_space |= before == Some('\n') && c == ' ';
            before = Some(c);
        }
        let trails = text.ends_with(' ');
        let bounded = text.starts_with([' ', '\n']) || text.ends_with('\n') || trails;
        let unfit = space_break || special;
        Self {
            plain: !unfit && !bounded && !break_space && !text.contains('\n') && !indicates,
            single: !unfit && !break_space,
            literal: !unfit && !trails,
        }
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\0')
}

/// What stands in a text as it is. Upstream's library takes characters beyond 16 bits for unprintable.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}

/// A character in double quotes.
pub(super) fn escaped(c: char) -> String {
    let mut out = String::with_capacity(8);
    let short = match c {
        '\0' => '0',
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        '\x1b' => 'e',
        '"' | '\\' => c,
        '\u{85}' => 'N',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        c if is_printable(c) => {
            out.push(c);
            return out;
        }
        c => {
            let number = u32::from(c);
            let _ = match number {
                0..=0xff => write!(out, "\\x{number:02X}"),
                0x100..=0xffff => write!(out, "\\u{number:04X}"),
                _ => write!(out, "\\U{number:08X}"),
            };
            return out;
        }
    };
    out.push('\\');
    out.push(short);
    out
}

/// A float in the fewest digits, with an exponent from a million on.
pub(super) fn float(number: f64) -> String {
    let text = format!("{number:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => number.to_string(),
    }
}

static FLOAT: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"));
static BASE_60: LazyLock<Regex> = LazyLock::new(|| regex(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$"));
static TIME: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})([Tt][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(\.[0-9]+)?(Z|[-+][0-9]{2}:[0-9]{2})| [0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(\.[0-9]+)?)?$",
    )
});

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern")
}

/// Whether the text means itself without quotes: no number, time, truth or nothing, and no merge (which upstream's library
/// leaves bare, and then does not read back).
fn reads_as_text(text: &str) -> bool {
    let is_word =
        matches!(
            text,
            "" | "~"
                | "null"
                | "Null"
                | "NULL"
                | "y"
                | "Y"
                | "yes"
                | "Yes"
                | "YES"
                | "on"
                | "On"
                | "ON"
                | "n"
                | "N"
        ) || matches!(text, "no" | "No" | "NO" | "off" | "Off" | "OFF" | "true" | "True" | "TRUE" | "false")
            || matches!(text, "False" | "FALSE" | ".nan" | ".NaN" | ".NAN" | "<<");
    if is_word || matches!(text.strip_prefix(['+', '-']).unwrap_or(text), ".inf" | ".Inf" | ".INF") {
        return false;
    }
    match text.as_bytes()[0] {
        b'.' => text.parse::<f64>().is_err(),
        b'0'..=b'9' | b'+' | b'-' => {
            let plain = text.replace('_', "");
            let is_float = FLOAT.is_match(&plain) && plain.parse::<f64>().is_ok_and(f64::is_finite);
            !(is_float || is_integer(&plain) || BASE_60.is_match(text) || is_time(text))
        }
        _ => true,
    }
}

/// Whether Go reads an integer of 64 bits, in whatever base its prefix says.
fn is_integer(text: &str) -> bool {
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = [("0x", 16), ("0b", 2), ("0o", 8)]
        .into_iter()
        .find_map(|(prefix, base)| Some((base, lower.strip_prefix(prefix)?)))
        .unwrap_or(if lower.len() > 1 && lower.starts_with('0') { (8, &lower[1..]) } else { (10, &*lower) });
    let is_number = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    let value = u64::from_str_radix(digits, base).ok().filter(|_| is_number);
    // Without a sign there is room for twice as much.
    let most = if is_negative {
        1 << 63
    } else if text.starts_with('+') {
        (1 << 63) - 1
    } else {
        u64::MAX
    };
    value.is_some_and(|value| value <= most)
}

fn is_time(text: &str) -> bool {
    let Some(found) = TIME.captures(text) else { return false };
    let number = |at: usize| found.get(at).and_then(|m| m.as_str().parse::<i8>().ok()).unwrap_or_default();
    let year = found.get(1).and_then(|m| m.as_str().parse::<i16>().ok()).unwrap_or_default();
    let clock = found.get(4).map_or("", |m| m.as_str());
    let mut parts = clock.trim_start_matches(['T', 't', ' ']).split([':', '.', 'Z', '+', '-']);
    let is_clock = clock.is_empty()
        || [24, 60, 60]
            .into_iter()
            .all(|end| parts.next().and_then(|p| p.parse::<u8>().ok()).is_some_and(|p| p < end));
    jiff::civil::Date::new(year, number(2), number(3)).is_ok() && is_clock
}
