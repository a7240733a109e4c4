//! One webhook of a configuration, compiled; and which requests it wants to see, in which version.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::selector::LabelSelector;

use super::{Attributes, Operation, labels};
use crate::{
    outbound::Client,
    registry::Served,
    status::{ApiError, ApiResult, GroupResource},
};

const DEFAULT_TIMEOUT_S: i64 = 10;

/// Versions of `AdmissionReview`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReviewVersion {
    /// `admission.k8s.io/v1`
    V1,
    /// `admission.k8s.io/v1beta1`, whose answers need to say less.
    V1Beta1,
}

/// A selector, or why it cannot be read.
type Selector = Result<LabelSelector, String>;

/// One webhook.
pub struct Hook {
    /// The configuration it is of.
    pub configuration: String,
    /// Its name.
    pub name: String,
    /// Tells it apart from all others.
    pub uid: String,
    /// Of a MutatingWebhookConfiguration.
    pub is_mutating: bool,
    /// The request passes where the webhook cannot be asked.
    pub ignores_failures: bool,
    /// Wants to be called again when something changed after it.
    pub reinvoke: bool,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether it may be called for what is not stored; `None` where it does not say.
    pub knows_dry_run: Option<bool>,
    /// The newest review that it understands and that there is.
    pub review: Option<ReviewVersion>,
    /// Reaches it.
    pub client: Client,
    rules: Vec<Rule>,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

/// What a webhook wants to see.
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Plural and subresource.
    resources: Vec<(String, String)>,
    /// Only in namespaces, or only outside.
    namespaced: Option<bool>,
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let list = |field: &str| rule.strings(field).iter().map(|s| (*s).to_owned()).collect();
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: rule
                .strings("resources")
                .iter()
                .map(|r| r.split_once('/').unwrap_or((r, "")))
                .map(|(plural, sub)| (plural.to_owned(), sub.to_owned()))
                .collect(),
            namespaced: match rule.str_at("scope") {
                "Namespaced" => Some(true),
                "Cluster" => Some(false),
                _ => None,
            },
        }
    }

    fn matches(&self, attributes: &Attributes<'_>, served: &Served) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|v| v == "*" || v == wanted);
        self.resources.iter().any(|(plural, sub)| {
            (plural == "*" || **plural == *served.plural) && (sub == "*" || sub == attributes.subresource)
        }) && any(&self.groups, &served.group)
            && any(&self.operations, attributes.operation.name())
            && any(&self.versions, &served.version)
            && self.namespaced.is_none_or(|namespaced| namespaced == served.namespaced)
    }
}

fn selector(value: &Value) -> Selector {
    if value.is_null() {
        return Ok(LabelSelector::everything());
    }
    LabelSelector::from_object(value).map_err(|e| e.to_string())
}

impl Hook {
    /// The webhooks of a configuration.
    pub fn all_of(configuration: &[u8]) -> Vec<Arc<Self>> {
        let Ok(configuration) = serde_json::from_slice::<Value>(configuration) else { return Vec::new() };
        let is_mutating = configuration.str_at("kind") == "MutatingWebhookConfiguration";
        let name = configuration.str_at("metadata.name");
        configuration
            .items("webhooks")
            .iter()
            .enumerate()
            .map(|(i, hook)| Arc::new(Self::new(hook, name, i, is_mutating)))
            .collect()
    }

    fn new(hook: &Value, configuration: &str, place: usize, is_mutating: bool) -> Self {
        let name = hook.str_at("name").to_owned();
        let seconds = hook.int_opt("timeoutSeconds").unwrap_or(DEFAULT_TIMEOUT_S).clamp(1, 30);
        Self {
            uid: format!("{configuration}/{name}/{place}"),
            configuration: configuration.to_owned(),
            name,
            is_mutating,
            ignores_failures: hook.str_at("failurePolicy") == "Ignore",
            reinvoke: hook.str_at("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            knows_dry_run: hook.str_opt("sideEffects").map(|s| matches!(s, "None" | "NoneOnDryRun")),
            review: hook.strings("admissionReviewVersions").iter().find_map(|v| match *v {
                "v1" => Some(ReviewVersion::V1),
                "v1beta1" => Some(ReviewVersion::V1Beta1),
                _ => None,
            }),
            client: Client::new(hook.at("clientConfig")),
            rules: hook.items("rules").iter().map(Rule::new).collect(),
            equivalent: hook.str_at("matchPolicy") != "Exact",
            namespaces: selector(hook.at("namespaceSelector")),
            objects: selector(hook.at("objectSelector")),
        }
    }

    /// The version of the resource in which the webhook wants to see the request.
    fn version(&self, attributes: &Attributes<'_>) -> Option<Arc<Served>> {
        if self.rules.iter().any(|rule| rule.matches(attributes, attributes.served)) {
            return Some(attributes.served.clone());
        }
        if !self.equivalent {
            return None;
        }
        let registry = attributes.call.core.registry.load();
        let versions = registry.versions_of(&attributes.served.stored.kind_key);
        let has_sub = |served: &Served| {
            attributes.subresource.is_empty() || served.sub(attributes.subresource).is_some()
        };
        // Earlier rules go first.
        self.rules.iter().find_map(|rule| {
            let equivalent = |s: &&Arc<Served>| {
                !Arc::ptr_eq(s, attributes.served) && has_sub(s) && rule.matches(attributes, s)
            };
            versions.iter().find(equivalent).cloned()
        })
    }

    fn wants_namespace(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> ApiResult<bool> {
        let is_namespace = attributes.is("", "namespaces");
        if !is_namespace && !attributes.served.namespaced {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(ApiError::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        if is_namespace
            && writes
            && attributes.subresource.is_empty()
            && let Some(object) = object
        {
            return Ok(selector.matches_value(labels(object)));
        }
        let name = if is_namespace { attributes.name } else { attributes.namespace };
        match attributes.call.core.store().get("namespaces", name) {
            Some(namespace) => Ok(selector.matches(&namespace.attrs.labels)),
            None => Err(ApiError::not_found(GroupResource { group: "", resource: "namespaces" }, name)),
        }
    }

    fn wants_object(&self, object: Option<&Value>, old: Option<&Value>) -> ApiResult<bool> {
        let selector = self.objects.as_ref().map_err(ApiError::internal)?;
        let selected = |o: &Value| o.has("metadata") && selector.matches_value(labels(o));
        Ok(selector.is_empty() || object.is_some_and(selected) || old.is_some_and(selected))
    }
}

/// A webhook that wants to see a request.
pub struct Invocation<'a> {
    /// The webhook.
    pub hook: &'a Hook,
    /// The resource in the version it wants.
    pub served: Arc<Served>,
}

impl<'a> Invocation<'a> {
    /// The call of `hook` for this request, if there is to be one.
    pub fn of(
        hook: &'a Hook,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> ApiResult<Option<Self>> {
        let Some(served) = hook.version(attributes) else { return Ok(None) };
        let wanted = hook.wants_namespace(attributes, object)? && hook.wants_object(object, old)?;
        Ok(wanted.then_some(Self { hook, served }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said() {
        let hooks = Hook::all_of(
            json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "c"}, "webhooks": [
                {"name": "a", "admissionReviewVersions": ["v2", "v1beta1", "v1"]},
                {"name": "b", "timeoutSeconds": 99, "sideEffects": "NoneOnDryRun", "matchPolicy": "Exact",
                    "failurePolicy": "Ignore", "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v2"]},
            ]})
            .to_string()
            .as_bytes(),
        );
        let [a, b] = hooks.as_slice() else { panic!("two webhooks") };
        assert_eq!((a.timeout.as_secs(), b.timeout.as_secs()), (10, 30));
        assert_eq!((a.review, b.review), (Some(ReviewVersion::V1Beta1), None));
        assert_eq!((a.knows_dry_run, b.knows_dry_run), (None, Some(true)));
        assert!(a.is_mutating && a.equivalent && !a.ignores_failures && !a.reinvoke);
        assert!(!b.equivalent && b.ignores_failures && b.reinvoke);
        assert_eq!((a.uid.as_str(), b.uid.as_str()), ("c/a/0", "c/b/1"));
        assert!(Hook::all_of(b"no json").is_empty());
    }
}
