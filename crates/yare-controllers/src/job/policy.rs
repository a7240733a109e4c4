//! What a failed pod means for its Job, and when enough indexes have succeeded.

use serde::Deserialize;
use yare_client::Cached;

use super::indexes::Indexes;
use crate::views::{ContainerStatus, PodView, nullable};

/// `spec.podFailurePolicy`
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
pub struct FailurePolicy {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<FailureRule>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct FailureRule {
    action: String,
    on_exit_codes: Option<OnExitCodes>,
    #[serde(deserialize_with = "nullable")]
    on_pod_conditions: Vec<OnPodCondition>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct OnExitCodes {
    container_name: Option<String>,
    operator: String,
    values: Vec<i32>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct OnPodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// The verdict on a failed pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It counts towards the back-off limit.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The whole Job has failed; why.
    FailJob(String),
}

impl Verdict {
    /// The action of rules that come to it.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Ignore => "Ignore",
            Self::FailIndex => "FailIndex",
            Self::FailJob(_) => "FailJob",
        }
    }
}

impl FailurePolicy {
    /// The first matching rule decides; without one the pod counts.
    pub fn judge(&self, pod: &Cached, view: &PodView) -> Verdict {
        self.matching(pod, view).unwrap_or(Verdict::Count)
    }

    /// What the first matching rule says of a failed pod.
    pub fn matching(&self, pod: &Cached, view: &PodView) -> Option<Verdict> {
        for (i, rule) in self.rules.iter().enumerate() {
            let message = if let Some(on) = &rule.on_exit_codes {
                let status = &view.status;
                let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses);
                let Some((name, code)) = containers.find_map(|c| on.matches(c)) else { continue };
                format!(
                    "Container {name} for pod {}/{} failed with exit code {code} matching {} rule at index {i}",
                    pod.namespace(),
                    pod.name(),
                    rule.action
                )
            } else {
                let mut conditions = view.status.conditions.iter();
                let matching = conditions.find(|c| {
                    rule.on_pod_conditions.iter().any(|on| on.kind == c.kind && on.status == c.status)
                });
                let Some(condition) = matching else { continue };
                format!(
                    "Pod {}/{} has condition {} matching {} rule at index {i}",
                    pod.namespace(),
                    pod.name(),
                    condition.kind,
                    rule.action
                )
            };
            match &*rule.action {
                "Ignore" => return Some(Verdict::Ignore),
                "FailIndex" => return Some(Verdict::FailIndex),
                "Count" => return Some(Verdict::Count),
                "FailJob" => return Some(Verdict::FailJob(message)),
                _ => {}
            }
        }
        None
    }
}

impl OnExitCodes {
    fn matches<'a>(&self, container: &'a ContainerStatus) -> Option<(&'a str, i32)> {
        let code = container.state.terminated.as_ref()?.exit_code;
        let named = self.container_name.as_ref().is_none_or(|n| *n == container.name);
        let listed = self.values.contains(&code);
        let matches = match &*self.operator {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (named && code != 0 && matches).then_some((&*container.name, code))
    }
}

/// `spec.successPolicy`
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
pub struct SuccessPolicy {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<SuccessRule>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct SuccessRule {
    succeeded_indexes: Option<String>,
    succeeded_count: Option<i32>,
}

impl SuccessPolicy {
    /// The number of the first rule that is met.
    pub fn met(&self, succeeded: &Indexes, completions: i32) -> Option<usize> {
        if succeeded.is_empty() {
            return None;
        }
        let enough =
            |n: usize, count: Option<i32>| count.is_some_and(|c| n >= usize::try_from(c).unwrap_or(0));
        self.rules.iter().position(|rule| match &rule.succeeded_indexes {
            Some(indexes) => {
                let required = Indexes::parse(indexes, completions);
                let done = required.common(succeeded);
                !required.is_empty() && (done == required.len() || enough(done, rule.succeeded_count))
            }
            None => enough(succeeded.len(), rule.succeeded_count),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_matching_rule_decides() {
        let policy: FailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}))
        .unwrap();
        let judge = |status: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "status": status});
            let cached = Cached::new(pod.to_string().into()).unwrap();
            policy.judge(&cached, &cached.view().unwrap())
        };
        let exited = |name: &str, code: i32| json!({"containerStatuses": [{"name": name, "state": {"terminated": {"exitCode": code}}}]});
        assert_eq!(
            judge(json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]})),
            Verdict::Ignore
        );
        let message = "Container main for pod d/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(exited("main", 42)), Verdict::FailJob(message.into()));
        assert_eq!(judge(exited("other", 42)), Verdict::Count);
        assert_eq!(judge(exited("other", 7)), Verdict::FailIndex);
        assert_eq!(judge(exited("main", 0)), Verdict::Count);
    }

    #[test]
    fn success_rules() {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0-2", "succeededCount": 2}, {"succeededIndexes": "4"}, {"succeededCount": 3}]}))
        .unwrap();
        for (succeeded, expected) in
            [("", None), ("0", None), ("0,2", Some(0)), ("4", Some(1)), ("3,5,6", Some(2))]
        {
            assert_eq!(policy.met(&Indexes::parse(succeeded, 10), 10), expected, "{succeeded}");
        }
    }
}
