//! Which requests a webhook, a policy or a binding is about: rules, the versions they name, selectors of
//! namespaces and objects.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::selector::LabelSelector;

use super::{Attributes, Operation};
use crate::{
    registry::Served,
    status::{ApiError, ApiResult, GroupResource},
};

/// A selector, or why it cannot be read.
type Selector = Result<LabelSelector, String>;

/// What somebody wants to see.
pub struct Matcher {
    rules: Vec<Rule>,
    /// What is left out of it.
    excluded: Vec<Rule>,
    /// No rules mean everything, and not nothing.
    everything: bool,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

/// One rule.
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Plural and subresource.
    resources: Vec<(String, String)>,
    /// Only in namespaces, or only outside.
    namespaced: Option<bool>,
    /// Only these objects; empty: all.
    names: Vec<String>,
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
            names: list("resourceNames"),
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
            && (self.names.is_empty() || self.names.iter().any(|name| name == attributes.name))
    }
}

fn selector(value: &Value) -> Selector {
    if value.is_null() {
        return Ok(LabelSelector::everything());
    }
    LabelSelector::from_object(value).map_err(|e| e.to_string())
}

impl Matcher {
    /// Of a webhook.
    pub fn of_webhook(hook: &Value) -> Self {
        Self {
            rules: hook.items("rules").iter().map(Rule::new).collect(),
            excluded: Vec::new(),
            everything: false,
            equivalent: hook.str_at("matchPolicy") != "Exact",
            namespaces: selector(hook.at("namespaceSelector")),
            objects: selector(hook.at("objectSelector")),
        }
    }

    /// Of `MatchResources`.
    pub fn of_resources(resources: &Value) -> Self {
        let rules = |field: &str| resources.items(field).iter().map(Rule::new).collect::<Vec<Rule>>();
        let wanted = rules("resourceRules");
        Self {
            everything: wanted.is_empty(),
            rules: wanted,
            excluded: rules("excludeResourceRules"),
            ..Self::of_webhook(resources)
        }
    }

    /// Plural names of what the rules are about; `None`: of anything.
    pub fn plurals(&self) -> Option<BTreeSet<&str>> {
        let all = || self.rules.iter().flat_map(|rule| &rule.resources).map(|(plural, _)| plural.as_str());
        (!self.everything && all().all(|plural| plural != "*")).then(|| all().collect())
    }

    /// The version of the resource in which the request is to be seen; `None`: it is not.
    ///
    /// # Errors
    /// A selector cannot be read, or the namespace is gone.
    pub fn matches(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> ApiResult<Option<Arc<Served>>> {
        if !self.excluded.is_empty() && self.version(&self.excluded, attributes).is_some() {
            return Ok(None);
        }
        let version = if self.everything {
            Some(attributes.served.clone())
        } else {
            self.version(&self.rules, attributes)
        };
        let Some(served) = version else { return Ok(None) };
        let wanted = self.wants_namespace(attributes, object)? && self.wants_object(object, old)?;
        Ok(wanted.then_some(served))
    }

    /// The version in which one of the rules is about the request: the request's own, or else one that rests as the
    /// same objects.
    fn version(&self, rules: &[Rule], attributes: &Attributes<'_>) -> Option<Arc<Served>> {
        if rules.iter().any(|rule| rule.matches(attributes, attributes.served)) {
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
        rules.iter().find_map(|rule| {
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

/// Labels of an object, as selectors see them.
fn labels(object: &Value) -> &Value {
    object.at("metadata.labels")
}
