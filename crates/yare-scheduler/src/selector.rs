//! Selectors on labels, compiled from their views.

use crate::view;

/// Labels of an object, sorted by name.
pub type Labels = [(Box<str>, Box<str>)];

/// The value of the label `key`.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*labels[i].1)
}

/// One requirement.
#[derive(Debug, Clone)]
pub struct Requirement {
    key: Box<str>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    In(Box<[String]>),
    NotIn(Box<[String]>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
    /// An operator or value that no object can meet.
    Never,
}

impl Requirement {
    /// Compiles an expression; one that makes no sense matches nothing.
    pub fn new(expression: &view::Expression) -> Self {
        let number = || expression.values.first().and_then(|v| v.parse().ok());
        let test = match expression.operator.as_str() {
            "In" => Test::In(expression.values.clone().into()),
            "NotIn" => Test::NotIn(expression.values.clone().into()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Absent,
            "Gt" => number().map_or(Test::Never, Test::Above),
            "Lt" => number().map_or(Test::Never, Test::Below),
            _ => Test::Never,
        };
        Self { key: expression.key.as_str().into(), test }
    }

    /// `key` is one of `values`.
    pub fn one_of(key: &str, value: &str) -> Self {
        Self { key: key.into(), test: Test::In([value.to_owned()].into()) }
    }

    /// `key` is absent or not `value`.
    pub fn not(key: &str, value: &str) -> Self {
        Self { key: key.into(), test: Test::NotIn([value.to_owned()].into()) }
    }

    /// Whether it holds for the value (or absence) of its key.
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Test::NotIn(values) => value.is_none_or(|v| !values.iter().any(|w| w == v)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Above(limit) => number().is_some_and(|n| n > *limit),
            Test::Below(limit) => number().is_some_and(|n| n < *limit),
            Test::Never => false,
        }
    }
}

/// All requirements must hold; none is everything.
#[derive(Debug, Clone, Default)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// Compiles a label selector.
    pub fn new(selector: &view::LabelSelector) -> Self {
        let equal = selector.match_labels.iter().map(|(k, v)| Requirement::one_of(k, v));
        Self(equal.chain(selector.match_expressions.iter().map(Requirement::new)).collect())
    }

    /// Adds a requirement.
    pub fn and(&mut self, requirement: Requirement) {
        self.0.push(requirement);
    }

    /// Whether `labels` match.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.holds(label(labels, &r.key)))
    }
}

/// `NodeSelectorTerm`: requirements on labels and on the node's name.
#[derive(Debug, Clone)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    /// Compiles a term.
    pub fn new(term: &view::NodeSelectorTerm) -> Self {
        Self {
            labels: term.match_expressions.iter().map(Requirement::new).collect(),
            fields: term.match_fields.iter().map(Requirement::new).collect(),
        }
    }

    /// Whether a node matches. A term without requirements matches none.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|r| r.holds(label(labels, &r.key)))
            && self.fields.iter().all(|r| &*r.key == "metadata.name" && r.holds(Some(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let labels: Vec<(Box<str>, Box<str>)> = vec![("n".into(), "5".into()), ("zone".into(), "a".into())];
        let cases = [
            ("zone", "In", vec!["a", "b"], true),
            ("zone", "In", vec!["b"], false),
            ("zone", "NotIn", vec!["b"], true),
            ("absent", "NotIn", vec!["b"], true),
            ("zone", "Exists", vec![], true),
            ("absent", "Exists", vec![], false),
            ("absent", "DoesNotExist", vec![], true),
            ("n", "Gt", vec!["4"], true),
            ("n", "Gt", vec!["5"], false),
            ("n", "Lt", vec!["6"], true),
            ("zone", "Lt", vec!["6"], false),
            ("n", "Gt", vec!["x"], false),
            ("n", "Sounds", vec!["5"], false),
        ];
        for (key, operator, values, expected) in cases {
            let expression = view::Expression {
                key: key.into(),
                operator: operator.into(),
                values: values.iter().map(|v| (*v).into()).collect(),
            };
            let selector = Selector(vec![Requirement::new(&expression)]);
            assert_eq!(selector.matches(&labels), expected, "{key} {operator} {values:?}");
        }
        assert!(Selector::default().matches(&labels));
        assert!(!NodeTerm::new(&view::NodeSelectorTerm::default()).matches("n1", &labels));
    }
}
