//! Quantities as text: what is read, and the canonical form that is written.

use std::{borrow::Cow, cmp::Ordering, fmt, str::FromStr};

use super::{EXPONENT_MAX, Format, NANO, Quantity, QuantityError, compare, divide_up};

/// Decimals of an amount with a binary suffix that can matter: `2^60` times any further one is below nano.
const MAX_BINARY_DECIMALS: usize = 28;
/// Largest amount that binary suffixes can say; more is capped.
const MAX_BINARY: i128 = i64::MAX as i128;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
/// The n-th stands for 1024 to the n+1.
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

struct Parts<'a> {
    negative: bool,
    /// Digits before the point, without leading zeros.
    whole: &'a str,
    /// Digits after the point.
    fraction: &'a str,
    suffix: &'a str,
}

fn digits_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err(QuantityError::Format),
    };
    let rest = rest.trim_start_matches('0');
    let (whole, mut rest) = rest.split_at(digits_len(rest.as_bytes()));
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        (fraction, rest) = after.split_at(digits_len(after.as_bytes()));
    }
    // The suffix: letters, then perhaps a signed number, then the end.
    let tail = rest.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if digits_len(tail.as_bytes()) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix: rest })
}

/// `(power of ten, power of two, format)` of a suffix.
fn interpret(suffix: &str) -> Option<(i32, u32, Format)> {
    if let Some(&(_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((exponent, 0, Format::DecimalSi));
    }
    if let Some(i) = BINARY.iter().position(|s| *s == suffix) {
        return Some((0, 10 * (i as u32 + 1), Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent = exponent.parse::<i32>().ok().filter(|e| (-EXPONENT_MAX..=EXPONENT_MAX).contains(e))?;
    Some((exponent, 0, Format::DecimalExponent))
}

impl Quantity {
    /// Parses a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        Self::parse_written(text).map(|(quantity, _)| quantity)
    }

    /// Parses a quantity; also says whether upstream considers `text` canonical as written, and so repeats
    /// it instead of normalizing it.
    fn parse_written(text: &str) -> Result<(Self, bool), QuantityError> {
        let Parts { negative, whole, fraction, suffix } = split(text)?;
        let (exponent, shift, format) = interpret(suffix).ok_or(QuantityError::Suffix)?;
        let digits = whole.len().max(1) + fraction.len();
        // No digits at all are zero, but not where upstream computes with big numbers.
        let has_digits = || text[..text.len() - suffix.len()].bytes().any(|b| b.is_ascii_digit());
        if (shift >= 50 || exponent < NANO) && !has_digits() {
            return Err(QuantityError::Numeric);
        }

        // What is below nano only matters in whether there is any of it.
        let keep = if shift == 0 {
            usize::try_from(i64::from(exponent) - i64::from(NANO)).unwrap_or(0).min(fraction.len())
        } else {
            fraction.len().min(MAX_BINARY_DECIMALS)
        };
        let (kept, dropped) = fraction.split_at(keep);
        let mut any_dropped = dropped.bytes().any(|b| b != b'0');
        let mut mantissa = 0i128;
        for digit in whole.bytes().chain(kept.bytes()) {
            mantissa = mantissa
                .checked_mul(10)
                .and_then(|m| m.checked_add(i128::from(digit - b'0')))
                .ok_or(QuantityError::Numeric)?;
        }
        let mut scale = exponent - i32::try_from(keep).map_err(|_| QuantityError::Numeric)?;
        if shift > 0 {
            mantissa = match mantissa.checked_mul(1i128 << shift) {
                Some(product) => product,
                // Far over the cap, or with so many decimals that shedding some changes nothing but nanos.
                None if keep == 0 => MAX_BINARY + 1,
                None => {
                    let shed = (keep as u32).min(18);
                    let (less, exact) = (mantissa / 10i128.pow(shed), mantissa % 10i128.pow(shed) == 0);
                    any_dropped |= !exact;
                    scale += shed as i32;
                    less.checked_mul(1i128 << shift).ok_or(QuantityError::Numeric)?
                }
            };
        }
        if scale < NANO {
            let (rounded, exact) = divide_up(mantissa, scale.abs_diff(NANO));
            // Where a remainder was left, it is rounded up already.
            mantissa = if exact && any_dropped { rounded + 1 } else { rounded };
            scale = NANO;
        } else if any_dropped {
            // Everything dropped lies below nano, so the mantissa counts nanos here.
            mantissa += 1;
        }
        if shift > 0 && compare(mantissa, scale, MAX_BINARY, 0) == Ordering::Greater {
            (mantissa, scale) = (MAX_BINARY, 0);
        }
        // Binary amounts below one are written with decimal suffixes.
        let below_one = mantissa > 0 && compare(mantissa, scale, 1, 0) == Ordering::Less;
        let format = if shift > 0 && below_one { Format::DecimalSi } else { format };

        let exact_scale = i64::from(exponent) - fraction.len() as i64;
        let written = match shift {
            0 => {
                let significant = digits <= 18 && !whole.is_empty() && exact_scale >= i64::from(NANO);
                let zeros = {
                    let last = whole.bytes().chain(fraction.bytes()).rev().take(3);
                    digits >= 3 && last.filter(|b| *b == b'0').count() == 3
                };
                significant && exact_scale % 3 == 0 && !zeros
            }
            shift => {
                let precision = 15 - whole.len().max(1) as i32 - (shift * 3 / 10) as i32 - 1;
                let odd = whole.bytes().fold(0u8, |n, b| n.wrapping_mul(10).wrapping_add(b - b'0')) & 7;
                fraction.is_empty() && precision >= 0 && odd != 0
            }
        };
        if negative {
            mantissa = -mantissa;
        }
        let parsed = Self { mantissa, scale, format };
        // What is read must be readable as it is written then: zeros move into the suffix, as many as digits fit.
        if exponent > EXPONENT_MAX - 64 && parsed.canonical_decimal().1 > EXPONENT_MAX {
            return Err(QuantityError::Suffix);
        }
        Ok((parsed, written))
    }

    /// The form in which the API server writes what a client sent as `text`.
    pub fn canonicalize(text: &str) -> Result<Cow<'_, str>, QuantityError> {
        let (quantity, written) = Self::parse_written(text)?;
        Ok(if written { Cow::Borrowed(text) } else { Cow::Owned(quantity.to_string()) })
    }

    /// Mantissa and exponent with the exponent the largest multiple of three that loses nothing.
    fn canonical_decimal(self) -> (i128, i32) {
        let (mut mantissa, mut exponent) = (self.mantissa, self.scale);
        while mantissa % 10 == 0 && mantissa != 0 {
            mantissa /= 10;
            exponent += 1;
        }
        let limit = if self.format == Format::DecimalExponent { i32::MAX } else { 18 };
        while exponent.rem_euclid(3) != 0 || exponent > limit {
            match mantissa.checked_mul(10) {
                Some(more) => mantissa = more,
                None => break,
            }
            exponent -= 1;
        }
        (mantissa, exponent)
    }

    /// The number as binary suffixes write it, where they can without losing anything.
    fn canonical_binary(self) -> Option<(i128, usize)> {
        let (mut value, exact) = self.scaled(0);
        if !exact || value.abs() < 1024 {
            return None;
        }
        let mut times = 0;
        while value.abs() >= 1024 && value % 1024 == 0 && times < BINARY.len() {
            value /= 1024;
            times += 1;
        }
        Some((value, times))
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

/// The canonical form.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && let Some((value, times)) = self.canonical_binary()
        {
            let suffix = times.checked_sub(1).map_or("", |i| BINARY[i]);
            return write!(f, "{value}{suffix}");
        }
        let (mantissa, exponent) = self.canonical_decimal();
        match DECIMAL.iter().find(|(_, e)| *e == exponent) {
            Some((suffix, _)) if self.format != Format::DecimalExponent => write!(f, "{mantissa}{suffix}"),
            _ if exponent == 0 => write!(f, "{mantissa}"),
            _ => write!(f, "{mantissa}e{exponent}"),
        }
    }
}
