//! Value constraints of a structural CustomResourceDefinition schema (JSON Schema's validation keywords).
//!
//! A type carries only the constraints it has, as a short list of rules in the order in which upstream
//! reports them; most types have none, so a definition stays small. [`crate::validate`] runs them.

use std::sync::OnceLock;

use serde_json::{Number, Value};
use yare_regexp::{Regex, compile};

/// Constraints on the values of one type.
#[derive(Debug, Default, Clone)]
pub struct Constraints {
    /// What a value must satisfy.
    pub rules: Rules,
    /// The schema gives no type, so none is demanded (members of `additionalProperties: true`).
    pub untyped: bool,
}

/// Rules, all of which must hold.
pub type Rules = Vec<Rule>;

/// JSON types by their names in schemas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JsonType {
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
    /// `x-kubernetes-int-or-string`
    IntOrString,
}

impl JsonType {
    /// The type of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer,string",
        }
    }
}

/// One keyword of a schema.
#[derive(Debug, Clone)]
pub enum Rule {
    /// `type` of a clause of a junctor; types of values proper are in the model. `nullable` beside it.
    Type(JsonType, bool),
    /// `anyOf`
    AnyOf(Box<[Rules]>),
    /// `oneOf`
    OneOf(Box<[Rules]>),
    /// `allOf`
    AllOf(Box<[Rules]>),
    /// `not`
    Not(Rules),
    /// `maxLength`, in characters
    MaxLength(u64),
    /// `minLength`, in characters
    MinLength(u64),
    /// `pattern`
    Pattern(Box<Pattern>),
    /// `format`, one of those that are checked
    Format(Box<str>),
    /// `multipleOf`
    MultipleOf(Number),
    /// `maximum`, and whether it is itself excluded
    Maximum(Number, bool),
    /// `minimum`, and whether it is itself excluded
    Minimum(Number, bool),
    /// `items` of a clause of a junctor
    Items(Rules),
    /// `minItems`
    MinItems(u64),
    /// `maxItems`
    MaxItems(u64),
    /// `uniqueItems`
    UniqueItems,
    /// `enum`
    Enum(Box<[Value]>),
    /// `minProperties`
    MinProperties(u64),
    /// `maxProperties`
    MaxProperties(u64),
    /// `additionalProperties: false`: only these may be present
    OnlyProperties(Box<[Box<str>]>),
    /// `properties` of a clause of a junctor, or of metadata
    Properties(Box<[(Box<str>, Rules)]>),
    /// `required`
    Required(Box<[Box<str>]>),
}

impl Constraints {
    /// Whether there is nothing to hold on to.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.untyped
    }

    /// `maxLength`, `maxItems` or `maxProperties`, whichever the type has: what bounds the cost of walking it.
    pub fn max_size(&self) -> Option<u64> {
        self.rules.iter().find_map(|rule| match rule {
            Rule::MaxLength(n) | Rule::MaxItems(n) | Rule::MaxProperties(n) => Some(*n),
            _ => None,
        })
    }

    /// The allowed values.
    pub fn enumeration(&self) -> Option<&[Value]> {
        self.rules.iter().find_map(|rule| match rule {
            Rule::Enum(values) => Some(&**values),
            _ => None,
        })
    }

    /// The format.
    pub fn format(&self) -> Option<&str> {
        self.rules.iter().find_map(|rule| match rule {
            Rule::Format(format) => Some(&**format),
            _ => None,
        })
    }
}

/// A regular expression in Go's syntax, compiled when it is first used.
#[derive(Debug)]
pub struct Pattern {
    source: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Clone for Pattern {
    fn clone(&self) -> Self {
        Self::new(&self.source)
    }
}

impl Pattern {
    /// An expression that is not compiled yet.
    pub fn new(source: &str) -> Self {
        Self { source: source.into(), compiled: OnceLock::new() }
    }

    /// As written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Compiles the expression to see whether it is one.
    pub fn check(source: &str) -> Result<(), String> {
        compile(source).map(drop)
    }

    /// Whether it matches somewhere in `text`; `None` if it is no expression.
    pub fn matches(&self, text: &str) -> Option<bool> {
        self.compiled.get_or_init(|| compile(&self.source).ok()).as_ref().map(|regex| regex.is_match(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_go_s() {
        assert_eq!(Pattern::new(r"^\d+$").matches("123"), Some(true));
        assert_eq!(Pattern::new(r"^\d+$").matches("١٢٣"), Some(false));
        assert!(Pattern::check("(").is_err());
        assert!(Pattern::check("a{1000}{1000}{1000}").is_err());
        assert_eq!(Pattern::new("(").matches("x"), None);
    }
}
