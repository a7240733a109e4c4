//! Named formats: what a string must look like.

use std::{any::Any, sync::OnceLock};

use base64::Engine as _;
use regex::Regex;

use super::{Cost, Function, row, standard::never};
use crate::{
    error::EvalError,
    time,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

/// The mistakes of a text; none if it has the format.
type Check = fn(&str) -> Vec<String>;

/// A format: the name in expressions, its own name, the size it is charged for, the check.
#[derive(Debug)]
struct Format {
    key: &'static str,
    name: &'static str,
    regex_size: u64,
    check: Check,
}

const fn named(key: &'static str, name: &'static str, regex_size: u64, check: Check) -> Format {
    Format { key, name, regex_size, check }
}

static FORMATS: &[Format] = &[
    named("dns1123Label", "DNS1123Label", 30, dns1123_label),
    named("dns1123Subdomain", "DNS1123Subdomain", 60, dns1123_subdomain),
    named("dns1035Label", "DNS1035Label", 30, dns1035_label),
    named("qualifiedName", "QualifiedName", 60, qualified_name),
    named("dns1123LabelPrefix", "DNS1123LabelPrefix", 30, |text| dns1123_label(&mask(text))),
    named("dns1123SubdomainPrefix", "DNS1123SubdomainPrefix", 60, |text| dns1123_subdomain(&mask(text))),
    named("dns1035LabelPrefix", "DNS1035LabelPrefix", 30, |text| dns1035_label(&mask(text))),
    named("labelValue", "LabelValue", 40, label_value),
    named("uri", "URI", 1103, |text| super::url::check(text).err().into_iter().collect()),
    named("uuid", "uuid", 78, |text| unless(is_uuid(text), "does not match the UUID format")),
    named("byte", "byte", 84, |text| unless(is_base64(text), "invalid base64")),
    named("date", "date", 79, |text| unless(time::parse_date(text).is_some(), "invalid date")),
    named("datetime", "datetime", 79, |text| unless(is_date_time(text), "invalid datetime")),
];

pub(super) const FUNCTIONS: &[Function] = &[
    row(
        "validate",
        Cost::Validate,
        validate,
        &[("format-validate", ".kubernetes.NamedFormat, string -> optional(list(string))")],
    ),
    row(
        "format.named",
        Cost::Unit,
        by_name,
        &[("format-named", "string -> optional(kubernetes.NamedFormat)")],
    ),
    row(
        "format.dns1123Label",
        Cost::Unit,
        |_| of(0),
        &[("format.dns1123Label", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.dns1123Subdomain",
        Cost::Unit,
        |_| of(1),
        &[("format.dns1123Subdomain", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.dns1035Label",
        Cost::Unit,
        |_| of(2),
        &[("format.dns1035Label", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.qualifiedName",
        Cost::Unit,
        |_| of(3),
        &[("format.qualifiedName", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.dns1123LabelPrefix",
        Cost::Unit,
        |_| of(4),
        &[("format.dns1123LabelPrefix", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.dns1123SubdomainPrefix",
        Cost::Unit,
        |_| of(5),
        &[("format.dns1123SubdomainPrefix", "-> kubernetes.NamedFormat")],
    ),
    row(
        "format.dns1035LabelPrefix",
        Cost::Unit,
        |_| of(6),
        &[("format.dns1035LabelPrefix", "-> kubernetes.NamedFormat")],
    ),
    row("format.labelValue", Cost::Unit, |_| of(7), &[("format.labelValue", "-> kubernetes.NamedFormat")]),
    row("format.uri", Cost::Unit, |_| of(8), &[("format.uri", "-> kubernetes.NamedFormat")]),
    row("format.uuid", Cost::Unit, |_| of(9), &[("format.uuid", "-> kubernetes.NamedFormat")]),
    row("format.byte", Cost::Unit, |_| of(10), &[("format.byte", "-> kubernetes.NamedFormat")]),
    row("format.date", Cost::Unit, |_| of(11), &[("format.date", "-> kubernetes.NamedFormat")]),
    row("format.datetime", Cost::Unit, |_| of(12), &[("format.datetime", "-> kubernetes.NamedFormat")]),
];

#[derive(Debug)]
struct Named(&'static Format);

impl OpaqueValue for Named {
    fn type_name(&self) -> &'static str {
        "kubernetes.NamedFormat"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Named>().map(|other| self.0.name == other.0.name)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The size of the pattern that a format is charged for.
pub(super) fn regex_size(value: &Value<'_>) -> Option<u64> {
    value.downcast::<Named>().map(|named| named.0.regex_size)
}

fn of<'a>(index: usize) -> Res<'a> {
    Ok(Value::opaque(Named(&FORMATS[index])))
}

fn by_name<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(name)] = args else { return never(args) };
    match FORMATS.iter().find(|format| format.key == &**name) {
        Some(format) => Ok(Value::some(Value::opaque(Named(format)))),
        None => Ok(Value::Optional(None)),
    }
}

fn validate<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [format, Value::String(text)] = args else { return never(args) };
    let named = format.downcast::<Named>().ok_or(EvalError::NoSuchOverload)?;
    let mistakes = (named.0.check)(text);
    if mistakes.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(mistakes.into_iter().map(Value::string).collect())))
}

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

/// A prefix may end in a dash, which a name may not.
fn mask(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut masked: String = rest.to_owned();
            masked.pop();
            masked.push('a');
            masked
        }
        _ => text.to_owned(),
    }
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const UUID: &str = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";

/// Whether a text is, as a whole, what one of the patterns above describes.
fn is(pattern: &'static str, cell: &'static OnceLock<Option<Regex>>, text: &str) -> bool {
    cell.get_or_init(|| Regex::new(&format!("^(?:{pattern})$")).ok())
        .as_ref()
        .is_some_and(|regex| regex.is_match(text))
}

fn too_long(text: &str, max: usize, unit: &str) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} {unit}"))
}

fn refused(what: &str, examples: &[&str], pattern: &str) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn is_subdomain(text: &str) -> bool {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    is(SUBDOMAIN, &CELL, text)
}

fn dns1123_label(text: &str) -> Vec<String> {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    let mut mistakes: Vec<String> = too_long(text, 63, "bytes").into_iter().collect();
    if !is(LABEL, &CELL, text) {
        mistakes.push(if is_subdomain(text) {
            "must not contain dots".into()
        } else {
            let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                        must start and end with an alphanumeric character";
            refused(what, &["my-name", "123-abc"], LABEL)
        });
    }
    mistakes
}

fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut mistakes: Vec<String> = too_long(text, 253, "bytes").into_iter().collect();
    if !is_subdomain(text) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                    and must start and end with an alphanumeric character";
        mistakes.push(refused(what, &["example.com"], SUBDOMAIN));
    }
    mistakes
}

fn dns1035_label(text: &str) -> Vec<String> {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    let mut mistakes: Vec<String> = too_long(text, 63, "characters").into_iter().collect();
    if !is(LABEL_1035, &CELL, text) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                    alphabetic character, and end with an alphanumeric character";
        mistakes.push(refused(what, &["my-name", "abc-123"], LABEL_1035));
    }
    mistakes
}

fn qualified_name(text: &str) -> Vec<String> {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    const WHAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut mistakes = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                mistakes.push("prefix part must be non-empty".into());
            } else {
                mistakes.extend(
                    dns1123_subdomain(prefix).into_iter().map(|message| format!("prefix part {message}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                refused(WHAT, &examples, KEY)
            )];
        }
    };
    if name.is_empty() {
        mistakes.push("name part must be non-empty".into());
    } else if let Some(message) = too_long(name, 63, "bytes") {
        mistakes.push(format!("name part {message}"));
    }
    if !is(KEY, &CELL, name) {
        mistakes.push(format!("name part {}", refused(WHAT, &examples, KEY)));
    }
    mistakes
}

fn label_value(text: &str) -> Vec<String> {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    let mut mistakes: Vec<String> = too_long(text, 63, "bytes").into_iter().collect();
    if !is(VALUE, &CELL, text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                    and must start and end with an alphanumeric character";
        mistakes.push(refused(what, &["MyValue", "my_value", "12345"], VALUE));
    }
    mistakes
}

fn is_uuid(text: &str) -> bool {
    static CELL: OnceLock<Option<Regex>> = OnceLock::new();
    is(UUID, &CELL, text)
}

fn is_base64(text: &str) -> bool {
    !text.is_empty() && base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_date_time(text: &str) -> bool {
    // Lower case letters separate too.
    time::parse_timestamp(&text.to_uppercase()).is_ok()
}

/// Checks names of service accounts and namespaces for the authorizer.
pub(super) fn is_dns1123_subdomain(text: &str) -> bool {
    dns1123_subdomain(text).is_empty()
}

pub(super) fn is_dns1123_label(text: &str) -> bool {
    dns1123_label(text).is_empty()
}
