//! Field selectors: `status.phase=Running,spec.nodeName!=`.

use std::{borrow::Cow, fmt};

use crate::selector::look_up;

/// Why a field selector is not one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FieldSelectorError {
    /// A term has no operator.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole selector.
        selector: String,
        /// The term.
        term: String,
    },
    /// A backslash stands before a character that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// A comma or equals sign in a value lacks its backslash.
    #[error("invalid field selector: unescaped character in value: {}", u32::from(*.0))]
    Unescaped(char),
}

/// How a [`FieldRequirement`] compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldOperator {
    /// `=` or `==`
    Equals,
    /// `!=`
    NotEquals,
}

/// One condition on one field. An absent field is the empty string.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldRequirement {
    /// The field: `status.phase`.
    pub field: Box<str>,
    /// How it compares.
    pub operator: FieldOperator,
    /// With what.
    pub value: Box<str>,
}

/// A conjunction of conditions on fields. The empty one matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// The selector for one value of one field.
    pub fn equals(field: &str, value: &str) -> Self {
        let requirement =
            FieldRequirement { field: field.into(), operator: FieldOperator::Equals, value: value.into() };
        Self { requirements: vec![requirement] }
    }

    /// Parses the string form.
    pub fn parse(selector: &str) -> Result<Self, FieldSelectorError> {
        let mut terms = split_terms(selector);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let (field, operator, value) = split_term(term).ok_or_else(|| FieldSelectorError::Term {
                selector: selector.to_owned(),
                term: term.to_owned(),
            })?;
            let value = unescape(value)?;
            // Of no field nothing is asked.
            if !field.is_empty() || !value.is_empty() {
                requirements.push(FieldRequirement { field: field.into(), operator, value: value.into() });
            }
        }
        Ok(Self { requirements })
    }

    /// Adds a condition.
    pub fn add(&mut self, requirement: FieldRequirement) {
        self.requirements.push(requirement);
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether fields, sorted by name, match.
    pub fn matches<K: AsRef<str>, V: AsRef<str>>(&self, fields: &[(K, V)]) -> bool {
        self.matches_with(|name| look_up(fields, name).unwrap_or_default())
    }

    /// Whether the fields that `get` looks up (the empty string where absent) match.
    pub fn matches_with<'v>(&self, get: impl Fn(&str) -> &'v str) -> bool {
        self.requirements
            .iter()
            .all(|r| (get(&r.field) == r.value.as_ref()) == (r.operator == FieldOperator::Equals))
    }

    /// The one value that `field` must have, if the selector demands one.
    pub fn exact_match(&self, field: &str) -> Option<&str> {
        let wanted = |r: &&FieldRequirement| r.field.as_ref() == field && r.operator == FieldOperator::Equals;
        self.requirements.iter().find(wanted).map(|r| r.value.as_ref())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let operator = if r.operator == FieldOperator::Equals { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}{}", r.field, escape(&r.value))?;
        }
        Ok(())
    }
}

fn escape(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', ',', '=']) {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() + 4);
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    Cow::Owned(out)
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(FieldSelectorError::Escape(format!("\\{c}"))),
                None => return Err(FieldSelectorError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(c)),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Splits at commas that no backslash precedes.
fn split_terms(selector: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (i, byte) in selector.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&selector[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    terms
}

/// Splits at the first operator.
fn split_term(term: &str) -> Option<(&str, FieldOperator, &str)> {
    let bytes = term.as_bytes();
    let at = (0..bytes.len()).find(|&i| bytes[i] == b'=' || bytes[i..].starts_with(b"!="))?;
    let (operator, length) = match &bytes[at..] {
        [b'!', ..] => (FieldOperator::NotEquals, 2),
        [b'=', b'=', ..] => (FieldOperator::Equals, 2),
        _ => (FieldOperator::Equals, 1),
    };
    Some((&term[..at], operator, &term[at + length..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn matching() {
        let fields = [("metadata.name", "a"), ("status.phase", "Running")];
        for (text, expect) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==b", false),
            ("metadata.name=a,status.phase!=Failed", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            (",metadata.name=a,", true),
            ("=,!=", true),
            ("=x", false),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&fields), expect, "{text}");
        }
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=b").unwrap();
        assert_eq!(selector.exact_match("metadata.name"), Some("a"));
        assert_eq!(selector.exact_match("status.phase"), None);
        assert!(FieldSelector::parse("=").unwrap().is_empty());
    }

    #[test]
    fn errors_are_worded_as_upstream() {
        for (text, message) in [
            ("x", "invalid selector: 'x'; can't understand 'x'"),
            ("a=b,x", "invalid selector: 'a=b,x'; can't understand 'x'"),
            ("a=\\x", "invalid field selector: invalid escape sequence: \\x"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn print_then_parse_keeps_any_value(value in ".{0,20}") {
            let selector = FieldSelector::equals("a.b", &value);
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = FieldSelector::parse(&text);
        }
    }
}
