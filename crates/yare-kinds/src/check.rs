//! Collecting errors so that validations read like prose, and the small checks that many kinds share.

use serde_json::Value;
use yare_schema::{
    decode,
    field::{FieldError, Path},
    goprint,
    quantity::Quantity,
};

use crate::{
    meta, names,
    shown::{self, Shape},
    view::View,
};

/// The errors of one object.
pub type Errors = Vec<FieldError>;

/// What can be said of a field. Every method appends to the errors where the rule is broken.
pub trait Check {
    /// The value is missing.
    fn required(&mut self, path: &Path<'_>, detail: impl Into<String>);
    /// The value is wrong.
    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>);
    /// The value is wrong, and is shown as upstream's type.
    fn invalid_shown(&mut self, path: &Path<'_>, value: &Value, shape: &Shape, detail: &str);
    /// The field may not be set.
    fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>);
    /// The value stands twice.
    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>);
    /// The value names nothing.
    fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>);
    /// One error per message.
    fn each(&mut self, path: &Path<'_>, value: impl Into<Value>, messages: Vec<String>);
    /// `value` has to be one of `allowed`.
    fn one_of(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]);
    /// `value` has to be there and one of `allowed`.
    fn required_one_of(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]);
    /// [`Check::one_of`], with `allowed` in the order in which upstream lists it.
    fn one_listed(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]);
    /// [`Check::required_one_of`], with `allowed` in the order in which upstream lists it.
    fn required_one_listed(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]);
    /// `value` may not be empty.
    fn non_empty(&mut self, path: &Path<'_>, value: &str);
    /// `value` may not be empty and has to follow `rule`.
    fn name(&mut self, path: &Path<'_>, value: &str, rule: fn(&str) -> Vec<String>);
    /// `value` may not be negative.
    fn non_negative(&mut self, path: &Path<'_>, value: i64);
    /// `value` has to be greater than zero.
    fn positive(&mut self, path: &Path<'_>, value: i64);
    /// `value` has to lie in `lo..=hi`.
    fn in_range(&mut self, path: &Path<'_>, value: i64, lo: i64, hi: i64);
    /// The field cannot change.
    fn immutable(&mut self, path: &Path<'_>, new: &Value, old: &Value);
    /// `new` may not differ from `old`, and is shown as upstream's type.
    fn immutable_shown(&mut self, path: &Path<'_>, new: &Value, old: &Value, shape: &Shape);
    /// A number of a port, or the name of one.
    fn port(&mut self, path: &Path<'_>, port: &Value);
}

impl Check for Errors {
    fn required(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.push(FieldError::required(path, detail));
    }

    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldError::invalid(path, value, detail));
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.push(FieldError::forbidden(path, detail));
    }

    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.push(FieldError::duplicate(path, value));
    }

    fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.push(FieldError::not_found(path, value));
    }

    fn each(&mut self, path: &Path<'_>, value: impl Into<Value>, messages: Vec<String>) {
        if !messages.is_empty() {
            self.extend(meta::invalid_each(path, value, messages));
        }
    }

    fn one_of(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            self.push(FieldError::not_supported(path, value, allowed));
        }
    }

    fn required_one_of(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.one_of(path, value, allowed);
        }
    }

    fn one_listed(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            self.push(FieldError::not_listed(path, value, allowed));
        }
    }

    fn required_one_listed(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.one_listed(path, value, allowed);
        }
    }

    fn non_empty(&mut self, path: &Path<'_>, value: &str) {
        if value.is_empty() {
            self.required(path, "");
        }
    }

    fn name(&mut self, path: &Path<'_>, value: &str, rule: fn(&str) -> Vec<String>) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.each(path, value, rule(value));
        }
    }

    fn non_negative(&mut self, path: &Path<'_>, value: i64) {
        self.extend(meta::non_negative(value, path));
    }

    fn positive(&mut self, path: &Path<'_>, value: i64) {
        if value <= 0 {
            self.invalid(path, value, "must be greater than zero");
        }
    }

    fn in_range(&mut self, path: &Path<'_>, value: i64, lo: i64, hi: i64) {
        if !(lo..=hi).contains(&value) {
            self.invalid(path, value, names::range_message(lo, hi));
        }
    }

    fn invalid_shown(&mut self, path: &Path<'_>, value: &Value, shape: &Shape, detail: &str) {
        self.push(FieldError::invalid(path, Value::Null, detail).showing(shown::show(value, shape)));
    }

    fn immutable_shown(&mut self, path: &Path<'_>, new: &Value, old: &Value, shape: &Shape) {
        let error = meta::immutable(new, old, path);
        self.extend(error.map(|error| error.showing(shown::show(new, shape))));
    }

    fn immutable(&mut self, path: &Path<'_>, new: &Value, old: &Value) {
        self.extend(meta::immutable(new, old, path));
    }

    fn port(&mut self, path: &Path<'_>, port: &Value) {
        match port {
            Value::String(name) => self.each(path, name.as_str(), names::port_name(name)),
            _ => {
                let number = port.as_i64().unwrap_or_default();
                self.each(path, number, names::port_number(number));
            }
        }
    }
}

/// The amount that `value` writes; 0 where it writes none (decoding has refused that before).
pub fn quantity(value: &Value) -> Quantity {
    Quantity::from_value(value).unwrap_or_default()
}

/// JSON that stands in a string, or what Go says of it. `fits` tells whether it is what upstream reads it into,
/// a Go type of the name `wanted`.
pub fn go_json(bytes: &[u8], fits: fn(&Value) -> bool, wanted: &str) -> Result<Value, String> {
    let value = decode::decode_untyped(bytes, decode::Mode::Ignore).map_err(|e| e.to_string())?.value;
    if value.is_null() || fits(&value) { Ok(value) } else { Err(goprint::unreadable(&value, wanted)) }
}

/// An annotation of `object`'s metadata.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.at("metadata.annotations").get(key)?.as_str()
}

/// What stands twice in `items`, in order, without the first.
pub fn repeated<'a>(items: &[&'a str]) -> Vec<(usize, &'a str)> {
    items
        .iter()
        .enumerate()
        .filter(|(i, item)| items[..*i].contains(item))
        .map(|(i, item)| (i, *item))
        .collect()
}

/// Errors in the name of a certificate signer: `example.com/signer`.
pub fn check_signer_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    let [domain, own] = name.split('/').collect::<Vec<_>>()[..] else {
        return errs.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    };
    if domain.len() > names::SUBDOMAIN_MAX {
        errs.push(FieldError::too_long(path, names::SUBDOMAIN_MAX));
    }
    let mut labels = |part: &str, rule: fn(&str) -> Vec<String>| {
        let bad =
            part.split('.').map(|label| (label, rule(label))).find(|(_, messages)| !messages.is_empty());
        if let Some((label, messages)) = bad {
            let messages = messages.iter().map(|m| format!("validating label {label:?}: {m}")).collect();
            errs.each(path, part, messages);
        }
    };
    labels(domain, names::dns1123_label);
    labels(own, names::dns1123_subdomain);
    if !domain.contains('.') {
        errs.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
    const MAX: usize = 2 * names::SUBDOMAIN_MAX + names::LABEL_MAX + 2;
    if name.len() > MAX {
        errs.push(FieldError::too_long(path, MAX));
    }
}
