//! `resource.Quantity`: exact decimal amounts such as `100m`, `1.5Gi` and `12e6`.
//!
//! In: the string (or JSON number) of an API object. Out: an exact number that compares, adds and rounds,
//! and upstream's canonical form of it. A quantity is a mantissa of at most 128 bits times a power of ten;
//! upstream's numbers are unbounded, but nothing that measures a resource needs more, and here the bound
//! keeps hostile input cheap.

mod text;

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    ops::{Add, AddAssign, Neg, Sub, SubAssign},
};

use serde_json::Value;

/// Why a string is no quantity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is out of bounds.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes a quantity was written with, and is written with again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// `m`, `k`, `M`, …
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, …
    BinarySi,
    /// `e3`, `E6`, …
    DecimalExponent,
}

/// The smallest power of ten that a quantity represents; smaller amounts are rounded up to it.
const NANO: i32 = -9;
/// The sum of two amounts below `10^(ROOM + 1)` fits a mantissa.
const ROOM: i32 = 36;

/// An amount: `mantissa × 10^scale`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
}

/// The largest power of ten that a suffix may name: far beyond sense, so that arithmetic on scales cannot overflow.
const EXPONENT_MAX: i32 = 1_000_000;

fn pow10(exponent: u32) -> Option<i128> {
    10i128.checked_pow(exponent)
}

/// `value / 10^by`, rounded away from zero, and whether that was exact.
fn divide_up(value: i128, by: u32) -> (i128, bool) {
    match pow10(by) {
        Some(divisor) => {
            let (quotient, rest) = (value / divisor, value % divisor);
            (quotient + rest.signum(), rest == 0)
        }
        None => (value.signum(), value == 0),
    }
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { mantissa: 0, scale: 0, format: Format::DecimalSi };

    /// A whole amount.
    pub const fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value as i128, scale: 0, format }
    }

    /// An amount in thousandths.
    pub const fn from_milli(value: i64, format: Format) -> Self {
        Self { mantissa: value as i128, scale: -3, format }
    }

    /// An amount in units of `10^scale`. Below nano it is rounded up.
    pub fn from_scaled(value: i64, scale: i32, format: Format) -> Self {
        Self { mantissa: i128::from(value), scale: scale.clamp(-EXPONENT_MAX, EXPONENT_MAX), format }
            .round_up(NANO)
            .0
    }

    /// Reads a quantity from JSON: a string, a number, or `null` for zero.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::Null => Ok(Self::ZERO),
            Value::String(text) => Self::parse(text.trim()),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::Format),
        }
    }

    /// The suffix family.
    pub fn format(self) -> Format {
        self.format
    }

    /// The same amount with another suffix family.
    pub fn with_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn signum(self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The amount as a whole number, if it is one that fits.
    pub fn as_i64(self) -> Option<i64> {
        let (value, exact) = self.scaled(0);
        (exact && (i128::from(i64::MIN)..=i128::from(i64::MAX)).contains(&value)).then_some(value as i64)
    }

    /// The amount in units of `10^scale`, rounded away from zero, and whether that was exact; saturates.
    fn scaled(self, scale: i32) -> (i128, bool) {
        if self.mantissa == 0 {
            return (0, true);
        }
        if self.scale < scale {
            return divide_up(self.mantissa, self.scale.abs_diff(scale));
        }
        let up = pow10(self.scale.abs_diff(scale)).and_then(|p| self.mantissa.checked_mul(p));
        match up {
            Some(value) => (value, true),
            None if self.mantissa < 0 => (i128::MIN, false),
            None => (i128::MAX, false),
        }
    }

    /// The amount in units of `10^scale`, rounded away from zero; saturates at 64 bits.
    pub fn scaled_value(self, scale: i32) -> i64 {
        let (value, _) = self.scaled(scale);
        value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// The amount in units, rounded away from zero.
    pub fn value(self) -> i64 {
        self.scaled_value(0)
    }

    /// The amount in thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        self.scaled_value(-3)
    }

    /// The amount in billionths, the finest step there is; saturates.
    pub fn nanos(self) -> i128 {
        self.scaled(NANO).0
    }

    /// The amount rounded away from zero to a multiple of `10^scale`, and whether that was exact.
    pub fn round_up(self, scale: i32) -> (Self, bool) {
        if self.scale >= scale {
            return (self, true);
        }
        let (mantissa, exact) = divide_up(self.mantissa, self.scale.abs_diff(scale));
        (Self { mantissa, scale, format: self.format }, exact)
    }

    /// The nearest double.
    pub fn as_f64(self) -> f64 {
        if self.scale == 0 {
            return self.mantissa as f64;
        }
        if self.scale < 0 && self.scale >= -22 {
            return self.mantissa as f64 / 10f64.powi(-self.scale);
        }
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// The sum; saturates. Adding to zero takes over the other's suffix family.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.mantissa == 0 { other.format } else { self.format };
        let (mantissa, scale) = match (self.mantissa, other.mantissa) {
            (_, 0) => (self.mantissa, self.scale),
            (0, _) => (other.mantissa, other.scale),
            _ => {
                // The finest scale at which both have room. What is finer is rounded away from zero.
                let top = |q: Self| q.scale.saturating_add_unsigned(q.mantissa.unsigned_abs().ilog10());
                let scale = self.scale.min(other.scale).max(top(self).max(top(other)) - ROOM);
                (self.scaled(scale).0 + other.scaled(scale).0, scale)
            }
        };
        Self { mantissa, scale, format }
    }

    /// The product with a whole number; saturates.
    pub fn times(self, factor: i64) -> Self {
        Self { mantissa: self.mantissa.saturating_mul(i128::from(factor)), ..self }
    }
}

/// Compares `a × 10^sa` with `b × 10^sb`.
fn compare(a: i128, sa: i32, b: i128, sb: i32) -> Ordering {
    if a.signum() != b.signum() || a == 0 || sa == sb {
        return a.cmp(&b);
    }
    // Same sign, different scales: scale the one with the larger scale up; if that overflows, it is the
    // one that is larger in magnitude.
    let (larger, other, difference, flip) =
        if sa > sb { (a, b, sa.abs_diff(sb), false) } else { (b, a, sb.abs_diff(sa), true) };
    let order = match pow10(difference).and_then(|p| larger.checked_mul(p)) {
        Some(scaled) => scaled.cmp(&other),
        None if larger > 0 => Ordering::Greater,
        None => Ordering::Less,
    };
    if flip { order.reverse() } else { order }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.mantissa, self.scale, other.mantissa, other.scale)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Equal amounts are equal, whatever their suffixes.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (mut mantissa, mut scale) = (self.mantissa, self.scale);
        while mantissa != 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale += 1;
        }
        (mantissa, if mantissa == 0 { 0 } else { scale }).hash(state);
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.plus(other)
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = self.plus(other);
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { mantissa: self.mantissa.saturating_neg(), ..self }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.plus(-other)
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = self.plus(-other);
    }
}

impl From<Quantity> for Value {
    fn from(quantity: Quantity) -> Self {
        Value::String(quantity.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_form() {
        #[rustfmt::skip]
        let cases = [
            ("0", "0"), ("0m", "0"), ("0Ki", "0"), ("+", "0"), ("-", "0"), (".", "0"), ("00", "0"), ("-0", "0"),
            ("1", "1"), ("100m", "100m"), ("1000m", "1"), ("1500m", "1500m"), ("1.5", "1500m"), (".5", "500m"),
            ("0.1", "100m"), ("0.001", "1m"), ("0.0001", "100u"), ("1n", "1n"), ("0.1n", "1n"), ("1.1n", "2n"),
            ("-0.1n", "-1n"), ("-1.1n", "-2n"), ("1e-100", "1e-9"), ("1000", "1k"), ("1000k", "1M"), ("10000", "10k"),
            ("1234567", "1234567"), ("1.5M", "1500k"), ("1.500", "1.500"), ("1.5000", "1500m"),
            ("1Ki", "1Ki"), ("1024", "1024"), ("1024Ki", "1Mi"), ("1536Mi", "1536Mi"), ("1.5Gi", "1536Mi"),
            ("2048Mi", "2Gi"), ("1025Ki", "1025Ki"), ("0.5Ki", "512"), ("0.1Ki", "102400m"), ("8Ei", "9223372036854775807"),
            ("-8Ei", "-9223372036854775807"), ("1e3", "1e3"), ("1E3", "1E3"), ("12e6", "12e6"), ("1000e3", "1e6"),
            ("1.5e3", "1500"), ("1.5e4", "1.5e4"), ("1.5e5", "150e3"), ("100e1", "1e3"), ("1E", "1E"), ("10E", "10E"), ("1000E", "1000E"),
            ("0.0000000001Ki", "103n"), ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775808"), ("-1.5Gi", "-1536Mi"), ("0.000000000000000000001", "1n"),
            ("1.0000000000000000000000000000000000000000000001", "1000000001n"), ("999999999999999999Ki", "9223372036854775807"),
            ("10E1000000", "100e999999"),
        ];
        for (text, expect) in cases {
            assert_eq!(Quantity::canonicalize(text).unwrap(), expect, "{text}");
        }
    }

    #[test]
    fn errors() {
        use QuantityError::{Format, Numeric, Suffix};
        for (text, error) in [
            ("", Format),
            ("abc", Format),
            ("1.2.3", Format),
            ("1 ", Format),
            ("--1", Suffix),
            ("1e3m", Format),
            ("Pi", Numeric),
            ("+.Ei", Numeric),
            ("e-10", Numeric),
            ("1ki", Suffix),
            ("1K", Suffix),
            ("1e", Suffix),
            ("1e1000001", Suffix),
            // Its zeros would move into the suffix.
            ("100000E1000000", Suffix),
            ("1Kii", Suffix),
            ("1e99999999999", Suffix),
            ("1e-2147483648", Suffix),
            (&"9".repeat(60), Numeric),
        ] {
            assert_eq!(Quantity::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn rounding_and_values() {
        let q = |text| Quantity::parse(text).unwrap();
        assert_eq!(q("1.1").value(), 2);
        assert_eq!(q("-1.1").value(), -2);
        assert_eq!(q("1500m").milli_value(), 1500);
        assert_eq!(q("1u").milli_value(), 1);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("1e30").value(), i64::MAX);
        assert_eq!(q("2k").as_i64(), Some(2000));
        assert_eq!(q("1m").as_i64(), None);
        assert_eq!(q("0.25").as_f64(), 0.25);
        assert_eq!((q("1Gi") + q("1")).to_string(), "1073741825");
        assert_eq!((q("0") + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("100m")).to_string(), "900m");
        // A sum is no less than its parts, however far apart they are.
        assert!(q("1e30") + q("1n") > q("1e30") && q("1n") + q("1e400") > q("1e400"));
        assert_eq!(q("1e400") - q("1e400"), Quantity::ZERO);
        assert_eq!(q("100m").times(15).to_string(), "1500m");
        assert_eq!(q("1500m").round_up(0), (q("2"), false));
        assert!(q("1Ki") > q("1k") && q("1e100") > q("1E") && q("-1e100") < q("-1E"));
        assert_eq!(q("1024"), q("1Ki"));
        assert_eq!(Quantity::from_value(&serde_json::json!(0.5)).unwrap().to_string(), "500m");
    }

    prop_compose! {
        fn quantity()(mantissa in -1_000_000_000_000i64..1_000_000_000_000, scale in -9i32..10,
                      format in prop_oneof![Just(Format::DecimalSi), Just(Format::BinarySi), Just(Format::DecimalExponent)])
                     -> Quantity {
            Quantity::from_scaled(mantissa, scale, format)
        }
    }

    proptest! {
        #[test]
        fn printing_loses_nothing(q in quantity()) {
            // Binary suffixes end at 2^63.
            prop_assume!(q.format() != Format::BinarySi || q.value().unsigned_abs() < i64::MAX as u64);
            let text = q.to_string();
            let again = Quantity::parse(&text).unwrap();
            prop_assert_eq!(again, q);
            if q.format() != Format::BinarySi {
                prop_assert_eq!(Quantity::canonicalize(&text).unwrap().into_owned(), text);
            }
        }

        #[test]
        fn addition_is_a_group(a in quantity(), b in quantity(), c in quantity()) {
            prop_assert_eq!(a + b, b + a);
            prop_assert_eq!((a + b) + c, a + (b + c));
            prop_assert_eq!(a - a, Quantity::ZERO);
            prop_assert_eq!((a + b) - b, a);
        }

        #[test]
        fn order_agrees_with_subtraction(a in quantity(), b in quantity()) {
            prop_assert_eq!(a.cmp(&b) as i32, (a - b).signum());
        }

        #[test]
        fn rounding_is_away_from_zero_and_near(q in quantity()) {
            let up = Quantity::new(q.value(), Format::DecimalSi);
            let distance = if q.signum() < 0 { q - up } else { up - q };
            prop_assume!(q.value() != i64::MAX && q.value() != i64::MIN);
            prop_assert!(distance.signum() >= 0 && distance < Quantity::new(1, Format::DecimalSi));
        }

        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,50}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(text) = Quantity::canonicalize(&text) {
                prop_assert!(Quantity::parse(&text).is_ok());
            }
        }
    }
}
