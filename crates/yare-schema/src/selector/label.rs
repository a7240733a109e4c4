//! Label selectors: requirements on labels, all of which must hold.

use std::fmt;

use serde_json::Value;

use crate::{
    content,
    field::{FieldError, Path},
    selector::{label_parse, look_up},
};

/// How a [`Requirement`] compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`
    NotIn,
    /// `key=a`
    Equals,
    /// `key==a`
    DoubleEquals,
    /// `key!=a`
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// Why a selector is not one.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// The string form does not parse.
    #[error("{0}")]
    Syntax(String),
    /// A requirement of the string form is malformed.
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    /// Requirements of an object form are malformed.
    #[error("{}", aggregate(.0))]
    Fields(Vec<FieldError>),
    /// The operator of a `LabelSelector` object is unknown.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    /// The `LabelSelector` object has the wrong shape.
    #[error("label selector: {0}")]
    Shape(&'static str),
}

/// Several errors in one message, as upstream's aggregate words them.
pub(crate) fn aggregate(errors: &[FieldError]) -> String {
    let mut seen: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    if seen.len() == 1 { seen.swap_remove(0) } else { format!("[{}]", seen.join(", ")) }
}

/// One condition on one label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requirement {
    key: Box<str>,
    operator: Operator,
    /// Sorted, without repetition.
    values: Box<[Box<str>]>,
}

impl Requirement {
    /// A checked requirement; its values are sorted and made unique.
    pub fn new(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = impl Into<Box<str>>>,
    ) -> Result<Self, Vec<FieldError>> {
        let mut values: Vec<Box<str>> = values.into_iter().map(Into::into).collect();
        let mut errors = Vec::new();
        let key_path = Path::new("key");
        check_key(key, &key_path, &mut errors);
        let path = Path::new("values");
        let shown = || Value::from(values.iter().map(|v| Value::from(v.as_ref())).collect::<Vec<_>>());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => errors.push(FieldError::invalid(
                &path,
                shown(),
                "for 'in', 'notin' operators, values set can't be empty",
            )),
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => errors
                .push(FieldError::invalid(
                    &path,
                    shown(),
                    "exact-match compatibility requires one single value",
                )),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => errors.push(
                FieldError::invalid(&path, shown(), "values set must be empty for exists and does not exist"),
            ),
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.push(FieldError::invalid(
                        &path,
                        shown(),
                        "for 'Gt', 'Lt' operators, exactly one value is required",
                    ));
                }
                for (i, value) in values.iter().enumerate() {
                    if value.parse::<i64>().is_err() {
                        errors.push(FieldError::invalid(
                            &path.index(i),
                            value.as_ref(),
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        ));
                    }
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = content::label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(&path.index(i).key(key), value.as_ref(), wrong.join("; ")));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        values.sort_unstable();
        values.dedup();
        Ok(Self { key: key.into(), operator, values: values.into() })
    }

    /// The label's name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it compares.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// What it compares with, sorted.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &str> {
        self.values.iter().map(AsRef::as_ref)
    }

    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|v| v.as_ref() == value)
    }

    /// Whether a label with this value (`None`: absent) satisfies the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(|v| self.has(v)),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.has(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let have = value.and_then(|v| v.parse::<i64>().ok());
                let want = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (have, want) {
                    (Some(have), Some(want)) if self.operator == Operator::GreaterThan => have > want,
                    (Some(have), Some(want)) => have < want,
                    _ => false,
                }
            }
        }
    }
}

pub(super) fn check_key(key: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let wrong = content::label_key(key);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, key, wrong.join("; ")));
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.operator == Operator::DoesNotExist {
            f.write_str("!")?;
        }
        f.write_str(&self.key)?;
        let (open, close) = match self.operator {
            Operator::In => (" in (", ")"),
            Operator::NotIn => (" notin (", ")"),
            Operator::Equals => ("=", ""),
            Operator::DoubleEquals => ("==", ""),
            Operator::NotEquals => ("!=", ""),
            Operator::GreaterThan => (">", ""),
            Operator::LessThan => ("<", ""),
            Operator::Exists | Operator::DoesNotExist => return Ok(()),
        };
        f.write_str(open)?;
        for (i, value) in self.values.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(value)?;
        }
        f.write_str(close)
    }
}

/// A conjunction of requirements, sorted by key. The empty one matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A selector from requirements.
    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Parses the string form: `app=web,tier in (a, b),!canary`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        label_parse::parse(text).map(Self::from_requirements)
    }

    /// The selector that asks for exactly these labels, without checking them (for example `spec.selector`
    /// of a Service). An absent or empty map matches everything.
    pub fn from_set<K: AsRef<str>, V: AsRef<str>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        let one = |(k, v): (K, V)| Requirement {
            key: k.as_ref().into(),
            operator: Operator::Equals,
            values: Box::new([v.as_ref().into()]),
        };
        Self::from_requirements(labels.into_iter().map(one).collect())
    }

    /// [`LabelSelector::from_set`] of a JSON object with string values.
    pub fn from_set_value(labels: &Value) -> Self {
        let pairs = labels.as_object().into_iter().flatten();
        Self::from_set(pairs.filter_map(|(k, v)| v.as_str().map(|v| (k, v))))
    }

    /// The selector that a `metav1.LabelSelector` object stands for. Absent (`null`) selects nothing, empty
    /// selects everything.
    pub fn from_object(object: &Value) -> Result<Self, SelectorError> {
        let map = match object {
            Value::Null => return Ok(Self::nothing()),
            Value::Object(map) => map,
            _ => return Err(SelectorError::Shape("must be an object")),
        };
        let mut requirements = Vec::new();
        match map.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(labels)) => {
                for (key, value) in labels {
                    let value =
                        value.as_str().ok_or(SelectorError::Shape("matchLabels values must be strings"))?;
                    requirements.push(
                        Requirement::new(key, Operator::Equals, [value]).map_err(SelectorError::Fields)?,
                    );
                }
            }
            Some(_) => return Err(SelectorError::Shape("matchLabels must be an object")),
        }
        match map.get("matchExpressions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(expressions)) => {
                for expression in expressions {
                    requirements.push(from_expression(expression)?);
                }
            }
            Some(_) => return Err(SelectorError::Shape("matchExpressions must be a list")),
        }
        Ok(Self::from_requirements(requirements))
    }

    /// Whether nothing is required. A selector that matches nothing is not empty.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether no object can match because the selector says so.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// The requirements, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Adds a requirement.
    pub fn add(&mut self, requirement: Requirement) {
        let at = self.requirements.partition_point(|r| r.key <= requirement.key);
        self.requirements.insert(at, requirement);
    }

    /// Whether labels, sorted by name, match.
    pub fn matches<K: AsRef<str>, V: AsRef<str>>(&self, labels: &[(K, V)]) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(look_up(labels, &r.key)))
    }

    /// Whether the labels that `get` looks up match.
    pub fn matches_with<'v>(&self, get: impl Fn(&str) -> Option<&'v str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether the labels in a JSON object (`metadata.labels`; `null` if there are none) match.
    pub fn matches_value(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// The one value that the label `key` must have, if the selector demands exactly one.
    pub fn exact_match(&self, key: &str) -> Option<&str> {
        let r = self.requirements.iter().find(|r| r.key.as_ref() == key)?;
        match (r.operator, &*r.values) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [one]) => Some(one),
            _ => None,
        }
    }
}

fn from_expression(expression: &Value) -> Result<Requirement, SelectorError> {
    let text = |name| expression.get(name).and_then(Value::as_str).unwrap_or_default();
    let operator = match text("operator") {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(SelectorError::Operator(other.to_owned())),
    };
    let mut values = Vec::new();
    match expression.get("values") {
        None | Some(Value::Null) => {}
        Some(Value::Array(items)) => {
            for item in items {
                values.push(item.as_str().ok_or(SelectorError::Shape("values must be strings"))?);
            }
        }
        Some(_) => return Err(SelectorError::Shape("values must be a list")),
    }
    Requirement::new(text("key"), operator, values).map_err(SelectorError::Fields)
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(text: &'static str) -> Vec<(&'static str, &'static str)> {
        text.split(',').filter_map(|pair| pair.split_once('=')).collect()
    }

    #[test]
    fn matching() {
        #[rustfmt::skip]
        let cases = [
            ("",                    "a=1",     true),
            ("a=1",                 "a=1,b=2", true),
            ("a==1",                "a=2",     false),
            ("a!=1",                "b=1",     true),
            ("a!=1",                "a=1",     false),
            ("a in (1,2)",          "a=2",     true),
            ("a in (1,2)",          "b=2",     false),
            ("a notin (1,2)",       "a=3",     true),
            ("a notin (1,2)",       "b=1",     true),
            ("a notin (1,2)",       "a=1",     false),
            ("a",                   "a=",      true),
            ("!a",                  "a=",      false),
            ("!a",                  "b=",      true),
            ("a>5",                 "a=6",     true),
            ("a>5",                 "a=5",     false),
            ("a<5",                 "a=-1",    true),
            ("a<5",                 "a=x",     false),
            ("a<5",                 "b=1",     false),
            ("a=,b",                "a=,b=1",  true),
            (" a = 1 , b in ( x , y ) ", "a=1,b=y", true),
            ("in in (in,notin)",    "in=notin", true),
            ("a in ()",             "a=",      true),
            ("a in (,x)",           "a=",      true),
            ("a in (x,)",           "a=",      true),
        ];
        for (selector, set, expect) in cases {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&labels(set)), expect, "{selector} on {set}");
            let set: serde_json::Map<_, _> =
                labels(set).into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
            assert_eq!(parsed.matches_value(&Value::Object(set)), expect, "{selector}");
        }
    }

    #[test]
    fn printing_is_canonical() {
        for (text, printed) in [
            ("b=1,a in (z,y)", "a in (y,z),b=1"),
            ("!x, a==1", "a==1,!x"),
            ("a!=1,a>2,a<3,a notin (q)", "a!=1,a>2,a<3,a notin (q)"),
            ("", ""),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().to_string(), printed);
        }
    }

    #[test]
    fn errors_are_worded_as_upstream() {
        #[rustfmt::skip]
        let cases = [
            ("a,",          "found '', expected: identifier after ','"),
            ("=1",          "found '=', expected: !, identifier, or 'end of string'"),
            ("a 1",         "unable to parse requirement: found '1', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in 1",      "unable to parse requirement: found '1' expected: '('"),
            ("a in (1",     "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=1 b",       "found 'b', expected: ',' or 'end of string'"),
            ("!",           "unable to parse requirement: found '', expected: identifier"),
            ("a=(",         "unable to parse requirement: found '(', expected: identifier"),
            ("a in (b,-,-)", r#"unable to parse requirement: values[0][a]: Invalid value: "-": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"#),
            ("a>x",         "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer"),
        ];
        for (text, message) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        let bad = LabelSelector::parse("a=-x").unwrap_err().to_string();
        assert!(
            bad.starts_with(
                "unable to parse requirement: values[0][a]: Invalid value: \"-x\": a valid label must"
            ),
            "{bad}"
        );
        let bad = LabelSelector::parse("-a=x").unwrap_err().to_string();
        assert!(
            bad.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part"),
            "{bad}"
        );
    }

    #[test]
    fn objects() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        });
        let selector = LabelSelector::from_object(&selector).unwrap();
        assert_eq!(selector.to_string(), "app=web,!old,tier in (a,b)");
        assert_eq!(selector.exact_match("app"), Some("web"));
        assert_eq!(selector.exact_match("tier"), None);
        assert!(LabelSelector::from_object(&json!(null)).unwrap().is_nothing());
        assert!(!LabelSelector::from_object(&json!(null)).unwrap().matches::<&str, &str>(&[]));
        assert!(LabelSelector::from_object(&json!({})).unwrap().is_empty());
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        let error = LabelSelector::from_object(&bad).unwrap_err();
        assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "In"}]});
        let error = LabelSelector::from_object(&bad).unwrap_err();
        assert_eq!(
            error.to_string(),
            "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
        }

        #[test]
        fn print_then_parse_is_identity(text in "[!]?[ab](=|==|!=| in | notin |>|<|)[(]?[0-9]{0,2}[,]?[0-9]{0,2}[)]?") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(&LabelSelector::parse(&selector.to_string()).unwrap(), &selector);
            }
        }
    }
}
