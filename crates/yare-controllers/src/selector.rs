//! Label selectors as objects carry them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use yare_client::Cached;

/// `metav1.LabelSelector`. The empty one matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Requirement {
    /// Label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// For `In` and `NotIn`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Labels of a cached object, sorted by name.
pub type Labels = [(Box<str>, Box<str>)];

fn value<'a>(labels: &'a Labels, name: &str) -> Option<&'a str> {
    labels.binary_search_by(|(k, _)| (**k).cmp(name)).ok().map(|i| &*labels[i].1)
}

impl LabelSelector {
    /// A selector of exact labels.
    pub fn labels(labels: BTreeMap<String, String>) -> Self {
        Self { match_labels: labels, match_expressions: Vec::new() }
    }

    /// Whether it has no requirement.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether the labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| value(labels, k) == Some(v))
            && self.match_expressions.iter().all(|r| {
                let found = value(labels, &r.key);
                match &*r.operator {
                    "In" => found.is_some_and(|v| r.values.iter().any(|w| w == v)),
                    "NotIn" => found.is_none_or(|v| r.values.iter().all(|w| w != v)),
                    "Exists" => found.is_some(),
                    "DoesNotExist" => found.is_none(),
                    _ => false,
                }
            })
    }
}

/// `spec.selector` of a workload: a label selector, or plain labels in a ReplicationController. `None` if
/// it selects nothing.
pub fn of_workload(object: &Cached) -> Option<LabelSelector> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct View {
        spec: Spec,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Spec {
        selector: Option<Either>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Plain(BTreeMap<String, String>),
        Selector(LabelSelector),
    }
    let selector = match object.view::<View>().ok()?.spec.selector? {
        Either::Plain(labels) => LabelSelector::labels(labels),
        Either::Selector(selector) => selector,
    };
    (!selector.is_empty()).then_some(selector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn requirements() {
        let have = labels(&[("app", "web"), ("tier", "front")]);
        let table = [
            (r#"{}"#, true),
            (r#"{"matchLabels":{"app":"web"}}"#, true),
            (r#"{"matchLabels":{"app":"db"}}"#, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"In","values":["db","web"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["db"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"no","operator":"NotIn","values":["db"]}]}"#, true),
            (r#"{"matchExpressions":[{"key":"no","operator":"Exists"}]}"#, false),
            (r#"{"matchExpressions":[{"key":"no","operator":"DoesNotExist"}]}"#, true),
            (
                r#"{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"tier","operator":"DoesNotExist"}]}"#,
                false,
            ),
        ];
        for (selector, expected) in table {
            let parsed: LabelSelector = serde_json::from_str(selector).unwrap();
            assert_eq!(parsed.matches(&have), expected, "{selector}");
        }
    }

    #[test]
    fn both_spellings_of_a_workload() {
        for (spec, expected) in [
            (r#"{"selector":{"app":"web"}}"#, true),
            (r#"{"selector":{"matchLabels":{"app":"web"}}}"#, true),
            (r#"{"selector":{}}"#, false),
            (r#"{}"#, false),
        ] {
            let json = format!(r#"{{"metadata":{{"name":"x"}},"spec":{spec}}}"#);
            let object = Cached::new(json.into()).unwrap();
            let matched = of_workload(&object).is_some_and(|s| s.matches(&labels(&[("app", "web")])));
            assert_eq!(matched, expected, "{spec}");
        }
    }
}
