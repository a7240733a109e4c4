//! CBOR (RFC 8949) as upstream reads and writes it: the data model of JSON in another form.
//!
//! Reading: what is not well-formed, has keys twice, holds NaN, infinities, bignums or simple values other than
//! `true`, `false` and `null` is refused. Text and byte strings both are strings; where a byte string is tagged with
//! the encoding it is to have in text (tags 21 to 23), it takes that encoding. Writing: strings are byte strings,
//! which need not be checked; bytes, which JSON has in base64, carry tag 22; floats are as short as they can be.
//! Documents begin with the tag that says they are CBOR.

mod read;
mod wellformed;
mod write;

pub(crate) use self::read::{Reader, duplicate, unknown};
pub use self::{
    read::type_meta,
    wellformed::{check, first},
    write::{Malformed, array_head, map_head, string, write},
};

/// The tag that begins a document (55799).
pub const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// Majors, the upper three bits of an item's first byte.
mod major {
    pub(super) const POSITIVE: u8 = 0;
    pub(super) const NEGATIVE: u8 = 1;
    pub(super) const BYTES: u8 = 2;
    pub(super) const TEXT: u8 = 3;
    pub(super) const ARRAY: u8 = 4;
    pub(super) const MAP: u8 = 5;
    pub(super) const TAG: u8 = 6;
    pub(super) const PRIMITIVE: u8 = 7;

    /// How errors name them.
    pub(super) const NAMES: [&str; 8] = [
        "positive integer",
        "negative integer",
        "byte string",
        "UTF-8 text string",
        "array",
        "map",
        "tag",
        "primitives",
    ];
}

/// Tags that mean something here.
mod tag {
    pub(super) const TIME: u64 = 0;
    pub(super) const EPOCH: u64 = 1;
    pub(super) const BIGNUM: u64 = 2;
    pub(super) const NEGATIVE_BIGNUM: u64 = 3;
    pub(super) const BASE64_URL: u64 = 21;
    pub(super) const BASE64: u64 = 22;
    pub(super) const BASE16: u64 = 23;
}

/// The double that a half-precision float is.
fn half(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    let value = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(i32::from(e) - 15),
    };
    if sign == 1 { -value } else { value }
}

#[cfg(test)]
mod tests;
