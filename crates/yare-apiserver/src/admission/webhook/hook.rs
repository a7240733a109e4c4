//! One webhook of a configuration, compiled; and which requests it wants to see, in which version.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use yare_kinds::view::View;

use super::{
    super::{
        expressions::{Conditions, Scene, Variables},
        matching::Matcher,
        metrics::ConditionSeries,
    },
    Attributes,
};
use crate::{
    outbound::{Client, kubeconfig::Users},
    registry::Served,
    status::ApiResult,
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

/// Who this server is to webhooks that change objects, and to those that may refuse them.
#[derive(Clone, Debug, Default)]
pub struct ByStep {
    /// Of `MutatingAdmissionWebhook`.
    pub mutating: Option<Users>,
    /// Of `ValidatingAdmissionWebhook`.
    pub validating: Option<Users>,
}

impl ByStep {
    fn of(&self, is_mutating: bool) -> Option<&Users> {
        if is_mutating { self.mutating.as_ref() } else { self.validating.as_ref() }
    }
}

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
    matcher: Matcher,
    conditions: Conditions,
}

impl Hook {
    /// The webhooks of a configuration. `users`: who this server is to them. `within`: what their configurations
    /// have in common that others do not.
    pub fn all_of(configuration: &Value, users: &ByStep, within: &str) -> Vec<Arc<Self>> {
        let is_mutating = configuration.str_at("kind") == "MutatingWebhookConfiguration";
        let name = configuration.str_at("metadata.name");
        configuration
            .items("webhooks")
            .iter()
            .enumerate()
            .map(|(i, hook)| {
                let uid = format!("{within}{name}/{}/{i}", hook.str_at("name"));
                Arc::new(Self::new(hook, uid, name, is_mutating, users))
            })
            .collect()
    }

    fn new(hook: &Value, uid: String, configuration: &str, is_mutating: bool, users: &ByStep) -> Self {
        let name = hook.str_at("name").to_owned();
        let seconds = hook.int_opt("timeoutSeconds").unwrap_or(DEFAULT_TIMEOUT_S).clamp(1, 30);
        Self {
            uid,
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
            client: Client::of_webhook(hook.at("clientConfig"), users.of(is_mutating)),
            matcher: Matcher::of_webhook(hook),
            conditions: Conditions::of_webhook(hook.items("matchConditions")),
        }
    }
}

impl Hook {
    /// Whether all conditions are met. A mistake in one of them counts as the failure policy says.
    fn meets_conditions(
        &self,
        attributes: &Attributes<'_>,
        served: &Arc<Served>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> ApiResult<bool> {
        let kind = if self.is_mutating { "admit" } else { "validate" };
        let series = ConditionSeries { name: &self.name, kind: "webhook", step: kind };
        let scene = Scene::new(attributes, served, object, old);
        let variables = Variables::default();
        let hold = self.conditions.hold(&scene, None, &variables, series, self.ignores_failures);
        let hold = hold.map_err(|why| attributes.forbidden(why))?;
        if !hold {
            attributes.admission().metrics.excluded(series, attributes.operation);
        }
        Ok(hold)
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
        let Some(served) = hook.matcher.matches(attributes, object, old)? else { return Ok(None) };
        if !hook.conditions.is_empty() && !hook.meets_conditions(attributes, &served, object, old)? {
            return Ok(None);
        }
        Ok(Some(Self { hook, served }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said() {
        let hooks = Hook::all_of(
            &json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "c"}, "webhooks": [
                {"name": "a", "admissionReviewVersions": ["v2", "v1beta1", "v1"]},
                {"name": "b", "timeoutSeconds": 99, "sideEffects": "NoneOnDryRun", "matchPolicy": "Exact",
                    "failurePolicy": "Ignore", "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v2"]},
            ]}),
            &ByStep::default(),
            "",
        );
        let [a, b] = hooks.as_slice() else { panic!("two webhooks") };
        assert_eq!((a.timeout.as_secs(), b.timeout.as_secs()), (10, 30));
        assert_eq!((a.review, b.review), (Some(ReviewVersion::V1Beta1), None));
        assert_eq!((a.knows_dry_run, b.knows_dry_run), (None, Some(true)));
        assert!(a.is_mutating && !a.ignores_failures && !a.reinvoke);
        assert!(b.ignores_failures && b.reinvoke);
        assert_eq!((a.uid.as_str(), b.uid.as_str()), ("c/a/0", "c/b/1"));
        assert!(Hook::all_of(&json!("no object"), &ByStep::default(), "").is_empty());
    }
}
