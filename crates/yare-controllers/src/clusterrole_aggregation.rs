//! Fills ClusterRoles that have an `aggregationRule` with the rules of those it selects.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use yare_client::{CLUSTER_ROLES, Change, Informer, ObjectKey};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    selector::LabelSelector,
    views::nullable,
};

struct Aggregation {
    context: Context,
    roles: Informer,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct View {
    aggregation_rule: Option<Rule>,
    #[serde(deserialize_with = "nullable")]
    rules: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    #[serde(deserialize_with = "nullable")]
    cluster_role_selectors: Vec<LabelSelector>,
}

/// The controller; keys are ClusterRoles.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Aggregation { roles: context.informer(CLUSTER_ROLES), context: context.clone() })
}

/// Any change of a role may concern every role that aggregates.
pub fn changed_role(context: &Context, _: &Change, add: &mut dyn FnMut(ObjectKey)) {
    for role in context.informer(CLUSTER_ROLES).list() {
        if role.view::<View>().is_ok_and(|v| v.aggregation_rule.is_some()) {
            add(role.key().clone());
        }
    }
}

#[async_trait]
impl Reconcile for Aggregation {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(role) = self.roles.get(key) else { return Ok(Next::Done) };
        let view: View = role.view()?;
        let Some(rule) = view.aggregation_rule else { return Ok(Next::Done) };
        let mut rules: Vec<Value> = Vec::new();
        for selector in &rule.cluster_role_selectors {
            // In order of names, so that the result does not depend on chance.
            for other in self.roles.list() {
                if other.name() == role.name() || !selector.matches(other.labels()) {
                    continue;
                }
                for rule in other.view::<View>()?.rules {
                    if !rules.contains(&rule) {
                        rules.push(rule);
                    }
                }
            }
        }
        if rules != view.rules {
            self.context.api.update(&CLUSTER_ROLES, &role, |body| body["rules"] = rules.into()).await?;
        }
        Ok(Next::Done)
    }
}
