//! Resource quantities (`100m`, `1Gi`, `1e3`) as numbers.
//!
//! In: the text of a quantity as the API serves it. Out: whole units, thousandths or billionths, rounded up,
//! which is what cgroups, admission and the downward API need; and amounts of a machine as quantities.

use yare_schema::quantity::Quantity;

/// Billionths of one.
const NANO: i128 = 1_000_000_000;

/// The quantity in billionths, or `None` when the text is not a quantity.
pub fn nanos(text: &str) -> Option<i128> {
    Quantity::parse(text).ok().map(Quantity::nanos)
}

/// Thousandths, rounded up; 0 for what does not parse (the API server has validated it).
pub fn milli(text: &str) -> i64 {
    Quantity::parse(text).map_or(0, Quantity::milli_value)
}

/// Whole units, rounded up; 0 for what does not parse.
pub fn value(text: &str) -> i64 {
    Quantity::parse(text).map_or(0, Quantity::value)
}

/// `amount / divisor` in whole units, rounded up (downward API's `resourceFieldRef`).
pub fn divided(amount_nano: i128, divisor: &str) -> i64 {
    let divisor = nanos(divisor).filter(|d| *d > 0).unwrap_or(NANO);
    clamp(ceil_div(amount_nano, divisor))
}

/// Thousandths as a canonical quantity: `1500m`, `2`.
pub fn from_milli(milli: i64) -> String {
    if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") }
}

/// Bytes as a canonical quantity: `16Ki` where they divide, else plain digits.
pub fn from_bytes(bytes: u64) -> String {
    if bytes > 0 && bytes.is_multiple_of(1024) { format!("{}Ki", bytes / 1024) } else { bytes.to_string() }
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_form() {
        for (text, want_milli, want_value) in [
            ("0", 0, 0),
            ("100m", 100, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            (".5", 500, 1),
            ("1Ki", 1_024_000, 1024),
            ("128Mi", 134_217_728_000, 134_217_728),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("1e3", 1_000_000, 1000),
            (
                "2E",
                2_000_000_000_000_000_000_000i128.min(i128::from(i64::MAX)) as i64,
                2_000_000_000_000_000_000,
            ),
            ("5k", 5_000_000, 5000),
            ("100n", 1, 1),
            ("nonsense", 0, 0),
        ] {
            assert_eq!(milli(text), want_milli, "{text}");
            assert_eq!(value(text), want_value, "{text}");
        }
    }

    #[test]
    fn divides_up() {
        assert_eq!(divided(nanos("1500m").unwrap(), "1"), 2);
        assert_eq!(divided(nanos("1500m").unwrap(), "1m"), 1500);
        assert_eq!(divided(nanos("100Mi").unwrap(), "1Mi"), 100);
    }
}
