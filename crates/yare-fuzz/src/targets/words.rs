//! Small texts with a grammar: quantities, times, durations, schedules, paths.

use std::cmp::Ordering;

use serde_json::json;
use yare_kinds::cron;
use yare_schema::{
    crd::field_path,
    gotime,
    quantity::{Format, Quantity},
};

use crate::input::{joined, parts};

pub const QUANTITY_WORDS: &[&str] = &[
    "Ki",
    "Mi",
    "Ei",
    "n",
    "u",
    "m",
    "k",
    "E",
    "e",
    "e-9",
    "E18",
    ".",
    "0",
    "+",
    "-",
    "999999999999999999",
    ".000000001",
    "\0",
];
pub const WORDS: &[&str] = &[
    "2026-01-02T03:04:05Z",
    "T",
    ":",
    ".999999",
    "+23:59",
    "-00:00",
    "24",
    "60",
    "h",
    "m",
    "s",
    "ms",
    "us",
    "µs",
    "ns",
    "*/5",
    "@every 1h",
    "@daily",
    "TZ=UTC ",
    "mon-fri",
    "L",
    "?",
    "['",
    "']",
    ".spec",
    "\0",
];

/// Input: two quantities, with a zero byte between.
pub fn quantity(bytes: &[u8]) {
    let [a, b] = parts(bytes).map(|part| String::from_utf8_lossy(part).into_owned());
    let Ok(x) = Quantity::parse(&a) else {
        assert!(Quantity::canonicalize(&a).is_err());
        return;
    };
    let canonical = Quantity::canonicalize(&a).expect("what parses has a canonical form");
    assert_eq!(Quantity::canonicalize(&canonical).as_ref(), Ok(&canonical), "of {a:?}");
    let read = Quantity::parse(&canonical).expect("the canonical form parses");
    assert_eq!(read.cmp(&x), Ordering::Equal, "{a:?} is {canonical:?}");
    let printed = x.to_string();
    let again = Quantity::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} is refused: {e}"));
    assert_eq!(again.cmp(&x), Ordering::Equal, "{a:?} is {printed:?}");
    assert_eq!(again.to_string(), printed);
    if let Some(whole) = x.as_i64() {
        assert_eq!(Quantity::new(whole, Format::DecimalSi).cmp(&x), Ordering::Equal);
        assert_eq!(whole, x.value());
    }
    assert_eq!(x.signum(), x.cmp(&Quantity::ZERO) as i32);
    let Ok(y) = Quantity::parse(&b) else { return };
    assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
    assert_eq!(x.plus(y).cmp(&y.plus(x)), Ordering::Equal, "{a:?} + {b:?}");
    if y.signum() >= 0 {
        assert!(x.plus(y) >= x, "{a:?} + {b:?}");
    }
    for scale in [-9, -3, 0, 3, 18] {
        let (rounded, exact) = x.round_up(scale);
        assert_eq!(exact, rounded == x);
        x.scaled_value(scale);
    }
    let _ = (x.times(-7), x.as_f64(), x.nanos(), x.milli_value());
}

/// Input: a word, a zero byte, another.
pub fn words(bytes: &[u8]) {
    for part in parts::<2>(bytes) {
        let text = String::from_utf8_lossy(part);
        time(&text);
        let _ = cron::parse(&text);
        let _ = cron::time_zone(&text);
        let schema = json!({"properties": {"spec": {"properties": {"a.b": {}, "m": {"additionalProperties": {"properties": {"x": {}}}}}}}});
        let _ = field_path(&schema, &text);
        let _ = yare_cel::unescape(&text);
        if let Some(escaped) = yare_cel::escape(&text) {
            assert_eq!(yare_cel::unescape(&escaped).as_deref(), Some(&*text));
        }
    }
}

fn time(text: &str) {
    if let Ok(instant) = gotime::parse_time(text) {
        let printed = gotime::format_time(instant.seconds);
        assert_eq!(
            gotime::parse_time(&printed).map(|i| i.seconds),
            Ok(instant.seconds),
            "{text:?} is {printed:?}"
        );
    }
    if let Ok(instant) = gotime::parse_micro_time(text) {
        let printed = gotime::format_micro_time(instant);
        assert_eq!(gotime::parse_micro_time(&printed), Ok(instant), "{text:?} is {printed:?}");
    }
    if let Ok(duration) = gotime::parse_duration(text) {
        let printed = gotime::format_duration(duration);
        assert_eq!(gotime::parse_duration(&printed), Ok(duration), "{text:?} is {printed:?}");
    }
}

pub fn quantity_seeds() -> Vec<Vec<u8>> {
    [
        ["1.5Gi", "100m"],
        ["1e3", "1E"],
        ["-0.0000000001", "9223372036854775807Ki"],
        ["123456789012345678901234567890", "0.1n"],
        ["1.000000001", "999Pi"],
        ["+.5", "-1."],
        ["1e-30", "1e30"],
        ["0Ki", "00012.3400M"],
        ["100000E1000000", "10E1000000"],
    ]
    .map(|pair| joined(&pair))
    .into()
}

pub fn word_seeds() -> Vec<Vec<u8>> {
    [
        ["2026-01-02T03:04:05.123456+01:00", "1h2m3.5s"],
        ["0000-01-01T00:00:00Z", "-2562047h47m16.854775808s"],
        ["9999-12-31T23:59:59.999999999-23:59", "1.000000000001ns"],
        ["TZ=Europe/Berlin */5 1-3,7 ? jan-dec mon/2", "@every 1h30m"],
        [".spec['a.b']", "['spec'].m.k.x"],
        ["a.b-c/d__e", "__dot__"],
        ["CRON_TZ=UTC 0 0 31 2 *", "@yearly"],
    ]
    .map(|pair| joined(&pair))
    .into()
}
