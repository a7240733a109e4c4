//! Scalars: numbers that fit, and text that stands for bytes, quantities, times and durations in its one form.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;

use super::{Decoder, Outcome, Source, go_type, read};
use crate::{
    gotime,
    model::{Scalar, TypeRef},
    quantity::{Quantity, QuantityError},
};

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

    fn bytes(&mut self, text: &str) -> Option<Value> {
        // Go skips line breaks inside base64.
        let text: Cow<'_, str> =
            if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "").into() } else { text.into() };
        match BASE64.decode(text.as_bytes()) {
            Ok(_) => Some(Value::String(text.into_owned())),
            Err(e) => {
                let at = match e {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                        text.len() / 4 * 4
                    }
                };
                let whose = if Self::CBOR { "cbor: failed to decode base64 from byte string: " } else { "" };
                self.failure.get_or_insert_with(|| format!("{whose}illegal base64 data at input byte {at}"));
                None
            }
        }
    }
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
