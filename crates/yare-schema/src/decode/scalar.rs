//! Scalars: numbers that fit, and text that stands for bytes, quantities, times and durations in its one form.

use std::borrow::Cow;

use base64::{
    Engine as _, alphabet,
    engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD as BASE64},
};
use serde_json::Value;

use super::{Decoder, Outcome, Source, go_type, read};
use crate::{
    gotime,
    model::{Scalar, TypeRef},
    quantity::{Quantity, QuantityError},
};

const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

impl<'a, S: Source<'a>> Decoder<'a, S> {
    pub(super) fn scalar(
        &mut self,
        ty: TypeRef<'a>,
        scalar: Scalar,
        first: Option<u8>,
    ) -> Outcome<Option<Value>> {
        match (scalar, first) {
            (Scalar::String, Some(b'"')) => Ok(Some(Value::String(self.reader.string()?.into_owned()))),
            (Scalar::Bool, Some(b't')) => self.reader.word("true").map(|()| Some(Value::Bool(true))),
            (Scalar::Bool, Some(b'f')) => self.reader.word("false").map(|()| Some(Value::Bool(false))),
            (Scalar::Int32, Some(b'-' | b'0'..=b'9')) => {
                let text = self.reader.number()?;
                Ok(self.number(ty, first, &text, text.parse::<i32>().ok().map(Into::into)))
            }
            (Scalar::Int64, Some(b'-' | b'0'..=b'9')) => {
                let text = self.reader.number()?;
                Ok(self.number(ty, first, &text, text.parse::<i64>().ok().map(Into::into)))
            }
            (Scalar::Float64, Some(b'-' | b'0'..=b'9')) => {
                let text = self.reader.number()?;
                Ok(self.number(ty, first, &text, read::float(&text)))
            }
            (Scalar::Bytes, Some(b'"')) => {
                let found = self.reader.found(first);
                match self.reader.base64()? {
                    Some(text) => Ok(self.bytes(&text)),
                    None => {
                        self.mismatch(ty, found);
                        Ok(None)
                    }
                }
            }
            (Scalar::Bytes, Some(b'[')) if !Self::CBOR => self.octets(ty).map(Some),
            (Scalar::IntOrString, Some(b'"')) => Ok(Some(Value::String(self.reader.string()?.into_owned()))),
            (Scalar::IntOrString, Some(b'-' | b'0'..=b'9')) => {
                let text = self.reader.number()?;
                match text.parse::<i32>() {
                    Ok(n) => Ok(Some(n.into())),
                    Err(_) => {
                        self.fail(self.number_error(ty, first, &text, "int32"));
                        Ok(None)
                    }
                }
            }
            (Scalar::Quantity, Some(b'-' | b'0'..=b'9')) if !Self::CBOR => {
                let text = self.reader.number()?;
                Ok(self.quantity(&text))
            }
            (Scalar::Quantity, Some(b'"')) => {
                let text = self.reader.string()?;
                Ok(self.quantity(&text))
            }
            (Scalar::Time | Scalar::MicroTime | Scalar::Duration, Some(b'"')) => {
                let text = self.reader.string()?;
                match canonical_time(scalar, &text) {
                    Ok(value) => Ok(value),
                    Err(message) => {
                        self.fail(message);
                        Ok(None)
                    }
                }
            }
            (Scalar::Time | Scalar::MicroTime | Scalar::Duration, _) => {
                let found = self.reader.found(first);
                self.reader.skip()?;
                self.fail(self.unmarshal_error(ty, found, "string"));
                Ok(None)
            }
            (Scalar::IntOrString, _) => {
                let found = self.reader.found(first);
                self.reader.skip()?;
                self.fail(self.unmarshal_error(ty, found, "int32"));
                Ok(None)
            }
            (Scalar::Quantity, _) => {
                let found = self.reader.found(first);
                self.reader.skip()?;
                let why = if Self::CBOR {
                    self.unmarshal_error(ty, found, "string")
                } else {
                    QuantityError::Format.to_string()
                };
                self.fail(why);
                Ok(None)
            }
            _ => {
                self.skip_mismatch(ty, first)?;
                Ok(None)
            }
        }
    }

    fn number(
        &mut self,
        ty: TypeRef<'a>,
        first: Option<u8>,
        text: &str,
        value: Option<serde_json::Number>,
    ) -> Option<Value> {
        if value.is_none() && self.failure.is_none() {
            self.failure = Some(self.number_error(ty, first, text, &go_type(ty)));
        }
        value.map(Value::Number)
    }

    /// What is wrong with a number that does not fit its type.
    fn number_error(&self, ty: TypeRef<'a>, first: Option<u8>, text: &str, wanted: &str) -> String {
        match first {
            _ if !Self::CBOR => self.unmarshal_error(ty, &format!("number {text}"), wanted),
            Some(b'1') => self.unmarshal_error(ty, "primitives", wanted),
            _ => {
                let found = if first == Some(b'-') { "negative integer" } else { "positive integer" };
                self.unmarshal_error(ty, found, &format!("{wanted} ({text} overflows {wanted})"))
            }
        }
    }

    fn quantity(&mut self, text: &str) -> Option<Value> {
        match Quantity::canonicalize(text.trim()) {
            Ok(text) => Some(Value::String(text.into_owned())),
            Err(e) => {
                self.fail(e.to_string());
                None
            }
        }
    }

    /// Bytes as a list of numbers, which Go takes as well.
    fn octets(&mut self, ty: TypeRef<'a>) -> Outcome<Value> {
        let mut octets: Vec<u8> = Vec::new();
        self.reader.begin_array()?;
        let mut is_first = true;
        while self.reader.next_item(is_first)? {
            is_first = false;
            let first = self.reader.peek();
            let (octet, found) = if matches!(first, Some(b'-' | b'0'..=b'9')) {
                let text = self.reader.number()?;
                (text.parse().ok(), format!("number {text}"))
            } else {
                let found = self.reader.found(first).to_owned();
                self.reader.skip()?;
                (first.filter(|first| *first == b'n').map(|_| 0), found)
            };
            if octet.is_none() && self.failure.is_none() {
                self.failure = Some(self.unmarshal_error(ty, &found, "uint8"));
            }
            octets.push(octet.unwrap_or_default());
        }
        Ok(Value::String(BASE64.encode(octets)))
    }

    fn bytes(&mut self, text: &str) -> Option<Value> {
        // Go skips line breaks inside base64.
        let text: Cow<'_, str> =
            if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "").into() } else { text.into() };
        match BASE64.decode(text.as_bytes()) {
            Ok(_) => Some(Value::String(text.into_owned())),
            Err(e) => {
                // Go does not mind bits that the last letter has too many, and does not write them.
                if let (base64::DecodeError::InvalidLastSymbol(..), Ok(bytes)) =
                    (&e, LENIENT_BASE64.decode(text.as_bytes()))
                {
                    return Some(Value::String(BASE64.encode(bytes)));
                }
                let at = corrupt_at(text.as_bytes());
                let whose = if Self::CBOR { "cbor: failed to decode base64 from byte string: " } else { "" };
                self.failure.get_or_insert_with(|| format!("{whose}illegal base64 data at input byte {at}"));
                None
            }
        }
    }
}

/// Where Go finds that text is no base64.
fn corrupt_at(text: &[u8]) -> usize {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    for (group, letters) in text.chunks(4).enumerate() {
        let at = group * 4;
        let Some(odd) = letters.iter().position(|byte| !is_letter(*byte)) else {
            if letters.len() < 4 {
                return at;
            }
            continue;
        };
        return match (odd, &letters[odd..]) {
            (2, [b'=']) => text.len(),
            (2, [b'=', b'=']) | (3, [b'=']) => at + 4,
            (2, [b'=', _]) => at + 2,
            _ => at + odd,
        };
    }
    text.len()
}

fn canonical_time(scalar: Scalar, text: &str) -> Result<Option<Value>, String> {
    let text = match scalar {
        Scalar::Duration => gotime::format_duration(gotime::parse_duration(text)?),
        Scalar::MicroTime => {
            let instant = gotime::parse_micro_time(text)?;
            if instant.seconds == gotime::ZERO_TIME_S && instant.nanos == 0 {
                return Ok(None);
            }
            gotime::format_micro_time(instant)
        }
        _ => {
            let instant = gotime::parse_time(text)?;
            if instant.seconds == gotime::ZERO_TIME_S && instant.nanos == 0 {
                return Ok(None);
            }
            gotime::format_time(instant.seconds)
        }
    };
    Ok(Some(Value::String(text)))
}
